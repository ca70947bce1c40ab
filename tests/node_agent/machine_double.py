"""A platform of machines in memory, with change tracking; it also refuses, vanishes and lies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from node_agent.drivers.base import (
    Changes,
    Consistency,
    Disk,
    DiskReader,
    Finding,
    FoundDisk,
    FoundMachine,
    ImportOrder,
    Machine,
    MachinePlatform,
    MachineRequest,
    Previous,
    Restored,
)
from node_agent.errors import SourceError, SourceMissing, TargetExists
from node_agent.items import Extent, Issue
from node_agent.protocol import PlatformAccess
from node_agent.tasks import sources
from node_agent.tasks.context import TaskContext

BLOCK = 1 << 20
STEP = 3 << 20
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKeyOfTheDouble"


class Content:
    """A frozen look at a disk."""

    format, damage = "raw", ""

    def __init__(self, data: bytes) -> None:
        self.data, self.size, self.read_bytes = data, len(data), 0

    def extents(self) -> Iterator[Extent]:
        yield Extent(0, self.size)

    def read(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        return self.data[offset : offset + length]

    def changed(self) -> bool:
        return False


@dataclass
class Vm:
    name: str
    disks: dict[str, bytearray]
    state: str = "running"
    tags: list[str] = field(default_factory=list)
    left_out: list[Issue] = field(default_factory=list)
    dirty: dict[str, dict[str, set[int]]] = field(default_factory=dict)  # checkpoint -> disk -> blocks
    marks: dict[str, str] = field(default_factory=dict)  # checkpoint -> whose it is

    def write(self, disk: str, offset: int, data: bytes) -> None:
        self.disks[disk][offset : offset + len(data)] = data
        touched = set(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))
        for blocks in self.dirty.values():
            blocks[disk] |= touched


@dataclass
class Hypervisor:
    vms: dict[str, Vm] = field(default_factory=dict)
    requests: list[MachineRequest] = field(default_factory=list)
    given: list[Previous | None] = field(default_factory=list)
    accesses: list[PlatformAccess] = field(default_factory=list)
    orders: list[ImportOrder] = field(default_factory=list)
    key: str = KEY
    refuses: Exception | None = None  # whatever is asked
    unreachable: list[str] = field(default_factory=list)
    breaks_after: int | None = None  # bytes of a restore
    acknowledge_fails: bool = False
    thorough: list[bool] = field(default_factory=list)  # of each look
    removals: list[tuple[str, str, bool, bool]] = field(default_factory=list)  # machine, mark, bitmaps, snapshots
    lies: bool = False  # its tracking forgets what was written
    logins: int = 0

    def driver(self) -> sources.PlatformDriver:
        return sources.PlatformDriver(lambda access, context: Double(self, access, context))


class Double(MachinePlatform):
    def __init__(self, there: Hypervisor, access: PlatformAccess, context: TaskContext) -> None:
        self.there, self.access, self.context = there, access, context
        there.accesses.append(access)

    def _log_in(self) -> None:
        self.there.logins += 1
        if self.there.refuses is not None:
            raise self.there.refuses

    def host_keys(self) -> Mapping[str, str]:
        return dict.fromkeys(self.access.addresses, self.there.key)

    def probe(self) -> Iterator[Finding]:
        try:
            self._log_in()
        except SourceError as error:
            yield Finding.of("Log in over SSH", error)
            return
        yield Finding("Log in over SSH", ok=True, detail="brs@double")
        yield Finding("A short backup job", ok=True)

    def discover(self, *, thorough: bool = False) -> Iterator[FoundMachine | Issue]:
        self._log_in()
        self.there.thorough.append(thorough)
        for host in self.there.unreachable:
            yield Issue(host, "unreachable", "It does not answer.")
        for key, vm in self.there.vms.items():
            disks = [FoundDisk(name, len(data), "qcow2") for name, data in vm.disks.items()]
            traces: dict[str, list[str]] = {}
            for name in vm.dirty:
                traces.setdefault(vm.marks[name], []).append(name)
            host, summary = self.access.addresses[0], {"Memory": "1 GiB"}
            yield FoundMachine(key, vm.name, vm.state, disks, vm.tags, "web", host, summary, traces)

    @contextmanager
    def open(self, wanted: MachineRequest, previous: Previous | None) -> Iterator[Machine]:
        self._log_in()
        self.there.requests.append(wanted)
        self.there.given.append(previous)
        vm = self.there.vms.get(wanted.id)
        if vm is None:
            raise SourceMissing(f"There is no machine {wanted.name}.", hint="Look for machines again.")
        old = previous.metadata["checkpoint"].decode() if previous and "checkpoint" in previous.metadata else ""
        new = f"ck-{len(self.there.requests)}"
        disks = {name: self._disk(wanted.id, vm, name, old, previous) for name in vm.disks}
        vm.dirty[new], vm.marks[new] = {name: set() for name in vm.disks}, wanted.mark
        done: list[bool] = []

        def acknowledge() -> None:
            if self.there.acknowledge_fails:
                raise SourceError("The old checkpoint cannot be deleted.")
            done.append(True)

        try:
            yield Machine(
                disks,
                {"vm.json": b'{"name": "%s"}' % vm.name.encode(), "checkpoint": new.encode()},
                Consistency.CRASH,
                time.time(),
                acknowledge,
                vm.left_out,
                kept=[new],
            )
        finally:
            vm.dirty.pop(old if done else new, None)

    def _disk(self, key: str, vm: Vm, name: str, old: str, previous: Previous | None) -> Disk:
        changes = None
        if previous is not None and old in vm.dirty and name in previous.bases:
            blocks = set() if self.there.lies else vm.dirty[old][name]
            changes = Changes([Extent(n * BLOCK, BLOCK) for n in sorted(blocks)], previous.bases[name])
        return Disk(f"/pool/{name}.qcow2", Content(bytes(vm.disks[name])), "qcow2", changes, f"{key}/{name}")

    def remove_traces(self, wanted: MachineRequest, *, bitmaps: bool, snapshots: bool) -> list[str]:
        self._log_in()
        self.there.removals.append((wanted.id, wanted.mark, bitmaps, snapshots))
        vm = self.there.vms.get(wanted.id)
        if vm is None:
            raise SourceMissing(f"There is no machine {wanted.name}.")
        found = [name for name in vm.dirty if vm.marks[name] == wanted.mark]
        for name in found:
            del vm.dirty[name]
        return found

    def restore(
        self,
        order: ImportOrder,
        metadata: Mapping[str, bytes],
        disks: Mapping[str, DiskReader],
        tick: Callable[[str, int], None],
    ) -> Restored:
        self._log_in()
        self.there.orders.append(order)
        if any(vm.name == order.name for vm in self.there.vms.values()) and not order.overwrite:
            raise TargetExists(f"There is a machine {order.name} already.")
        assert "vm.json" in metadata
        made: dict[str, bytearray] = {}
        total = 0
        for name, reader in disks.items():
            made[name] = bytearray()
            while len(made[name]) < reader.size:
                piece = reader.read(len(made[name]), min(STEP, reader.size - len(made[name])))
                made[name] += piece
                total += len(piece)
                tick(name, len(piece))
                if self.there.breaks_after is not None and total > self.there.breaks_after:
                    raise SourceError("The connection broke.")
        self.there.vms[f"new-{order.name}"] = Vm(order.name, made, "running" if order.start else "stopped")
        return Restored(f"{order.name}, {'running' if order.start else 'stopped'}", ["One network was not there."])


def access(**facts: Any) -> PlatformAccess:
    told: dict[str, Any] = {
        "kind": "kvm", "addresses": ["kvm1.example"], "user": "brs", "secrets": {"password": "canary-0815"},
        "host_keys": {"kvm1.example": KEY},
    }  # fmt: skip
    return PlatformAccess(**{**told, **facts})
