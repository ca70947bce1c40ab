"""A door on this machine's loopback that the library obstore goes through, so that no answer is longer than it may be.

obstore reads listings and the texts of errors to their end, however far that is, and holds them several times over (150
MiB of zeros, sent as an error, became 930 MiB). It knows proxies, so it is given this one, which passes bytes on as
they are (also TLS: it ends where it ended before) and counts those that come down. Each operation says beforehand how
much may come (:meth:`Gate.expecting`); when more comes than all operations at work expect together, connections are
closed. Each turn of the talk counts as if it were ``_TURN`` bytes, so that listings of many empty pages end, too.

Who does not know the secret in ``url`` is turned away, since other users of this machine may knock as well. The door
is closed when nobody holds it any more.
"""

from __future__ import annotations

import base64
import contextlib
import math
import os
import secrets
import select
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from node_agent.errors import ConfigError

ODD = "The store does not keep to its protocol: look at its version, and at what stands between it and this node."
PATIENCE_S = 15.0
_STUCK_S = 300.0  # that one end takes nothing
_SLACK = 1 << 20  # what an operation may need besides: certificates, heads, tokens
_TURN = 16 << 10
_PIECE = 1 << 18
_MAX_HEAD = 1 << 17
_END = b"\r\n\r\n"


class Gate:
    """``next_proxy``: the address of the proxy that is to be used; None: as the environment says (HTTP_PROXY,
    HTTPS_PROXY, NO_PROXY). A thread for each connection."""

    def __init__(self, next_proxy: str | None = None) -> None:
        self._next: SplitResult | None = None
        if next_proxy is not None:
            self._next = _proxy(next_proxy)
            if self._next is None:
                raise ConfigError("The option proxy must be an address like http://host:port.", hint="Correct it.")
        self._lock = threading.Lock()
        self._expected: list[int] = []
        self._left = _SLACK  # what is said between operations, such as the end of a connection
        self._overran = False
        self._trouble = ""
        self._secret = secrets.token_hex(16)
        self._open: set[socket.socket] = set()
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://brs:{self._secret}@127.0.0.1:{listener.getsockname()[1]}"
        self._shut = weakref.finalize(self, _shut, listener, os.getpid())
        threading.Thread(target=_accept, args=(listener, weakref.ref(self)), name="gate", daemon=True).start()

    @contextlib.contextmanager
    def expecting(self, size: int) -> Iterator[None]:
        """While inside, so many bytes more may come down."""
        size += _SLACK
        with self._lock:
            self._expected.append(size)
            self._left += size
        try:
            yield
        finally:
            with self._lock:
                self._expected.remove(size)
                self._left = min(self._left, sum(self._expected)) if self._expected else _SLACK

    def overrun(self) -> bool:
        """Whether an answer was broken off, since more came than was expected; told once."""
        with self._lock:
            overrun, self._overran = self._overran, False
        return overrun

    def trouble(self) -> str:
        """Why the last connection could not be made, told once; empty if it could be. To be asked when an operation got
        no answer, or this gate's own (502)."""
        with self._lock:
            trouble, self._trouble = self._trouble, ""
        return trouble

    def close(self) -> None:
        self._shut()
        with self._lock:
            open_now, self._open = self._open, set()
        for connection in open_now:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        self._note(client)
        try:
            client.settimeout(PATIENCE_S)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            head, rest = _read_head(client)
            if not self._is_ours(head):
                client.sendall(b"HTTP/1.1 407 Not Ours\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            try:
                way = self._way(head)
                server = _reach(head, way)
            except OSError as error:
                with self._lock:
                    self._trouble = error.strerror or str(error) or type(error).__name__
                client.sendall(b"HTTP/1.1 502 Not Reached\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            with self._lock:
                self._trouble = ""
            self._note(server)
            if head.startswith(b"CONNECT ") and way is None:
                client.sendall(b"HTTP/1.1 200 Reached\r\n\r\n")
                server.sendall(rest)
                self._pump(client, server, _unchanged)
            else:
                requests = _Requests(partial(_rewritten, way))
                server.sendall(requests.feed(head + _END + rest))
                self._pump(client, server, requests.feed)
        except (OSError, ValueError):
            pass  # whoever is at the other end sees that the connection is closed
        finally:
            for connection in filter(None, (client, server)):
                with self._lock:
                    self._open.discard(connection)
                connection.close()

    def _note(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def _is_ours(self, head: bytes) -> bool:
        given = base64.b64encode(f"brs:{self._secret}".encode())
        return any(
            name.lower() == b"proxy-authorization" and secrets.compare_digest(value.strip(), b"Basic " + given)
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        )

    def _way(self, head: bytes) -> SplitResult | None:
        """The next proxy, if there is one. OSError for one that cannot be used."""
        host, port = _place(head)
        if self._next is not None:
            return self._next
        given = getproxies().get("https" if head.startswith(b"CONNECT ") else "http")
        if not given or proxy_bypass(f"{host}:{port}"):
            return None
        way = _proxy(given)
        if way is None:
            raise OSError("the proxy that the environment names is none of HTTP")
        return way

    def _pump(self, client: socket.socket, server: socket.socket, upward: Callable[[bytes], bytes]) -> None:
        """Until one side ends. Time limits are the client's own."""
        for connection in (client, server):
            connection.settimeout(_STUCK_S)
        waiting = select.poll()
        for connection in (client, server):
            waiting.register(connection, select.POLLIN)
        upwards = True
        while True:
            for number, _ in waiting.poll():
                ready = client if number == client.fileno() else server
                data = ready.recv(_PIECE)
                if not data:
                    return
                if ready is client:
                    upwards = True
                    server.sendall(upward(data))
                    continue
                if not self._may_pass(len(data) + (_TURN if upwards else 0)):
                    return
                upwards = False
                client.sendall(data)

    def _may_pass(self, size: int) -> bool:
        with self._lock:
            self._left -= size
            if self._left >= 0:
                return True
            self._overran = True
            return False


def _shut(listener: socket.socket, process: int) -> None:
    if process == os.getpid():
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _accept(listener: socket.socket, gate: weakref.ref[Gate]) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        held = gate()
        if held is None:
            client.close()
            return
        threading.Thread(target=held.serve, args=(client,), name="gate", daemon=True).start()
        del held


def _proxy(text: str) -> SplitResult | None:
    found = urlsplit(text if "://" in text else f"http://{text}")
    return found if found.scheme == "http" and found.hostname else None


def _reach(head: bytes, way: SplitResult | None) -> socket.socket:
    place = (str(way.hostname), way.port or 80) if way is not None else _place(head)
    server = socket.create_connection(place, PATIENCE_S)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server


def _rewritten(way: SplitResult | None, head: bytes) -> bytes:
    """A request of plain HTTP as a server wants it, or as the next proxy does."""
    line, *fields = head.split(b"\r\n")
    fields = [field for field in fields if not field.lower().startswith(b"proxy-authorization:")]
    if way is None:
        method, target, version = line.split(b" ", 2)
        line = b" ".join((method, b"/" + target.partition(b"://")[2].partition(b"/")[2], version))
    elif way.username is not None:
        words = f"{unquote(way.username)}:{unquote(way.password or '')}".encode()
        fields.append(b"Proxy-Authorization: Basic " + base64.b64encode(words))
    return b"\r\n".join([line, *fields])


class _Requests:
    """A stream of requests, whose heads are written anew. After a CONNECT everything stays as it is."""

    def __init__(self, rewritten: Callable[[bytes], bytes]) -> None:
        self._rewritten = rewritten
        self._head = b""
        self._body_left = 0.0

    def feed(self, data: bytes) -> bytes:
        out = b""
        while data:
            if self._body_left:
                body = data if len(data) <= self._body_left else data[: int(self._body_left)]
                data = data[len(body) :]
                self._body_left -= len(body)
                out += body
                continue
            head, end, data = (self._head + data).partition(_END)
            if not end:
                self._head = head
                if len(head) > _MAX_HEAD:
                    raise ValueError("no head")
                break
            self._head = b""
            self._body_left = math.inf if head.startswith(b"CONNECT ") else _body_length(head)
            out += self._rewritten(head) + _END
        return out


def _body_length(head: bytes) -> int:
    """The library tells it, always."""
    fields = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return sum(int(value) for name, _, value in fields if name.lower() == b"content-length")


def _unchanged(data: bytes) -> bytes:
    return data


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    """The first line with its fields, and what came along."""
    found = b""
    while _END not in found:
        data = client.recv(_PIECE)
        if not data or len(found) > _MAX_HEAD:
            raise ValueError("no head")
        found += data
    head, _, rest = found.partition(_END)
    return head, rest


def _place(head: bytes) -> tuple[str, int]:
    method, target, _ = head.split(b"\r\n", 1)[0].decode("ascii").split(" ", 2)
    parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or (443 if method == "CONNECT" else 80)
