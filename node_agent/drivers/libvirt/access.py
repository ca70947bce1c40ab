"""How a hypervisor is reached, what a backup of one machine is to do, and what an import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from node_agent.drivers.base import Freeze, Previous


@dataclass(frozen=True, slots=True)
class HostAccess:
    """``host_key``: a line ``ssh-ed25519 AAAA…`` or ``SHA256:…``; never taken on trust. Key or password, one of both.

    ``scratch``: a folder on the hypervisor that qemu may write to; what the machine writes during a backup fills it.
    ``ceph_snapshots``: increments of RBD disks by snapshots in their cluster, which this node then reaches by itself.
    """

    host: str
    host_key: str
    user: str = "root"
    port: int = 22
    private_key: str | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    uri: str = "qemu:///system"
    scratch: str = "/var/tmp"
    ceph_snapshots: bool = False

    @property
    def shown(self) -> str:
        port = "" if self.port == 22 else f":{self.port}"
        return f"{self.user}@{self.host}{port}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and bytes after which the script on the hypervisor steps in, whatever becomes of the node."""

    frozen_s: int = 10
    silent_s: int = 90  # without a sign of life of the node
    job_s: int = 24 * 3600
    floor_bytes: int = 5 << 30  # free space of the scratch folder under which the job is ended …
    floor_percent: int = 10  # … or under this share of its size, whichever is less


@dataclass(frozen=True, slots=True)
class BackupRequest:
    """``mark``: 8 hex digits of whose backups these are (the repository): names of checkpoints begin with it, and those
    of another mark are never touched. ``track``: whether a checkpoint is kept for the next increment."""

    machine: str  # UUID
    mark: str
    previous: Previous | None = None
    freeze: Freeze = Freeze.TRY
    track: bool = True
    leave_out: frozenset[str] = frozenset()  # disks that the user does not want
    limits: Limits = Limits()

    @property
    def prefix(self) -> str:
        return f"brs-{self.mark}-"


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """Empty values keep what the point says. ``networks`` maps the names of networks and bridges to those to use.

    ``overwrite`` allows replacing a machine of this name that is shut off, and files of the same path.
    ``new_identity`` gives a new UUID and new MAC addresses; without it there must be no other machine of that UUID.
    """

    name: str = ""
    folder: str = ""
    format: str = ""  # raw, qcow2
    disks: Sequence[str] = ()
    networks: Mapping[str, str] = field(default_factory=dict)
    new_identity: bool = True
    start: bool = False
    overwrite: bool = False
