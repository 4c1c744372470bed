"""Photos per second: the download stage against a plain serial loop over the same URLs.

    python -m benchmarks.images

Both bring the same photos from one loopback server, which waits before each answer as a distant
one would, and both decode, shrink and store them. Server and contestants run in processes of
their own. Prints each round, medians, spread and the ratio.
"""

import argparse
import asyncio
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import polars as pl
import requests
from PIL import Image

from pixrec_core import files
from pixrec_core.data import images
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_URL, ITEM
from pixrec_core.settings import ImageSettings

CONTEXT = multiprocessing.get_context("spawn")
SIZE = 128  # pixels, stored
SENT = (200, 300)  # pixels, sent


def photo() -> bytes:
    """A JPEG of some 12 kB, with as much detail as a small product photo has."""
    coarse = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(SENT, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def serve(delay_s: float, port: Connection) -> None:
    """Answer every request with the photo after a wait; tells its port first."""
    body = photo()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(delay_s)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def ours(urls: list[str], threads: int, folder: Path) -> float:
    """Seconds that the stage takes."""
    paths = DatasetPaths(folder)
    pl.DataFrame({ITEM: urls, IMAGE_URL: urls}).write_parquet(paths.items)
    entry = {"path": "unused", "bytes": 1, "sha256": ""}
    files.write_json(paths.raw_manifest, {"reviews": entry, "metadata": entry, "photos": None})
    settings = ImageSettings(size=SIZE, threads=threads, per_host=threads, allow_private_hosts=True)
    start = time.perf_counter()
    stats = images.download(settings, paths)
    seconds = time.perf_counter() - start
    assert stats["ok"] == len(urls), stats["failed_by_reason"]
    return seconds


def serial(urls: list[str], threads: int, folder: Path) -> float:  # noqa: ARG001 - it has one
    """Seconds that one loop takes: get, decode, shrink, save."""
    start = time.perf_counter()
    for number, url in enumerate(urls):
        response = requests.get(url, timeout=20)
        response.raise_for_status()
        image = Image.open(io.BytesIO(response.content)).convert("RGB")
        image.thumbnail((SIZE, SIZE))
        image.save(folder / f"{number}.jpg", quality=90)
    return time.perf_counter() - start


def timed(contestant: Callable[[list[str], int, Path], float], urls: list[str], threads: int, to: Connection) -> None:
    """Run one contestant in a folder of its own; the body of a process."""
    with tempfile.TemporaryDirectory() as folder:
        to.send(contestant(urls, threads, Path(folder)))


def photos_per_second(contestant: Callable[[list[str], int, Path], float], urls: list[str], threads: int) -> float:
    """Measure one contestant in a fresh process."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=timed, args=(contestant, urls, threads, there))
    process.start()
    there.close()
    seconds: float = here.recv()
    process.join()
    return len(urls) / seconds


def main() -> None:
    """Take turns, so that both meet the same weather."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1500, help="in a round of ours; the loop gets a fifth")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--delay-ms", type=float, default=20.0, help="before each answer")
    chosen = parser.parse_args()
    here, there = CONTEXT.Pipe()
    server = CONTEXT.Process(target=serve, args=(chosen.delay_ms / 1000, there), daemon=True)
    server.start()
    port = here.recv()
    urls = [f"http://127.0.0.1:{port}/{number}" for number in range(chosen.photos)]
    rates: dict[str, list[float]] = {"ours": [], "serial": []}
    for number in range(chosen.rounds):
        rates["serial"].append(photos_per_second(serial, urls[: max(1, chosen.photos // 5)], 1))
        rates["ours"].append(photos_per_second(ours, urls, chosen.threads))
        print(f"round {number + 1}: serial {rates['serial'][-1]:.0f}/s, ours {rates['ours'][-1]:.0f}/s", flush=True)
    server.terminate()
    for name, found in rates.items():
        print(f"{name}: median {statistics.median(found):.0f}/s, {min(found):.0f} to {max(found):.0f}")
    ratio = statistics.median(rates["ours"]) / statistics.median(rates["serial"])
    print(f"ratio {ratio:.1f}x ({chosen.photos} photos, {chosen.threads} threads, {chosen.delay_ms:.0f} ms)")


if __name__ == "__main__":
    main()
