"""The outermost layer of the server: no request's body is larger than its limit, or takes for ever to arrive.

Counted before anything is authenticated or written down, by ``Content-Length`` and, for bodies that do not tell
their length, piece by piece. Django by itself spools a body of any size to the disk before its first check.
What is too large gets 413; the rest of it is thrown away for a moment, since a connection that is closed under a
client's hands loses it the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from apps.errors import DomainError, Invalid, TooLarge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_S = 5.0
BODY_S = 120.0  # within which a whole body must be here


class TooSlow(DomainError):
    code = "too-slow"
    status = 408
    default_message = "The request's body took too long to arrive."
    default_hint = "Send it in smaller pieces."


class BodyRefused(Exception):
    pass


class BodyLimit:
    """``limit_of`` gives the largest body in bytes for a path; within ``body_s`` seconds it must be here."""

    def __init__(self, application: Application, limit_of: Callable[[str], int], body_s: float = BODY_S) -> None:
        self._application = application
        self._limit_of = limit_of
        self._body_s = body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        limit = self._limit_of(scope["path"])
        try:
            told = told_length(scope)
        except Invalid as error:
            await _answer(send, error, last=True)
            return
        if told is not None and told > limit:
            await _refuse(scope, receive, send, _too_large(limit))
            return
        await self._counted(scope, receive, send, limit)

    async def _counted(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        seen = 0
        answered = whole = False
        refused: DomainError | None = None
        deadline = asyncio.get_running_loop().time() + self._body_s

        async def counting() -> Message:
            nonlocal seen, whole, refused
            if whole:
                return await receive()  # waits for the client to hang up, as long as the answer takes
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                refused = TooSlow()
                raise BodyRefused from None
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                whole = not message.get("more_body")
                if seen > limit:
                    refused = _too_large(limit)
                    raise BodyRefused
            return message

        async def sending(message: Message) -> None:
            nonlocal answered
            if refused and not answered:
                return  # the application made an error of ours into one of its own
            answered = True
            await send(message)

        with contextlib.suppress(BodyRefused):
            await self._application(scope, counting, sending)
        if refused and not answered:
            await _refuse(scope, receive, send, refused)


def told_length(scope: Scope) -> int | None:
    """The length that the request tells; Invalid when it tells nonsense."""
    told = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    if not told:
        return None
    if len(set(told)) > 1 or not told[0].isdigit():
        raise Invalid("The header Content-Length is not one number.", hint="Send the body's length in bytes.")
    return int(told[0][:20])


def _too_large(limit: int) -> TooLarge:
    return TooLarge(
        f"The request's body is larger than {limit:,} bytes.", hint="Send less at once, or in smaller pieces."
    )


async def _refuse(scope: Scope, receive: Receive, send: Send, error: DomainError) -> None:
    waits = any(name.lower() == b"expect" for name, _ in scope["headers"])  # such a client sends nothing after this
    await _answer(send, error, last=waits)
    if not waits:
        if isinstance(error, TooLarge):
            await _drain(receive)
        await send({"type": "http.response.body", "body": b""})


async def _answer(send: Send, error: DomainError, *, last: bool) -> None:
    body = json.dumps(error.as_dict()).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def _drain(receive: Receive) -> None:
    seen, deadline = 0, time.monotonic() + DRAIN_S
    while seen < DRAIN_BYTES and (left := deadline - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), left)
        except TimeoutError:
            return
        seen += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return
