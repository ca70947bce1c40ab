from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.errors import BackendError, BackendReadOnly, Cancelled, RepositoryLocked
from node_agent.progress import Progress
from node_agent.repository import lock as lock_module
from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.crypto import Key
from node_agent.repository.lock import FENCE_S, LockHolder, Locks, waiting
from node_agent.repository.lock_journal import LockJournal, boot_id, is_running, process_start
from node_agent.repository.sealed import SealedFiles

MINUTE, HOUR = 60.0, 3600.0


@pytest.fixture
def files(tmp_path: Path) -> SealedFiles:
    backend = open_backend(str(tmp_path / "repo"))
    backend.create()
    return SealedFiles(backend, Key.random())


def _locks(files: SealedFiles, holder: LockHolder | None = None) -> Locks:
    return Locks(files, holder or LockHolder.for_node("11112222-3333", None), "ab" * 32)


def _names(files: SealedFiles) -> set[str]:
    return {info.name for info in files.backend.list(Kind.LOCK)}


def _foreign(files: SealedFiles, *, age_s: float, exclusive: bool = False, hostname: str = "stranger") -> str:
    """A lock of another program that was stored ``age_s`` ago by the store's clock."""
    value = {
        "time": "2001-01-01T00:00:00Z",  # what its writer's clock said counts for nothing
        "exclusive": exclusive,
        "hostname": hostname,
        "username": "eve",
        "pid": 1,
    }
    name = files.save(Kind.LOCK, json.dumps(value).encode())
    _age(files, name, age_s)
    return name


def _age(files: SealedFiles, name: str, age_s: float) -> None:
    path = Path(files.backend.url.removeprefix("local:")) / "locks" / name
    os.utime(path, (time.time() - age_s,) * 2)


def test_a_lock_is_there_while_it_is_held_and_says_who_holds_it(files: SealedFiles) -> None:
    with _locks(files, LockHolder("here")).acquire(exclusive=False) as lock:
        assert _names(files) == {lock.name}
        value = files.load_json(Kind.LOCK, lock.name)
        assert (value["hostname"], value["pid"], value["exclusive"]) == ("here", os.getpid(), False)
        lock.prove()
    assert _names(files) == set()


def test_shared_locks_go_together_and_exclude_an_exclusive_one(files: SealedFiles) -> None:
    locks = _locks(files)
    with locks.acquire(exclusive=False), locks.acquire(exclusive=False):
        with pytest.raises(RepositoryLocked, match=os.uname().nodename):
            locks.acquire(exclusive=True)
        assert len(_names(files)) == 2
    with locks.acquire(exclusive=True):
        for exclusive in (False, True):
            with pytest.raises(RepositoryLocked, match="alone"):
                locks.acquire(exclusive=exclusive)


def test_of_many_who_want_to_be_alone_at_once_at_most_one_succeeds(files: SealedFiles) -> None:
    won: list[lock_module.Lock] = []

    def attempt() -> None:
        try:
            won.append(_locks(files).acquire(exclusive=True))
        except RepositoryLocked:
            return

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) <= 1
    assert len(_names(files)) == len(won)
    for lock in won:
        lock.release()


def test_waiting_for_a_lock_ends_when_the_other_goes(files: SealedFiles) -> None:
    other = _locks(files).acquire(exclusive=True)
    threading.Timer(0.5, other.release).start()
    with _locks(files).acquire(exclusive=False, wait_s=20) as lock:
        lock.check()


@pytest.mark.parametrize(
    ("age_s", "wanted_exclusive", "other_exclusive", "hostname", "goes"),
    [
        (29 * MINUTE, False, True, "stranger", False),
        (31 * MINUTE, False, True, "stranger", True),
        (31 * MINUTE, True, False, "stranger", False),  # restic before 0.15 may wake up and write
        (23 * HOUR, True, True, "stranger", False),
        (25 * HOUR, True, False, "stranger", True),
        (31 * MINUTE, True, False, "other.brs-11112222", True),  # our kind stops itself
        (29 * MINUTE, True, False, "other.brs-11112222", False),
    ],
)
def test_a_lock_is_left_behind_by_the_stores_clock_alone(
    files: SealedFiles, age_s: float, wanted_exclusive: bool, other_exclusive: bool, hostname: str, goes: bool
) -> None:
    other = _foreign(files, age_s=age_s, exclusive=other_exclusive, hostname=hostname)
    if goes:
        with _locks(files).acquire(exclusive=wanted_exclusive):
            assert other not in _names(files)
    else:
        with pytest.raises(RepositoryLocked):
            _locks(files).acquire(exclusive=wanted_exclusive)
        assert _names(files) == {other}


