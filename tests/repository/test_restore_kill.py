"""A restore that is killed with all its processes: what has a name is whole, and the next run completes the rest."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from node_agent.repository.restore_crew import PROCESSES_AFTER
from tests.repository.cli_world import Cli
from tests.repository.data_world import differences, fingerprint, restored

FILES = 3000
WAIT_S = 120.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cli, Path]:
    """A repository with enough small files for worker processes."""
    top = tmp_path_factory.mktemp("world")
    source = top / "source"
    for number in range(FILES):
        path = source / f"d{number % 30}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(2000 + number % 7 * 20_000))
        os.utime(path, ns=(1_000_000_000, 1_500_000_000_000_000_000 + number))
    cli = Cli(top / "cli")
    cli.repo.parent.mkdir()
    cli.run("init")
    cli.run("backup", str(source))
    return cli, source


def names_in(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):  # it ended
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def kill_at(process: subprocess.Popen[bytes], out: Path, files: int) -> None:
    """Kill -9 the run and its processes once so many files have names (it may be over then, on a busy machine)."""
    deadline = time.monotonic() + WAIT_S
    while names_in(out) < files and process.poll() is None and time.monotonic() < deadline:
        pass
    members = family(process.pid) if process.poll() is None else []
    for pid in reversed(members):  # the workers first: the run must not get to tidy up after them
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("files", [1, 300])
def test_after_a_kill_of_all_every_file_that_has_a_name_is_whole(
    world: tuple[Cli, Path], tmp_path: Path, files: int
) -> None:
    cli, source = world
    assert FILES // 128 * 4 >= PROCESSES_AFTER
    out = tmp_path / "out"
    kill_at(cli.start("restore", "latest", "--target", str(out)), out, files)
    there = [path for path in restored(out, source).rglob("*") if path.is_file()]
    assert len(there) >= files
    for path in there:
        original = source / path.relative_to(restored(out, source))
        assert path.read_bytes() == original.read_bytes()
        assert path.stat().st_mtime_ns == original.stat().st_mtime_ns
    cli.run("restore", "latest", "--target", str(out), "--overwrite", "never")
    wanted, found = (
        {path: facts for path, facts in fingerprint(top).items() if path.count(b"/")}
        for top in (source, restored(out, source))
    )
    assert differences(wanted, found) == {}
