"""How a task goes, and what came of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from node_agent.protocol.wire import LIST_KEEP, Bytes, Wire


class LogEntry(Wire):
    seq: int  # counts up within one lease; repeated ones are ignored
    level: Literal["debug", "info", "warning", "error"] = "info"
    message: str = Field(max_length=4000)
    age_s: float = 0  # how long ago, so that clocks do not matter


class ProbeCheck(Wire):
    name: str
    ok: bool
    detail: str = ""
    hint: str = ""


class PartProgress(Wire):
    """One disk of several."""

    name: str = Field(max_length=300)
    total_bytes: Bytes
    done_bytes: Bytes


class ProgressReport(Wire):
    token: str
    phase: str = ""  # "export", "store", "restore", "import", "verify" …
    total_bytes: int = 0
    done_bytes: int = 0  # of total_bytes: in the store, or known to be there
    exported_bytes: int = 0  # of total_bytes: read, or known; runs ahead of done_bytes while a stream is stored
    read_bytes: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0
    total_files: int = 0
    done_files: int = 0
    left_out: int = 0
    whole: float = Field(default=0, ge=0, le=1)  # of the task with all its phases; only grows; 0: nobody says it
    rate_bytes_s: float = 0
    current: str = Field(default="", max_length=4000)
    parts: list[PartProgress] = Field(default=[], max_length=300)  # in the order they are worked on
    checks: list[ProbeCheck] = Field(default=[], max_length=200)  # of a connection test, so far
    log: list[LogEntry] = Field(default=[], max_length=500)


class ProgressReply(Wire):
    cancel: bool = False
    ttl_s: float
    report_s: float = 2.0
    server_time: datetime


class LeftOut(Wire):
    """An item that is missing from the result, or (note) something worth telling about it."""

    path: str = Field(max_length=8000)
    code: str
    message: str = Field(max_length=4000)
    note: bool = False


class Outcome(StrEnum):
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"


class Placed(Wire):
    """The result of a task on a repository or a place, with what the file system there holds; 0: not known."""

    capacity_bytes: Bytes = 0
    free_bytes: Bytes = 0  # as the node's user may fill them


class BackupResult(Placed):
    kind: Literal["backup"] = "backup"
    snapshot_id: str
    tree_id: str
    parent_id: str = ""
    adopted: bool = False  # a forerunner of this task had already finished the snapshot
    size_bytes: int
    read_bytes: int
    new_bytes: int
    stored_bytes: int
    files: int
    started_age_s: float  # how long before this report the data's instant was
    block_size: int = 0
    kept: list[str] | None = Field(default=None, max_length=300)  # on the platform, for the next one; None: not known


class InitResult(Placed):
    kind: Literal["init"] = "init"
    repository_id: str


class ExportResult(Wire):
    kind: Literal["export"] = "export"
    size_bytes: int
    files: int
    started_age_s: float


class RestoreResult(Wire):
    kind: Literal["restore"] = "restore"
    files: int
    bytes_written: int
    skipped: int = 0
    target: str


class DownloadResult(Wire):
    kind: Literal["download"] = "download"
    size_bytes: int
    sha256: str


class ForgetResult(Placed):
    kind: Literal["forget"] = "forget"
    removed: list[str]
    missing: list[str] = []


class VerifyResult(Placed):
    kind: Literal["verify"] = "verify"
    checked_bytes: int = 0
    snapshots: list[str] = []  # every snapshot id that the repository holds
    damaged_snapshots: list[str] = []
    errors: list[str] = []
    stored_bytes: int = 0
    packs: int = 0
    read_packs: int = 0
    complete: bool = False  # all data was read: who is not damaged now is whole
    debt_bytes: int | None = None  # of stored_bytes, not proven within the spec's cycle
    damaged_paths: dict[str, list[str]] = {}  # by snapshot: files that cannot be restored wholly


class PruneResult(Placed):
    kind: Literal["prune"] = "prune"
    removed_packs: int
    rewritten_packs: int
    freed_bytes: int  # less than nothing when more was rewritten than removed
    unused_bytes: int  # waste that stays
    stored_bytes: int


class ProbeResult(Placed):
    kind: Literal["probe"] = "probe"
    checks: list[ProbeCheck]
    host_keys: dict[str, str] = Field(default={}, max_length=100)  # by address: what each showed, pinned or not


class DiscoverResult(Wire):
    kind: Literal["discover"] = "discover"
    found: int = Field(ge=0)  # machines told in pieces on the way
    whole: bool = True  # all of the platform was asked: what was not found is gone
    problems: list[str] = Field(default=[], max_length=100)


class RemoveTracesResult(Wire):
    kind: Literal["remove-traces"] = "remove-traces"
    removed: list[str] = Field(default=[], max_length=LIST_KEEP)
    gone: bool = False  # the machine is; what it kept went with it


class DoneResult(Wire):
    kind: Literal["done"] = "done"  # browse: the lists were sent on the way


Result = Annotated[
    BackupResult
    | InitResult
    | ExportResult
    | RestoreResult
    | DownloadResult
    | ForgetResult
    | VerifyResult
    | PruneResult
    | ProbeResult
    | DiscoverResult
    | RemoveTracesResult
    | DoneResult,
    Field(discriminator="kind"),
]


class CompleteReport(Wire):
    token: str
    outcome: Outcome = Outcome.SUCCEEDED
    result: Result
    left_out: list[LeftOut] = Field(default=[], max_length=LIST_KEEP)
    left_out_count: int = Field(default=0, ge=0, lt=2**31)
    notes_count: int = 0
    last: ProgressReport | None = None


class FailReport(Wire):
    token: str
    code: str
    message: str = Field(max_length=8000)
    hint: str = Field(default="", max_length=4000)
    retryable: bool = False
    log: list[LogEntry] = Field(default=[], max_length=500)


class ReleaseReport(Wire):
    token: str
    reason: str = Field(default="", max_length=1000)
