"""A distant web server of photos, for benchmarks: one photo under any number of names."""

import asyncio
import io
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import numpy as np
from PIL import Image

CONTEXT = multiprocessing.get_context("spawn")


def photo(edge: int, seed: int = 0) -> bytes:
    """A JPEG, `edge` pixels high and two thirds as wide, with as much detail as a product photo has."""
    size = (edge * 2 // 3, edge)
    coarse = np.random.default_rng(seed).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@contextmanager
def origin(edge: int, delay_s: float) -> Iterator[str]:
    """Serve the photo in a process of its own, waiting before each answer; yields the URL that names follow."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_serve, args=(photo(edge), delay_s, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/"
    finally:
        process.terminate()
        process.join()


def _serve(body: bytes, delay_s: float, port: Connection) -> None:
    """Answer every request alike; tells the port first."""
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
        server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1024)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())
