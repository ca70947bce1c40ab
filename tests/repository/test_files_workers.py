"""Small files read by processes: the same snapshots, issues and errors as without them, and nobody left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from node_agent.errors import BrsError, Cancelled, DamagedError, WorkerDied
from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.repository import files_pool, files_walk, files_worker, processes
from node_agent.repository.channel import Channel, ChannelClosed
from node_agent.repository.crypto import Key
from node_agent.repository.files_browse import find_node
from node_agent.repository.files_process import Process
from node_agent.repository.snapshot import list_snapshots
from tests.repository.core_world import PASSWORD, new_repo, open_repo, restic
from tests.repository.data_world import (
    MIB,
    Log,
    back_up,
    bring_back,
    differences,
    fingerprint,
    make_hard_tree,
    names_of,
    need_root,
    restored,
)

Hook = Callable[[Process], None]


def use_threads_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files_pool, "ENOUGH_FILES", 1 << 60)


def use_processes_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files_pool, "ENOUGH_FILES", 1)
    patch.setattr(files_pool, "_THREADS", 0)


MODES = (use_threads_only, use_processes_only)


@pytest.fixture
def on_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hook], None]:
    """Everything is read by processes; a hook is called each time after one was given a batch."""
    use_processes_only(monkeypatch)
    honest = Process.read

    def install(hook: Hook) -> None:
        def read(self: Process, work: Any) -> None:
            honest(self, work)
            hook(self)

        monkeypatch.setattr(Process, "read", read)

    return install


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """400 small files in five folders."""
    top = tmp_path / "source"
    for folder in range(5):
        (top / f"d{folder}").mkdir(parents=True)
        for number in range(80):
            (top / f"d{folder}" / f"f{number}").write_bytes(b"%d %d " % (folder, number) * (1 + number * 7 % 500))
    return top


@pytest.fixture(autouse=True)
def others() -> set[int]:
    """Children of this process that other tests' services are."""
    _others.clear()
    _others.update(children())
    return _others


_others: set[int] = set()


