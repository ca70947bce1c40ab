"""The node's side of the wire: HTTPS calls to the server, and what their failures mean.

    TLS        only the pinned CA is trusted (or the system's, with --system-trust); TLS 1.2 or newer;
               proxies and certificates from the environment are ignored (trust_env=False)
    login      ``Authorization: Bearer <token>``; the token rotates and an old one is never used again:
               :meth:`ServerClient.rotate` waits until no call is under way
    failures   no answer, 429, 5xx, a reply that is torn or makes no sense -> ServerUnreachable (try again)
               401 -> NotEnrolled, 409 lease-lost and 404 of a task -> LeaseLost, other 4xx -> ServerError

Calls block and are safe from many threads. Nothing here retries: the callers know how long they may.
"""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakSet

import httpx
from pydantic import BaseModel, ValidationError

from node_agent.clock import Clock
from node_agent.errors import (
    ConfigError,
    LeaseLost,
    NotEnrolled,
    ServerError,
    ServerNotTrusted,
    ServerUnreachable,
)
from node_agent.protocol import (
    LEASE_TOKEN_HEADER,
    PREFIX,
    Ack,
    CompleteReport,
    DirectoriesMissing,
    DirectoriesReport,
    DirectoriesWanted,
    EnrolReply,
    EnrolRequest,
    ErrorBody,
    FailReport,
    FoundReport,
    ProgressReply,
    ProgressReport,
    ReleaseReport,
    TokenReply,
    TokenRequest,
)

REPLY_BYTES = 16 * 1024 * 1024  # no honest reply is larger
CONNECT_S = 10.0
READ_S = 30.0
HANG_UP_S = 5.0
CERT_NOT_YET_VALID, CERT_EXPIRED, CERT_WRONG_HOST = 9, 10, 62  # OpenSSL's X509_V_ERR_*

Reply = TypeVar("Reply", bound=BaseModel)


def server_url(text: str) -> str:
    """``https://host[:port]`` without a path. ConfigError for anything else."""
    try:
        url = httpx.URL(text if "://" in text else f"https://{text}")
    except httpx.InvalidURL as error:
        raise ConfigError(f"{text!r} is not an address.", hint="Give it like https://host:8443.") from error
    if url.scheme != "https" or not url.host or url.path not in ("", "/") or url.query or url.userinfo:
        raise ConfigError(f"{text!r} is not the address of a server.", hint="Give it like https://host:8443.")
    return str(url.copy_with(raw_path=b"/")).rstrip("/")


