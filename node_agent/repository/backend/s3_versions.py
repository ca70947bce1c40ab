"""Versions of objects and their retention, on S3: what obstore cannot speak, through Amazon's botocore.

One request a method, never repeated here (RetryingBackend does that). The store's clock is taken from the ``Date``
of its answers.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, SSLError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from node_agent.errors import (
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    LockRefused,
    ObjectMissing,
    RepositoryMissing,
)
from node_agent.repository.backend.base import MAX_OBJECT, Buffer
from node_agent.repository.backend.gate import ODD, Gate
from node_agent.repository.backend.settings import shown

_PAGE_BYTES, _TEXT_BYTES = 16 << 20, 4 << 20  # of a listing, of any other answer
_MAX_IDLE = 1000  # pages of a listing with nothing in them
_MAX_VERSIONS = 1_000_000  # of one object
_ABSENT = ("NoSuchKey", "NoSuchVersion", "404", "MethodNotAllowed")
_NOT_LOCKED = ("NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest")
_FULL = ("QuotaExceeded", "StorageFull", "XMinioStorageFull", "InsufficientStorage")
_LATER = ("SlowDown", "Throttling", "RequestTimeout", "RequestTimeTooSkewed", "ServiceUnavailable", "InternalError")


@dataclass(frozen=True, slots=True)
class Version:
    path: str
    id: str
    size: int
    etag: str
    modified: float
    latest: bool
    marker: bool  # it only says that the object was deleted


@dataclass(frozen=True, slots=True)
class BucketRules:
    """``default_days``: what the bucket locks by itself, 0 for nothing."""

    enabled: bool
    default_days: int


def open_client(
    *,
    endpoint: str,
    region: str,
    virtual_hosted: bool,
    credential: dict[str, Any] | None,
    timeout_s: int,
    connections: int,
    verify: str | bool,
    gate: Gate,
) -> Any:
    """Without ``credential`` the library asks for the machine's role. ``verify``: certificates by a file's, or not."""
    session = botocore.session.get_session()
    keys = {}
    if credential is not None:
        keys = {
            "aws_access_key_id": credential["access_key_id"],
            "aws_secret_access_key": credential["secret_access_key"],
            "aws_session_token": credential["token"],
        }
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "virtual" if virtual_hosted else "path"},
        connect_timeout=15,
        read_timeout=timeout_s,
        max_pool_connections=connections,
        retries={"total_max_attempts": 1},
        # Where a checksum is wanted it is given; the library's own default is a trailer that many stores do not know.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies={"http": gate.url, "https": gate.url},
    )
    return session.create_client("s3", region_name=region, endpoint_url=endpoint, verify=verify, config=config, **keys)


class VersionedBucket:
    """All methods may be called from several threads."""

    def __init__(self, client: Any, gate: Gate, bucket: str, url: str) -> None:
        self.url = url
        self._gate = gate
        self._client = client
        self._bucket = bucket
        self._clock: tuple[float, float] | None = None  # the store's time, and ours when it was heard
        self._clock_lock = threading.Lock()

    def now(self) -> float:
        if self._clock is None or time.monotonic() - self._clock[1] > 3600:
            self.rules()
        if self._clock is None:
            raise LockRefused(f"{self.url} does not say what time it is: its answers have no Date.")
        told, heard = self._clock
        return told + (time.monotonic() - heard)

    def rules(self) -> BucketRules:
        try:
            answer = self._call("get_object_lock_configuration", "the bucket's object lock")
        except NotLocked:
            return BucketRules(False, 0)
        value = answer.get("ObjectLockConfiguration") or {}
        default = (value.get("Rule") or {}).get("DefaultRetention") or {}
        days = int(default.get("Days") or 0) + 365 * int(default.get("Years") or 0)
        return BucketRules(value.get("ObjectLockEnabled") == "Enabled", days)

    def put(self, path: str, content: Buffer, digest: bytes, lock: tuple[str, float] | None = None) -> str:
        """Store, with ``lock`` (mode and time) in the same request. Returns the version, "" where there are none."""
        more: dict[str, Any] = {}
        if lock is not None:
            more = {"ObjectLockMode": lock[0], "ObjectLockRetainUntilDate": _date(lock[1])}
            more["ChecksumAlgorithm"] = "SHA256"  # with a lock S3 insists on a checksum, and on its being announced
        answer = self._call(
            "put_object",
            path,
            Key=path,
            Body=content if isinstance(content, bytes | bytearray) else bytes(content),
            ChecksumSHA256=base64.b64encode(digest).decode(),
            **more,
        )
        return str(answer.get("VersionId") or "")

    def read(self, path: str, version: str, offset: int = 0, length: int | None = None) -> bytes:
        more: dict[str, Any] = {}
        if offset or length is not None:
            more["Range"] = f"bytes={offset}-{'' if length is None else offset + length - 1}"
        try:
            answer = self._call("get_object", path, Key=path, VersionId=version, **more)
        except _BehindTheEnd:
            return b""
        limit = MAX_OBJECT if length is None else length
        size = int(answer.get("ContentLength") or 0)
        if not 0 <= size <= limit:
            answer["Body"].close()
            raise BackendError(f"{self.url} answers another part of {path} than it was asked for.", hint=ODD)
        try:
            with self._gate.expecting(size):
                content: bytes = answer["Body"].read()
        except Exception as error:  # noqa: BLE001 - urllib3's and botocore's own have no common base
            self._raise(error, path)
        if len(content) > limit:
            raise BackendError(f"{self.url} answers another part of {path} than it was asked for.", hint=ODD)
        return content

    def versions(self, prefix: str) -> Iterator[list[Version]]:
        """All versions and markers below a prefix, an object at a time, the newest of each first."""
        marks: dict[str, Any] = {}
        group: list[Version] = []
        idle = 0
        while True:
            answer = self._call("list_object_versions", prefix, expect=_PAGE_BYTES, Prefix=prefix, **marks)
            if "IsTruncated" not in answer:
                raise BackendError(f"{self.url} answers with a listing that is none of S3.", hint=ODD)
            page = self._versions_in(answer)
            for version in sorted(page, key=lambda v: (v.path, not v.latest, -v.modified)):
                if group and group[0].path != version.path:
                    yield _as_stored(group, page)
                    group = []
                group.append(version)
            if not answer.get("IsTruncated"):
                break
            before, idle = marks, 0 if page else idle + 1
            marks = {
                "KeyMarker": answer.get("NextKeyMarker"),
                "VersionIdMarker": answer.get("NextVersionIdMarker") or "",
            }
            if not marks["KeyMarker"] or marks == before or idle > _MAX_IDLE or len(group) > _MAX_VERSIONS:
                raise BackendError(f"The listing of {self.url} goes round in circles.", hint=ODD)
        if group:
            yield _as_stored(group, page)

    def _versions_in(self, answer: Any) -> list[Version]:
        try:
            page = [_version(v, marker=False) for v in answer.get("Versions") or ()]
            return page + [_version(v, marker=True) for v in answer.get("DeleteMarkers") or ()]
        except (KeyError, AttributeError, ValueError, TypeError, OverflowError):
            raise BackendError(f"{self.url} answers with a listing that is none of S3.", hint=ODD) from None

    def retention(self, path: str, version: str) -> tuple[str, float]:
        """Mode and time; an empty mode: not locked."""
        try:
            answer = self._call("get_object_retention", path, Key=path, VersionId=version)
        except NotLocked:
            return "", 0.0
        value = answer.get("Retention") or {}
        until = value.get("RetainUntilDate")
        return str(value.get("Mode") or ""), until.timestamp() if isinstance(until, datetime) else 0.0

    def retain(self, path: str, version: str, mode: str, until: float, *, bypass: bool = False) -> None:
        more = {"BypassGovernanceRetention": True} if bypass else {}
        retention = {"Mode": mode, "RetainUntilDate": _date(until)}
        self._call("put_object_retention", path, Key=path, VersionId=version, Retention=retention, **more)

    def delete(self, path: str, version: str = "", *, bypass: bool = False) -> None:
        """One version for good; without ``version`` a marker is laid over all of them."""
        more: dict[str, Any] = {"BypassGovernanceRetention": True} if bypass else {}
        if version:
            more["VersionId"] = version
        try:
            self._call("delete_object", path, Key=path, **more)
        except ObjectMissing:
            return

    def _call(self, operation: str, what: str, *, expect: int = _TEXT_BYTES, **given: Any) -> Any:
        try:
            with self._gate.expecting(expect):
                answer = getattr(self._client, operation)(Bucket=self._bucket, **given)
        except Exception as error:  # noqa: BLE001 - on answers that it cannot read botocore raises anything
            if isinstance(error, ClientError):
                self._note_date(error.response)
            self._raise(error, what)
        self._note_date(answer)
        return answer

    def _note_date(self, answer: Any) -> None:
        text = (answer.get("ResponseMetadata") or {}).get("HTTPHeaders", {}).get("date")
        if not text:
            return
        try:
            told = parsedate_to_datetime(text).timestamp()
        except (ValueError, TypeError, OverflowError):
            return
        with self._clock_lock:
            self._clock = (told, time.monotonic())

    def _raise(self, error: Exception, what: str) -> NoReturn:
        """Translate. Never ``from error``: its text may hold a signed address."""
        if not isinstance(error, ClientError):
            self._raise_unanswered(error, what)
        said = error.response.get("Error") or {}
        code, status = str(said.get("Code") or ""), error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        reason = (self._gate.trouble() if status == 502 else "") or shown(f"{code}: {said.get('Message') or status}")
        reason = reason.rstrip(".")
        if code == "InvalidRange" or status == 416:
            raise _BehindTheEnd(f"{self.url}: {what}: {reason}.") from None
        if code == "NoSuchBucket":
            raise RepositoryMissing(
                f"The bucket of {self.url} does not exist.", hint="Make it at the store, and check the address."
            ) from None
        if code in _NOT_LOCKED or (status == 404 and "Lock" in code):
            raise NotLocked(f"{self.url}: {what}: {reason}.") from None
        if code in _ABSENT or status == 404:
            raise ObjectMissing(f"{what} is missing from {self.url}.") from None
        if status == 507 or code in _FULL:
            raise BackendFull(f"The destination {self.url} has no space left: {reason}.") from None
        if status in (401, 403):
            raise BackendReadOnly(
                f"{self.url}: {what}: {reason}.",
                hint="Check the credentials and what they are allowed to do in this bucket.",
            ) from None
        if code in _LATER or status in (408, 425, 429) or (status >= 500 and status != 501):
            raise BackendUnavailable(f"The destination {self.url} does not answer: {reason}.") from None
        raise BackendError(f"{self.url}: {what}: {reason}.") from None

    def _raise_unanswered(self, error: Exception, what: str) -> NoReturn:
        """Nothing came, or nothing that can be read."""
        if isinstance(error, SSLError) and "CERTIFICATE" in str(error).upper():
            raise BackendError(
                f"The certificate of {self.url} is not trusted.",
                hint="Give the authority's certificate with the option cacert, or RESTIC_CACERT.",
            ) from None
        if isinstance(error, NoCredentialsError):
            raise BackendError(f"{self.url}: there are no credentials.", hint="Set AWS_ACCESS_KEY_ID …") from None
        if isinstance(error, ResponseParserError):
            raise NotLocked(f"{self.url}: {what}: the answer is not what S3 would say.") from None
        if self._gate.overrun():
            raise BackendError(f"{self.url}: {what}: the answer has no end.", hint=ODD) from None
        reason = self._gate.trouble() or shown(str(error) or type(error).__name__).rstrip(".")
        if not isinstance(error, BotoCoreError | HTTPError | OSError):
            raise BackendError(f"{self.url}: {what}: the answer cannot be read: {reason}.", hint=ODD) from None
        raise BackendUnavailable(f"The destination {self.url} does not answer: {reason}.") from None


class NotLocked(BackendError):
    """There is no retention, or no object lock, to tell of."""


class _BehindTheEnd(BackendError):
    """A range that begins where the object has ended."""


def _as_stored(group: list[Version], page: list[Version]) -> list[Version]:
    """Sorted by time so that markers stand where they belong; but among contents the store's own order counts: of two
    that were stored at the same instant everybody must see the same one first."""
    contents = iter([v for v in page if not v.marker and v.path == group[0].path])
    if sum(not v.marker for v in group) != sum(not v.marker and v.path == group[0].path for v in page):
        return group  # spread over several pages
    return [v if v.marker else next(contents) for v in group]


def _version(value: dict[str, Any], *, marker: bool) -> Version:
    return Version(
        path=value["Key"],
        id=str(value.get("VersionId") or "null"),
        size=int(value.get("Size") or 0),
        etag=str(value.get("ETag") or ""),
        modified=value["LastModified"].timestamp(),
        latest=bool(value.get("IsLatest")),
        marker=marker,
    )


def _date(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC).replace(microsecond=0)
