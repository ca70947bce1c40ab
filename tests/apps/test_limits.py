"""No body is larger than its limit, whatever it tells of itself; nothing of it reaches the disk or a view."""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
from collections.abc import Callable

import pytest

from brs.limits import BodyLimit, Message, Receive, Scope, Send
from node_agent import protocol
from tests.lab.tls_server import Address, read_response, serving

MIB = 1024 * 1024
LIMIT = 1000


@pytest.fixture
def spooled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills up when anything makes a temporary file (they have no name, so a look at the folder shows nothing)."""
    found: list[str] = []
    real = tempfile.TemporaryFile

    def watched(*args: object, **kwargs: object) -> object:
        found.append(repr(args))
        return real(*args, **kwargs)

    monkeypatch.setattr(tempfile, "TemporaryFile", watched)
    return found


def send_chunked(connection: ssl.SSLSocket, path: str, total: int) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    for _ in range(total // 0x10000):
        connection.sendall(piece)
    connection.sendall(b"0\r\n\r\n")


# --- through the whole server, over TLS -----------------------------------------------------------


@pytest.fixture
def server(transactional_db: None) -> object:
    from brs.asgi import application

    with serving(application) as address:
        yield address


@pytest.mark.parametrize(
    "path", ["/api/v1/jobs/", "/admin/login/", "/no/such/page", f"{protocol.PREFIX}/lease", f"{protocol.PREFIX}/enrol"]
)
def test_fifty_megabytes_in_chunks_without_credentials_get_413_and_touch_no_disk(
    server: Address, path: str, spooled: list[str]
) -> None:
    with server.connect() as connection:
        send_chunked(connection, path, 50 * MIB)
        status, body = read_response(connection)
    answer = json.loads(body)
    if path.endswith("/lease"):
        # Who asks for work without a token is refused by the headers alone; its body is never read.
        assert (status, answer["code"]) in {(413, "too-large"), (401, "unknown-node")}
    else:
        assert (status, answer["code"]) == (413, "too-large")
    assert set(answer) == {"code", "message", "hint"}
    assert spooled == []


def test_a_told_length_beyond_the_limit_is_refused_before_a_byte_of_it(server: Address) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /api/v1/jobs/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1500000000\r\n\r\n")
        status, body = read_response(connection)
    assert (status, json.loads(body)["code"]) == (413, "too-large")


def test_a_client_that_asks_first_is_told_413_instead_of_to_go_on(server: Address) -> None:
    with server.connect() as connection:
        head = b"POST /api/v1/jobs/ HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        connection.sendall(head + b"Content-Length: 99999999\r\n\r\n")
        assert read_response(connection)[0] == 413
        assert connection.recv(100) == b""


def test_a_body_of_the_largest_size_reaches_the_view_without_touching_the_disk(
    server: Address, spooled: list[str], settings
) -> None:
    body = b'"' + b"x" * (settings.BRS_BODY_BYTES - 2) + b'"'
    with server.connect() as connection:
        head = b"POST /api/v1/jobs/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status, answer = read_response(connection)
    assert (status, json.loads(answer)["code"]) == (401, "unauthorized")
    assert spooled == []


def test_endless_headers_are_cut_off(server: Address) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        try:
            for _ in range(200):
                connection.sendall(b"X-Filler: " + b"x" * 60_000 + b"\r\n")
            answer = connection.recv(12)
        except OSError:
            answer = b""  # cut off while it was still sending
    assert answer in {b"", b"HTTP/1.1 400", b"HTTP/1.1 431"}


# --- the layer alone ------------------------------------------------------------------------------


async def call(
    application: Callable, pieces: list[bytes], headers: list[tuple[bytes, bytes]] | None = None
) -> list[Message]:
    """What BodyLimit sends for a body that comes in ``pieces``."""
    sent: list[Message] = []
    waiting = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": headers or []}
    await BodyLimit(application, lambda _path: LIMIT)(scope, receive, send)
    return sent


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


async def test_a_body_at_the_limit_passes_and_one_byte_more_does_not() -> None:
    assert (await call(reads_all, [b"x" * 600, b"x" * 400]))[1]["body"] == b"1000"
    assert (await call(reads_all, [b"x" * 600, b"x" * 401]))[0]["status"] == 413


async def test_a_short_told_length_does_not_hide_a_long_body() -> None:
    sent = await call(reads_all, [b"x" * 2000], [(b"content-length", b"10")])
    assert sent[0]["status"] == 413


@pytest.mark.parametrize("value", [b"-1", b"1e9", b"", b"12, 13", "١٢".encode()])
async def test_a_told_length_that_is_no_number_is_a_bad_request(value: bytes) -> None:
    assert (await call(reads_all, [], [(b"content-length", value)]))[0]["status"] == 400


async def test_two_different_lengths_are_a_bad_request() -> None:
    headers = [(b"content-length", b"10"), (b"Content-Length", b"11")]
    assert (await call(reads_all, [b"x" * 10], headers))[0]["status"] == 400


async def test_an_application_that_swallows_the_error_cannot_turn_it_into_its_own() -> None:
    async def swallows(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await reads_all(scope, receive, send)
        except Exception:  # noqa: BLE001  as careless applications do
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"oops"})

    sent = await call(swallows, [b"x" * 2000])
    assert [message["status"] for message in sent if "status" in message] == [413]


async def test_a_body_that_never_ends_is_refused_after_its_time() -> None:
    """One byte, then silence: such requests would be held, and their memory with them, for as long as they like."""
    sent: list[Message] = []
    waiting = [{"type": "http.request", "body": b"x", "more_body": True}]

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        return await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    slow = BodyLimit(reads_all, lambda _path: LIMIT, body_s=0.1)
    await asyncio.wait_for(slow({"type": "http", "path": "/", "headers": []}, receive, send), 5)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


async def test_an_answer_may_take_longer_than_the_body() -> None:
    """A long poll listens for its node to hang up."""

    async def polls(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.3)
        await reads_all(scope, answers, send)

    async def answers() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    first = [await answers()]
    sent: list[Message] = []

    async def receive() -> Message:
        return first.pop() if first else await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": []}
    await BodyLimit(polls, lambda _path: LIMIT, body_s=0.1)(scope, receive, send)
    assert sent[0]["status"] == 200


async def test_what_is_no_http_request_passes_untouched() -> None:
    seen: list[str] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await BodyLimit(application, lambda _path: 0)({"type": "websocket"}, reads_all, reads_all)
    assert seen == ["websocket"]
