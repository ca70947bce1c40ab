"""The words between server and node: JSON over TLS under ``/api/node/v1/``, as pydantic types.

Both sides import this module, so that they cannot drift. Rules of the wire:

* Durations, never instants: clocks differ. ``server_time`` is told so that a node can correct its own.
* A request that may be repeated names itself (``request_id``, lease ``token``); the answer to a
  repetition is the answer to the first.
* The fence: every word about a task carries the lease's ``token``. A token that is no longer the
  task's gets 409 ``lease-lost``.
* Unknown fields from a newer peer are ignored; missing optional ones take their default. A server of
  version N serves nodes of N and N-1.
* Errors are ``{"code", "message", "hint"}`` with a fitting HTTP status.
* The node says who it is with ``Authorization: Bearer <its token>`` (all but ``ca`` and ``enrol``); an
  upload, whose body is bytes, carries the lease's token in the header ``X-Lease-Token``.

    POST enrol                        EnrolRequest        -> EnrolReply
    GET  ca                           -> the CA certificate, PEM (the node compares its fingerprint)
    POST lease                        LeaseRequest        -> LeaseReply      (long poll)
    POST tasks/<id>/progress          ProgressReport      -> ProgressReply   (doubles as heartbeat)
    POST tasks/<id>/complete          CompleteReport      -> Ack
    POST tasks/<id>/fail              FailReport          -> Ack
    POST tasks/<id>/release           ReleaseReport       -> Ack             (drain: back to the queue)
    POST tasks/<id>/directories/wanted DirectoriesWanted  -> DirectoriesMissing
    POST tasks/<id>/directories       DirectoriesReport   -> Ack
    PUT  tasks/<id>/upload?offset=N   bytes, <= PIECE_BYTES -> Ack
    POST token                        TokenRequest        -> TokenReply      (rotation)
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

API_VERSION = 1
PREFIX = "/api/node/v1"
PIECE_BYTES = 4 * 1024 * 1024  # largest piece of a download or of a list of directories
BODY_BYTES = 8 * 1024 * 1024  # largest body of any node request
LEASE_TOKEN_HEADER = "X-Lease-Token"
LIST_KEEP = 1000  # left-out items that travel with a result; all are counted


Bytes = Annotated[int, Field(ge=0, lt=2**63)]  # what a database can keep


class Wire(BaseModel):
    # hide_input_in_errors: a body that cannot be read may hold passwords, and errors end up in logs.
    # NaN and infinity are no JSON, and no database keeps them.
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class ErrorBody(Wire):
    code: str
    message: str
    hint: str = ""


class Ack(Wire):
    ok: Literal[True] = True


# --- what a node can do ---------------------------------------------------------------------------


class TaskKind(StrEnum):
    PROBE = "probe"  # connection test: looks at paths and rights
    INIT = "init"  # make a repository at a destination
    BACKUP = "backup"  # Export and Store in one (staging: stream)
    EXPORT = "export"  # copy the source to the node's staging space (staging: disk)
    STORE = "store"  # put what was exported into the repository (staging: disk)
    RESTORE = "restore"  # Restore and Import in one (staging: stream)
    FETCH = "fetch"  # Restore into the node's staging space (staging: disk)
    IMPORT = "import"  # put what was fetched in place (staging: disk)
    DOWNLOAD = "download"  # one file of a restore point, sent to the server's spool in pieces
    BROWSE = "browse"  # directories of a restore point that the server has no list of
    FORGET = "forget"  # remove snapshots from a repository
    VERIFY = "verify"  # check a repository


class LeaseClass(StrEnum):
    APPEND = "append"  # carries on while the server is away; may renew an expired lease
    EXCLUSIVE = "exclusive"  # stops itself before the lease ends


LEASE_CLASS: dict[TaskKind, LeaseClass] = {
    kind: LeaseClass.EXCLUSIVE
    if kind in {TaskKind.INIT, TaskKind.RESTORE, TaskKind.IMPORT, TaskKind.FORGET}
    else LeaseClass.APPEND
    for kind in TaskKind
}


class Roots(Wire):
    """What a node's own configuration allows, as absolute paths; told to the server for its forms."""

    read: list[str] = []
    write: list[str] = []
    repositories: list[str] = []
    stores: list[str] = []  # remote ones: "s3:" (all of the kind), "sftp:host", "s3:host/bucket/prefix"


