"""Restore of a machine: its disks, straight from the repository onto the platform, and the machine around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node_agent.drivers.base import DiskReader, ImportOrder
from node_agent.errors import RefusedError, SnapshotNotFound
from node_agent.items import Issue, Severity, printable
from node_agent.protocol import RestoreResult, RestoreSpec
from node_agent.repository.image_parent import DISKS
from node_agent.repository.random_access import RandomAccess
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import Snapshot, load_snapshot
from node_agent.repository.tree import Node, load_tree
from node_agent.tasks.context import TaskContext
from node_agent.tasks.machine_files import FACTS, SUFFIX, small_files
from node_agent.tasks.opening import open_for_reading
from node_agent.tasks.restore import snapshot_path
from node_agent.tasks.sources import platform_for
from node_agent.tasks.throttle import pace_of, paced_reader


@dataclass(frozen=True, slots=True)
class StoredDisk:
    name: str
    node: Node


def run(context: TaskContext, spec: RestoreSpec) -> RestoreResult:
    context.phase("restore")
    if spec.repository is None or spec.platform is None or spec.target.machine is None:
        raise RefusedError("A machine's restore without its platform makes no sense.", hint="An error of the server.")
    platform = platform_for(context, spec.platform)
    with open_for_reading(context, spec.repository) as repo:
        snapshot = load_snapshot(repo, spec.snapshot_id)
        disks = _chosen(repo, snapshot, spec.include)
        files = small_files(repo, snapshot)
        context.progress.set(
            parts=tuple((disk.name, disk.node.size) for disk in disks),
            total_bytes=sum(disk.node.size for disk in disks),
            total_files=len(disks),
        )
        with RandomAccess(repo) as access:
            pace = pace_of(spec.platform, spec.target.machine.host)
            readers: dict[str, DiskReader] = {
                disk.name: paced_reader(
                    access.open(snapshot.id, b"/" + DISKS + b"/" + disk.node.name), pace, context.progress.check
                )
                for disk in disks
            }
            metadata = {name: data for name, data in files.items() if name != FACTS}
            done = platform.restore(_order(spec, list(readers)), metadata, readers, _ticking(context))
    for note in done.notes:
        context.issues.add(Issue(spec.workload_name, "import-note", note, Severity.NOTE))
        context.warn(note)
    context.info(f"There is now: {printable(done.what)}.")
    written = context.progress.counters.done_bytes
    return RestoreResult(files=len(disks), bytes_written=written, target=printable(done.what))


def _ticking(context: TaskContext) -> Callable[[str, int], None]:
    def tick(disk: str, length: int) -> None:
        context.progress.check()
        context.progress.set(current=disk)
        context.progress.add(done_bytes=length)

    return tick


def _order(spec: RestoreSpec, disks: list[str]) -> ImportOrder:
    wanted = spec.target.machine
    assert wanted is not None
    return ImportOrder(
        id=spec.machine_id,
        name=wanted.name,
        host=wanted.host,
        storage=wanted.storage,
        format=spec.target.format,
        disks=disks,
        networks=wanted.networks,
        new_identity=wanted.new_identity,
        start=wanted.start,
        overwrite=spec.target.overwrite == "always",
    )


def _chosen(repo: Repository, snapshot: Snapshot, include: list[str]) -> list[StoredDisk]:
    root = load_tree(repo, bytes.fromhex(snapshot.tree))
    folder = next((node for node in root if node.name == DISKS and node.subtree is not None), None)
    nodes = load_tree(repo, folder.subtree) if folder is not None and folder.subtree is not None else []
    disks = [StoredDisk(printable(node.name).removesuffix(SUFFIX), node) for node in nodes if node.is_file]
    wanted = {snapshot_path(path) for path in include}
    if wanted and not any(path == b"/" + DISKS for path in wanted):
        disks = [disk for disk in disks if b"/" + DISKS + b"/" + disk.node.name in wanted]
    if not disks:
        raise SnapshotNotFound("The restore point holds none of the chosen disks.", hint="Choose at least one disk.")
    return disks
