"""A web server with latency for benchmarks: the same photo under any name."""

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
    """Return a JPEG, `edge` pixels high and two thirds as wide, with about the detail of a product photo."""
    size = (edge * 2 // 3, edge)
    coarse = np.random.default_rng(seed).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@contextmanager
def origin(edge: int, delay_s: float) -> Iterator[str]:
    """Serve the photo from a separate process, with a delay before each answer; yield the base URL."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_serve, args=(photo(edge), delay_s, there), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/"
    finally:
        process.terminate()
        process.join()


def _serve(body: bytes, delay_s: float, port: Connection) -> None:
    """Send the port, then answer every request with the same photo."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def answer_requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(delay_s)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer_requests, "127.0.0.1", 0, backlog=1024)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())
