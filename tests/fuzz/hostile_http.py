"""A store that lies: it stands before a real one, hands requests on, and twists the answers that come back.

What is twisted are answers to the very requests of the client, so that they fit in all but the lie.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENDLESS = 96 << 20  # of an answer without end so much is sent; who takes all of it would have taken more
_PIECE = bytes(1 << 16)
_PEER_S = 60


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """``endless`` goes on sending it after the body."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    endless: bytes = b""
    raw_head: bytes | None = None  # instead of status and headers
    cut: bool = False  # the connection is reset after the body
    measured: bool = True  # the length of the body is told in the headers

    def with_header(self, name: str, *values: str) -> Answer:
        kept = [(key, value) for key, value in self.headers if key.lower() != name.lower()]
        return replace(self, headers=[*kept, *((name, value) for value in values)])


Twist = Callable[[Request, Answer], Answer]


@dataclass
class Seen:
    """``taken``: the most that anybody took of one answer."""

    requests: int = 0
    taken: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class HostileProxy:
    """``twist`` may be changed at any time; None: all answers are passed as they are."""

    def __init__(self, port: int, twist: Twist | None = None) -> None:
        self.twist = twist
        self.seen = Seen()
        self.peer_port = port
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self))
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def taken(self) -> int:
        """The most that was taken of one answer without end since it was last honest."""
        return self.seen.taken

    def be_honest(self) -> None:
        self.twist = None
        self.seen.taken = 0

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 50

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away in the middle of answers: that is the point."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True

    def __init__(self, proxy: HostileProxy, *connection: Any) -> None:
        self.proxy = proxy
        super().__init__(*connection)  # answers the whole connection

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self._body()
        request = Request(self.command, self.path, dict(self.headers.items()))
        try:
            answer = self._asked(request, body)
            self._answer(answer if self.proxy.twist is None else self.proxy.twist(request, answer))
        except OSError:
            self.close_connection = True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _asked(self, request: Request, body: bytes) -> Answer:
        peer = http.client.HTTPConnection("127.0.0.1", self.proxy.peer_port, timeout=_PEER_S)
        try:
            peer.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "expect"):
                    peer.putheader(name, value)
            peer.putheader("Content-Length", str(len(body)))
            peer.putheader("Connection", "close")
            peer.endheaders(body)
            answer = peer.getresponse()
            skipped = ("connection", "transfer-encoding", "keep-alive")
            headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in skipped]
            found = Answer(answer.status, headers, answer.read())
        finally:
            peer.close()
        return found if request.method == "HEAD" else found.with_header("Content-Length", str(len(found.body)))

    def _answer(self, answer: Answer) -> None:
        with self.proxy.seen.lock:
            self.proxy.seen.requests += 1
        if answer.measured and self.command != "HEAD" and not answer.endless:
            answer = answer.with_header("Content-Length", str(len(answer.body)))
        head = answer.raw_head
        if head is None:
            lines = [f"HTTP/1.1 {answer.status} Said", *(f"{name}: {value}" for name, value in answer.headers)]
            head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
        self.connection.sendall(head)
        if self.command != "HEAD" or answer.endless:
            self._send_body(answer)
        if answer.cut or answer.endless or not answer.measured or answer.raw_head is not None:
            self.close_connection = True
        if answer.cut:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()

    def _send_body(self, answer: Answer) -> None:
        self.connection.sendall(answer.body)
        if not answer.endless:
            return
        piece = answer.endless * (1 + len(_PIECE) // len(answer.endless))
        sent = 0
        try:
            while sent < ENDLESS:
                self.connection.sendall(piece)
                sent += len(piece)
        finally:
            with self.proxy.seen.lock:
                self.proxy.seen.taken = max(self.proxy.seen.taken, sent)
