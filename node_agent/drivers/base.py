"""The contract of a driver, in words: where data comes from.

A driver knows one kind of source on this node. It knows no repository, no server and no task.

* ``open`` gives a consistent source as a context manager and always releases what it took, also when
  the body raises or the process is told to stop.
* It touches only what the guard allows, and checks that before it looks at anything: a path outside the
  roots is RefusedError, whether it exists or not.
* What is not there is SourceMissing; what cannot be read at all is SourceError. Single items that cannot
  be read inside an opened source are not the driver's business: whoever reads reports them.
* ``probe`` never raises for a bad path: it says what is wrong and what to do, in plain words.

What ``open`` yields is one of three shapes: a :class:`FileTree`, a :class:`Disk` or a :class:`Machine`.

Machines lie on a *platform* that is reached over the network, with an access that came with the task: see
:class:`MachinePlatform`. The same promises hold there; the guard is asked by the task, before the platform is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Protocol

from node_agent.errors import BrsError, SourceError
from node_agent.guard import Guard
from node_agent.items import Extent, Issue, TrackingBase


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a connection test."""

    name: str
    ok: bool
    detail: str = ""
    hint: str = ""

    @classmethod
    def of(cls, name: str, error: BrsError) -> Finding:
        return cls(name, ok=False, detail=error.message, hint=error.hint)


@dataclass(frozen=True, slots=True)
class FileTree:
    """Roots of trees to read: where each really lies, and the path the user knows it by.

    ``owners``: user and group ids of paths (as the user knows them) whose copy could not be given them.
    """

    roots: Sequence[tuple[Path, str]]
    owners: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)


