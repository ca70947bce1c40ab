"""A backup killed at any instant: the repository stays whole for stock restic, and the next run completes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from node_agent.errors import Cancelled
from node_agent.progress import Progress
from node_agent.repository import writer as writer_module
from node_agent.repository.backend import open_backend
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import list_snapshots
from tests.repository.cli_world import Cli
from tests.repository.core_world import PASSWORD, new_repo, open_repo, restic, stored
from tests.repository.data_world import MIB, back_up, bring_back, differences, fingerprint, restored

ROUNDS = 20
ROUNDS_IN_A_REPOSITORY = 5
SIZE = 96 * MIB
PACK = 16 * MIB


def finished(repo: Path, kind: str) -> int:
    """How many objects of a kind have their final name."""
    return len([path for path in stored(repo, kind) if len(path.name) == 64])


def packs(repo: Path) -> int:
    return finished(repo, "data")


def kill_when(process: subprocess.Popen[bytes], repo: Path, known: int, new_packs: int, delay_s: float) -> str:
    """Kill -9 after a delay, counted from the start or from that many new packs. Says in which phase it was."""
    deadline = time.monotonic() + 60
    while packs(repo) < known + new_packs and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    until = time.monotonic() + delay_s
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        return "finished before"
    return "after the first pack" if packs(repo) > known else "before the first pack"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_killed_backups_leave_a_whole_repository(tmp_path: Path) -> None:
    rng = random.Random()
    source = tmp_path / "source"
    source.mkdir()
    phases: list[str] = []
    for number in range(ROUNDS):
        if number % ROUNDS_IN_A_REPOSITORY == 0:
            cli = Cli(tmp_path / f"world{number}")
            cli.repo.parent.mkdir()
            cli.run("init")
        image = number % 2 == 1
        path = source / ("disk.raw" if image else "file")
        path.write_bytes(os.urandom(SIZE))
        command = ("backup-image", str(path)) if image else ("backup", str(source))
        known = packs(cli.repo)
        # Anywhere in the start, or between the first pack and the last but one.
        new_packs = rng.randint(1, SIZE // PACK - 1) if number % 4 else 0
        delay_s = rng.uniform(0, 0.03 if new_packs else 0.5)
        phase = kill_when(cli.start(*command), cli.repo, known, new_packs, delay_s)
        print(f"round {number}: {command[0]} killed {phase}, {packs(cli.repo) - known} new packs")
        phases.append(phase)
        restic(cli.repo, "unlock")
        restic(cli.repo, "check", "--read-data")
        if number % ROUNDS_IN_A_REPOSITORY == ROUNDS_IN_A_REPOSITORY - 1:
            cli.run(*command)
            cli.run("restore", "latest", "--target", str(tmp_path / f"out{number}"))
            restic(cli.repo, "check", "--read-data")
    assert phases.count("after the first pack") >= 5, phases
    assert phases.count("finished before") <= ROUNDS // 2, phases


def test_the_next_run_needs_no_unlock_by_hand(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(os.urandom(SIZE))
    cli = Cli(tmp_path)
    cli.run("init")
    kill_when(cli.start("backup", str(tmp_path / "source")), cli.repo, 0, 1, 0)
    assert stored(cli.repo, "locks")
    cli.run("backup", str(tmp_path / "source"))
    cli.run("forget", "--keep-last", "1")  # takes the repository alone: the dead lock must be gone
    assert stored(cli.repo, "locks") == []
    restic(cli.repo, "check", "--read-data")


def run_in_child(repo: Path, source: Path) -> int:
    """A backup in a forked process that writes an index file after each pack, to be killed; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        writer_module.MAX_AGE_S = 0.0  # type: ignore[assignment]
        back_up(Repository.open(open_backend(str(repo)), PASSWORD), source)
    finally:
        os._exit(0)


def test_the_next_run_reuses_packs_that_an_index_names(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(4 * SIZE))
    new_repo(tmp_path / "repo").close()
    child = run_in_child(tmp_path / "repo", source)
    deadline = time.monotonic() + 60
    while finished(tmp_path / "repo", "index") < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended before it could be killed"
    restic(tmp_path / "repo", "unlock")
    restic(tmp_path / "repo", "check", "--read-data")
    repo = open_repo(tmp_path / "repo")
    assert list_snapshots(repo) == []
    result = back_up(repo, source)
    assert result.new_bytes <= 4 * SIZE - 20 * MIB  # two packs' worth at least was there
    bring_back(repo, result.snapshot_id, tmp_path / "out")
    assert differences(fingerprint(source), fingerprint(restored(tmp_path / "out", source))) == {}
    restic(tmp_path / "repo", "check", "--read-data")


def test_a_cancelled_run_indexes_what_it_wrote(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(2 * SIZE))
    repo = new_repo(tmp_path / "repo")

    class StopsHalfWay(Progress):
        def check(self) -> None:
            if self.counters.stored_bytes > SIZE:
                self.stop(Cancelled())
            super().check()

    with pytest.raises(Cancelled):
        back_up(repo, source, progress=StopsHalfWay())
    assert list_snapshots(repo) == []
    assert back_up(repo, source).new_bytes <= 2 * SIZE - 16 * MIB
    restic(tmp_path / "repo", "check", "--read-data")