def test_an_old_shared_lock_does_not_bother_another_shared_one(files: SealedFiles) -> None:
    other = _foreign(files, age_s=100 * HOUR)
    with _locks(files).acquire(exclusive=False):
        assert other in _names(files)


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_damaged_lock_is_respected_for_30_minutes_and_told(
    files: SealedFiles, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    name = "cd" * 32
    files.backend.put(Kind.LOCK, name, [content])
    with caplog.at_level(logging.WARNING), pytest.raises(RepositoryLocked, match="damaged"):
        _locks(files).acquire(exclusive=False)
    assert name in caplog.text
    _age(files, name, 31 * MINUTE)
    with _locks(files).acquire(exclusive=True):
        assert name not in _names(files)


def test_a_refresh_replaces_the_file_and_keeps_the_lock(files: SealedFiles) -> None:
    with _locks(files).acquire(exclusive=True) as lock:
        old = lock.name
        lock.refresh()
        assert _names(files) == {lock.name} != {old}
        lock.prove()


def test_the_lock_is_refreshed_in_the_background(files: SealedFiles) -> None:
    locks = _locks(files)
    lock = lock_module.Lock(locks, locks.store(False), False, refresh_s=0.05)
    first, deadline = lock.name, time.monotonic() + 20
    while lock.name == first and time.monotonic() < deadline:
        time.sleep(0.01)
    lock.release()
    assert lock.name != first
    assert _names(files) == set()


def test_a_holder_that_could_not_refresh_for_22_minutes_stops(
    files: SealedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _locks(files).acquire(exclusive=False) as lock:
        now = lock_module._uptime()
        monkeypatch.setattr(lock_module, "_uptime", lambda: now + FENCE_S - 5)
        lock.check()
        monkeypatch.setattr(lock_module, "_uptime", lambda: now + FENCE_S + 5)
        with pytest.raises(RepositoryLocked, match="refreshed"):
            lock.check()
        monkeypatch.setattr(lock_module, "_uptime", lambda: now)
        with pytest.raises(RepositoryLocked):  # lost stays lost
            lock.check()


def test_a_lock_removed_by_somebody_else_is_noticed_before_what_counts(files: SealedFiles) -> None:
    with _locks(files).acquire(exclusive=False) as lock:
        files.backend.delete(Kind.LOCK, lock.name)
        lock.check()
        with pytest.raises(RepositoryLocked, match="removed"):
            lock.prove()


def test_a_refresh_never_brings_a_removed_lock_back(files: SealedFiles) -> None:
    with _locks(files).acquire(exclusive=False) as lock:
        files.backend.delete(Kind.LOCK, lock.name)
        with pytest.raises(RepositoryLocked):
            lock.refresh()
        assert _names(files) == set()


def test_a_refresh_that_fails_leaves_the_old_lock_in_place(files: SealedFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise BackendError("no answer")

    with _locks(files).acquire(exclusive=False) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(files.backend, "put", broken)
            with pytest.raises(BackendError):
                lock.refresh()
        lock.prove()
        assert _names(files) == {lock.name}


def test_a_lock_file_carries_the_stores_time_not_this_machines(
    files: SealedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.backend, "now", lambda: 1_000_000_000.0)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with _locks(files).acquire(exclusive=False) as lock:
        assert files.load_json(Kind.LOCK, lock.name)["time"] == "2001-09-09T01:46:40Z"


def _hold_for_ever(files: SealedFiles, holder: LockHolder, ready: multiprocessing.synchronize.Event) -> None:
    with _locks(files, holder).acquire(exclusive=True):
        ready.set()
        signal.pause()


@pytest.fixture
def killed_holder(files: SealedFiles, tmp_path: Path) -> Iterator[LockHolder]:
    """A holder with a journal whose process was killed while it held an exclusive lock."""
    holder = LockHolder.for_node("55556666-7777", tmp_path / "state")
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold_for_ever, args=(files, holder, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(RepositoryLocked):  # alive: its lock is respected, by itself too
        _locks(files, holder).acquire(exclusive=False)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    yield holder


def test_the_lock_of_our_own_killed_process_goes_at_once(files: SealedFiles, killed_holder: LockHolder) -> None:
    with _locks(files, killed_holder).acquire(exclusive=True) as lock:
        assert _names(files) == {lock.name}


def test_the_lock_of_anothers_killed_process_stays(
    files: SealedFiles, killed_holder: LockHolder, tmp_path: Path
) -> None:
    stranger = LockHolder(killed_holder.hostname, tmp_path / "another-state")
    with pytest.raises(RepositoryLocked):
        _locks(files, stranger).acquire(exclusive=False)


def test_a_journal_entry_of_before_the_last_boot_is_dead(tmp_path: Path) -> None:
    journal = LockJournal(tmp_path, "ab" * 32)
    journal.add("cd" * 32)
    assert list(journal.dead()) == []  # our own, alive
    entry = {"boot": "another", "pid": os.getpid(), "started": process_start(os.getpid())}
    (journal.folder / ("ef" * 32)).write_text(json.dumps(entry))
    assert list(journal.dead()) == ["ef" * 32]
    journal.remove("ef" * 32)
    journal.remove("cd" * 32)
    assert list(journal.folder.iterdir()) == []


def test_a_reused_process_id_is_not_mistaken_for_the_holder(tmp_path: Path) -> None:
    journal = LockJournal(tmp_path, "ab" * 32)
    journal.folder.mkdir()
    entry = {"boot": boot_id(), "pid": os.getpid(), "started": process_start(os.getpid()) - 1}
    (journal.folder / ("ef" * 32)).write_text(json.dumps(entry))
    assert list(journal.dead()) == ["ef" * 32]


def test_an_entry_being_written_is_not_dead(tmp_path: Path) -> None:
    journal = LockJournal(tmp_path, "ab" * 32)
    journal.folder.mkdir()
    (journal.folder / ("ef" * 32)).touch()
    assert list(journal.dead()) == []
    os.utime(journal.folder / ("ef" * 32), (1, 1))
    assert list(journal.dead()) == ["ef" * 32]


def test_a_process_that_may_not_be_signalled_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    assert is_running(os.getpid(), process_start(os.getpid()))


def test_two_nodes_have_different_hostnames_on_one_machine() -> None:
    first, second = (LockHolder.for_node(node, None).hostname for node in ("aaaa1111-0", "bbbb2222-0"))
    assert first != second
    assert LockHolder.for_command_line(None).hostname == os.uname().nodename


def test_a_read_only_store_refuses_a_lock(files: SealedFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise BackendReadOnly

    monkeypatch.setattr(files.backend, "now", refuse)
    with pytest.raises(BackendReadOnly):
        _locks(files).acquire(exclusive=False)


def test_a_clock_that_is_off_by_an_hour_is_told_and_changes_nothing(
    files: SealedFiles, caplog: pytest.LogCaptureFixture
) -> None:
    for hours in (-1, 1):
        locks = Locks(files, LockHolder("h"), "ab" * 32, clock=lambda hours=hours: time.time() + hours * HOUR)
        other = _foreign(files, age_s=5 * MINUTE, exclusive=True)
        with caplog.at_level(logging.WARNING), pytest.raises(RepositoryLocked):
            locks.acquire(exclusive=False)
        assert "differs from the store's by" in caplog.text
        files.backend.delete(Kind.LOCK, other)
        with locks.acquire(exclusive=False) as lock:
            assert abs(files.backend.stat(Kind.LOCK, lock.name).modified - time.time()) < MINUTE


def test_an_early_lock_looks_a_second_time_before_the_first_write(files: SealedFiles) -> None:
    with _locks(files).acquire(exclusive=False, settle_s=0.01, early=True) as lock:
        assert lock.settles_in_s is not None
        assert _names(files) == {lock.name}
        lock.check()
        assert lock.settles_in_s is None
        _foreign(files, age_s=0, exclusive=True)  # too late: it would see ours, and go
        lock.check()


def test_an_early_lock_is_of_no_use_once_the_second_look_finds_somebody_alone(files: SealedFiles) -> None:
    with _locks(files).acquire(exclusive=False, settle_s=0.01, early=True) as lock:
        other = _foreign(files, age_s=0, exclusive=True)  # stored at the same time as ours
        for look in (lock.settle, lock.check, lock.prove):
            with pytest.raises(RepositoryLocked):
                look()
    assert _names(files) == {other}


def test_who_works_alone_is_never_early(files: SealedFiles) -> None:
    with _locks(files).acquire(exclusive=True, settle_s=0.01, early=True) as lock:
        assert lock.settles_in_s is None


@pytest.mark.parametrize("journal", [False, True], ids=["without a journal", "with a journal"])
def test_an_early_lock_that_met_somebody_is_taken_anew_as_long_as_its_user_would_wait(
    files: SealedFiles, tmp_path: Path, journal: bool
) -> None:
    waits: list[str] = []
    folder = tmp_path / "journal" if journal else None
    locks = _locks(files, LockHolder.for_node("11112222-3333", folder))

    def pause(why: RepositoryLocked, seconds: float) -> None:
        assert 0 < seconds <= 60
        assert _names(files) == {other}  # who works alone does not find us, and can go on
        waits.append(why.message)
        if len(waits) == 2:
            files.backend.delete(Kind.LOCK, other)

    with locks.acquire(exclusive=False, settle_s=0.01, early=True, wait_s=60, pause=pause) as lock:
        first, other = lock.name, _foreign(files, age_s=0, exclusive=True)
        lock.settle()
        assert len(waits) == 2 and all("alone by eve@stranger" in why for why in waits)
        assert first != lock.name and _names(files) == {lock.name}
        if folder is not None:
            assert [path.name for path in folder.rglob("*") if path.is_file()] == [lock.name]
        lock.prove()
        lock.refresh()
        assert _names(files) == {lock.name}
    assert not _names(files)


def test_an_early_lock_that_waits_in_vain_is_lost_and_leaves_nothing(files: SealedFiles) -> None:
    with _locks(files).acquire(exclusive=False, settle_s=0.01, early=True, wait_s=0.05) as lock:
        other = _foreign(files, age_s=0, exclusive=True)
        for look in (lock.settle, lock.check, lock.prove, lock.refresh, lock.settle):
            with pytest.raises(RepositoryLocked, match="in use alone by eve@stranger"):
                look()
            assert _names(files) == {other}


def test_who_waits_for_a_lock_can_be_told_to_stop(files: SealedFiles) -> None:
    progress, told = Progress(), list[str]()
    _foreign(files, age_s=0, exclusive=True)

    def tell(text: str) -> None:
        told.append(text)
        progress.stop(Cancelled())

    with pytest.raises(Cancelled):
        _locks(files).acquire(exclusive=False, wait_s=3600, pause=waiting(progress, tell))
    assert len(told) == 1 and "eve@stranger" in told[0]


def test_a_lock_is_not_refreshed_while_it_is_taken_anew(files: SealedFiles) -> None:
    """The refresher would take the withdrawn file for one that somebody removed."""
    refreshed: list[threading.Thread] = []

    def pause(_why: RepositoryLocked, _seconds: float) -> None:
        refreshed.append(threading.Thread(target=lock.refresh))
        refreshed[0].start()
        files.backend.delete(Kind.LOCK, other)

    with _locks(files).acquire(exclusive=False, settle_s=0.01, early=True, wait_s=60, pause=pause) as lock:
        first, other = lock.name, _foreign(files, age_s=0, exclusive=True)
        lock.settle()
        refreshed[0].join()
        lock.prove()
        assert _names(files) == {lock.name} and lock.name != first


def test_an_early_lock_and_one_who_works_alone_do_not_keep_each_other_out_for_ever(files: SealedFiles) -> None:
    """Both store, both see the other at the second look, both withdraw: in the end each has had his turn."""
    had, both = list[str](), threading.Barrier(2)

    def alone() -> None:
        both.wait()
        with _locks(files).acquire(exclusive=True, settle_s=0.05, wait_s=120):
            had.append("alone")

    other = threading.Thread(target=alone)
    other.start()
    both.wait()
    with _locks(files).acquire(exclusive=False, settle_s=0.05, early=True, wait_s=120) as lock:
        lock.prove()
        had.append("early")
    other.join()
    assert sorted(had) == ["alone", "early"] and not _names(files)
