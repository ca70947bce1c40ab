"""A node without rights: what it may not do is named, nothing else is hurt, and owners survive disk staging."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from node_agent.config import RootsConfig
from node_agent.guard import Guard
from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.protocol import BackupResult, Directory, ExportSpec, ProbeResult, ProbeSpec, Result, Spec, TaskKind
from node_agent.repository.lock import LockHolder
from node_agent.tasks.context import TaskContext
from node_agent.tasks.dispatch import perform
from tests.node_agent.nodes import PASSWORD, Place, restic
from tests.repository.data_world import NOBODY, as_nobody, open_folder

__all__ = ["open_folder"]


class NoServer:
    """Nothing is asked of it here."""

    def directories_wanted(self, tree_ids: list[str]) -> list[str]:
        return []

    def send_directories(self, directories: list[Directory]) -> None:
        raise AssertionError

    def upload(self, offset: int, piece: bytes) -> None:
        raise AssertionError


@pytest.fixture
def open_place(open_folder: Path) -> Place:
    place = Place.make(open_folder)
    for folder in (place.state, place.target, place.repositories):
        os.chown(folder, NOBODY, NOBODY)
    return place


def do(place: Place, *specs: Spec) -> list[tuple[Result, Issues]]:
    """The tasks one after the other, as nobody."""

    def run() -> list[tuple[Result, Issues]]:
        done = []
        for spec in specs:
            context = _context(place, uuid4())
            done.append((perform(context, spec), context.issues))
        return done

    codecs.lookup("ascii")  # what is imported late could not be found as nobody
    return as_nobody(run)


def _context(place: Place, task_id: UUID) -> TaskContext:
    roots = RootsConfig(
        read=[str(place.source)], write=[str(place.target)], repositories=[str(place.repositories), "/sys"]
    )
    return TaskContext(
        task_id=task_id,
        guard=Guard(roots, own=[place.state]),
        progress=Progress(),
        outlet=NoServer(),
        holder=LockHolder.for_node(str(uuid4()), place.state / "holder"),
        cache_dir=place.state / "cache",
        staging_dir=place.state / "staging",
    )


def snapshot_nodes(place: Place, result: BackupResult) -> dict[str, dict[str, object]]:
    subprocess.run(["chown", "-R", "0:0", place.repository], check=True)
    listed = restic(place, "ls", "--json", result.snapshot_id).stdout.splitlines()
    nodes = [json.loads(line) for line in listed]
    return {node["path"]: node for node in nodes if node.get("struct_type") == "node"}


def test_a_file_it_may_not_read_is_left_out_and_named(open_place: Place) -> None:
    (open_place.source / "open").write_bytes(b"open")
    (open_place.source / "shut").write_bytes(b"shut")
    (open_place.source / "shut").chmod(0o600)
    _, (result, issues) = do(open_place, open_place.init(), open_place.backup())
    assert isinstance(result, BackupResult) and result.files == 1
    assert [issue.path for issue in issues.items] == [f"{open_place.source}/shut"]


def test_owners_survive_disk_staging_by_a_node_that_may_not_set_them(open_place: Place) -> None:
    (open_place.source / "theirs").write_bytes(b"x")
    os.chown(open_place.source / "theirs", 1234, 2345)
    (open_place.source / "link").symlink_to("theirs")
    (open_place.source / "folder").mkdir()
    os.chown(open_place.source / "folder", 7, 8)
    spec = open_place.backup()
    export = ExportSpec(workload=spec.workload, workload_name="w", source=spec.source, staging="s")
    store = spec.model_copy(update={"kind": TaskKind.STORE, "staging": "s"})
    _, (_, exported), (result, stored) = do(open_place, open_place.init(), export, store)
    assert exported.items == [] and stored.items == []
    assert isinstance(result, BackupResult)
    nodes = snapshot_nodes(open_place, result)
    source = str(open_place.source)
    assert (nodes[f"{source}/theirs"]["uid"], nodes[f"{source}/theirs"]["gid"]) == (1234, 2345)
    assert (nodes[f"{source}/folder"]["uid"], nodes[f"{source}/folder"]["gid"]) == (7, 8)
    assert nodes[f"{source}/link"]["uid"] == 0
    assert (nodes[source]["uid"], nodes[source]["gid"]) == (0, 0)


def test_owners_that_a_restore_may_not_set_are_notes(open_place: Place) -> None:
    (open_place.source / "theirs").write_bytes(b"x")
    os.chown(open_place.source / "theirs", 1234, 2345)
    _, (result, _) = do(open_place, open_place.init(), open_place.backup())
    assert isinstance(result, BackupResult)
    ((_, issues),) = do(open_place, open_place.restore(result.snapshot_id))
    assert issues.left_out == 0 and issues.notes > 0


def test_a_probe_tells_what_may_not_be_read_or_written(open_place: Place) -> None:
    open_place.source.chmod(0o700)
    (source, _), (destination, _) = do(
        open_place,
        ProbeSpec(driver="files", path=str(open_place.source)),
        ProbeSpec(path="/sys/kernel", password=PASSWORD),
    )
    assert isinstance(source, ProbeResult) and isinstance(destination, ProbeResult)
    assert "may not read" in source.checks[-1].detail and source.checks[-1].hint
    written = next(check for check in destination.checks if "write" in check.name)
    assert not written.ok and written.hint
