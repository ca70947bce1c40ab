"""A KVM host, as the tasks see it: its machines, a connection test, backups, imports, and what we left there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from node_agent.drivers.base import Changes, Consistency, Disk, DiskReader, Finding, Machine
from node_agent.drivers.libvirt import pull, rbd_changes, run_folder, stopped, tracking
from node_agent.drivers.libvirt.access import BackupRequest, HostAccess, ImportRequest
from node_agent.drivers.libvirt.content import NbdContent, dirty_context
from node_agent.drivers.libvirt.errors import (
    GuestNotFrozen,
    HypervisorError,
    HypervisorUnreachable,
    MachineBusy,
    MachineMissing,
)
from node_agent.drivers.libvirt.freeze import Begun
from node_agent.drivers.libvirt.host import Host, checked_uuid
from node_agent.drivers.libvirt.import_ import Imported, attach_disk, import_machine
from node_agent.drivers.libvirt.import_undo import settle_import
from node_agent.drivers.libvirt.import_xml import Placed
from node_agent.drivers.libvirt.inventory import Vm, internal_snapshots, machine, machines
from node_agent.drivers.libvirt.journal import Entry, Journal
from node_agent.drivers.libvirt.metadata import describe_machine, firmware_files
from node_agent.drivers.libvirt.probe import probe
from node_agent.drivers.libvirt.pull import Plan
from node_agent.drivers.libvirt.rbd_changes import RbdTracking
from node_agent.drivers.libvirt.settle import settle
from node_agent.drivers.libvirt.tracking import Tracking
from node_agent.errors import BrsError, SourceError
from node_agent.items import Issue, Severity

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Run:
    """One backup under way."""

    host: Host
    vm: Vm
    request: BackupRequest
    plan: Plan
    places: Mapping[str, str] = field(default_factory=dict)  # of the disks that can be tracked, see tracking.places
    old: str = ""  # the checkpoint that libvirt was told of again
    notes: list[Issue] = field(default_factory=list)
    acknowledged: bool = False
    settled: bool = False  # nothing but what is to be kept is left on the hypervisor

    def acknowledge(self) -> None:
        self.acknowledged = True

    def note(self, target: str, code: str, message: str) -> None:
        self.notes.append(Issue(target, code, message, Severity.NOTE))


class LibvirtHost:
    """``state``: a folder of this node's own, which outlives the process. ``now``: seconds since the epoch."""

    def __init__(self, access: HostAccess, state: Path, now: Callable[[], float] = time.time) -> None:
        self.access = access
        self._state = state
        self._now = now

    def inventory(self) -> list[Vm]:
        with Host(self.access) as host:
            return machines(host)

    def has(self, uuid: str) -> bool:
        """Whether the machine is on this host now."""
        try:
            with Host(self.access) as host:
                host.state(checked_uuid(uuid))
        except MachineMissing:
            return False
        return True

    @contextmanager
    def open(self, request: BackupRequest) -> Iterator[Machine]:
        """The machine as it is at one instant. What an earlier run of this mark left behind is removed first.

        Raises MachineMissing, MachineBusy, MachineMoved (also while it is read: then open it anew), HypervisorError,
        HypervisorUnreachable.
        """
        checked_uuid(request.machine)
        journal = Journal(self._state, self.access, request.machine)
        with journal.held(), Host(self.access) as host:
            vm, taken = settle(host, request, journal)
            vm = _without(vm, request.leave_out)
            if not vm.protected:
                raise SourceError(f"{vm.name} has no disk that can be protected.", hint="Its page says why of each.")
            path = run_folder.new_path(host, request)
            run = _planned(host, vm, request, taken)
            journal.write(Entry(self.access.shown, vm.uuid, path, run.plan.checkpoint))
            opened = self._running if vm.running else self._stopped
            with opened(run, path) as found:
                yield found
            if run.settled:
                journal.clear()

    def probe(self, uuid: str = "") -> Iterator[Finding]:
        """The connection test; ``uuid`` is the machine that a short job is tried on (else one that runs)."""
        return probe(self.access, uuid)

    def import_machine(
        self,
        point: Mapping[str, bytes],
        disks: Mapping[str, DiskReader],
        request: ImportRequest,
        tick: Callable[[str, int], None] = lambda _disk, _bytes: None,
    ) -> Imported:
        """See :func:`node_agent.drivers.libvirt.import_.import_machine`."""
        with Host(self.access) as host, Journal.of_new_import(self._state, self.access) as journal:
            notes = self._settle_imports(host)
            done = import_machine(host, journal, point, disks, request, tick)
            return replace(done, notes=[*notes, *done.notes])

    def attach_disk(
        self,
        uuid: str,
        reader: DiskReader,
        placed: Placed,
        tick: Callable[[str, int], None] = lambda _disk, _bytes: None,
    ) -> None:
        """See :func:`node_agent.drivers.libvirt.import_.attach_disk`."""
        with Host(self.access) as host, Journal.of_new_import(self._state, self.access) as journal:
            self._settle_imports(host)
            attach_disk(host, journal, uuid, reader, placed, tick)

    def _settle_imports(self, host: Host) -> list[str]:
        """Of those that died. What is not as it was before them, in words."""
        left = Journal.of_left_imports(self._state, self.access)
        return [note for journal in left for note in settle_import(host, journal)]

    def traces(self, uuid: str, mark: str) -> list[str]:
        """What of us is on the machine: checkpoints, bitmaps and folders."""
        request = BackupRequest(uuid, mark)
        with Host(self.access) as host:
            vm = machine(host, uuid)
            snapshots = rbd_changes.left(host, vm, request, remove=False)
            strays = tracking.strays(host, vm, request, "", ask_qemu=True)
            return [*strays, *run_folder.leftovers(host, request, ""), *snapshots]

    def remove_traces(self, uuid: str, mark: str, *, bitmaps: bool = True) -> list[str]:
        """Everything of this mark, or its snapshots in clusters alone; the names of what was there. The next backup
        reads all. MachineBusy while one runs."""
        request, found = BackupRequest(checked_uuid(uuid), mark), set[str]()
        journal = Journal(self._state, self.access, uuid)
        with journal.held(), Host(self.access) as host:
            vm = machine(host, uuid)
            if bitmaps:
                vm, found = settle(host, request, journal)
                if left := tracking.strays(host, vm, request, "", ask_qemu=True):
                    raise HypervisorError(
                        f"libvirt does not let go of {', '.join(left)} on {vm.name}.",
                        hint="docs/platform-kvm.md says how it is removed by hand.",
                    )
            return [*sorted(found - {""}), *rbd_changes.left(host, vm, request, remove=True)]

    @contextmanager
    def _running(self, run: _Run, path: str) -> Iterator[Machine]:
        host, vm, request = run.host, run.vm, run.request
        with (
            run_folder.run_folder(host, request, path, vm.state) as folder,
            rbd_changes.tracked(host, vm, request, self._state) as images,
        ):
            try:
                instant = self._now()
                begun = _begin(run, folder)
                if begun.why_not_frozen:
                    run.note("", "not-frozen", f"The point is crash-consistent: {begun.why_not_frozen}.")
                if begun.still_frozen:
                    run.note(
                        "", "guest-frozen", "The guest could not be thawed yet; the hypervisor's watchdog tries on."
                    )
                with pull.contents(host, vm, folder, run.plan) as contents:
                    dirty = {target: dirty_context(target) for target in run.plan.since}
                    opened = _machine(run, contents, dirty, begun.consistency, instant, run.plan.checkpoint)
                    yield _with_images(run, opened, images)
            finally:
                folder.left = True  # also if this raises
                folder.left = not _finish(run, path)
                if run.acknowledged:
                    images.keep()
        run.settled = not folder.left

    @contextmanager
    def _stopped(self, run: _Run, path: str) -> Iterator[Machine]:
        host, vm = run.host, run.vm
        with run_folder.run_folder(host, run.request, path, vm.state) as folder:
            with stopped.contents(host, vm, folder, run.plan.since) as contents:
                dirty = {target: dirty_context(name) for target, name in run.plan.since.items()}
                kept = next(iter(run.plan.since.values()), "")
                if vm.saved:
                    run.note("", "memory-left-out", "The machine is saved with its memory, which is not in the point.")
                consistency = Consistency.CRASH if vm.saved else Consistency.STOPPED
                yield _machine(run, contents, dirty, consistency, self._now(), kept)
        run.settled = not folder.left


