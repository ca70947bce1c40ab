"""A node does every kind of task against the server's protocol; stock restic judges what it wrote."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from node_agent.protocol import (
    BackupResult,
    BrowseSpec,
    DownloadResult,
    DownloadSpec,
    ExportSpec,
    ForgetResult,
    ForgetSpec,
    InitResult,
    Parent,
    ProbeResult,
    ProbeSpec,
    TaskKind,
    VerifyResult,
    VerifySpec,
)
from node_agent.worker import Worker
from tests.node_agent.nodes import PASSWORD, Place, done_well, ready, restic, same_trees
from tests.node_agent.server_double import ServerDouble, Task
from tests.repository.core_world import flip

Start = Callable[..., Worker]


def backed_up(server: ServerDouble, place: Place, **more: object) -> tuple[Task, BackupResult]:
    task = done_well(server, server.add(place.backup(**more)))  # type: ignore[arg-type]
    assert task.result is not None
    assert isinstance(task.result.result, BackupResult)
    return task, task.result.result


def test_a_tree_is_backed_up_restored_and_identical(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random
) -> None:
    enrolled.fill(dice)
    start()
    ready(server, enrolled)
    task, result = backed_up(server, enrolled)
    assert result.files > 40 and result.new_bytes > 0 and not result.adopted
    restored = server.add(enrolled.restore(result.snapshot_id, strip=str(enrolled.source)))
    done_well(server, restored)
    assert same_trees(enrolled.source, enrolled.target)
    assert restic(enrolled, "check", "--read-data").returncode == 0
    snapshot = json.loads(restic(enrolled, "snapshots", "--json").stdout)[0]
    assert snapshot["id"] == result.snapshot_id
    assert {f"brs.task={task.id}", f"brs.workload={enrolled.workload}"} <= set(snapshot["tags"])
    assert snapshot["hostname"] == f"w-{enrolled.workload.hex[:8]}"


def test_an_unchanged_tree_with_its_parent_is_not_read_again(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random
) -> None:
    enrolled.fill(dice)
    start()
    ready(server, enrolled)
    _, first = backed_up(server, enrolled)
    (enrolled.source / "fresh").write_bytes(dice.randbytes(1000))
    parent = Parent(snapshot_id=first.snapshot_id, tree_id=first.tree_id)
    _, second = backed_up(server, enrolled, parent=parent)
    assert second.parent_id == first.snapshot_id
    assert second.read_bytes <= 1000 + 3_000_000  # the fresh file, and what is too young to be trusted
    _, full = backed_up(server, enrolled, parent=parent, full=True)
    assert full.parent_id == "" and full.read_bytes >= first.read_bytes


def test_a_parent_that_is_gone_means_everything_is_read_and_that_is_said(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    (enrolled.source / "a").write_bytes(b"a")
    start()
    ready(server, enrolled)
    task, result = backed_up(server, enrolled, parent=Parent(snapshot_id="ab" * 32, tree_id="cd" * 32))
    assert result.parent_id == ""
    assert any("everything is read" in entry.message for entry in task.log.values())


def test_a_retry_adopts_the_snapshot_of_its_forerunner(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random
) -> None:
    enrolled.fill(dice, files=10)
    start()
    ready(server, enrolled)
    task, first = backed_up(server, enrolled)
    task.state, task.result = "queued", None  # as if its complete had never arrived
    done_well(server, task)
    assert task.result is not None
    again = task.result.result
    assert isinstance(again, BackupResult)
    assert again.adopted and again.snapshot_id == first.snapshot_id
    assert (again.files, again.size_bytes) == (first.files, first.size_bytes)
    assert len(json.loads(restic(enrolled, "snapshots", "--json").stdout)) == 1


def test_every_directory_is_sent_once_children_first(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random
) -> None:
    enrolled.fill(dice, files=30, size=10)
    start()
    ready(server, enrolled)
    task, result = backed_up(server, enrolled)
    assert result.tree_id in task.directories  # the double asserts the order
    names = {entry.name for parts in task.directories.values() for part in parts for entry in part.entries}
    assert {"empty", "hard", "link", "odd-\\xff\\xfe"} <= names
    again, _ = backed_up(server, enrolled)
    # Folders above the source may have changed meanwhile (/tmp); nothing is sent twice.
    assert not again.directories.keys() & task.directories.keys()


def test_a_folder_larger_than_a_piece_is_sent_in_parts(server: ServerDouble, enrolled: Place, start: Start) -> None:
    for number in range(12_000):
        (enrolled.source / f"{number:06d}-{'x' * 40}").touch()
    start()
    ready(server, enrolled)
    task, _ = backed_up(server, enrolled)
    parts = max(task.directories.values(), key=len)
    assert len(parts) > 1
    assert [part.part for part in parts] == list(range(len(parts)))
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert sum(len(part.entries) for part in parts) == 12_000


def test_browsing_sends_what_the_server_lacks(server: ServerDouble, enrolled: Place, start: Start) -> None:
    (enrolled.source / "a").write_bytes(b"a")
    start()
    ready(server, enrolled)
    _, result = backed_up(server, enrolled, send_directories=False)
    assert result.tree_id not in server.known_trees
    done_well(server, server.add(BrowseSpec(repository=enrolled.access(), snapshot_id=result.snapshot_id)))
    assert result.tree_id in server.known_trees


def test_a_file_is_downloaded_in_pieces(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random
) -> None:
    content = dice.randbytes(9_000_000)
    (enrolled.source / "big one").write_bytes(content)
    start()
    ready(server, enrolled)
    _, result = backed_up(server, enrolled)
    spec = DownloadSpec(
        repository=enrolled.access(),
        snapshot_id=result.snapshot_id,
        path=f"{enrolled.source}/big one",
        max_bytes=10_000_000,
    )
    server.fault("/upload", "lost")
    task = done_well(server, server.add(spec))
    assert task.download == content and len(task.uploaded) == 3
    assert isinstance(task.result and task.result.result, DownloadResult)
    small = server.wait(server.add(spec.model_copy(update={"max_bytes": 1000})))
    assert small.failure is not None and "at most 1000" in small.failure.message


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_an_image_is_backed_up_and_restored_as_it_was_asked(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random, format: str
) -> None:
    raw = enrolled.source / "disk.raw"
    with raw.open("wb") as out:
        out.truncate(64 << 20)
        out.seek(5 << 20)
        out.write(dice.randbytes(3 << 20))
    image = enrolled.source / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
    start()
    ready(server, enrolled)
    _, result = backed_up(server, enrolled, driver="image", path=str(image), source={"disk": "vda"})
    assert (result.files, result.size_bytes) == (1, 64 << 20)
    assert result.block_size == 256 << 10
    target = enrolled.target / f"new.{format}"
    done_well(
        server,
        server.add(enrolled.restore(result.snapshot_id, driver="image", path=str(target), target={"format": format})),
    )
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", format, raw, target], check=True)
    assert target.stat().st_blocks * 512 < 16 << 20
    assert json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", target]))["format"] == format
    assert os.listdir(enrolled.target) == [target.name]
    again = server.wait(
        server.add(enrolled.restore(result.snapshot_id, driver="image", path=str(target), target={"format": format}))
    )
    assert again.failure is not None and again.failure.code == "target-exists"
    dumped = json.loads(restic(enrolled, "dump", result.snapshot_id, "/image.json").stdout)
    assert dumped["format"] == "qcow2" and dumped["path"] == str(image)


def staged_backup(server: ServerDouble, place: Place, **more: object) -> BackupResult:
    spec = place.backup(**more)  # type: ignore[arg-type]
    export = ExportSpec(workload=spec.workload, workload_name="w", source=spec.source, staging="job-1")
    done_well(server, server.add(export))
    store = spec.model_copy(update={"kind": TaskKind.STORE, "staging": "job-1"})
    task = done_well(server, server.add(store))
    assert task.result is not None and isinstance(task.result.result, BackupResult)
    return task.result.result


def staged_restore(server: ServerDouble, place: Place, snapshot_id: str, **more: object) -> None:
    spec = place.restore(snapshot_id, **more)  # type: ignore[arg-type]
    done_well(server, server.add(spec.model_copy(update={"kind": TaskKind.FETCH, "staging": "job-2"})))
    update = {"kind": TaskKind.IMPORT, "staging": "job-2", "repository": None}
    done_well(server, server.add(spec.model_copy(update=update)))


def test_disk_staging_gives_the_same_tree_and_leaves_nothing_behind(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random
) -> None:
    enrolled.fill(dice)
    start()
    ready(server, enrolled)
    staged = staged_backup(server, enrolled, source={"excludes": ["nothing"]})
    _, streamed = backed_up(server, enrolled)
    assert (staged.files, staged.size_bytes) == (streamed.files, streamed.size_bytes)
    staged_restore(server, enrolled, staged.snapshot_id, strip=str(enrolled.source))
    assert same_trees(enrolled.source, enrolled.target)
    assert os.listdir(enrolled.state / "staging") == []


def test_disk_staging_of_an_image(server: ServerDouble, enrolled: Place, start: Start, dice: random.Random) -> None:
    raw = enrolled.source / "disk.raw"
    with raw.open("wb") as out:
        out.truncate(16 << 20)
        out.seek(2 << 20)
        out.write(dice.randbytes(1 << 20))
    start()
    ready(server, enrolled)
    result = staged_backup(server, enrolled, driver="image", path=str(raw))
    target = enrolled.target / "back.raw"
    staged_restore(server, enrolled, result.snapshot_id, driver="image", path=str(target))
    assert target.read_bytes() == raw.read_bytes()
    assert os.listdir(enrolled.state / "staging") == []


def test_a_restore_in_place_brings_back_what_was_lost_and_touches_nothing_above(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random
) -> None:
    enrolled.fill(dice, files=10)
    start()
    ready(server, enrolled)
    _, result = backed_up(server, enrolled)
    above = enrolled.base.stat().st_mtime_ns
    (enrolled.source / "empty").unlink()
    (enrolled.source / "sparse").write_bytes(b"overwritten")
    done_well(
        server,
        server.add(enrolled.restore(result.snapshot_id, target={"in_place": True, "overwrite": "always", "path": ""})),
    )
    assert (enrolled.source / "empty").exists()
    assert (enrolled.source / "sparse").stat().st_size == 3_000_000
    assert enrolled.base.stat().st_mtime_ns == above


def test_chosen_files_are_restored_alone(server: ServerDouble, enrolled: Place, start: Start) -> None:
    (enrolled.source / "one").write_bytes(b"1")
    (enrolled.source / "two").write_bytes(b"2")
    start()
    ready(server, enrolled)
    _, result = backed_up(server, enrolled)
    include = [f"{enrolled.source}/two"]
    done_well(server, server.add(enrolled.restore(result.snapshot_id, include=include, strip=str(enrolled.source))))
    assert os.listdir(enrolled.target) == ["two"]


def test_an_unreadable_item_makes_the_outcome_partial_and_is_listed(
    server: ServerDouble, enrolled: Place, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    (enrolled.source / "good").write_bytes(b"good")
    (enrolled.source / "bad").write_bytes(b"bad")
    real_open = os.open

    def refusing(path: object, flags: int, *args: object, **kwargs: object) -> int:
        if path == b"bad":
            raise PermissionError(13, "Permission denied")
        return real_open(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    start()
    ready(server, enrolled)
    monkeypatch.setattr(os, "open", refusing)
    task = server.wait(server.add(enrolled.backup()))
    assert task.state == "partial" and task.result is not None
    assert task.result.left_out_count == 1
    assert task.result.left_out[0].path == f"{enrolled.source}/bad"
    assert "brs.partial" in json.loads(restic(enrolled, "snapshots", "--json").stdout)[0]["tags"]


def test_forgetting_removes_snapshots_and_a_missing_one_is_reported(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    (enrolled.source / "a").write_bytes(b"a")
    start()
    ready(server, enrolled)
    _, result = backed_up(server, enrolled)
    gone = "ab" * 32
    task = done_well(
        server, server.add(ForgetSpec(repository=enrolled.access(), snapshot_ids=[result.snapshot_id, gone]))
    )
    assert task.result is not None
    assert isinstance(done := task.result.result, ForgetResult)
    assert (done.removed, done.missing) == ([result.snapshot_id], [gone])
    assert json.loads(restic(enrolled, "snapshots", "--json").stdout) == []


def test_one_damaged_snapshot_stops_neither_backups_nor_expiry(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    (enrolled.source / "a").write_bytes(b"a")
    start()
    ready(server, enrolled)
    bad, good = backed_up(server, enrolled)[1].snapshot_id, backed_up(server, enrolled)[1].snapshot_id
    flip(enrolled.repository / "snapshots" / bad, 40)
    later = backed_up(server, enrolled)[1].snapshot_id
    task = done_well(server, server.add(ForgetSpec(repository=enrolled.access(), snapshot_ids=[good, bad])))
    assert task.result is not None
    assert isinstance(done := task.result.result, ForgetResult)
    assert (done.removed, done.missing) == ([good, bad], [])
    assert [row["id"] for row in json.loads(restic(enrolled, "snapshots", "--json").stdout)] == [later]


def test_verify_names_what_is_damaged_and_which_points_it_hurts(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random
) -> None:
    enrolled.fill(dice, files=5)
    start()
    ready(server, enrolled)
    _, result = backed_up(server, enrolled)
    spec = VerifySpec(repository=enrolled.access(), read_data=True)
    task = done_well(server, server.add(spec))
    assert task.result is not None and isinstance(good := task.result.result, VerifyResult)
    assert good.errors == [] and good.snapshots == [result.snapshot_id] and good.checked_bytes > 0
    packs = [path for path in (enrolled.repository / "data").rglob("*") if path.is_file()]
    pack = max(packs, key=lambda path: path.stat().st_size)
    pack.chmod(0o600)
    with pack.open("r+b") as out:
        out.seek(100)
        byte = out.read(1)
        out.seek(100)
        out.write(bytes([byte[0] ^ 1]))
    task = done_well(server, server.add(spec))
    assert task.result is not None and isinstance(bad := task.result.result, VerifyResult)
    assert any(pack.name in error for error in bad.errors)
    assert bad.damaged_snapshots == [result.snapshot_id]


def test_init_can_be_repeated_and_refuses_a_strange_password(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    start()
    ready(server, enrolled)
    again = done_well(server, server.add(enrolled.init()))
    assert again.result is not None and isinstance(again.result.result, InitResult)
    assert again.result.result.capacity_bytes > again.result.result.free_bytes > 0
    wrong = enrolled.init().model_copy(update={"repository": enrolled.access(password="another one entirely")})
    task = server.wait(server.add(wrong))
    assert task.failure is not None and task.failure.code == "wrong-password"
    assert PASSWORD not in task.failure.model_dump_json()


def test_init_completes_what_a_killed_one_began(server: ServerDouble, enrolled: Place, start: Start) -> None:
    start()
    ready(server, enrolled)
    (enrolled.repository / "config").chmod(0o600)
    (enrolled.repository / "config").unlink()
    ready(server, enrolled)
    assert restic(enrolled, "check").returncode == 0


def test_a_missing_destination_is_named(server: ServerDouble, enrolled: Place, start: Start) -> None:
    (enrolled.source / "a").touch()
    start()
    task = server.wait(server.add(enrolled.backup()))
    assert task.failure is not None and task.failure.code == "repository-missing"
    enrolled.repositories.rmdir()
    task = server.wait(server.add(enrolled.init()))
    assert task.failure is not None and task.failure.code == "repository-missing"
    assert not enrolled.repositories.exists()


def test_another_repository_at_the_place_is_refused(server: ServerDouble, enrolled: Place, start: Start) -> None:
    (enrolled.source / "a").touch()
    start()
    ready(server, enrolled)
    spec = enrolled.backup().model_copy(update={"repository": enrolled.access(repository_id="ab" * 32)})
    task = server.wait(server.add(spec))
    assert task.failure is not None and "Another repository" in task.failure.message


def test_probes_say_what_is_wrong_and_what_to_do(server: ServerDouble, enrolled: Place, start: Start) -> None:
    start()

    def probe(**spec: str) -> ProbeResult:
        task = done_well(server, server.add(ProbeSpec(**spec)))
        assert task.result is not None and isinstance(task.result.result, ProbeResult)
        return task.result.result

    good = probe(driver="files", path=str(enrolled.source))
    assert all(check.ok for check in good.checks) and good.capacity_bytes > good.free_bytes > 0
    assert not probe(driver="files", path="/etc").checks[0].ok
    missing = probe(driver="files", path=str(enrolled.source / "nothing")).checks
    assert not missing[-1].ok and missing[-1].hint
    destination = probe(path=str(enrolled.repository), password=PASSWORD)
    assert all(check.ok for check in destination.checks), destination
    assert [check.ok for check in probe(path="/srv/elsewhere").checks] == [False]
    assert list(enrolled.repositories.iterdir()) == []


def test_a_bandwidth_limit_is_kept(server: ServerDouble, enrolled: Place, start: Start, dice: random.Random) -> None:
    (enrolled.source / "a").write_bytes(dice.randbytes(600_000))
    start()
    ready(server, enrolled)
    task, _ = backed_up(server, enrolled, bandwidth_bytes_s=400_000)
    assert task.result is not None and task.result.result.started_age_s > 1.0  # type: ignore[union-attr]


def test_paths_with_odd_names_are_chosen_by_their_quoted_form(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    odd = Path(os.fsdecode(os.fsencode(enrolled.source) + b"/odd-\xff"))
    odd.write_bytes(b"bytes")
    start()
    ready(server, enrolled)
    _, result = backed_up(server, enrolled)
    include = [f"{enrolled.source}/odd-\\xff"]
    done_well(server, server.add(enrolled.restore(result.snapshot_id, include=include, strip=str(enrolled.source))))
    assert os.listdir(os.fsencode(enrolled.target)) == [b"odd-\xff"]