def trust(ca_pem: str | None) -> ssl.SSLContext:
    """A context that trusts ``ca_pem`` and nothing else, or the system's store when it is None."""
    try:
        context = ssl.create_default_context(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError("The CA certificate cannot be read.", hint="Enrol the node again.") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def backoff_s(attempt: int, *, base_s: float = 0.5, cap_s: float = 30.0) -> float:
    """Full jitter: somewhere between 0 and the doubled-each-time limit, so that a fleet does not return at once."""
    return random.uniform(0, min(cap_s, base_s * 2.0 ** min(attempt, 16)))  # not for secrets


def fetch_ca(server: str) -> str:
    """The server's CA as PEM, over a connection that proves nothing: compare its fingerprint before use."""
    blind = ssl.create_default_context()
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    with httpx.Client(verify=blind, trust_env=False, timeout=httpx.Timeout(READ_S, connect=CONNECT_S)) as http:
        status, body = _exchange(http, server, "GET", f"{PREFIX}/ca", None, {}, READ_S)
    if status != 200:
        raise _failure(status, body, task=False)
    try:
        return body.decode("ascii")
    except UnicodeDecodeError as error:
        raise ServerUnreachable(f"{server} answered with something that is not a certificate.") from error


class _Sockets:
    """The sockets of a client, so that another thread can end calls that wait for an answer.

    They are shut down, never closed: closing a socket under its reader frees the number of its descriptor, and the TLS
    library goes on reading from, and writing its alerts to, whatever file or connection is given that number next.
    """

    def __init__(self) -> None:
        self._made: WeakSet[socket.socket] = WeakSet()
        self._guard = threading.Lock()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Hears of new connections (httpcore's request extension ``trace``)."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._guard:
                self._made.add(info["return_value"].get_extra_info("socket"))

    def hang_up(self) -> None:
        with self._guard:
            made = list(self._made)
        for sock in made:
            with suppress(OSError):  # closed meanwhile, or its descriptor went over to the TLS socket
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not SSLSocket's, which would forget the TLS state


class ServerClient:
    """Calls of one node to its server. ``token`` may be empty only for :meth:`enrol`."""

    def __init__(self, server: str, context: ssl.SSLContext, *, token: str = "", clock: Clock | None = None) -> None:
        self.server = server
        self.clock = clock or Clock()
        self._http = httpx.Client(
            verify=context,
            trust_env=False,
            follow_redirects=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "brs-node"},
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=15),
        )
        self._sockets = _Sockets()
        self._token = token
        self._gate = threading.Condition()
        self._under_way = 0
        self._closed = False

    def close(self) -> None:
        """Ends calls that are under way, too: they fail with ServerUnreachable."""
        self._closed = True
        with self._gate:
            give_up = time.monotonic() + HANG_UP_S
            while self._under_way and time.monotonic() < give_up:
                self._sockets.hang_up()
                self._gate.wait(0.1)
            if not self._under_way:  # else its sockets stay open: see _Sockets
                self._http.close()

    # --- enrolment and token

    def enrol(self, request: EnrolRequest) -> EnrolReply:
        return self._post("/enrol", request, EnrolReply)

    def rotate(self, request_id: UUID, keep: Callable[[str], None]) -> None:
        """Take a new token. ``keep`` stores it durably before it is used; calls wait meanwhile."""
        with self._gate:
            self._gate.wait_for(lambda: self._under_way == 0, timeout=READ_S)
            if self._under_way:
                return  # a call hangs: rotate another time rather than risk that it arrives with an old token
            reply = _parsed(self._call("POST", "/token", _json(TokenRequest(request_id=request_id))), TokenReply)
            keep(reply.token)
            self._token = reply.token

    # --- leases

    def lease(self, body: bytes, wait_s: float) -> bytes:
        """The raw reply: one task that this node does not understand must not hide the others."""
        return self._guarded("POST", "/lease", body, timeout_s=wait_s + READ_S)

    def progress(self, task_id: UUID, report: ProgressReport, *, timeout_s: float = READ_S) -> ProgressReply:
        return self._post(f"/tasks/{task_id}/progress", report, ProgressReply, timeout_s=timeout_s)

    def complete(self, task_id: UUID, report: CompleteReport) -> None:
        self._post(f"/tasks/{task_id}/complete", report, Ack, timeout_s=4 * READ_S)

    def fail(self, task_id: UUID, report: FailReport) -> None:
        self._post(f"/tasks/{task_id}/fail", report, Ack)

    def release(self, task_id: UUID, report: ReleaseReport) -> None:
        self._post(f"/tasks/{task_id}/release", report, Ack)

    # --- what travels beside a task

    def directories_wanted(self, task_id: UUID, wanted: DirectoriesWanted) -> DirectoriesMissing:
        return self._post(f"/tasks/{task_id}/directories/wanted", wanted, DirectoriesMissing)

    def directories(self, task_id: UUID, report: DirectoriesReport) -> None:
        self._post(f"/tasks/{task_id}/directories", report, Ack, timeout_s=2 * READ_S)

    def found(self, task_id: UUID, report: FoundReport) -> None:
        self._post(f"/tasks/{task_id}/found", report, Ack, timeout_s=2 * READ_S)

    def upload(self, task_id: UUID, lease_token: str, offset: int, piece: bytes) -> None:
        headers = {"Content-Type": "application/octet-stream", LEASE_TOKEN_HEADER: lease_token}
        path = f"/tasks/{task_id}/upload?offset={offset}"
        _parsed(self._guarded("PUT", path, piece, headers=headers, timeout_s=2 * READ_S), Ack)

    # --- underneath

    def _post(self, path: str, body: BaseModel, reply: type[Reply], *, timeout_s: float = READ_S) -> Reply:
        answer = _parsed(self._guarded("POST", path, _json(body), timeout_s=timeout_s), reply)
        told = getattr(answer, "server_time", None)
        if isinstance(told, datetime):
            self.clock.learn(told)
        return answer

    def _guarded(
        self, method: str, path: str, body: bytes, *, headers: dict[str, str] | None = None, timeout_s: float = READ_S
    ) -> bytes:
        with self._counted():
            return self._call(method, path, body, headers=headers, timeout_s=timeout_s)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._gate:
            self._under_way += 1
        try:
            yield
        finally:
            with self._gate:
                self._under_way -= 1
                self._gate.notify_all()

    def _call(
        self, method: str, path: str, body: bytes, *, headers: dict[str, str] | None = None, timeout_s: float = READ_S
    ) -> bytes:
        sent = {"Content-Type": "application/json", **(headers or {})}
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        if self._closed:
            raise ServerUnreachable("The node is stopping.")
        status, answer = _exchange(
            self._http, self.server, method, PREFIX + path, body, sent, timeout_s, trace=self._sockets.trace
        )
        if status != 200:
            raise _failure(status, answer, task=path.startswith("/tasks/"))
        return answer