class Capabilities(Wire):
    version: str
    protocol: int = API_VERSION
    hostname: str
    system: str = ""  # for people: "Debian 12, x86_64"
    kinds: list[TaskKind]
    drivers: list[str]  # "files", "image"
    labels: list[str] = []  # from node.toml, such as "zone:a"
    roots: Roots = Roots()
    slots: int = 2
    staging_bytes: Bytes = 0  # free bytes in the staging folder; 0 = no disk staging


# --- enrolment ------------------------------------------------------------------------------------


class EnrolRequest(Wire):
    code: str = Field(max_length=200)
    name: str = Field(default="", max_length=100)
    incarnation: UUID
    node_time: datetime
    capabilities: Capabilities


class EnrolReply(Wire):
    node_id: UUID
    name: str
    token: str
    server_time: datetime


class TokenRequest(Wire):
    request_id: UUID


class TokenReply(Wire):
    token: str  # the old one stays valid until this one is used for the first time


# --- leases ---------------------------------------------------------------------------------------


class LeaseRequest(Wire):
    request_id: UUID
    incarnation: UUID  # new at every start of the node: a new one frees the leases of the old
    node_time: datetime
    free_slots: int = Field(ge=0, le=64)
    holding: list[UUID] = []
    wait_s: float = Field(default=25, ge=0, le=60)
    capabilities: Capabilities | None = None  # at start and when they change
    draining: bool = False


class RepositoryAccess(Wire):
    """Where a repository lies and how it opens. The password lives in memory only."""

    repository: UUID  # the server's id of it
    url: str
    options: dict[str, str] = Field(default={}, repr=False)  # of the store, credentials among them
    password: str = Field(repr=False)
    repository_id: str = ""  # restic's config id; "" before the init task; must match when given


class Parent(Wire):
    snapshot_id: str
    tree_id: str


class ProbeSpec(Wire):
    kind: Literal[TaskKind.PROBE] = TaskKind.PROBE
    driver: str = ""  # "files", "image" or "" for a destination
    path: str
    repository_url: str = ""
    options: dict[str, str] = Field(default={}, repr=False)
    password: str = Field(default="", repr=False)


class InitSpec(Wire):
    kind: Literal[TaskKind.INIT] = TaskKind.INIT
    repository: RepositoryAccess


class BackupSource(Wire):
    driver: str
    paths: list[str]  # files: roots of the tree; image: one disk image file
    excludes: list[str] = []
    disk: str = "disk"  # image: name of the disk in the snapshot
    format: str = ""  # image: raw, qcow2 …; "" = look
    one_file_system: bool = False


class BackupSpec(Wire):
    kind: Literal[TaskKind.BACKUP, TaskKind.STORE] = TaskKind.BACKUP
    workload: UUID
    workload_name: str
    point: UUID  # id of the restore point to be; also the tag brs.point
    source: BackupSource
    repository: RepositoryAccess
    host: str  # snapshot's hostname: identifies the workload
    snapshot_paths: list[str]  # snapshot's paths: identifies the workload
    tags: list[str]
    parent: Parent | None = None  # newest complete point of this workload in this repository
    full: bool = False  # read everything, trust nothing remembered
    send_directories: bool = True
    staging: str = ""  # STORE: name of the staged export on this node
    bandwidth_bytes_s: int = 0


class ExportSpec(Wire):
    kind: Literal[TaskKind.EXPORT] = TaskKind.EXPORT
    workload: UUID
    workload_name: str
    source: BackupSource
    staging: str


class RestoreTarget(Wire):
    """Where restored data goes: a folder on the node, or (in place) the paths it came from."""

    driver: str
    path: str  # folder; for images the file to write
    in_place: bool = False
    overwrite: Literal["never", "changed", "always"] = "never"
    format: str = "raw"  # image: raw or qcow2


class RestoreSpec(Wire):
    kind: Literal[TaskKind.RESTORE, TaskKind.FETCH, TaskKind.IMPORT] = TaskKind.RESTORE
    workload_name: str
    repository: RepositoryAccess | None = None  # none for IMPORT
    snapshot_id: str = ""
    include: list[str] = []  # paths in the snapshot (Go-quoted like the tree's names); empty = all
    strip: str = ""  # leading path that is not recreated below the target
    target: RestoreTarget
    verify: bool = False
    staging: str = ""


