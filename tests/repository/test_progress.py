"""What a bar shows of long works: totals as soon as they are known, never backwards, never over the whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node_agent.cli_session import bar_line, status_line
from node_agent.progress import Counters, Progress
from node_agent.repository import prune as prune_module
from node_agent.repository.check import check
from node_agent.repository.check_choice import ReadChoice
from node_agent.repository.copy import copy_snapshots
from node_agent.repository.prune import PruneOptions, prune
from node_agent.repository.repair_index import repair_index
from node_agent.repository.repair_packs import repair_packs
from node_agent.repository.snapshot import list_snapshots, remove_snapshot
from tests.repository.cli_world import Cli
from tests.repository.core_world import flip, make_snapshot, new_repo, open_repo, store, stored


class Seen(Progress):
    """All that a bar could have shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Counters] = []

    def _look(self) -> None:
        self.shown.append(self.counters)

    def add(self, **amounts: int) -> None:
        super().add(**amounts)
        self._look()

    def set(self, **values: Any) -> None:
        super().set(**values)
        self._look()

    def begin(self, *args: Any, **values: Any) -> None:
        super().begin(*args, **values)
        self._look()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four snapshots; waste beside what is needed, and one blob twice."""
    repo = new_repo(tmp_path / "repo")
    blobs = [os.urandom(3000 + number).hex().encode() for number in range(40)]
    with repo.lock(exclusive=True) as lock:
        store(repo, blobs[::2])
        for number in range(4):
            make_snapshot(repo, lock, {b"f": blobs[number * 8 : number * 8 + 8]}, host=f"host{number}")
        gone = make_snapshot(repo, lock, {b"g": blobs[32:]}, host="gone")
        remove_snapshot(repo, gone.id)
    return tmp_path / "repo"


def pruned(folder: Path, progress: Progress) -> None:
    assert prune(open_repo(folder), PruneOptions(max_unused="0"), progress=progress).rewritten_packs


def checked(folder: Path, progress: Progress) -> None:
    with open_repo(folder) as repo, repo.lock():
        assert check(repo, progress=progress).ok


def read(folder: Path, progress: Progress) -> None:
    with open_repo(folder) as repo, repo.lock():
        assert check(repo, read_data=True, progress=progress).ok


def read_some(folder: Path, progress: Progress) -> None:
    with open_repo(folder) as repo, repo.lock():
        assert check(repo, read_data=True, choice=ReadChoice(share=0.5), progress=progress).ok


def found_damaged(folder: Path, progress: Progress) -> None:
    flip(max(stored(folder, "data"), key=lambda path: path.stat().st_size), 100)
    with open_repo(folder) as repo, repo.lock():
        assert not check(repo, read_data=True, progress=progress).ok


def copied(folder: Path, progress: Progress) -> None:
    target = new_repo(folder.parent / "target")
    source = open_repo(folder)
    with source.lock(), target.lock() as lock:
        source.load_index()
        target.load_index()
        assert len(copy_snapshots(source, target, lock, list_snapshots(source), progress=progress).copied) == 4


def packs_repaired(folder: Path, progress: Progress) -> None:
    packs = stored(folder, "data")
    flip(max(packs, key=lambda path: path.stat().st_size), 100)
    with open_repo(folder) as repo, repo.lock(exclusive=True) as lock:
        assert repair_packs(repo, lock, [path.name for path in packs], progress=progress).moved_blobs


def index_repaired(folder: Path, progress: Progress) -> None:
    stored(folder, "index")[0].unlink()
    with open_repo(folder) as repo, repo.lock(exclusive=True) as lock:
        repair_index(repo, lock, progress=progress)


WORKS = (pruned, checked, read, read_some, found_damaged, copied, packs_repaired, index_repaired)


@pytest.mark.parametrize("work", WORKS)
def test_the_bar_never_goes_back_nor_over_the_whole_and_totals_are_told(
    folder: Path, work: Callable[[Path, Progress], None]
) -> None:
    progress = Seen()
    work(folder, progress)
    whole = [counters.whole for counters in progress.shown]
    assert whole == sorted(whole)
    assert whole[0] < 0.2 and 0.9 < whole[-1] <= 1
    assert len({round(share, 2) for share in whole}) >= 4, "it moves"
    for counters in progress.shown:
        assert not counters.total_bytes or counters.done_bytes <= counters.total_bytes, counters
        assert not counters.total_files or counters.done_files <= counters.total_files, counters
        assert counters.done_bytes == 0 or counters.total_bytes, counters
    phases = {counters.phase for counters in progress.shown if counters.phase and counters.phase != "prune: plan"}
    for phase in phases:
        last = [counters for counters in progress.shown if counters.phase == phase][-1]
        known = last.total_bytes or last.total_files
        nothing_to_do = phase in ("prune: index files", "prune: snapshots", "prune: prove copies")
        assert known or nothing_to_do or phase == "copy: trees", last
        assert last.done_bytes == last.total_bytes or phase == "check packs", last


def test_a_prune_that_plans_anew_holds_its_bar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look_again, calls = prune_module._Prune._look_again, []

    def overtaken_once(self: Any, files: set[str]) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise prune_module._Overtaken
        look_again(self, files)

    monkeypatch.setattr(prune_module._Prune, "_look_again", overtaken_once)
    progress = Seen()
    prune(open_repo(folder), PruneOptions(max_unused="0"), progress=progress)
    whole = [counters.whole for counters in progress.shown]
    assert len(calls) == 2 and whole == sorted(whole) and whole[-1] == 1


def test_a_total_that_grows_holds_the_bar() -> None:
    progress = Progress()
    progress.begin("one", (0.0, 0.5), total_files=2)
    progress.add(done_files=1)
    assert progress.counters.whole == 0.25
    progress.set(total_files=10)
    assert (progress.counters.whole, progress.counters.share) == (0.25, 0.1)
    progress.add(done_files=20)  # more than was known
    assert progress.counters.whole == 0.5
    progress.begin("two", (0.5, 1.0), total_bytes=100)
    assert (progress.counters.done_files, progress.counters.total_files) == (0, 0)
    progress.add(done_bytes=50)
    assert progress.counters.whole == 0.75
    assert bar_line(progress.counters, width=4) == "[###.]  75.0%  50 B of 100 B  two"
    assert status_line(progress.counters)["percent_done"] == 0.75


def test_programs_are_told_the_figures_of_the_bar_when_they_ask(folder: Path, tmp_path: Path) -> None:
    quiet = Cli(tmp_path)
    assert [line["message_type"] for line in quiet.lines("check")] == ["summary"]
    told = Cli(tmp_path, RESTIC_PROGRESS_FPS="50")
    for command in (("check", "--read-data"), ("prune", "--max-unused", "0")):
        *states, summary = told.lines(*command)
        assert summary["message_type"] == "summary" and states
        assert {line["message_type"] for line in states} == {"status"}
        shares = [line["percent_done"] for line in states]
        assert shares == sorted(shares) and 0.9 < shares[-1] <= 1
        assert states[-1]["files_done"] == states[-1]["total_files"] > 0
    assert told.run("check", "--json", "--quiet").stdout.count(b"status") == 0
    assert "RESTIC_PROGRESS_FPS" in Cli(tmp_path, RESTIC_PROGRESS_FPS="often").error("check", "--json")
