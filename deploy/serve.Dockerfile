# The HTTP server of PixRec, on CPU. From the project's folder:
#     docker build --file deploy/serve.Dockerfile --tag pixrec-serve .
#     docker run --publish 127.0.0.1:8000:8000 --env PIXREC_SERVER__TOKEN --volume /srv/pixrec:/srv/pixrec:ro pixrec-serve
# The volume has pixrec.toml and data/; mount it writable for server.log_answers.
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /opt/pixrec
COPY requirements.lock pyproject.toml README.md ./
COPY pixrec_core pixrec_core
COPY pixrec_assets pixrec_assets

# PyTorch first, as in the Makefile: only PyTorch comes from TORCH_INDEX.
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.lock)" \
    && pip install --no-cache-dir --constraint requirements.lock ".[serve]"

RUN useradd --uid 1000 --create-home pixrec
USER 1000
WORKDIR /srv/pixrec
ENV OMP_NUM_THREADS=1
EXPOSE 8000

HEALTHCHECK --start-period=60s --interval=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=5)"]
CMD ["pixrec", "serve", "--host", "0.0.0.0"]
