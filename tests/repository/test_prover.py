"""Blobs proven by worker processes: the same verdicts as without them, and clear errors when one of them ends."""

from __future__ import annotations

import hashlib
import os
import random
import select
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from node_agent.errors import Cancelled, WorkerDied
from node_agent.progress import Progress
from node_agent.repository import prove_worker, prover
from node_agent.repository.check import CheckReport, check
from node_agent.repository.check_choice import ReadChoice, VerifiedPacks
from node_agent.repository.compression import compress
from node_agent.repository.crypto import Key
from node_agent.repository.pack import BlobKind, PackedBlob
from node_agent.repository.processes import WorkerProcess
from node_agent.repository.prover import Prover
from node_agent.repository.prune import PruneOptions, PruneResult, prune
from node_agent.repository.repair_packs import repair_packs
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import list_snapshots, remove_snapshot
from tests.repository.core_world import flip, make_snapshot, new_repo, open_repo, restic, store, stored

RNG = random.Random(31)


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[WorkerProcess]:
    """Two processes from the first blob on, and what was started."""
    found: list[WorkerProcess] = []

    class Noted(WorkerProcess):
        def __init__(self, module: str) -> None:
            super().__init__(module)
            found.append(self)

    start = Prover._start

    def start_and_wait(self: Prover) -> None:
        start(self)
        for process in self._starting:
            assert select.select([process._worker.channel], [], [], 60)[0]  # it is there, or has gone

    monkeypatch.setattr(Prover, "_start", start_and_wait)  # else threads may be done before a process is there
    monkeypatch.setattr(prover, "PROCESSES_AFTER", 1)
    monkeypatch.setattr(prover, "WorkerProcess", Noted)
    monkeypatch.setattr(prover, "usable_processors", lambda: 2)
    return found


def ended(processes: list[WorkerProcess]) -> bool:
    return all(process._process.poll() is not None for process in processes)