def _exchange(
    http: httpx.Client,
    server: str,
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    timeout_s: float,
    *,
    trace: Callable[[str, dict[str, Any]], None] | None = None,
) -> tuple[int, bytes]:
    timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
    extensions = {"trace": trace} if trace is not None else {}
    try:
        with http.stream(
            method, server + path, content=body, headers=headers, timeout=timeout, extensions=extensions
        ) as response:
            parts: list[bytes] = []
            size = 0
            for part in response.iter_raw():
                size += len(part)
                if size > REPLY_BYTES:
                    raise ServerUnreachable(f"{server} sent a reply without end.")
                parts.append(part)
            return response.status_code, b"".join(parts)
    except (httpx.TransportError, httpx.StreamError) as error:
        raise _not_reached(server, error) from error
    except RuntimeError as error:  # httpx: "Cannot send a request, as the client has been closed."
        raise ServerUnreachable("The node is stopping.") from error


def _json(body: BaseModel) -> bytes:
    return body.model_dump_json(exclude_none=True).encode()


def _parsed(answer: bytes, reply: type[Reply]) -> Reply:
    try:
        return reply.model_validate_json(answer)
    except ValidationError:
        # Not chained: the reply may hold secrets, and pydantic shows what it could not read.
        raise ServerUnreachable(f"The server's reply is not a {reply.__name__}.") from None


def _not_reached(server: str, error: Exception) -> ServerError:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLCertVerificationError):
            return _not_trusted(server, found)
        found = found.__cause__ or found.__context__
    reason = str(error) or type(error).__name__
    return ServerUnreachable(f"{server} does not answer ({reason}).")


def _not_trusted(server: str, error: ssl.SSLCertVerificationError) -> ServerNotTrusted:
    if error.verify_code == CERT_NOT_YET_VALID:
        return ServerNotTrusted(
            f"The certificate of {server} is not valid yet by this machine's clock.",
            hint="Set this machine's clock: it is behind the server's.",
        )
    if error.verify_code == CERT_EXPIRED:
        return ServerNotTrusted(
            f"The certificate of {server} has expired by this machine's clock.",
            hint="Check this machine's clock; if it is right, renew the server's certificate.",
        )
    if error.verify_code == CERT_WRONG_HOST:
        return ServerNotTrusted(
            f"The certificate of {server} is made out to another name.",
            hint="Use the name or address that stands in the server's certificate.",
        )
    return ServerNotTrusted(f"The certificate of {server} is not from the authority this node trusts.")


def _failure(status: int, answer: bytes, *, task: bool) -> ServerError:
    try:
        said = ErrorBody.model_validate_json(answer)
    except ValidationError:
        said = ErrorBody(code="", message=f"The server answered with status {status}.")
    facts: dict[str, Any] = {"hint": said.hint} if said.hint else {}
    if status == 429 or status >= 500:
        return ServerUnreachable(said.message, **facts)
    if status == 401:
        return NotEnrolled(said.message, **facts)
    if task and (status == 404 or (status == 409 and said.code in ("", LeaseLost.code))):
        return LeaseLost(said.message, **facts)
    return Refusal(status, said.code, said.message, **facts)


class Refusal(ServerError):
    """The server understood and said no; repeating the same words changes nothing."""

    def __init__(self, status: int, said: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.said = said  # the server's error code
