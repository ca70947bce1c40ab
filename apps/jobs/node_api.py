"""The nodes' API, ``/api/node/v1/``: an ASGI application of its own, mounted before Django.

    body → bounded while it arrives   (413)
    JSON → pydantic type              (400)
    work → one of eight threads, which gives its database connection back before the answer goes out

A long poll waits on the event loop, without thread and without connection; it looks again when ``publish.work``
says so, and every 15 seconds or so by itself. The types and routes are those of ``node_agent.protocol``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, connections
from django.utils import timezone
from django.utils.translation import gettext as _
from pydantic import BaseModel, ValidationError

from apps.catalog import browse
from apps.errors import DomainError, Invalid, NotFound, TooLarge, Unavailable
from apps.inventory import enrolment, node_auth
from apps.inventory.models import Node, Repository
from apps.jobs import discovered, lease, publish, spool
from apps.jobs.wakeups import Wakeups
from node_agent.protocol import (
    BODY_BYTES,
    LEASE_TOKEN_HEADER,
    PIECE_BYTES,
    PREFIX,
    Ack,
    CompleteReport,
    DirectoriesMissing,
    DirectoriesReport,
    DirectoriesWanted,
    EnrolRequest,
    FailReport,
    FoundReport,
    LeaseReply,
    LeaseRequest,
    ProgressReport,
    ReleaseReport,
    TokenRequest,
)

log = logging.getLogger(__name__)
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Told = TypeVar("Told", bound=BaseModel)
Answer = TypeVar("Answer")

THREADS = 8
LOOK_AGAIN_S = 15.0
SETTLE_S = 1.0  # a poll that has only cancellations to tell waits this long: its node asks again at once

_NUL = re.compile(
    rb"(?<!\\)((?:\\\\)*)\\u0000"
)  # PostgreSQL keeps no NUL: it becomes its picture, as in the audit trail

_pool = ThreadPoolExecutor(THREADS, thread_name_prefix="node-api")
_wakeups = Wakeups()


class NotAllowed(DomainError):
    code = "method-not-allowed"
    status = 405
    default_message = "This address does not take this method."
    default_hint = "Look at the node API's list of addresses in node_agent/protocol/__init__.py."


class Disconnected(Exception):
    """The node hung up before its request was whole; nobody is there to be answered."""


@dataclass
class Request:
    method: str
    path: str  # below PREFIX
    headers: dict[str, str]
    query: dict[str, list[str]]
    remote_addr: str
    body: bytes = b""
    ids: dict[str, str] = field(default_factory=dict)

    def parsed(self, kind: type[Told]) -> Told:
        try:
            return kind.model_validate_json(_NUL.sub(rb"\1\\u2400", self.body))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            raise Invalid(f"{where}: {first['msg']}", code="malformed") from None

    @property
    def token(self) -> str:
        kind, _space, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if kind.lower() == "bearer" else ""

    @property
    def task_id(self) -> UUID:
        return UUID(self.ids["task"])


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise ValueError(f"The node API speaks HTTP, not {scope['type']}.")
    try:
        status, kind, body = await _answer(scope, receive)
    except Disconnected:
        return
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def release_polls() -> None:
    """The server stops: every long poll answers now. Safe from any thread."""
    _wakeups.close()


async def _answer(scope: Scope, receive: Receive) -> tuple[int, bytes, bytes]:
    publish.attach()
    try:
        request = _request(scope)
        handler = _route(request)
        request.body = await _body(receive, request.headers)
        reply = await handler(request, receive)
    except Disconnected:
        raise
    except DomainError as error:
        return _failure(error)
    except DatabaseError:
        log.exception("the database refused %s %s", scope.get("method"), scope.get("path"))
        return _failure(Unavailable())
    except Exception:
        log.exception("%s %s failed", scope.get("method"), scope.get("path"))
        return _failure(DomainError())
    if isinstance(reply, bytes):
        return 200, b"application/x-pem-file", reply
    return 200, b"application/json", reply.model_dump_json().encode()


def _failure(error: DomainError) -> tuple[int, bytes, bytes]:
    body = {name: str(value) for name, value in error.as_dict().items()}
    return error.status, b"application/json", json.dumps(body).encode()


# --- the request --------------------------------------------------------------------------------------


def _request(scope: Scope) -> Request:
    path = str(scope["path"])
    client = scope.get("client")
    return Request(
        method=scope["method"],
        path=path[len(PREFIX) :] if path.startswith(PREFIX + "/") else "",
        headers={name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]},
        query=parse_qs(scope.get("query_string", b"").decode("latin-1")),
        remote_addr=client[0] if client else "",
    )


async def _body(receive: Receive, headers: dict[str, str]) -> bytes:
    """The whole body; TooLarge as soon as more than BODY_BYTES are announced or arrive."""
    announced = headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > BODY_BYTES:
        raise TooLarge()
    parts = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts += message.get("body", b"")
        if len(parts) > BODY_BYTES:
            raise TooLarge()
        if not message.get("more_body", False):
            return bytes(parts)


Reply = BaseModel | bytes
Handler = Callable[[Request, Receive], Awaitable[Reply]]


def _route(request: Request) -> Handler:
    methods: set[str] = set()
    for method, pattern, handler in ROUTES:
        if match := re.fullmatch(pattern, request.path):
            if method == request.method:
                request.ids = match.groupdict()
                return handler
            methods.add(method)
    if methods:
        raise NotAllowed()
    raise NotFound()


async def _in_pool(work: Callable[[], Answer]) -> Answer:
    return await asyncio.get_running_loop().run_in_executor(_pool, partial(_with_connection, work))


def _with_connection(work: Callable[[], Answer]) -> Answer:
    """A thread keeps no connection when it is done: idle nodes cost none."""
    try:
        return work()
    finally:
        connections.close_all()


def _as_node(request: Request, work: Callable[[Node], Answer]) -> Callable[[], Answer]:
    return lambda: work(node_auth.authenticate(request.token))


# --- enrolment and token --------------------------------------------------------------------------------


async def _enrol(request: Request, _receive: Receive) -> Reply:
    told = request.parsed(EnrolRequest)
    return await _in_pool(lambda: enrolment.redeem(told, request.remote_addr))


async def _ca(_request: Request, _receive: Receive) -> Reply:
    try:
        return await _in_pool((Path(settings.PKI_DIR) / "ca.pem").read_bytes)
    except FileNotFoundError:
        raise NotFound(_("This server has no certificate authority of its own.")) from None


async def _token(request: Request, _receive: Receive) -> Reply:
    told = request.parsed(TokenRequest)
    return await _in_pool(_as_node(request, lambda node: node_auth.rotate(node, told.request_id)))


# --- the long poll ----------------------------------------------------------------------------------------


async def _lease(request: Request, receive: Receive) -> Reply:
    told = request.parsed(LeaseRequest)
    node = await _in_pool(_as_node(request, lambda node: node))
    loop = asyncio.get_running_loop()
    ends = loop.time() + told.wait_s
    hung_up = asyncio.ensure_future(_hang_up(receive))
    try:
        with _wakeups.waiting(node.pk, node.tenant_id) as wakeup:
            reply = await _look(node.pk, told, first_look=True)
            known = {*reply.cancel, *reply.lost}
            if known:
                ends = min(ends, loop.time() + SETTLE_S)
            while _nothing_new(reply, known) and (left := ends - loop.time()) > 0 and not _wakeups.closed:
                await wakeup.wait(hung_up, min(left, LOOK_AGAIN_S * random.uniform(0.8, 1.2)))
                if hung_up.done():
                    raise Disconnected  # before it could be given a task that nobody would run
                reply = await _look(node.pk, told, first_look=False)
        return reply
    finally:
        hung_up.cancel()


def _nothing_new(reply: LeaseReply, known: set[UUID]) -> bool:
    return not reply.tasks and known.issuperset({*reply.cancel, *reply.lost})


async def _look(node_id: UUID, told: LeaseRequest, *, first_look: bool) -> LeaseReply:
    """By the node's id: its token was proven when the poll began, and may have been replaced by its successor since
    (proving a replaced token again would put the node into quarantine)."""

    def look() -> LeaseReply:
        node = Node.objects.get(pk=node_id)
        return lease.acquire(node, told, timezone.now(), first_look=first_look)

    return await _in_pool(look)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# --- reports ------------------------------------------------------------------------------------------------


def _report(kind: type[Told], verb: Callable[..., BaseModel]) -> Handler:
    async def handle(request: Request, _receive: Receive) -> Reply:
        told = request.parsed(kind)
        return await _in_pool(_as_node(request, lambda node: verb(node, request.task_id, told, timezone.now())))

    return handle


def _repository(node: Node, task_id: UUID, token: str) -> Repository:
    task = lease.holding(node, task_id, token)
    if task.repository is None:
        raise Invalid(_("This task has no repository."))
    return task.repository


def _wanted(node: Node, task_id: UUID, told: DirectoriesWanted, _now: Any) -> DirectoriesMissing:
    return DirectoriesMissing(tree_ids=browse.missing(_repository(node, task_id, told.token), told.tree_ids))


def _directories(node: Node, task_id: UUID, told: DirectoriesReport, _now: Any) -> Ack:
    browse.add(_repository(node, task_id, told.token), told.directories)
    return Ack()


def _found(node: Node, task_id: UUID, told: FoundReport, now: Any) -> Ack:
    discovered.piece(lease.holding(node, task_id, told.token), told.machines, now)
    return Ack()


async def _upload(request: Request, _receive: Receive) -> Reply:
    offset = request.query.get("offset", [""])[0]
    if not offset.isdecimal() or len(offset) > 18:
        raise Invalid(_("offset must be a number of bytes."), code="malformed")
    if len(request.body) > PIECE_BYTES:
        raise TooLarge()

    def keep(node: Node) -> Ack:
        task = lease.holding(node, request.task_id, request.headers.get(LEASE_TOKEN_HEADER.lower(), ""))
        spool.write(task, int(offset), request.body)
        return Ack()

    return await _in_pool(_as_node(request, keep))


TASK = r"/tasks/(?P<task>[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"
ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", r"/enrol", _enrol),
    ("GET", r"/ca", _ca),
    ("POST", r"/token", _token),
    ("POST", r"/lease", _lease),
    ("POST", TASK + r"/progress", _report(ProgressReport, lease.progress)),
    ("POST", TASK + r"/complete", _report(CompleteReport, lease.complete)),
    ("POST", TASK + r"/fail", _report(FailReport, lease.fail)),
    ("POST", TASK + r"/release", _report(ReleaseReport, lease.release)),
    ("POST", TASK + r"/directories/wanted", _report(DirectoriesWanted, _wanted)),
    ("POST", TASK + r"/directories", _report(DirectoriesReport, _directories)),
    ("POST", TASK + r"/found", _report(FoundReport, _found)),
    ("PUT", TASK + r"/upload", _upload),
]
