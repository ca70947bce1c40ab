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
    POST tasks/<id>/found             FoundReport         -> Ack
    POST token                        TokenRequest        -> TokenReply      (rotation)
"""

from __future__ import annotations

from node_agent.protocol.host_keys import fingerprint
from node_agent.protocol.kinds import (
    LEASE_CLASS,
    Capabilities,
    EnrolReply,
    EnrolRequest,
    LeaseClass,
    Roots,
    TaskKind,
    TokenReply,
    TokenRequest,
)
from node_agent.protocol.leases import LeasedTask, LeaseReply, LeaseRequest
from node_agent.protocol.lists import (
    FOUND_MOST,
    FOUND_PIECE,
    KEPT_LONGEST,
    KEPT_MOST,
    TRACES_MOST,
    DirectoriesMissing,
    DirectoriesReport,
    DirectoriesWanted,
    Directory,
    DiskFacts,
    Entry,
    FoundReport,
    MachineFacts,
    TraceFacts,
)
from node_agent.protocol.owners import owner_of
from node_agent.protocol.reports import (
    BackupResult,
    CompleteReport,
    DiscoverResult,
    DoneResult,
    DownloadResult,
    ExportResult,
    FailReport,
    ForgetResult,
    InitResult,
    LeftOut,
    LogEntry,
    Outcome,
    PartProgress,
    Placed,
    ProbeCheck,
    ProbeResult,
    ProgressReply,
    ProgressReport,
    PruneResult,
    ReleaseReport,
    RemoveTracesResult,
    RestoreResult,
    Result,
    VerifyResult,
)
from node_agent.protocol.specs import (
    BackupSource,
    BackupSpec,
    BrowseSpec,
    Commands,
    DiscoverSpec,
    DownloadSpec,
    ExportSpec,
    ForgetSpec,
    InitSpec,
    MachineSource,
    MachineTarget,
    Parent,
    PlatformAccess,
    ProbeSpec,
    PruneSpec,
    RemoveTracesSpec,
    RepositoryAccess,
    RestoreSpec,
    RestoreTarget,
    Spec,
    VerifySpec,
    burdened,
)
from node_agent.protocol.wire import (
    API_VERSION,
    BODY_BYTES,
    LEASE_TOKEN_HEADER,
    LIST_KEEP,
    PIECE_BYTES,
    PREFIX,
    Ack,
    Bytes,
    ErrorBody,
    Wire,
)

__all__ = [
    "API_VERSION",
    "BODY_BYTES",
    "FOUND_MOST",
    "FOUND_PIECE",
    "KEPT_LONGEST",
    "KEPT_MOST",
    "LEASE_CLASS",
    "LEASE_TOKEN_HEADER",
    "LIST_KEEP",
    "PIECE_BYTES",
    "PREFIX",
    "TRACES_MOST",
    "Ack",
    "BackupResult",
    "BackupSource",
    "BackupSpec",
    "BrowseSpec",
    "Bytes",
    "Capabilities",
    "Commands",
    "CompleteReport",
    "DirectoriesMissing",
    "DirectoriesReport",
    "DirectoriesWanted",
    "Directory",
    "DiscoverResult",
    "DiscoverSpec",
    "DiskFacts",
    "DoneResult",
    "DownloadResult",
    "DownloadSpec",
    "EnrolReply",
    "EnrolRequest",
    "Entry",
    "ErrorBody",
    "ExportResult",
    "ExportSpec",
    "FailReport",
    "ForgetResult",
    "ForgetSpec",
    "FoundReport",
    "InitResult",
    "InitSpec",
    "LeaseClass",
    "LeaseReply",
    "LeaseRequest",
    "LeasedTask",
    "LeftOut",
    "LogEntry",
    "MachineFacts",
    "MachineSource",
    "MachineTarget",
    "Outcome",
    "Parent",
    "PartProgress",
    "Placed",
    "PlatformAccess",
    "ProbeCheck",
    "ProbeResult",
    "ProbeSpec",
    "ProgressReply",
    "ProgressReport",
    "PruneResult",
    "PruneSpec",
    "ReleaseReport",
    "RemoveTracesResult",
    "RemoveTracesSpec",
    "RepositoryAccess",
    "RestoreResult",
    "RestoreSpec",
    "RestoreTarget",
    "Result",
    "Roots",
    "Spec",
    "TaskKind",
    "TokenReply",
    "TokenRequest",
    "TraceFacts",
    "VerifyResult",
    "VerifySpec",
    "Wire",
    "burdened",
    "fingerprint",
    "owner_of",
]
