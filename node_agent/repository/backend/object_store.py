"""What S3, Azure Blob and Google Cloud Storage have in common, through the library obstore.

Crash model of the three: a put is one request of known length, so it is atomic; it is durable when the store
has answered; what is put before another put is there whenever the other one is, and listings and reads are
consistent with every write that was answered (S3 since 2020, Azure and Google always; of other S3 stores
their makers say it). Nothing of an interrupted put stays. ``config`` is created on the condition that it is
not there.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore

from node_agent.errors import (
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    ConfigError,
    ObjectMissing,
    RepositoryExists,
    RepositoryMissing,
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
from node_agent.repository.backend.base import object_path as path_in_layout
from node_agent.repository.backend.gate import ODD, Gate
from node_agent.repository.backend.settings import Settings, redacted, shown

FOREIGN = (BaseError, OSError, ValueError)  # obstore raises these, its own and Python's
_STATUS = re.compile(r"status code: (\d{3})|code: (\d{3})\)")
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<\n]*)")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified container does not exist|bucket does not exist")
_FULL = re.compile(r"QuotaExceeded|StorageFull|InsufficientStorage|InsufficientCapacity|XMinioStorageFull")
_AWAY = re.compile(r"HTTP error|error sending request|timed out|error decoding response body|connection")
_IMMUTABLE = re.compile(r"Immutable|ObjectLocked|LegalHold|RetentionPolicyNotMet")
_BEHIND_THE_END = re.compile(r"Wanted range starting at \d+, but object was only \d+ bytes long")
_CAUSE = re.compile(r'message: "([^"]+)"')
_CHUNK = 1000
_MAX_PATH = 1024  # letters of a name; no store has longer ones
_PAGE_BYTES = 16 << 20  # of a listing: Azure's largest has 5,000 entries in some 5 MiB
_TEXT_BYTES = 4 << 20  # what may come before the object's own bytes are asked for: an error


def client_settings(settings: Settings, gate: Gate, *, allow_http: bool) -> dict[str, Any]:
    """Of the HTTP client. No retries: RetryingBackend does them, with one bound for all."""
    client: dict[str, Any] = {
        "allow_http": allow_http,
        "connect_timeout": "15s",
        "timeout": f"{settings.number('timeout', 300, least=1)}s",  # of one whole request
    }
    certificate = settings.content("cacert", "RESTIC_CACERT")
    if certificate is not None:
        client["root_certificate"] = certificate
    if settings.flag("insecure-tls"):
        client["allow_invalid_certificates"] = True
    client["proxy_url"] = gate.url
    client["http1_only"] = True  # what the gate can count the turns of
    return {"client_options": client, "retry_config": {"max_retries": 0}}


def unusable(maker: str, error: Exception) -> ConfigError:
    """The library could not make a store of what it was given."""
    text = redacted(str(error).partition("\n\nDebug source:")[0])[:300]
    return ConfigError(
        f"The settings for {maker} cannot be used: {text}", hint="Check the credentials and the address."
    )


class ObjectStoreBackend(Backend):
    """One bucket (container) and a prefix in it. The bucket must be there: making it is its owner's affair."""

    strict_listings = False  # whether the library tells a listing from what is none

    def __init__(self, store: ObjectStore, gate: Gate, *, url: str, bucket: str, prefix: str) -> None:
        self.url = url
        self._store = store
        self._gate = gate
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    def create(self) -> None:
        """Folders are only names here."""
        self._must_have_bucket()

    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        path = self._path(kind, name)
        content = parts[0] if len(parts) == 1 else b"".join(parts)
        try:
            if kind is Kind.CONFIG:
                self._put_once(path, content)
            else:
                self._put(path, content)
        except FOREIGN as error:
            conflict = isinstance(error, AlreadyExistsError | PreconditionError)
            if kind is Kind.CONFIG and conflict and not _IMMUTABLE.search(str(error)):
                raise RepositoryExists(f"There is already a repository at {self.url}.") from None
            self._raise(error, "written", kind, name, writing=True)

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            self.stat(kind, name)
            return b""
        path, limit = self._path(kind, name), MAX_OBJECT if length is None else length
        try:
            with self._asking(_TEXT_BYTES):
                answer = obstore.get(self._store, path, options=_range(offset, length))
            begin, end = answer.range
            if not 0 <= end - begin <= limit:
                raise self._other_than_asked(kind, name)
            with self._asking(end - begin):
                data = answer.bytes().to_bytes()
        except FOREIGN as error:
            if _status(str(error)) == 416 or _BEHIND_THE_END.search(str(error)):
                return b""
            self._raise(error, "read", kind, name)
        if len(data) != end - begin:
            raise self._other_than_asked(kind, name)
        return data

    def list(self, kind: Kind) -> Iterator[ObjectInfo]:
        if kind is Kind.CONFIG:
            with contextlib.suppress(ObjectMissing):
                yield self.stat(kind, CONFIG_NAME)
            return
        for page in self._pages(kind):
            for meta in page:
                name = meta["path"].rpartition("/")[2]
                if is_object_name(name) and meta["path"] == self._path(kind, name):
                    yield self._info(name, meta)

    def stat(self, kind: Kind, name: str) -> ObjectInfo:
        path = self._path(kind, name)
        try:
            meta = self._head(path)
        except FileNotFoundError:
            self._must_have_bucket()  # the answer to a HEAD does not say whether the object or the bucket is missing
            raise self._missing(kind, name) from None
        except FOREIGN as error:
            self._raise(error, "read", kind, name)
        return self._info(name, meta)

    def delete(self, kind: Kind, name: str) -> None:
        path = self._path(kind, name)
        try:
            self._delete(path)
        except FileNotFoundError as error:
            if _NO_BUCKET.search(str(error)):
                self._raise(error, "deleted", kind, name, writing=True)
        except FOREIGN as error:
            self._raise(error, "deleted", kind, name, writing=True)

    def now(self) -> float:
        """Taken from an object made for it, beside the locks: there even a node without other rights may delete."""
        path = f"{self._prefix}{Kind.LOCK.value}/clock-tmp-{secrets.token_hex(8)}"
        try:
            self._put(path, b"")
            try:
                return _moment(self._head(path))
            finally:
                self._discard(path)
        except FOREIGN as error:
            self._raise(error, "written", Kind.LOCK, "clock", writing=True)

    def remove_leftovers(self) -> int:
        """Clocks and claims of processes that were killed; interrupted puts leave nothing."""
        removed = 0
        for page in self._pages(Kind.LOCK):
            for meta in page:
                if "/clock-tmp-" in meta["path"] or "/init-tmp-" in meta["path"]:
                    self._discard(meta["path"])
                    removed += 1
        return removed

    def close(self) -> None:
        self._gate.close()

    def _discard(self, path: str) -> None:
        """Of an object that is none of the repository's; it may have gone."""
        try:
            self._delete(path)
        except FileNotFoundError:
            return
        except FOREIGN as error:
            self._raise(error, "deleted", Kind.LOCK, "", writing=True)

    @contextlib.contextmanager
    def _asking(self, size: int) -> Iterator[None]:
        """Around each request; ``size`` as :meth:`Gate.expecting` has it."""
        with self._gate.expecting(size):
            try:
                yield
            except BaseException as error:
                if type(error).__name__ == "PanicException":  # a mistake in the library, and no Exception in Python
                    raise BackendError(f"{self.url} gave an answer that the library cannot bear.", hint=ODD) from None
                raise

    def _put(self, path: str, content: Buffer, **more: Any) -> None:
        with self._asking(0):
            obstore.put(self._store, path, content, use_multipart=False, **more)

    def _head(self, path: str) -> Mapping[str, Any]:
        with self._asking(0):
            return obstore.head(self._store, path)

    def _delete(self, path: str) -> None:
        with self._asking(0):
            obstore.delete(self._store, path)

    def _put_once(self, path: str, content: Buffer) -> None:
        try:
            self._put(path, content, mode="create")
        except (NotSupportedError, BaseError) as error:
            if not isinstance(error, NotSupportedError) and _status(str(error)) != 501:
                raise
            # A store that knows no conditions: look first. Two who look at the same time would both write.
            if self.exists(Kind.CONFIG, CONFIG_NAME):
                raise RepositoryExists(f"There is already a repository at {self.url}.") from None
            self._put(path, content)

    def _pages(self, kind: Kind) -> Iterator[Sequence[Mapping[str, Any]]]:
        """All of a listing, or an error.

        The library takes for an empty page what is no listing at all (a proxy's page that asks for a login), and for
        the last one what lacks the mark of the next. So where it does, the listing is asked for once more from where it
        ended, until nothing comes (of nothing: twice), and is believed if one of the config does not hide that either.
        """
        last: str | None = None
        for run in itertools.count():
            before = last
            for page in self._listing(f"{self._prefix}{kind.value}", last):
                last = max([meta["path"] for meta in page] + ([last] if last else []))
                yield page
            if self.strict_listings:
                return
            if run and last == before:
                break
        path = self._path(Kind.CONFIG, CONFIG_NAME)
        if not self._has(path):
            return  # nor was it before: somebody may make it just now, so it is looked for first
        page = next(self._listing(self._prefix.rstrip("/"), path[:-1]), ())
        if all(meta["path"] != path for meta in page):
            raise BackendError(f"The listing of {self.url} does not show what is there.", hint=ODD)

    def _has(self, path: str) -> bool:
        try:
            self._head(path)
        except FileNotFoundError:
            return False
        except FOREIGN as error:
            self._raise(error, "read", Kind.CONFIG, "")
        return True

    def _listing(self, prefix: str, after: str | None = None) -> Iterator[Sequence[Mapping[str, Any]]]:
        """As the library has it. ``after``: a path, which is not listed itself."""
        first_ones: set[str] = set()
        try:
            pages = iter(obstore.list(self._store, prefix, offset=after, chunk_size=_CHUNK))
            while True:
                with self._asking(_PAGE_BYTES):
                    page: Sequence[Mapping[str, Any]] | None = next(pages, None)
                if page is None:
                    return
                if any(len(meta["path"]) > _MAX_PATH for meta in page) or (page and page[0]["path"] in first_ones):
                    raise BackendError(f"The listing of {self.url} does not hold what a store can have.", hint=ODD)
                first_ones.update(meta["path"] for meta in page[:1])
                yield page
        except FOREIGN as error:
            self._raise(error, "listed", None, "")

    def _info(self, name: str, meta: Mapping[str, Any]) -> ObjectInfo:
        return ObjectInfo(name, int(meta["size"]), _moment(meta))

    def _path(self, kind: Kind, name: str) -> str:
        return self._prefix + path_in_layout(kind, name)

    def _must_have_bucket(self) -> None:
        """And it may be listed."""
        for _ in self._listing(f"{self._prefix}{Kind.KEY.value}"):
            return

    def _other_than_asked(self, kind: Kind, name: str) -> BackendError:
        return BackendError(
            f"{self.url} answers another part of {kind.name.lower()} {name[:10]} than it was asked for.", hint=ODD
        )

    def _missing(self, kind: Kind, name: str) -> ObjectMissing:
        return ObjectMissing(f"{kind.name.lower()} {name} is missing from {self.url}.")

    def _raise(self, error: Exception, done: str, kind: Kind | None, name: str, *, writing: bool = False) -> NoReturn:
        """Translate. Never ``from error``: its text and chain may hold a signed address."""
        text, _, inside = str(error).partition("\n\nDebug source:")
        status = _status(text)
        if status is None and (cause := _CAUSE.search(inside)):
            text = f"{text}: {cause[1]}"
        what = f"{kind.name.lower()} {name[:10]}".strip() if kind is not None else "what is there"
        reason = (self._gate.trouble() if status in (None, 502) else "") or _reason(text, status)
        if self._gate.overrun():
            raise BackendError(
                f"{self.url}: {what} could not be {done}: the answer has no end.",
                hint=ODD,
            ) from None
        if "InvalidCertificate" in inside:
            raise BackendError(
                f"The certificate of {self.url} is not trusted.",
                hint="Give the authority's certificate with the option cacert, or RESTIC_CACERT.",
            ) from None
        if _NO_BUCKET.search(text):
            raise RepositoryMissing(
                f"The bucket or container {self._bucket} of {self.url} does not exist.",
                hint="Make it at the store, and check the address.",
            ) from None
        if isinstance(error, FileNotFoundError) and kind is not None:
            raise self._missing(kind, name) from None
        if status == 507 or _FULL.search(text):
            raise BackendFull(f"The destination {self.url} has no space left: {reason}.") from None
        if (
            isinstance(error, PermissionDeniedError | UnauthenticatedError)
            or status in (401, 403)
            or _IMMUTABLE.search(text)
        ):
            message = f"{self.url}: {what} may not be {done}: {reason}."
            hint = "Check the credentials and what they are allowed to do in this bucket."
            raise (BackendReadOnly if writing else BackendError)(message, hint=hint) from None
        if (
            status in (408, 425, 429)
            or "ConditionalRequestConflict" in text
            or (status or 0) >= 500
            or (status is None and _AWAY.search(text))
        ):
            raise BackendUnavailable(f"The destination {self.url} does not answer: {reason}.") from None
        raise BackendError(f"{self.url}: {what} could not be {done}: {reason}.") from None


def _range(offset: int, length: int | None) -> Any:
    if length is not None:
        return {"range": (offset, offset + length)}
    return {"range": {"offset": offset}} if offset else None


def _moment(meta: Mapping[str, Any]) -> float:
    moment: datetime = meta["last_modified"]
    return moment.timestamp()


def _status(text: str) -> int | None:
    match = _STATUS.search(text)
    return int(match[1] or match[2]) if match else None


def _reason(text: str, status: int | None) -> str:
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code is not None:
        return shown(f"{code[1]}: {message[1] if message else status}").rstrip(".")
    return shown(text.splitlines()[0] if text else "no reason given").rstrip(".: ")