def children() -> set[int]:
    """Of this process, those that the test has made."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found - _others


def test_processes_make_the_very_tree_that_threads_make(tmp_path: Path, source: Path) -> None:
    need_root()
    make_hard_tree(source / "hard")
    for number in range(3):  # alike among themselves and with others
        (source / f"twin{number}").write_bytes(b"twins" * 100)
    before = fingerprint(source)
    repo = new_repo(tmp_path / "repo")
    results, issues = [], []
    for mode in reversed(MODES):
        with pytest.MonkeyPatch.context() as patch:
            mode(patch)
            issues.append(Issues())
            results.append(back_up(repo, source, issues=issues[-1]))
    first, second = results
    with repo.lock():  # folders above, such as /tmp, may change at any time
        nodes = [find_node(repo, run.snapshot_id, os.fsencode(source)) for run in results]
    assert nodes[0].subtree == nodes[1].subtree
    assert (first.files, first.read_bytes, first.size_bytes) == (second.files, second.read_bytes, second.size_bytes)
    assert issues[0] == issues[1] and names_of(issues[0]) == [("socket", "socket")]
    assert first.new_bytes > 5 * MIB and second.new_bytes < 10_000  # trees above
    bring_back(repo, first.snapshot_id, tmp_path / "out", verify=True)
    assert differences(before, fingerprint(restored(tmp_path / "out", source))) == {}
    restic(tmp_path / "repo", "check", "--read-data")


def test_changed_files_are_told_from_new_ones(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_processes_only(monkeypatch)
    repo = new_repo(tmp_path / "repo")
    first = back_up(repo, source)
    (source / "d1" / "f3").write_bytes(b"changed")
    (source / "d1" / "new").write_bytes(b"new")
    second = back_up(repo, source, parent=first.snapshot_id)
    assert (first.files_new, second.files_new, second.files_changed) == (
        400,
        1,
        second.files - second.files_unmodified - 1,
    )
    assert second.files_changed >= 1  # those of the first run's last tick are read again


@pytest.mark.parametrize("mode", MODES)
def test_what_happens_between_look_and_touch_is_noticed_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mode(monkeypatch)
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    for name in "abcdef":
        (source / name).write_bytes(name.encode() * 100)
    honest = files_walk.list_folder

    def disturb(*args: Any) -> object:
        listing = honest(*args)
        (source / "b").unlink()
        (source / "c").unlink()
        os.mkfifo(source / "c")
        (source / "d").unlink()
        (source / "d").symlink_to(tmp_path / "secret")
        (source / "e").write_bytes(b"grown" * MIB)
        return listing

    monkeypatch.setattr(files_walk, "list_folder", disturb)
    repo = new_repo(tmp_path / "repo")
    issues = Issues()
    result = back_up(repo, source, issues=issues)
    assert names_of(issues) == [("b", "vanished"), ("c", "changed"), ("d", "unreadable")]
    assert result.partial and result.files == 3
    assert result.read_bytes == 200 + 5 * MIB
    bring_back(repo, result.snapshot_id, tmp_path / "out")
    back = restored(tmp_path / "out", source)
    assert {path.name for path in back.iterdir()} == {"a", "e", "f"}
    assert (back / "e").read_bytes() == b"grown" * MIB


@pytest.mark.parametrize("mode", MODES)
def test_a_link_that_takes_a_folders_place_leads_nowhere(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, mode: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mode(monkeypatch)
    (tmp_path / "secret").mkdir()
    for number in range(80):
        (tmp_path / "secret" / f"f{number}").write_bytes(b"secret")
    before = fingerprint(source / "d2")
    honest = files_walk.list_folder

    def swap(fd: int, path: bytes, *args: Any) -> object:
        listing = honest(fd, path, *args)
        if path == os.fsencode(source / "d2"):  # it is open and listed, its files are not
            (source / "d2").rename(tmp_path / "moved")
            (source / "d2").symlink_to(tmp_path / "secret")
        return listing

    monkeypatch.setattr(files_walk, "list_folder", swap)
    repo = new_repo(tmp_path / "repo")
    result = back_up(repo, source)
    bring_back(repo, result.snapshot_id, tmp_path / "out")
    after = fingerprint(restored(tmp_path / "out", source) / "d2")
    assert {path: facts[5] for path, facts in after.items()} == {path: facts[5] for path, facts in before.items()}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_fails_the_run_and_nothing_is_lost(
    tmp_path: Path, source: Path, on_read: Callable[[Hook], None], number: signal.Signals
) -> None:
    repo = new_repo(tmp_path / "repo")
    kept = back_up(repo, source / "d0")
    on_read(lambda process: os.kill(process.pid, number))
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(WorkerDied, match=f"was killed by {number.name}") as died:
        back_up(repo, source)
    assert died.value.retryable and "memory" in died.value.hint
    assert children() == set()
    assert len(os.listdir("/proc/self/fd")) <= open_before  # others' leftovers are collected at any time
    assert [snapshot.id for snapshot in list_snapshots(repo)] == [kept.snapshot_id]
    on_read(lambda process: None)
    assert back_up(repo, source).files == 400
    restic(tmp_path / "repo", "check", "--read-data")


@pytest.mark.parametrize("frozen", [False, True])
def test_a_cancelled_run_ends_its_processes_even_those_that_hang(
    tmp_path: Path, source: Path, on_read: Callable[[Hook], None], frozen: bool
) -> None:
    repo = new_repo(tmp_path / "repo")
    progress = Progress()

    def cancel(process: Process) -> None:
        if frozen:
            os.kill(process.pid, signal.SIGSTOP)
        progress.stop(Cancelled())

    on_read(cancel)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Cancelled):
        back_up(repo, source, progress=progress)
    assert children() == set()
    assert len(os.listdir("/proc/self/fd")) <= open_before  # others' leftovers are collected at any time
    assert list_snapshots(repo) == []


def test_signals_to_stop_are_the_runs_business(tmp_path: Path, source: Path, on_read: Callable[[Hook], None]) -> None:
    def interrupt(process: Process) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(process.pid, number)

    on_read(interrupt)
    assert back_up(new_repo(tmp_path / "repo"), source).files == 400


def test_a_process_is_given_no_secret_where_others_could_see_it(
    tmp_path: Path, source: Path, on_read: Callable[[Hook], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRS_REPOSITORY_PASSWORD", PASSWORD)
    seen: list[tuple[bytes, bytes]] = []

    def look(process: Process) -> None:
        place = Path(f"/proc/{process.pid}")
        seen.append(((place / "cmdline").read_bytes(), (place / "environ").read_bytes()))

    on_read(look)
    repo = new_repo(tmp_path / "repo")
    back_up(repo, source)
    key = repo.files.key
    for command, environment in seen:
        assert b"files_worker" in command
        names = {entry.split(b"=")[0].decode() for entry in environment.split(b"\0") if entry}
        assert names <= set(processes.ENVIRONMENT)
        for secret in (PASSWORD.encode(), key.encrypt, key.encrypt.hex().encode(), key.mac_k, key.mac_r):
            assert secret not in command and secret not in environment


def test_where_no_process_can_be_started_threads_do_the_work(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_pool, "ENOUGH_FILES", 1)
    monkeypatch.setattr("sys.executable", str(tmp_path / "no such program"))
    log = Log()
    result = back_up(new_repo(tmp_path / "repo"), source, progress=Progress(log=log))
    assert result.files == 400 and not result.partial
    assert "No worker process can be started" in log


def test_where_processes_do_not_come_up_threads_do_the_work(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_pool, "ENOUGH_FILES", 1)
    monkeypatch.setattr("sys.executable", "/bin/false")
    result = back_up(new_repo(tmp_path / "repo"), source)
    assert result.files == 400 and not result.partial


def test_a_small_run_starts_no_process(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Process, sealer: object) -> None:
        raise AssertionError("a process for 400 files")

    monkeypatch.setattr(Process, "__init__", refuse)
    assert back_up(new_repo(tmp_path / "repo"), source).files == 400


class InThread:
    """Popen's stand-in: a worker in this process, so that its machine can be made a faulty one."""

    def __init__(self, _args: object, *, pass_fds: list[int], **_options: object) -> None:
        end = Channel(socket.socket(fileno=os.dup(pass_fds[0])))
        self.pid = os.getpid()
        self.thread = threading.Thread(target=self.serve, args=(end,))
        self.thread.start()

    def serve(self, end: Channel) -> None:
        try:
            files_worker._serve(end)
        except ChannelClosed:
            pass
        finally:
            end.close()

    def wait(self, timeout: float) -> int:
        self.thread.join(timeout)
        return 0

    def kill(self) -> None:
        pass