class DownloadSpec(Wire):
    kind: Literal[TaskKind.DOWNLOAD] = TaskKind.DOWNLOAD
    repository: RepositoryAccess
    snapshot_id: str
    path: str
    max_bytes: int


class BrowseSpec(Wire):
    kind: Literal[TaskKind.BROWSE] = TaskKind.BROWSE
    repository: RepositoryAccess
    snapshot_id: str


class ForgetSpec(Wire):
    kind: Literal[TaskKind.FORGET] = TaskKind.FORGET
    repository: RepositoryAccess
    snapshot_ids: list[str]


class VerifySpec(Wire):
    kind: Literal[TaskKind.VERIFY] = TaskKind.VERIFY
    repository: RepositoryAccess
    read_data: bool = False


Spec = Annotated[
    ProbeSpec | InitSpec | BackupSpec | ExportSpec | RestoreSpec | DownloadSpec | BrowseSpec | ForgetSpec | VerifySpec,
    Field(discriminator="kind"),
]


class LeasedTask(Wire):
    task_id: UUID
    job_id: UUID
    token: str  # the fence
    attempt: int
    ttl_s: float  # the lease ends this long after the server answered
    lease_class: LeaseClass
    spec: Spec


class LeaseReply(Wire):
    tasks: list[LeasedTask] = []
    cancel: list[UUID] = []  # held tasks that should stop
    lost: list[UUID] = []  # held tasks that are no longer this node's
    server_time: datetime
    drain: bool = False
    report_s: float = 2.0  # pace of progress reports
    message: str = ""  # why there is no work, for the node's log


# --- reports --------------------------------------------------------------------------------------


class LogEntry(Wire):
    seq: int  # counts up within one lease; repeated ones are ignored
    level: Literal["debug", "info", "warning", "error"] = "info"
    message: str = Field(max_length=4000)
    age_s: float = 0  # how long ago, so that clocks do not matter


class ProgressReport(Wire):
    token: str
    phase: str = ""  # "export", "store", "restore", "import", "verify" …
    total_bytes: int = 0
    done_bytes: int = 0
    read_bytes: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0
    total_files: int = 0
    done_files: int = 0
    left_out: int = 0
    rate_bytes_s: float = 0
    current: str = Field(default="", max_length=4000)
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


class BackupResult(Wire):
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


class InitResult(Wire):
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


class ForgetResult(Wire):
    kind: Literal["forget"] = "forget"
    removed: list[str]
    missing: list[str] = []


class VerifyResult(Wire):
    kind: Literal["verify"] = "verify"
    checked_bytes: int = 0
    snapshots: list[str] = []  # every snapshot id that the repository holds
    damaged_snapshots: list[str] = []
    errors: list[str] = []
    stored_bytes: int = 0


class ProbeCheck(Wire):
    name: str
    ok: bool
    detail: str = ""
    hint: str = ""


class ProbeResult(Wire):
    kind: Literal["probe"] = "probe"
    checks: list[ProbeCheck]
    total_bytes: Bytes = 0
    free_bytes: Bytes = 0


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
    | ProbeResult
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


# --- file lists -----------------------------------------------------------------------------------


class Entry(Wire):
    """One name of a directory. ``name`` is Go-quoted as in the tree: bytes that are not UTF-8 are ``\\xNN``."""

    name: str
    type: str  # file, dir, symlink, fifo, dev, chardev, socket
    size: int = 0
    mtime: str = ""  # RFC 3339
    mode: int = 0  # POSIX permission bits
    user: str = ""
    target: str = ""  # of a symlink
    tree: str = ""  # of a dir: the tree id of its own list


class DirectoriesWanted(Wire):
    token: str
    tree_ids: list[str] = Field(max_length=5000)


class DirectoriesMissing(Wire):
    tree_ids: list[str]


class Directory(Wire):
    tree_id: str
    entries: list[Entry]
    part: int = 0  # a directory too large for one piece comes in parts 0 … n
    last: bool = True


class DirectoriesReport(Wire):
    token: str
    directories: list[Directory]