def _without(vm: Vm, unwanted: frozenset[str]) -> Vm:
    why = "it is left out by the machine's settings."
    disks = [replace(disk, left_out=disk.left_out or why) if disk.target in unwanted else disk for disk in vm.disks]
    return replace(vm, disks=tuple(disks))


# --- what is read, and since when ---


def _planned(host: Host, vm: Vm, request: BackupRequest, taken: set[str]) -> _Run:
    """Which disks get a checkpoint, and which are read by their changes since the last one."""
    run = _Run(host, vm, request, Plan("", frozenset(), {}))
    tracked = _trackable(run) if request.track else set()
    run.places = tracking.places(host, [disk for disk in vm.protected if disk.target in tracked])
    since = _adopted(run, tracked)
    name = tracking.next_name(request, taken) if vm.running and tracked else ""
    run.plan = Plan(name, frozenset(tracked if name else ()), since)
    return run


def _trackable(run: _Run) -> set[str]:
    """Disks whose format can carry a bitmap, and which one does not harm."""
    found = set()
    for disk in run.vm.protected:
        if not disk.is_qcow2_file:
            continue
        if internal_snapshots(run.host, disk):
            text = "Everything is read: it has internal snapshots, which could not be gone back to beside a bitmap."
            run.note(disk.target, "tracking-not-possible", text)
            continue
        found.add(disk.target)
    return found