def test_a_process_that_seals_wrongly_fails_the_run_before_anything_is_stored(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_processes_only(monkeypatch)
    repo = new_repo(tmp_path / "repo")
    monkeypatch.setattr(processes.subprocess, "Popen", InThread)
    seal_each = Key.seal_each

    def broken(self: Key, plains: Sequence[bytes]) -> bytearray:
        faulty = threading.current_thread().name.startswith("Thread")
        return bytearray(byte ^ faulty for byte in seal_each(self, plains))

    monkeypatch.setattr(Key, "seal_each", broken)
    with pytest.raises(DamagedError, match="does not match"):
        back_up(repo, source)
    assert list_snapshots(repo) == []


def _back_up_for_ever(folder: Path, source: Path, pids: Path) -> None:
    files_pool.ENOUGH_FILES = 1  # type: ignore[misc]
    files_pool._THREADS = 0  # type: ignore[misc]
    honest = Process.read

    def read(self: Process, work: Any) -> None:
        (pids / str(self.pid)).touch()
        honest(self, work)

    Process.read = read  # type: ignore[method-assign]
    repo = open_repo(folder)
    while True:
        back_up(repo, source)


def test_processes_do_not_outlive_a_run_that_is_killed(tmp_path: Path, source: Path) -> None:
    new_repo(tmp_path / "repo")
    pids = tmp_path / "pids"
    pids.mkdir()
    context = multiprocessing.get_context("fork")
    run = context.Process(target=_back_up_for_ever, args=(tmp_path / "repo", source, pids))
    run.start()
    deadline = time.monotonic() + 60
    while not list(pids.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    run.kill()
    run.join()
    started = [int(path.name) for path in pids.iterdir()]
    assert started
    while any(map(_lives, started)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(_lives, started))
    restic(tmp_path / "repo", "unlock")
    restic(tmp_path / "repo", "check", "--read-data")


def _lives(pid: int) -> bool:
    try:
        return b"files_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_store_that_fails_ends_the_run_with_its_own_error(
    tmp_path: Path, source: Path, on_read: Callable[[Hook], None]
) -> None:
    repo = new_repo(tmp_path / "repo")
    on_read(lambda process: None)
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object) -> None:
            raise BrsError("the index cannot be asked")

        patch.setattr(type(repo.index), "missing", refuse)
        with pytest.raises(BrsError, match="cannot be asked"):
            back_up(repo, source)
    assert children() == set()


@pytest.mark.parametrize("mode", MODES)
def test_a_dry_run_counts_what_a_run_stores(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, mode: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mode(monkeypatch)
    repo = new_repo(tmp_path / "repo")
    before = set((tmp_path / "repo").rglob("*"))
    would = back_up(repo, source, dry_run=True)
    assert set((tmp_path / "repo").rglob("*")) == before and not would.snapshot_id
    done = back_up(repo, source)
    assert done.new_bytes == would.new_bytes > 0 and done.files_new == would.files_new == 400
    assert abs(done.stored_bytes - would.stored_bytes) < 100
    again = back_up(repo, source, parent=done.snapshot_id, dry_run=True)
    assert again.files_unmodified == 400 and again.read_bytes == 0