def sealed_blobs(key: Key, sizes: list[int]) -> tuple[list[PackedBlob], bytearray]:
    """One after the other, every second one compressed."""
    blobs: list[PackedBlob] = []
    content = bytearray()
    for number, size in enumerate(sizes):
        plain = RNG.randbytes(1 + size // 2).ljust(size, b"a")
        packed = compress(plain, 1) if number % 2 else plain
        sealed = key.seal(packed)
        raw_length = len(plain) if number % 2 else 0
        blob_id = hashlib.sha256(plain).digest()
        blobs.append(PackedBlob(BlobKind.DATA, blob_id, len(content), len(sealed), raw_length))
        content += sealed
    return blobs, content


@pytest.mark.parametrize("processes", [True, False])
def test_each_kind_of_damage_is_found_with_and_without_processes(
    processes: bool, started: list[WorkerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prover, "WINDOW", 100_000)  # several pieces
    if not processes:
        monkeypatch.setattr(prover, "usable_processors", lambda: 1)
    key = Key.random()
    blobs, content = sealed_blobs(key, [3000] * 60 + [250_000] + [10] * 60)  # one is larger than the window
    wrong = {5: "tag", 60: "tag", 70: "tag"}
    for number in wrong:
        content[blobs[number].offset + 20] ^= 1
    blobs[7] = blobs[7]._replace(id=bytes(32))  # another content
    blobs[9] = blobs[9]._replace(raw_length=blobs[9].raw_length + 1)
    blobs[8] = blobs[8]._replace(raw_length=3000)  # is not compressed
    del content[-5:]  # cut off
    with Prover(key) as proving:
        bad = proving.prove("a-pack", blobs, content)
        assert proving.prove("a-pack", blobs[:5], content) == []
        part = memoryview(content)[blobs[2].offset : blobs[4].offset]
        assert proving.prove("a-pack", blobs[2:4], part, start=blobs[2].offset) == []
    assert len(started) == (2 if processes else 0) and ended(started)
    assert [blob for blob, _ in bad] == [blobs[n] for n in sorted([*wrong, 7, 8, 9, len(blobs) - 1])]
    for blob, error in bad:
        assert "pack a-pack" in error.message and blob.id.hex() in error.message
    said = " ".join(error.message for _, error in bad)
    assert "the tag does not match" in said and "the content is another" in said and "bytes are there" in said


def test_a_blob_that_was_cut_is_not_proven_by_what_was_there_before() -> None:
    key = Key.random()
    blobs, content = sealed_blobs(key, [2000])
    with Prover(key) as proving:
        for _ in range(4):  # both processes have seen it whole
            assert proving.prove("a-pack", blobs, content) == []
        assert len(proving.prove("a-pack", blobs, content[:-1])) == 1


def test_many_threads_share_the_processes(started: list[WorkerProcess]) -> None:
    key = Key.random()
    blobs, content = sealed_blobs(key, [500] * 200)
    hurt = bytearray(content)
    hurt[blobs[100].offset] ^= 1
    with Prover(key) as proving, ThreadPoolExecutor(6) as pool:
        verdicts = list(pool.map(lambda n: proving.prove("p", blobs, hurt if n % 2 else content), range(60)))
    assert [len(bad) for bad in verdicts] == [0, 1] * 30
    assert len(started) == 2 and ended(started)


def test_large_blobs_start_no_process(started: list[WorkerProcess]) -> None:
    key = Key.random()
    blobs, content = sealed_blobs(key, [200_000] * 5)
    with Prover(key) as proving:
        assert proving.prove("p", blobs, content) == []
    assert started == []


def test_where_no_process_can_be_started_threads_prove(
    started: list[WorkerProcess], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(11, "no more processes")

    key = Key.random()
    blobs, content = sealed_blobs(key, [500] * 20)
    content[100] ^= 1
    monkeypatch.setattr(os, "memfd_create", refuse)
    with Prover(key) as proving:
        for _ in range(3):
            assert len(proving.prove("p", blobs, content)) == 1
    assert started == []
    assert caplog.text.count("threads prove instead") == 1


def test_where_no_process_comes_up_threads_prove(
    started: list[WorkerProcess], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prove_worker, "__name__", "node_agent.no_such_worker")
    key = Key.random()
    blobs, content = sealed_blobs(key, [500] * 20)
    with Prover(key) as proving:
        for _ in range(3):
            assert proving.prove("p", blobs, content) == []
    assert len(started) == 2 and ended(started)
    assert "threads prove instead" in caplog.text


# --- those who use it ---

KEPT = [RNG.randbytes(700) for _ in range(300)]
GONE = [RNG.randbytes(700) for _ in range(100)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What stays and what goes lie side by side in one pack."""
    repo = new_repo(tmp_path / "repo")
    with repo.lock(exclusive=True) as lock:
        store(repo, [blob for number, blob in enumerate(KEPT) for blob in (blob, *GONE[number : number + 1])])
        make_snapshot(repo, lock, {b"f": KEPT})
        other = make_snapshot(repo, lock, {b"g": GONE}, host="other")
        remove_snapshot(repo, other.id)
    return tmp_path / "repo"


def pruned(folder: Path) -> PruneResult:
    return prune(open_repo(folder), PruneOptions(max_unused="0"))


def checked(folder: Path) -> CheckReport:
    with open_repo(folder) as repo, repo.lock():
        return check(repo, read_data=True)


def chosen(folder: Path) -> CheckReport:
    with open_repo(folder) as repo, repo.lock():
        return check(repo, read_data=True, choice=ReadChoice(share=1.0), verified=VerifiedPacks(None))


def repaired(folder: Path) -> None:
    with open_repo(folder) as repo, repo.lock(exclusive=True) as lock:
        repair_packs(repo, lock, [path.name for path in stored(folder, "data")])


def whole(folder: Path) -> None:
    repo = open_repo(folder)
    for blob in KEPT:
        assert repo.load_blob(BlobKind.DATA, hashlib.sha256(blob).digest()) == blob
    restic(folder, "check", "--read-data")


def data_pack(repo: Repository) -> tuple[str, PackedBlob]:
    (place,) = repo.index.locations(BlobKind.DATA, hashlib.sha256(KEPT[50]).digest())
    return place.pack, place.blob


def test_a_prune_by_processes_leaves_what_is_needed_and_nothing_else(
    folder: Path, started: list[WorkerProcess]
) -> None:
    assert pruned(folder).rewritten_packs == 1
    assert len(started) == 2 and ended(started)
    repo = open_repo(folder)
    assert repo.missing(BlobKind.DATA, [hashlib.sha256(blob).digest() for blob in GONE]) == {
        hashlib.sha256(blob).digest() for blob in GONE
    }
    whole(folder)


@pytest.mark.parametrize("read", [checked, chosen])
def test_a_check_by_processes_finds_the_blob_that_is_hurt(
    folder: Path, started: list[WorkerProcess], read: Callable[[Path], CheckReport]
) -> None:
    assert read(folder).ok and len(started) == 2 and ended(started)
    name, blob = data_pack(open_repo(folder))
    flip(folder / "data" / name[:2] / name, blob.offset + 30)
    report = read(folder)
    assert [problem.name for problem in report.errors] == [name]
    assert blob.id.hex() in report.errors[0].message and report.errors[0].paths == ("/data/f",)


@pytest.mark.parametrize("work", [pruned, checked, chosen, repaired])
@pytest.mark.parametrize("at", [1, 2])
def test_a_killed_process_is_a_clear_error_and_the_repository_is_good(
    folder: Path,
    started: list[WorkerProcess],
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Path], object],
    at: int,
) -> None:
    """Killed before its n-th piece is sent. (What is killed later has given its answer, or not.)"""
    monkeypatch.setattr(prover, "WINDOW", 50_000)
    honest, calls = prover._Process.faults, []

    def kill_then_ask(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            os.kill(self._worker.pid, signal.SIGKILL)
        return honest(self, *args)

    before = stored(folder, "data") + stored(folder, "index") + stored(folder, "snapshots")
    monkeypatch.setattr(prover._Process, "faults", kill_then_ask)
    with pytest.raises(WorkerDied, match="SIGKILL") as caught:
        work(folder)
    assert caught.value.retryable and "memory" in caught.value.hint
    assert set(before) <= set(stored(folder, "data") + stored(folder, "index") + stored(folder, "snapshots"))
    assert stored(folder, "locks") == [] and ended(started)
    monkeypatch.setattr(prover._Process, "faults", honest)
    whole(folder)
    work(folder)
    whole(folder)


def test_secrets_are_neither_in_the_command_line_nor_in_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRS_REPOSITORY_PASSWORD", "a-password-to-find")
    seen: list[bytes] = []
    honest = prover._Process.faults

    def look(self: Any, *args: Any) -> Any:
        place = Path(f"/proc/{self._worker.pid}")
        seen.append((place / "cmdline").read_bytes() + (place / "environ").read_bytes())
        return honest(self, *args)

    monkeypatch.setattr(prover._Process, "faults", look)
    checked(folder)
    key = open_repo(folder).files.key
    assert seen
    for text in seen:
        assert b"a-password-to-find" not in text
        assert key.encrypt not in text and key.encrypt.hex().encode() not in text


def test_a_cancelled_prune_leaves_no_process_and_a_good_repository(
    folder: Path, started: list[WorkerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stops(Progress):
        def check(self) -> None:
            if started:
                self.stop(Cancelled())
            super().check()

    with pytest.raises(Cancelled):
        prune(open_repo(folder), PruneOptions(max_unused="0"), progress=Stops())
    assert ended(started) and len(list_snapshots(open_repo(folder))) == 1
    whole(folder)