def _adopted(run: _Run, tracked: set[str]) -> dict[str, str]:
    """The checkpoint of the point before, for each disk that can be read by it."""
    request = run.request
    if request.previous is None:
        return {}
    before = Tracking.of(request.previous.metadata, request)
    if before is None:
        return {}
    known = tracked & set(before.disks)
    targets = {target for target in known if before.places.get(target) == run.places[target]}
    for target in sorted(known - targets):
        other = "its image is another file than at the last backup."
        why = other if target in before.places else "the point before does not say which file its image was."
        run.note(target, "tracking-lost", f"Everything is read: {why}")
    if not targets:
        return {}
    why = _why_unusable(run, before.checkpoint, targets)
    if why:
        for target in sorted(targets):
            run.note(target, "tracking-lost", f"Everything is read: the changes since the last backup are lost: {why}")
        return {}
    return {target: before.checkpoint for target in targets if target in request.previous.bases}


def _why_unusable(run: _Run, checkpoint: str, targets: set[str]) -> str:
    if not run.vm.running:
        whole = [tracking.bitmaps(run.host, disk).get(checkpoint) for disk in run.vm.disks if disk.target in targets]
        return "" if all(whole) else "the bitmap was not saved when the machine stopped."
    why = tracking.adopt(run.host, run.vm, checkpoint, targets)
    if why:
        _leave_nothing(run.host, run.vm, checkpoint, targets)
        return f"{why}."
    run.old = checkpoint
    return ""


def _leave_nothing(host: Host, vm: Vm, checkpoint: str, targets: set[str]) -> None:
    """Of a checkpoint whose bitmap is broken."""
    if not tracking.adopt(host, vm, checkpoint, targets, validate=False):
        tracking.drop(host, vm, checkpoint)


def _begin(run: _Run, folder: run_folder.RunFolder) -> Begun:
    """Begin the job; where libvirt refuses the changes or the checkpoint, without."""
    plan = run.plan
    while True:
        try:
            return pull.begin_job(run.host, run.vm, run.request, folder, run.plan)
        except (MachineBusy, HypervisorUnreachable, GuestNotFrozen):
            raise
        except HypervisorError as error:
            if (behind := folder.why_broken(error)) is not error:
                raise behind from error
            if run.plan.since:
                run.plan = Plan(plan.checkpoint, plan.tracked, {})
                for target in sorted(plan.since):
                    run.note(target, "tracking-lost", f"Everything is read: {error.message}")
            elif run.plan.tracked:
                run.plan = Plan("", frozenset(), {})
                run.note("", "tracking-not-possible", f"The next backup will read everything: {error.message}")
            else:
                raise


def _machine(
    run: _Run,
    contents: dict[str, NbdContent],
    dirty: dict[str, str],
    consistency: Consistency,
    instant: float,
    checkpoint: str,
) -> Machine:
    vm, disks = run.vm, {}
    for disk in vm.protected:
        content, changes = contents[disk.target], None
        if disk.target in dirty:
            assert run.request.previous is not None
            base = run.request.previous.bases[disk.target]
            changes = Changes(content.dirty(dirty[disk.target]), base)
        disks[disk.target] = Disk(disk.source, content, disk.format, changes, f"{vm.uuid}/{disk.target}")
    files, issues = firmware_files(run.host, vm)
    facts: dict[str, Any] = {"consistency": str(consistency), "instant": instant}
    metadata = {**describe_machine(run.host, vm, facts), **files}
    tracked = sorted(run.plan.tracked or set(run.plan.since))
    if checkpoint:
        places = {target: run.places[target] for target in tracked}
        metadata[tracking.FILE] = Tracking(vm.uuid, checkpoint, tracked, places).encode()
    return Machine(
        disks=disks,
        metadata=metadata,
        consistency=consistency,
        instant=instant,
        acknowledge=run.acknowledge,
        left_out=[*vm.issues(), *issues],
        notes=run.notes,
        kept=[f"{checkpoint} ({', '.join(tracked)})"] if checkpoint else [],
    )


def _with_images(run: _Run, machine: Machine, images: RbdTracking) -> Machine:
    """With what the clusters say of the disks that are RBD images."""
    changes = images.changes({target: disk.content for target, disk in machine.disks.items()})
    for target, why in images.why_not.items():
        run.note(target, "tracking-not-used", f"Everything is read, because {why.rstrip('.')}.")
    disks = {
        target: replace(disk, changes=changes.get(target), identity=images.identity(target))
        if images.identity(target)
        else disk
        for target, disk in machine.disks.items()
    }
    metadata, kept = {**machine.metadata, **images.metadata}, [*machine.kept, *images.kept]
    return replace(machine, disks=disks, metadata=metadata, kept=kept)


# --- the end ---


def _finish(run: _Run, path: str) -> bool:
    """End the job and keep the one checkpoint that the next run needs. What fails here the next run settles."""
    host, vm, name = run.host, run.vm, run.plan.checkpoint
    try:
        pull.abort_job(host, vm, path)
        now = machine(host, vm.uuid)
        known = tracking.listed(host, vm.uuid)
        kept, dropped = (name, run.old) if run.acknowledged and name else (run.old, name)
        if dropped in known:
            tracking.drop_one(host, now, dropped)
        if kept in known:
            tracking.forget(host, vm.uuid, kept)
    except MachineMissing:  # undefined, and stopped since: its job and its checkpoints went with it
        return True
    except BrsError as error:
        logger.warning("%s: what the backup made is left for the next run to remove: %s", vm.name, error)
        return False
    return True
