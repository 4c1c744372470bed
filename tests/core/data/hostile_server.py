"""A web server on a loopback port whose answers a test writes byte by byte."""

import io
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

Answer = Callable[[BaseHTTPRequestHandler], None]


def jpeg(width=40, height=30, colour=(200, 30, 60), **options):
    """A photo of one colour with a white corner; one without is a placeholder."""
    photo = Image.new("RGB", (width, height), colour)
    photo.paste("white", (width - width // 4, height - height // 4, width, height))
    return encoded(photo, "JPEG", **options)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def sends(body: bytes, status=200, **headers) -> Answer:
    """Return a valid answer."""

    def answer(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def raw(data: bytes) -> Answer:
    """Return an answer of these bytes, followed by the end of the connection."""

    def answer(handler):
        handler.wfile.write(data)
        handler.close_connection = True

    return answer


def trickles(data: bytes, every_s: float, then: bytes = b"") -> Answer:
    """Return an answer that sends `data`, then `then` again and again until the client hangs up or the server ends."""

    def answer(handler):
        handler.close_connection = True
        handler.wfile.write(data)
        while not handler.server.ends.wait(every_s):
            handler.wfile.write(then)

    return answer


def waits(data: bytes = b"") -> Answer:
    """Return an answer that sends `data`, and nothing more until the client hangs up."""

    def answer(handler):
        handler.close_connection = True
        handler.wfile.write(data)
        handler.connection.recv(1)

    return answer


def in_turn(*answers: Answer) -> Answer:
    """Return an answer that uses each of `answers` once, and the last one from then on."""
    left = list(answers)

    def answer(handler):
        now = left.pop(0) if len(left) > 1 else left[0]
        now(handler)

    return answer


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, tls):
        self.tls = tls
        self.answers: dict[str, Answer] = {}
        self.hits: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.ends = threading.Event()
        self.now = self.most = 0
        self.delay_s = 0.0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def host(self):
        return f"127.0.0.1:{self.server_port}"

    def url(self, path, answer=None):
        if answer:
            self.answers[path] = answer
        return f"http://{self.host}{path}"

    def finish_request(self, request, client_address):
        """In the connection's own thread: greet by TLS where there is a context for it."""
        with self.tls.wrap_socket(request, server_side=True) if self.tls else nullcontext(request) as connection:
            super().finish_request(connection, client_address)

    def handle_error(self, request, client_address):
        """Clients that hang up on a hostile answer do right."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self):
        with self.server.lock:
            self.server.hits[self.path] += 1
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        try:
            time.sleep(self.server.delay_s)
            self.server.answers.get(self.path, sends(b"gone", 404))(self)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def log_message(self, *args):
        pass


@contextmanager
def hostile_server(tls=None):
    """A running server; with TLS if a server's `ssl.SSLContext` is given."""
    with Server(tls) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.ends.set()
            server.shutdown()
            thread.join()
