"""Stock restic and BRS at work on one repository at the same time, each in processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.repository.cli_world import Cli
from tests.repository.core_world import PASSWORD, new_repo, restic, stored
from tests.repository.data_world import differences, fingerprint, restored

KIB = 1 << 10


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    new_repo(tmp_path / "repo").close()  # with a key that opens quickly
    return Cli(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(20):
        (folder / f"f{number}").write_bytes(os.urandom(40 * KIB))
    return folder


def start_restic(cli: Cli, *args: str) -> subprocess.Popen[bytes]:
    env = os.environ | {"RESTIC_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": str(cli.repo)}
    pipe = subprocess.PIPE
    return subprocess.Popen(["restic", "--no-cache", *args], env=env, stdin=pipe, stdout=pipe, stderr=pipe)


def until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    """Whether it came true while the process lived."""
    deadline = time.monotonic() + 60
    while not true():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    return True


def locks(cli: Cli) -> int:
    return len([path for path in stored(cli.repo, "locks") if len(path.name) == 64])


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes], at: Callable[[], bool]) -> Iterator[None]:
    """The process stands still in the middle of its work; afterwards it ends well."""
    assert until(at, process), f"it ended before it could be stopped: {process.communicate()}"
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
    out, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert b"Traceback" not in errors, out


@contextlib.contextmanager
def restic_at_work(cli: Cli, content: bytes = b"x") -> Iterator[None]:
    """A stock backup of what comes through a pipe that stays open; it ends well."""
    process = start_restic(cli, "backup", "--stdin", "--stdin-filename", "piped")
    assert process.stdin is not None
    process.stdin.write(content)
    process.stdin.flush()
    before = locks(cli)
    assert until(lambda: locks(cli) > before or locks(cli) > 0, process)
    try:
        yield
    finally:
        _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()


def proven(cli: Cli, source: Path, out: Path) -> None:
    """Whole for both; the last two points come back as the source is, one by each program."""
    restic(cli.repo, "check", "--read-data")
    assert cli.json("check", "--read-data")["ok"]
    for number, snapshot in enumerate(points(cli, source)[-2:]):
        made = out / str(number)
        if number:
            cli.run("restore", snapshot, "--target", str(made))
        else:
            restic(cli.repo, "restore", snapshot, "--target", str(made))
        assert differences(fingerprint(source), fingerprint(restored(made, source))) == {}


def points(cli: Cli, source: Path) -> list[str]:
    found = json.loads(restic(cli.repo, "snapshots", "--json").stdout)
    return [snapshot["id"] for snapshot in found if snapshot["paths"] == [str(source)]]


def test_backups_of_both_at_the_same_time(cli: Cli, source: Path, tmp_path: Path) -> None:
    """Of the same files, so that each stores what the other stores; who begins changes, and when the other follows."""
    for turn in range(4):
        (source / f"new{turn}").write_bytes(os.urandom(3000 * KIB))
        starts = [lambda: cli.start("backup", str(source)), lambda: start_restic(cli, "backup", str(source))]
        first, second = starts if turn % 2 else reversed(starts)
        running = [first()]
        if turn // 2:
            until(lambda: locks(cli) > 0, running[0])
        running.append(second())
        for process in running:
            _, errors = process.communicate()
            assert process.returncode == 0, errors.decode()
        restic(cli.repo, "check", "--read-data")
    proven(cli, source, tmp_path / "out")
    assert len(points(cli, source)) == 8


def test_ours_runs_wholly_within_a_stock_backup_and_the_other_way_round(cli: Cli, source: Path, tmp_path: Path) -> None:
    with restic_at_work(cli, os.urandom(2000 * KIB)):
        cli.run("backup", str(source))
    proven(cli, source, tmp_path / "out1")
    (source / "new").write_bytes(os.urandom(2000 * KIB))
    with stopped(cli.start("backup", str(source)), lambda: locks(cli) > 0):
        restic(cli.repo, "backup", str(source))
    proven(cli, source, tmp_path / "out2")


def test_nothing_is_forgotten_or_pruned_by_us_beside_a_stock_backup(cli: Cli, source: Path, tmp_path: Path) -> None:
    cli.run("backup", str(source))
    cli.run("backup", str(source))
    before = stored(cli.repo, "data")
    with restic_at_work(cli):
        for command in (["prune"], ["forget", "--keep-last", "1"], ["key", "remove", "00"], ["repair", "index"]):
            assert "in use" in cli.error(*command, expect=11)
        assert set(before) <= set(stored(cli.repo, "data")) and len(points(cli, source)) == 2
    proven(cli, source, tmp_path / "out")
    cli.run("forget", "--keep-last", "1", "--path", str(source), "--prune")
    restic(cli.repo, "check", "--read-data")


def test_stock_prune_and_forget_wait_for_our_backup(cli: Cli, source: Path, tmp_path: Path) -> None:
    cli.run("backup", str(source))
    with stopped(cli.start("backup", str(source)), lambda: locks(cli) > 0):
        for command in (["prune"], ["forget", "--keep-last", "1"], ["check"]):
            done = restic(cli.repo, *command, check=False)
            assert done.returncode != 0 and "already locked" in done.stderr
    proven(cli, source, tmp_path / "out")


def exclusive(cli: Cli) -> bool:
    """Whether somebody holds the repository alone, as ours sees it."""
    from node_agent.repository.backend import Kind, open_backend
    from node_agent.repository.keys import open_master_key
    from node_agent.repository.sealed import SealedFiles

    backend = open_backend(str(cli.repo))
    files = SealedFiles(backend, open_master_key(backend, PASSWORD).master)
    return any(files.load_json(Kind.LOCK, info.name)["exclusive"] for info in backend.list(Kind.LOCK))


def test_a_prune_of_either_keeps_the_others_backups_out(cli: Cli, source: Path, tmp_path: Path) -> None:
    cli.run("backup", str(source))
    for number in range(20):
        (source / f"f{number}").write_bytes(os.urandom(40 * KIB))
    cli.run("backup", str(source))
    restic(cli.repo, "forget", "--keep-last", "1")
    with stopped(start_restic(cli, "prune", "--max-unused", "0"), lambda: locks(cli) > 0):
        assert "alone" in cli.error("backup", str(source), expect=11)
        assert "alone" in cli.error("prune", expect=11)
    proven(cli, source, tmp_path / "out1")
    (source / "f1").unlink()
    cli.run("backup", str(source))
    restic(cli.repo, "forget", "--keep-last", "1")
    held = cli.start("forget", "--keep-last", "1", "--prune", "--max-unused", "0")
    with stopped(held, lambda: locks(cli) > 0 and exclusive(cli)):
        done = restic(cli.repo, "backup", str(source), check=False)
        assert done.returncode != 0 and "locked exclusively" in done.stderr
    proven(cli, source, tmp_path / "out2")


def test_stock_unlock_ends_none_of_ours_and_leaves_its_lock(cli: Cli, source: Path, tmp_path: Path) -> None:
    with stopped(cli.start("backup", str(source)), lambda: locks(cli) > 0):
        restic(cli.repo, "unlock")  # sends SIGHUP to the process that the lock names, to see whether it is there
        assert locks(cli) == 1
    proven(cli, source, tmp_path / "out")


def test_what_stock_restic_stored_is_known_to_ours(cli: Cli, source: Path, tmp_path: Path) -> None:
    cli.run("backup", str(source))  # the cache of the index is older than what follows
    (source / "small").write_bytes(os.urandom(100 * KIB))  # one chunk for both
    restic(cli.repo, "backup", str(source))
    summary = cli.lines("backup", str(source))[-1]
    assert summary["data_added"] < 50 * KIB
    proven(cli, source, tmp_path / "out")


def test_our_next_backup_after_stock_restic_removed_its_parent(cli: Cli, source: Path, tmp_path: Path) -> None:
    cli.run("backup", str(source))
    cli.run("backup", str(source))  # now every folder is in the cache of folders
    (gone, _) = points(cli, source)
    restic(cli.repo, "backup", __file__)
    for snapshot in points(cli, source):
        restic(cli.repo, "forget", snapshot)
    restic(cli.repo, "prune", "--max-unused", "0")
    cli.run("backup", str(source))
    proven(cli, source, tmp_path / "out1")
    cli.run("backup", str(source), "--parent", gone, expect=1)
    proven(cli, source, tmp_path / "out2")


def test_our_next_increment_of_an_image_after_stock_restic_removed_its_parent(cli: Cli, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(os.urandom(3000 * KIB))
    cli.run("backup-image", str(image), "--name", "sda")
    (parent,) = (snapshot["id"] for snapshot in cli.json("snapshots"))
    restic(cli.repo, "backup", __file__)
    restic(cli.repo, "forget", parent)
    restic(cli.repo, "prune", "--max-unused", "0")
    changed = tmp_path / "changed.json"
    changed.write_text('[{"offset": 0, "length": 4096}]')
    image_now = os.urandom(4096) + image.read_bytes()[4096:]
    image.write_bytes(image_now)
    command = ("backup-image", str(image), "--name", "sda")
    said = cli.error(*command, "--parent", parent, "--changed-extents", str(changed))
    assert "no snapshot" in said
    cli.run(*command)
    restic(cli.repo, "check", "--read-data")
    assert cli.run("dump", "latest", "/disks/sda.raw").stdout == image_now
