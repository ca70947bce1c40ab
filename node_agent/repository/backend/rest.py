"""restic's REST server: ``rest:https://user:password@host:8000/path/`` (rest-server, ``rclone serve restic``).

Crash model: what the server makes of it. A put is one request of known length, and a body that ends early is
no object. rest-server (from 0.11) writes a temporary file, syncs and renames it: atomic and durable.
``rclone serve restic`` hands on to its own backend: over object stores atomic, over a local folder an object
is visible while it is being written and nothing is synced. Order and list-after-write hold on both.
rest-server refuses to replace ``config``; with rclone the later of two who make a repository at the same
moment wins, and the other one's password does not open it. The server's listings name no times: for locks
each one is asked for, and where the server does not tell (rest-server) a lock counts as fresh, so that only
``restic unlock`` clears it.

Credentials: in the address, or RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD; never part of ``url``.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import NoReturn
from urllib.parse import unquote, urlsplit

import httpx

from node_agent.errors import (
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    ConfigError,
    ObjectMissing,
    RepositoryExists,
)
from node_agent.repository.backend.base import (
    CONFIG_NAME,
    MAX_OBJECT,
    Backend,
    Buffer,
    Kind,
    ObjectInfo,
    is_object_name,
)
from node_agent.repository.backend.gate import ODD
from node_agent.repository.backend.rest_listing import Listing
from node_agent.repository.backend.settings import Settings, redacted, shown

_V2 = "application/vnd.x.restic.rest.v2"
_SLICE = 1 << 18
_MAX_WORDS = 64 << 10  # of what a server says besides objects and listings
_MAX_LISTING = 1 << 30  # some ten million packs
_KEPT = (b"content-length", b"last-modified", b"date", b"content-range")
_SLOWEST = 1024  # bytes a second, once the time limit is over
_SMALL, _MAX_SMALL = (Kind.CONFIG, Kind.KEY, Kind.LOCK), 1 << 20
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


def open_rest(address: str, settings: Settings) -> RestBackend:
    """``address`` is what follows ``rest:``."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"The address rest:{redacted(address)} is incomplete.", hint="Write rest:https://host:port/path/."
        )
    base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{parts.path.strip('/')}".rstrip("/")
    user = settings.text("user", "RESTIC_REST_USERNAME") or ""
    password = settings.text("password", "RESTIC_REST_PASSWORD") or ""
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
    client = httpx.Client(
        auth=(user, password) if user or password else None,
        verify=_trust(settings),
        trust_env=False,
        headers={"Accept-Encoding": "identity"},  # sizes are those of the objects
        proxy=settings.text("proxy"),
        timeout=httpx.Timeout(60, connect=15, read=settings.number("timeout", 300, least=1), pool=None),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
    )
    return RestBackend(client, base)


def _trust(settings: Settings) -> ssl.SSLContext:
    certificates = settings.content("cacert", "RESTIC_CACERT")
    if settings.flag("insecure-tls"):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    try:
        return ssl.create_default_context(cadata=certificates)
    except ssl.SSLError:
        raise ConfigError("The file of cacert holds no certificates.", hint="It must hold PEM certificates.") from None


