# Set-up, demo and checks. `make` without a target lists the targets.
#
# The first target that needs .venv creates it and installs requirements.lock; later, only a change of
# requirements.lock or pyproject.toml installs anything.

VENV := .venv
STAMP := $(VENV)/.installed

# Python 3.11 or newer. Each candidate is run, because a name on the path may be a shim without a Python.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3; do \
	$$each -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $$each && break; done)

# Index of the PyTorch build. For a GPU, in a new .venv:
# make setup TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH = $(shell grep -o '^torch==[0-9.]*' requirements.lock)

# Only errors: with several indexes, pip warns about each package that one of them lacks.
PIP_INSTALL := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check
UV := uv==0.13.9
PYTEST_ARGS ?=
# One process more than cores, since tests wait for processes that they start. Each takes whole files, whose fixtures it
# shares.
PYTEST = pytest --numprocesses 3 --no-loadscope-reorder $(PYTEST_ARGS)

# With it, each process that a test starts would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage stress lint docs results lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s  %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## Create .venv and install all dependencies (a few minutes)

demo: $(STAMP) ## Set up, then run the whole pipeline on generated data (some more minutes)
	$(VENV)/bin/pixrec demo

test: lint ## Set up, then run every check and test; PYTEST_ARGS="-m 'not slow'" skips the slow ones
	$(VENV)/bin/python -m $(PYTEST)

coverage: $(STAMP) ## Set up, then run all tests and report the lines that none of them runs
	@mkdir -p build/coverage
	$(VENV)/bin/python -m coverage erase
	$(VENV)/bin/python -m coverage run -m $(PYTEST)
	$(VENV)/bin/python -m coverage combine --quiet
	$(VENV)/bin/python -m coverage report

stress: $(STAMP) ## Kill stages and feed random lines and settings; STRESS_SECONDS of each test, 60 by default
	STRESS_SECONDS=$(or $(STRESS_SECONDS),60) $(VENV)/bin/python -m pytest tests/stress

lint: $(STAMP) ## Set up, then check style and types
	$(VENV)/bin/python -m ruff check
	$(VENV)/bin/python -m ruff format --check
	$(VENV)/bin/python -m mypy

docs: $(STAMP) ## Set up, then build the site of docs/ in build/site
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build

results: $(STAMP) ## Measure the figures of README and docs again; benchmarks/results.toml names the data
	$(VENV)/bin/python -m benchmarks.results

# $(call make_venv,folder): keeps an environment that works
define make_venv
@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
	python='$(PYTHON)'; \
	"$$python" -c '$(NEW_ENOUGH)' >/dev/null 2>&1 || { \
		echo "PixRec needs Python 3.11 or newer; '$${python:-python3}' is not. Name one: make setup PYTHON=/path/to/python3.11" >&2; \
		exit 1; }; \
	echo "Creating $(1) with $$python"; \
	"$$python" -m venv --clear $(1); }
endef

# PyTorch is installed first and alone, so that pip uses TORCH_INDEX only for it (if that host cannot be
# reached, pip would retry it for each package). Its 2.13.0+cpu is preferred to the plain 2.13.0 of other
# indexes, which on Linux is a CUDA build. The lock is complete, so nothing else is resolved; `pip check`
# verifies this. The project is built with the setuptools of the lock.
$(STAMP): requirements.lock pyproject.toml
	$(call make_venv,$(VENV))
	@echo "[1/4] $(TORCH), about 200 MB, from $(TORCH_INDEX) or pip's default index"
	@$(PIP_INSTALL) --no-deps --retries 1 --timeout 15 $(TORCH_INDEX:%=--extra-index-url %) $(TORCH)
	@echo "[2/4] the $$(grep -c '==' requirements.lock) packages of requirements.lock"
	@$(PIP_INSTALL) --no-deps --requirement requirements.lock
	@echo "[3/4] further packages of a CUDA build of PyTorch (none for a CPU build)"
	@$(PIP_INSTALL) --constraint requirements.lock $(TORCH)
	@echo "[4/4] PixRec itself"
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@$(VENV)/bin/python -m pip check || { echo "requirements.lock does not fit pyproject.toml: make lock" >&2; exit 1; }
	@touch $@

# Resolves for every supported Python and platform. Versions stay the same where they still fit.
lock: ## Rewrite requirements.lock after a change of pyproject.toml; UPGRADE=1 upgrades all packages
	$(call make_venv,build/lock)
	@build/lock/bin/python -m pip install -qq --disable-pip-version-check $(UV)
	build/lock/bin/uv pip compile --quiet --no-header --universal --python-version 3.11 --all-extras \
		$(if $(UPGRADE),--upgrade) --output-file requirements.lock pyproject.toml
	@{ echo "# Written by \`make lock\`: every version that \`make setup\` installs, for users and developers."; \
	echo "# Without hashes: torch has a build for each kind of machine, all with the version below."; \
	cat requirements.lock; } > build/requirements.lock
	@mv build/requirements.lock requirements.lock

clean: ## Remove .venv and the files of tools; keep data/
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis test-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
