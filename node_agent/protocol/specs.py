"""What is to be done: one spec for each kind of task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from node_agent.protocol.kinds import TaskKind
from node_agent.protocol.wire import Wire


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


def burdened(kind: str, addresses: Sequence[str], options: Mapping[str, str], host: str = "") -> str:
    if kind == "rbd":
        return f"rbd:{options.get('fsid', '')}"
    address = host if host in addresses else addresses[0]
    return f"{kind}:{address.lower().removesuffix(':22')}"


class PlatformAccess(Wire):
    """How a platform of machines is reached. In a lease only, and in memory.

    ``host_keys``: what each address must prove itself with; an address without one is not logged in to.
    """

    kind: str  # "kvm", "rbd"; the name of the node's driver
    addresses: list[str] = Field(max_length=100)
    user: str = ""
    options: dict[str, str] = {}
    secrets: dict[str, str] = Field(default={}, repr=False)
    host_keys: dict[str, str] = {}
    bandwidth_bytes_s: int = 0  # of each host, over all tasks of the node; 0: no limit

    def burdened(self, host: str = "") -> str:
        """What work on a machine of ``host`` burdens, however a platform names it: a hypervisor, or a cluster."""
        return burdened(self.kind, self.addresses, self.options, host)


class ProbeSpec(Wire):
    kind: Literal[TaskKind.PROBE] = TaskKind.PROBE
    driver: str = ""  # "files", "image", a platform's kind, or "" for a destination
    path: str
    platform: PlatformAccess | None = None
    repository_url: str = ""
    options: dict[str, str] = Field(default={}, repr=False)
    password: str = Field(default="", repr=False)


class InitSpec(Wire):
    kind: Literal[TaskKind.INIT] = TaskKind.INIT
    repository: RepositoryAccess


class DiscoverSpec(Wire):
    """What lies on a platform; told in pieces (FoundReport)."""

    kind: Literal[TaskKind.DISCOVER] = TaskKind.DISCOVER
    platform: PlatformAccess
    thorough: bool = False  # running machines are asked for what they keep, too; that leaves a word in libvirt's log


class MachineSource(Wire):
    """One machine of a platform, and how it is to be consistent."""

    id: str  # the platform's own, which stays when the machine is renamed
    name: str
    host: str = ""  # of several addresses: where it was seen last
    leave_out: list[str] = []  # names of disks
    freeze: Literal["no", "try", "require"] = "try"
    freeze_limit_s: int = Field(default=10, ge=1, le=600)


class Commands(Wire):
    """Command lines around the instant of a backup: once ``before`` has begun, ``after`` runs, whatever happens."""

    where: Literal["host", "node"] = "host"  # the machine's hypervisor, by a shell there; or the node, without one
    before: str = Field(default="", max_length=4000)
    after: str = Field(default="", max_length=4000)
    limit_s: int = Field(default=300, ge=1, le=3600)  # for each
    exit_codes: list[int] = [0]
    on_error: Literal["fail", "go-on"] = "fail"  # go-on: the point is partial, with the reason


class BackupSource(Wire):
    driver: str
    paths: list[str]  # files: roots of the tree; image: one disk image file
    excludes: list[str] = []
    disk: str = "disk"  # image: name of the disk in the snapshot
    format: str = ""  # image: raw, qcow2 …; "" = look
    one_file_system: bool = False
    machine: MachineSource | None = None  # of a platform's driver; then there are no paths


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
    platform: PlatformAccess | None = None
    commands: Commands | None = None


class ExportSpec(Wire):
    kind: Literal[TaskKind.EXPORT] = TaskKind.EXPORT
    workload: UUID
    workload_name: str
    source: BackupSource
    staging: str
    commands: Commands | None = None


class MachineTarget(Wire):
    """How a machine comes back. Empty values keep what the restore point says."""

    platform: UUID | None = None  # the server's id; None: where it came from
    name: str = Field(default="", max_length=200)
    host: str = Field(default="", max_length=300)
    storage: str = Field(default="", max_length=1000)  # folder or pool
    networks: dict[str, str] = Field(default={}, max_length=64)  # by the name in the restore point
    new_identity: bool = True  # another UUID and other MAC addresses
    start: bool = False


class RestoreTarget(Wire):
    """Where restored data goes: a folder on the node, or (in place) the paths it came from."""

    driver: str
    path: str  # folder; for images the file to write; for machines the new one's name, for people
    in_place: bool = False
    overwrite: Literal["never", "changed", "always"] = "never"
    format: str = "raw"  # image and machine: raw or qcow2; machine: "" = as it was
    machine: MachineTarget | None = None


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
    platform: PlatformAccess | None = None
    machine_id: str = ""  # the platform's own, of the machine that was backed up


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
    share: float = Field(default=0, ge=0, le=1)  # of the data, least recently proven first; 0 = all of it
    cycle_s: float = Field(default=0, ge=0)  # data not proven for that long is debt
    max_duration_s: float = Field(default=0, ge=0)  # of reading; 0 = no limit


class PruneSpec(Wire):
    kind: Literal[TaskKind.PRUNE] = TaskKind.PRUNE
    repository: RepositoryAccess
    max_duration_s: float = Field(default=0, ge=0)  # of rewriting; what is left is for the next time
    expected: list[str] = []  # snapshots that must be there, or nothing is removed


class RemoveTracesSpec(Wire):
    """Remove what backups keep at one machine for the next of them; what bears other marks stays."""

    kind: Literal[TaskKind.REMOVE_TRACES] = TaskKind.REMOVE_TRACES
    platform: PlatformAccess
    machine: MachineSource
    marks: list[Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]] = Field(min_length=1, max_length=100)
    bitmaps: bool = True  # of a hypervisor, checkpoints too
    snapshots: bool = True  # in a storage cluster


Spec = Annotated[
    ProbeSpec
    | DiscoverSpec
    | InitSpec
    | BackupSpec
    | ExportSpec
    | RestoreSpec
    | DownloadSpec
    | BrowseSpec
    | ForgetSpec
    | VerifySpec
    | PruneSpec
    | RemoveTracesSpec,
    Field(discriminator="kind"),
]
