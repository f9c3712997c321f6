"""A recording proxy on loopback between two real processes: what was asked when, and requests that are held on the way.

While its upstream is away a caller sees its connection closed, as it would without the proxy.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

UPSTREAM_SECONDS = 600.0


@dataclass
class Asked:
    """One request: when it came (seconds since the epoch), what it was, and its answer (status 0: none yet)."""

    at: float
    method: str
    path: str
    body: bytes = b""
    status: int = 0
    answer: bytes = b""

    def form(self, name: str) -> str:
        """Return a field of a posted form."""
        return parse_qs(self.body.decode())[name][0]


@dataclass
class Held:
    """A request that waits in the proxy until it is delivered or dropped; `asked` is that request once it arrived."""

    method: str
    path: str
    asked: Asked | None = None
    arrived: threading.Event = field(default_factory=threading.Event)
    _go: threading.Event = field(default_factory=threading.Event)
    _deliver: bool = False

    def deliver(self) -> None:
        """Hand it to the upstream after all, however late."""
        self._deliver = True
        self._go.set()

    def drop(self) -> None:
        """Lose it on the way."""
        self._go.set()

    def takes(self, asked: Asked) -> bool:
        """Tell whether this is the request to hold."""
        return asked.method == self.method and asked.path.startswith(self.path)

    def wait(self, asked: Asked) -> bool:
        """Tell that it arrived, and return whether to deliver it."""
        self.asked = asked
        self.arrived.set()
        self._go.wait(UPSTREAM_SECONDS)
        return self._deliver


class Tap(ThreadingHTTPServer):
    """Forwards to `upstream` (a URL); `asked` are the requests in the order in which they came."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.asked: list[Asked] = []
        self.held: Held | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def hold(self, method: str, path: str = "/") -> Held:
        """Let the next request of this method and path wait."""
        self.held = Held(method, path)
        return self.held

    def since(self, at: float, method: str, path: str) -> list[Asked]:
        return [one for one in self.asked if one.at >= at and one.method == method and one.path.startswith(path)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that was killed is part of the story."""


@contextmanager
def tapped(upstream: str) -> Iterator[Tap]:
    tap = Tap(upstream)
    thread = threading.Thread(target=tap.serve_forever, kwargs={"poll_interval": 0.1})
    thread.start()
    try:
        yield tap
    finally:
        if tap.held is not None:
            tap.held.drop()
        tap.shutdown()
        thread.join()
        tap.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Tap

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = Asked(time.time(), self.command, self.path, body)
        self.server.asked.append(asked)
        held = self.server.held
        if held is not None and held.takes(asked):
            self.server.held = None
            if not held.wait(asked):
                self.close_connection = True
                return
        try:
            answer, content = self._ask(body)
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            return
        asked.answer, asked.status = content, answer.status
        with suppress(OSError):
            self.send_response(answer.status)
            for name in ("Content-Type", "Retry-After"):
                if answer.getheader(name):
                    self.send_header(name, str(answer.getheader(name)))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = _forward

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=UPSTREAM_SECONDS)
        try:
            kept = {
                name: value for name, value in self.headers.items() if name.lower() not in {"host", "content-length"}
            }
            upstream.request(self.command, self.path, body or None, kept)
            answer = upstream.getresponse()
            return answer, answer.read()
        finally:
            upstream.close()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  the base class names it so
        """Stay quiet; `asked` is the log."""