class RestBackend(Backend):
    def __init__(self, client: httpx.Client, base: str) -> None:
        self.url = f"rest:{base}/"
        self._base = base
        self._client = client

    def create(self) -> None:
        self._must(self._send("POST", "/?create=true"), "be made", writing=True)

    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        path = _path(kind, name)
        if kind is Kind.CONFIG and self.exists(kind, name):
            raise self._taken()
        views = [memoryview(part).cast("B") for part in parts]
        size = sum(view.nbytes for view in views)
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        answer = self._send("POST", path, headers=headers, content=_slices(views))
        if answer.status_code in (403, 409) and self._is_there(kind, name, size):
            return  # servers refuse to replace; the name is the digest, so what is there is the same
        self._must(answer, "be written", writing=True)

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            self.stat(kind, name)
            return b""
        headers = {}
        if offset or length is not None:
            headers["Range"] = f"bytes={offset}-" + ("" if length is None else str(offset + length - 1))
        most = _MAX_SMALL if kind in _SMALL else MAX_OBJECT
        bound = (
            most if length is None else min(most, offset + length)
        )  # a server that knows no ranges sends from the start
        answer = self._send("GET", _path(kind, name), headers=headers, bound=bound)
        if answer.status_code == 416:  # begins at or behind the end
            return b""
        self._must(answer, "be read", kind, name)
        if length is None and len(answer.content) > most:
            raise BackendError(f"{self.url}: {kind.name.lower()} {name[:10]} is longer than any repository has it.")
        if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise BackendError(
                f"{self.url} answers another part of {kind.name.lower()} {name[:10]} than it was asked for.", hint=ODD
            )
        begin = offset if headers and answer.status_code == 200 else 0  # 200: the server knows no ranges
        return answer.content[begin : None if length is None else begin + length]

    def list(self, kind: Kind) -> Iterator[ObjectInfo]:
        if kind is Kind.CONFIG:
            if self.exists(kind, CONFIG_NAME):
                yield self.stat(kind, CONFIG_NAME)
            return
        for name, size in self._listing(kind):
            if kind is not Kind.LOCK:
                yield ObjectInfo(name, size, 0.0)
                continue
            try:
                yield self.stat(kind, name)
            except ObjectMissing:
                continue  # released between listing and looking

    def stat(self, kind: Kind, name: str) -> ObjectInfo:
        answer = self._send("HEAD", _path(kind, name))
        self._must(answer, "be read", kind, name)
        size = answer.headers.get("Content-Length", "")
        if not size.isascii() or not size.isdigit() or len(size) > 18:
            raise BackendError(f"{self.url} does not tell the size of {name[:10]}.")
        return ObjectInfo(name, int(size), _time(answer, "Last-Modified") or _time(answer, "Date") or 0.0)

    def delete(self, kind: Kind, name: str) -> None:
        answer = self._send("DELETE", _path(kind, name))
        if answer.status_code != 404:
            self._must(answer, "be deleted", writing=True)

    def now(self) -> float:
        answer = self._send("HEAD", f"/{CONFIG_NAME}")
        moment = _time(answer, "Date")
        if moment is None:
            raise BackendError(f"{self.url} does not tell its time.", hint="It is needed to judge the age of locks.")
        return moment

    def close(self) -> None:
        self._client.close()

    def _listing(self, kind: Kind) -> Listing:
        with self._asked("GET", f"/{kind.value}/", headers={"Accept": _V2}) as answer:
            if answer.status_code == 404 and answer.headers.get("Server", "").startswith("rclone/"):
                return Listing([b"[]"])  # nothing of this kind was ever stored; other servers have folders for that
            self._must(answer, "be listed")
            try:
                return Listing(self._pieces(answer, _MAX_LISTING))
            except ValueError as error:
                raise BackendError(
                    f"{self.url} answers with a listing that is none of restic's REST protocol.",
                    hint="Check that the address is that of a restic REST server, version 2 of the protocol.",
                ) from error

    def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        content: Iterator[bytes] | None = None,
        bound: int = _MAX_WORDS,
    ) -> httpx.Response:
        """The answer; of a body that goes on beyond ``bound`` bytes the rest is not read."""
        with self._asked(method, path, headers, content) as answer:
            pieces = b"".join(self._pieces(answer, bound))
            kept = [(name, value) for name, value in answer.headers.raw if name.lower() in _KEPT]
            return httpx.Response(answer.status_code, headers=kept, content=pieces)

    @contextlib.contextmanager
    def _asked(
        self, method: str, path: str, headers: dict[str, str] | None = None, content: Iterator[bytes] | None = None
    ) -> Iterator[httpx.Response]:
        try:
            with self._client.stream(method, self._base + path, headers=headers, content=content) as answer:
                yield answer
        except httpx.RequestError as error:
            if isinstance(error.__cause__ or error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in str(error):
                raise BackendError(
                    f"The certificate of {self.url} is not trusted: {error}.",
                    hint="Give the authority's certificate with the option cacert, or RESTIC_CACERT.",
                ) from error
            raise self._away(str(error) or type(error).__name__) from error

    def _pieces(self, answer: httpx.Response, bound: int) -> Iterator[bytes]:
        ends = time.monotonic() + (self._client.timeout.read or 0)
        for piece in answer.iter_raw():
            yield piece
            bound -= len(piece)
            ends += len(piece) / _SLOWEST
            if bound < 0:
                return
            if time.monotonic() > ends:
                raise self._away("it sends too slowly")

    def _away(self, reason: str) -> BackendUnavailable:
        return BackendUnavailable(f"The destination {self.url} does not answer: {shown(reason)}.")

    def _is_there(self, kind: Kind, name: str, size: int) -> bool:
        try:
            found = self.stat(kind, name)
        except ObjectMissing:
            return False
        if kind is Kind.CONFIG:
            raise self._taken()
        return found.size == size

    def _taken(self) -> RepositoryExists:
        return RepositoryExists(f"There is already a repository at {self.url}.")

    def _must(
        self, answer: httpx.Response, done: str, kind: Kind | None = None, name: str = "", *, writing: bool = False
    ) -> None:
        if not answer.is_success:
            self._raise(answer.status_code, answer.reason_phrase, done, kind, name, writing)

    def _raise(self, status: int, phrase: str, done: str, kind: Kind | None, name: str, writing: bool) -> NoReturn:
        reason = shown(f"{status} {phrase}").strip()
        if status == 404 and kind is not None:
            raise ObjectMissing(f"{kind.name.lower()} {name} is missing from {self.url}.")
        if status == 401:
            raise BackendError(
                f"{self.url} refuses the user or the password ({reason}).",
                hint="Check user and password: RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD, or those in the address.",
            )
        if status in (403, 405) and writing:
            raise BackendReadOnly(
                f"At {self.url} something may not {done} ({reason}).",
                hint="The server may be append-only, or this user may only read.",
            )
        if status in (507, 413):
            raise BackendFull(f"The destination {self.url} has no space left ({reason}).")
        if status in _TRANSIENT:
            raise BackendUnavailable(f"The destination {self.url} is in trouble ({reason}).")
        raise BackendError(f"{self.url}: something could not {done} ({reason}).")


def _path(kind: Kind, name: str) -> str:
    if kind is Kind.CONFIG:
        return f"/{CONFIG_NAME}"
    if not is_object_name(name):
        raise ValueError(f"{name!r} is not the name of an object")
    return f"/{kind.value}/{name}"


def _slices(views: Sequence[memoryview]) -> Iterator[bytes]:
    """In pieces, so that the time-out is one of standstill, not of the whole object."""
    for view in views:
        for start in range(0, len(view), _SLICE):
            yield bytes(view[start : start + _SLICE])


def _time(answer: httpx.Response, header: str) -> float | None:
    try:
        return parsedate_to_datetime(answer.headers[header]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
