"""Restores whose pieces worker processes write: the same results, and clear errors when one of them ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from node_agent.errors import TargetFull, WorkerDied
from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.repository import restore_content, restore_crew, restore_worker
from node_agent.repository.patterns import Patterns
from node_agent.repository.processes import WorkerProcess
from node_agent.repository.restore_choice import chosen_by
from node_agent.repository.restore_crew import Crew
from tests.repository.core_world import flip, new_repo, open_repo, stored
from tests.repository.data_world import (
    MIB,
    allocated,
    back_up,
    bring_back,
    differences,
    fingerprint,
    make_hard_tree,
    mounted,
    names_of,
    need_root,
    restored,
)


@pytest.fixture(autouse=True)
def processes_only(monkeypatch: pytest.MonkeyPatch) -> list[WorkerProcess]:
    """Processes from the first piece on, small pieces, and what was started."""
    started: list[WorkerProcess] = []

    class Noted(WorkerProcess):
        def __init__(self, module: str) -> None:
            super().__init__(module)
            started.append(self)

    start = Crew._start

    def start_and_wait(self: Crew, root: Path) -> None:
        start(self, root)
        while not all(member.prefix for member in self._members):
            self._collect(None)

    monkeypatch.setattr(Crew, "_start", start_and_wait)  # else the threads may be done before a process is there
    monkeypatch.setattr(restore_crew, "PROCESSES_AFTER", 0)
    monkeypatch.setattr(restore_crew, "WorkerProcess", Noted)
    monkeypatch.setattr(restore_crew, "usable_processors", lambda: 2)
    monkeypatch.setattr(restore_content, "BATCH_FILES", 5)
    return started


def many_files(top: Path, count: int = 60) -> Path:
    for number in range(count):
        path = top / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(3000))
    return top


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


@pytest.mark.parametrize("verify", [False, True])
def test_processes_restore_all_that_a_tree_can_hold(
    tmp_path: Path, processes_only: list[WorkerProcess], verify: bool
) -> None:
    need_root()
    source = tmp_path / "source"
    make_hard_tree(source, sockets=False)
    (source / "large").write_bytes(os.urandom(6 * MIB) + bytes(5 * MIB) + os.urandom(3 * MIB + 7))
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    issues = Issues()
    result = bring_back(repo, snapshot, tmp_path / "out", strip=os.fsencode(source), issues=issues, verify=verify)
    assert len(processes_only) == 2
    assert differences(fingerprint(source), fingerprint(tmp_path / "out")) == {}
    assert (result.damaged, issues.left_out) == (0, 0)
    assert all(process._process.poll() is not None for process in processes_only)


def test_processes_replace_what_exists_and_list_what_is_in_the_way(tmp_path: Path) -> None:
    source = many_files(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    out = restored(tmp_path / "out", source)
    (out / "d0" / "f0").mkdir(parents=True)
    (out / "d1").mkdir()
    (out / "d1" / "f1").write_bytes(b"old")
    (out / "d2").mkdir()
    (out / "d2" / "f2").symlink_to(tmp_path / "victim")
    issues = Issues()
    result = bring_back(repo, snapshot, tmp_path / "out", issues=issues)
    assert names_of(issues) == [("f0", "in-the-way")]
    assert result.files == 59
    assert (out / "d1" / "f1").read_bytes() == (source / "d1" / "f1").read_bytes()
    assert not (out / "d2" / "f2").is_symlink() and not (tmp_path / "victim").exists()


def test_only_files_with_damaged_blobs_are_missing_and_the_pack_is_named(tmp_path: Path) -> None:
    source = many_files(tmp_path / "source", 3)
    repo = new_repo(tmp_path / "repo")
    back_up(repo, source)
    with repo.lock():
        repo.load_index()
        data = {name for name, blobs in repo.index.packs() if blobs[0].kind == "data"}
    (pack,) = [path for path in stored(tmp_path / "repo", "data") if path.name in data]
    (source / "whole").write_bytes(os.urandom(MIB))
    snapshot = back_up(repo, source).snapshot_id
    flip(pack, 500)
    issues = Issues()
    result = bring_back(open_repo(tmp_path / "repo"), snapshot, tmp_path / "out", issues=issues)
    assert (result.files, result.damaged) == (3, 1)
    assert pack.name in issues.items[0].message
    assert leftovers(tmp_path) == []


def test_another_copy_of_a_damaged_blob_is_used(tmp_path: Path) -> None:
    source = many_files(tmp_path / "source", 3)
    repo = new_repo(tmp_path / "repo")
    other = new_repo(tmp_path / "other")
    snapshot = back_up(repo, source).snapshot_id
    del other
    with repo.lock():
        repo.load_index()
        data = {name for name, blobs in repo.index.packs() if blobs[0].kind == "data"}
        for index in stored(tmp_path / "repo", "index"):
            index.rename(tmp_path / index.name)
    back_up(open_repo(tmp_path / "repo"), source)  # knows of nothing: stores all again
    for index in tmp_path.glob("?" * 64):
        index.rename(tmp_path / "repo" / "index" / index.name)
    for pack in stored(tmp_path / "repo", "data"):
        if pack.name in data:
            flip(pack, 500)
    result = bring_back(open_repo(tmp_path / "repo"), snapshot, tmp_path / "out")
    assert (result.files, result.damaged) == (3, 0)


def test_a_full_target_ends_the_restore_without_half_files(tmp_path: Path) -> None:
    source = many_files(tmp_path / "source")
    (source / "large").write_bytes(os.urandom(9 * MIB))
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    with mounted(tmp_path / "tmpfs", "tmpfs", "size=1m") as small:
        with pytest.raises(TargetFull):
            bring_back(repo, snapshot, small / "out")
        assert leftovers(small) == []


def test_a_killed_process_is_a_clear_error_and_leaves_nothing_half_done(
    tmp_path: Path, processes_only: list[WorkerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = many_files(tmp_path / "source", 400)
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    send = Crew._send
    sent: list[int] = []

    def kill_then_send(self: Crew, member: Any, task: Any) -> None:
        sent.append(1)
        if len(sent) == 20:
            os.kill(member.process.pid, signal.SIGKILL)
        send(self, member, task)

    monkeypatch.setattr(Crew, "_send", kill_then_send)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        bring_back(repo, snapshot, tmp_path / "out")
    assert leftovers(tmp_path) == []
    for path in (path for path in (tmp_path / "out").rglob("f*") if path.is_file()):
        assert path.read_bytes() == (source / path.parent.name / path.name).read_bytes()


def test_secrets_are_neither_in_the_command_line_nor_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRS_REPOSITORY_PASSWORD", "a-password-to-find")
    source = many_files(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    seen: list[bytes] = []
    send = Crew._send

    def look(self: Crew, member: Any, task: Any) -> None:
        place = Path(f"/proc/{member.process.pid}")
        seen.append((place / "cmdline").read_bytes() + (place / "environ").read_bytes())
        send(self, member, task)

    monkeypatch.setattr(Crew, "_send", look)
    bring_back(repo, snapshot, tmp_path / "out")
    key = repo.files.key
    assert seen
    for text in seen:
        assert b"a-password-to-find" not in text
        assert key.encrypt not in text and key.encrypt.hex().encode() not in text


def test_a_few_files_start_no_process(
    tmp_path: Path, processes_only: list[WorkerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_crew, "PROCESSES_AFTER", 1000)
    source = many_files(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    assert bring_back(repo, back_up(repo, source).snapshot_id, tmp_path / "out").files == 60
    assert processes_only == []


def test_processes_begun_in_the_middle_go_on_where_threads_were(
    tmp_path: Path, processes_only: list[WorkerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_crew, "PROCESSES_AFTER", 16)
    source = many_files(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    bring_back(repo, snapshot, tmp_path / "out", strip=os.fsencode(source))
    assert len(processes_only) == 2
    assert differences(fingerprint(source), fingerprint(tmp_path / "out")).keys() <= {b""}


@pytest.mark.parametrize("counted", [True, False])
def test_a_large_file_alone_is_written_by_processes_and_a_smaller_one_by_threads(
    tmp_path: Path, processes_only: list[WorkerProcess], monkeypatch: pytest.MonkeyPatch, counted: bool
) -> None:
    monkeypatch.setattr(restore_crew, "PROCESSES_AFTER", 5)
    repo = new_repo(tmp_path / "repo")
    for size, processes in ((12 * MIB, 0), (30 * MIB, 2)):
        source = tmp_path / f"source-{size}"
        source.mkdir()
        (source / "large").write_bytes(os.urandom(size // 2) + bytes(5 * MIB) + os.urandom(size // 2 - 5))
        snapshot = back_up(repo, source).snapshot_id
        progress = Progress()
        if not counted:
            progress.set(total_bytes=1)
        out = tmp_path / f"out-{size}"
        bring_back(repo, snapshot, out, strip=os.fsencode(source), progress=progress)
        assert len(processes_only) == processes
        assert differences(fingerprint(source), fingerprint(out)) == {}
        assert allocated(out / "large") < size + 2 * MIB


def test_where_no_process_comes_up_threads_write_and_it_is_not_tried_again(
    tmp_path: Path,
    processes_only: list[WorkerProcess],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = many_files(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    monkeypatch.setattr(restore_worker, "__name__", "node_agent.no_such_worker")
    assert bring_back(repo, snapshot, tmp_path / "out").files == 60
    assert differences(fingerprint(source), fingerprint(restored(tmp_path / "out", source))) == {}
    assert 1 <= len(processes_only) <= 2
    assert "threads write instead" in caplog.text
    assert all(process._process.poll() is not None for process in processes_only)


def test_processes_restore_what_patterns_choose(tmp_path: Path, processes_only: list[WorkerProcess]) -> None:
    source = many_files(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    choice = chosen_by(Patterns(["f[1-4]?", "!d3"]), Patterns())
    result = bring_back(repo, snapshot, tmp_path / "out", choice=choice)
    assert processes_only
    there = restored(tmp_path / "out", source)
    wanted = [n for n in range(10, 50) if n % 7 != 3]
    assert result.files == len(wanted) and not leftovers(there)
    assert {path.name for path in there.rglob("f*")} == {f"f{n}" for n in wanted}
    assert all((there / f"d{n % 7}/f{n}").read_bytes() == (source / f"d{n % 7}/f{n}").read_bytes() for n in wanted)
    assert not (there / "d3").exists()