class DiskContent(Protocol):
    """The whole content of one disk. Not for several threads at once."""

    size: int
    format: str
    damage: str  # what is wrong with the file that holds it; empty if nothing is known to be

    def extents(self) -> Iterator[Extent]: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def changed(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Changes:
    """Extents that changed since a stored state of the disk, and which state that is: never one without the other."""

    extents: Sequence[Extent]
    base: TrackingBase


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk, open for reading. ``path`` is the image's file as the user knows it, ``format`` what it is there.

    A driver that tracks changes gives ``changes`` and ``identity``, its word for which disk this is. It
    drops what it tracked since an older state only after the snapshot on the newer one is acknowledged.
    """

    path: str
    content: DiskContent
    format: str
    changes: Changes | None = None
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Previous:
    """The restore point before this one, which the new one may inherit from: whole, and in the repository now.

    ``bases``: the stored state of each of its disks, by name. ``metadata``: the small files that the driver had stored
    beside them, among them what it needs to go on from there (a checkpoint, a kept snapshot).
    """

    bases: Mapping[str, TrackingBase]
    metadata: Mapping[str, bytes]


class Consistency(StrEnum):
    """How the disks of a machine fit together; a point says so."""

    APPLICATION = "application"  # the guest had written out what it held, and stood still
    CRASH = "crash"  # one instant for all disks, as after a power cut
    STOPPED = "stopped"  # the machine did not run
    NONE = "none"  # not one instant for all


@dataclass(frozen=True, slots=True)
class Machine:
    """The disks of one machine as they were at one instant, open for reading, and what recreates the machine.

    ``disks`` by the name that each has in the snapshot (``disks/NAME.raw``). ``metadata`` are small files beside them,
    ``vm.json`` first of all; no secrets in clear but what the machine cannot be recreated without (they are encrypted
    with everything else). ``left_out``: what belongs to the machine and is not protected; each makes the point partial.

    ``kept``: what stays on the platform once the point is acknowledged, by its names there.

    ``acknowledge`` is called once when the snapshot is in the repository: only then the tracked state of the
    point before may be dropped. Without it, leaving ``open`` drops what this run made, and nothing else.
    """

    disks: Mapping[str, Disk]
    metadata: Mapping[str, bytes]
    consistency: Consistency
    instant: float  # seconds since the epoch, by this node's monotonic-corrected clock
    acknowledge: Callable[[], None]
    left_out: Sequence[Issue] = ()
    notes: Sequence[Issue] = ()  # worth telling, such as why everything is read; nothing is missing
    kept: Sequence[str] = ()


class Driver(ABC):
    name: ClassVar[str]

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    @abstractmethod
    def open(self, paths: Sequence[str], *, format: str = "") -> AbstractContextManager[FileTree | Disk]:
        """The source at ``paths`` (absolute); ``format`` is for disk images, empty = look."""

    @abstractmethod
    def probe(self, path: str) -> list[Finding]:
        """Whether ``path`` could be protected right now."""


# --- platforms that machines lie on ---


@dataclass(frozen=True, slots=True)
class FoundDisk:
    """``why_left_out``: empty for a disk that is protected."""

    name: str
    size: int
    format: str = ""
    why_left_out: str = ""


@dataclass(frozen=True, slots=True)
class FoundMachine:
    """One machine as it is now. ``id`` stays, whatever the machine is called: a VM's UUID, or fsid/pool/image id.

    ``traces``: what backups keep at it, whoever's they are, by the owner in the names; None: nobody has looked."""

    id: str
    name: str
    state: str  # "running", "stopped", "paused", or the platform's own word
    disks: Sequence[FoundDisk] = ()
    tags: Sequence[str] = ()
    project: str = ""
    host: str = ""  # of several: the address of the one it lies on
    summary: Mapping[str, str] = field(default_factory=dict)  # few, short, for people
    traces: Mapping[str, Sequence[str]] | None = None


class Freeze(StrEnum):
    """Whether the guest's file systems are frozen for the instant of the snapshot."""

    NO = "no"
    TRY = "try"  # without an agent the point is crash-consistent, and says so
    REQUIRE = "require"  # without an agent there is no backup


@dataclass(frozen=True, slots=True)
class MachineRequest:
    """What a backup of one machine is to do. ``mark``: 8 hex digits of whose backups these are (the repository);
    what they leave on the platform bears it, and what bears another one is never touched."""

    id: str
    name: str
    mark: str
    host: str = ""
    leave_out: frozenset[str] = frozenset()  # names of disks that the user does not want
    freeze: Freeze = Freeze.TRY
    freeze_limit_s: int = 10


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command came to: its exit status, and the end of what it printed."""

    code: int
    output: str
    in_time: bool = True  # False: it was ended because its time was over


class Around(Protocol):
    """Two commands around the instant of a backup. On a hypervisor the second one also runs by itself when the block
    that this was made for is left, when this process dies, or after a while."""

    def before(self) -> Ran | None:
        """Called once, first; what stops the run meanwhile is raised. None where there is no such command."""

    def after(self) -> Ran | None:
        """None where there is no such command. Called once."""


@dataclass(frozen=True, slots=True)
class ImportOrder:
    """How a machine comes back; empty values keep what the point says. ``networks`` maps names of networks to those to
    use. ``overwrite`` allows replacing what has this name; ``new_identity`` gives a new UUID and new MAC addresses."""

    id: str  # of the machine that was backed up
    name: str = ""
    host: str = ""
    storage: str = ""  # folder or pool
    format: str = ""  # raw, qcow2
    disks: Sequence[str] = ()  # those that come back
    networks: Mapping[str, str] = field(default_factory=dict)
    new_identity: bool = True
    start: bool = False
    overwrite: bool = False


class DiskReader(Protocol):
    """A disk out of the repository. Quickest when it is read on from where the last read ended."""

    size: int

    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Restored:
    """``what``: what there is now, in words ("web01 on kvm1, running"). ``notes``: what is not as it was ordered."""

    what: str
    notes: Sequence[str] = ()


class MachinePlatform(ABC):
    """One platform, reached with the access that it was made with. Opens no connection before it is asked something."""

    @abstractmethod
    def host_keys(self) -> Mapping[str, str]:
        """By address, the key that each host shows now (``ssh-ed25519 AAAA…``), asked without logging in; empty for a
        platform that proves itself otherwise."""

    @abstractmethod
    def probe(self) -> Iterator[Finding]:
        """A connection test, check by check as they are made. Never raises for what is wrong: it says so."""

    @abstractmethod
    def discover(self, *, thorough: bool = False) -> Iterator[FoundMachine | Issue]:
        """What there is. An issue for a host that could not be asked: its machines are then not known to be gone.
        ``thorough``: traces are looked for also where asking leaves a word in the platform's log."""

    def around(
        self, _wanted: MachineRequest, _before: str, _after: str, _limit_s: int, _check: Callable[[], None], /
    ) -> AbstractContextManager[Around]:
        """Run command lines where the machine lies, with ``BRS_MACHINE`` (its name) and ``BRS_MACHINE_ID`` in their
        environment. ``check`` raises what stops the run, while ``before`` is waited for; each may take ``limit_s``."""
        raise SourceError("On a platform of this kind no commands can be run.", hint="Run them on the node.")

    @abstractmethod
    def open(self, wanted: MachineRequest, previous: Previous | None) -> AbstractContextManager[Machine]:
        """``previous``: what may be built upon; None: everything is read. SourceMissing when the machine is gone."""

    @abstractmethod
    def remove_traces(self, wanted: MachineRequest, *, bitmaps: bool, snapshots: bool) -> list[str]:
        """Remove what backups of this mark keep at the machine, whatever else is there; the names of what was there.
        Doing it again does no harm. ``bitmaps`` are a hypervisor's own (checkpoints too), ``snapshots`` those in a
        storage cluster. SourceMissing when the machine is gone; what cannot be removed is an error."""

    @abstractmethod
    def restore(
        self,
        order: ImportOrder,
        metadata: Mapping[str, bytes],
        disks: Mapping[str, DiskReader],
        tick: Callable[[str, int], None],
    ) -> Restored:
        """Bring a machine back. The order is checked before anything is made: TargetExists, TargetFull, TargetError.
        An error takes away what was made, and nothing else. ``tick`` is told of each step's disk and bytes, and raises
        what stops the run."""
