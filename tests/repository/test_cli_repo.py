"""The repository commands as their users meet them: options, output, exit codes."""

from __future__ import annotations

import contextlib
import encodings.ascii  # nobody cannot load it later
import hashlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node_agent.cli import main
from node_agent.cli_repo_backup import read_changes
from node_agent.cli_session import bar_line, human_size
from node_agent.errors import SourceError
from node_agent.progress import Counters
from tests.repository.cli_world import Cli
from tests.repository.core_world import PASSWORD, flip, open_repo, restic, stored
from tests.repository.data_world import (
    MIB,
    allocated,
    as_nobody,
    differences,
    fingerprint,
    mounted,
    open_folder,
    restored,
)

__all__ = ["encodings", "open_folder"]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.run("init")
    return cli


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    (top / "d").mkdir(parents=True)
    (top / "a").write_bytes(b"alpha")
    (top / "d" / "b").write_bytes(os.urandom(2 * MIB))
    (top / "l").symlink_to("a")
    return top


# --- a whole life ---


def test_a_repository_lives_from_init_to_forget(cli: Cli, source: Path, tmp_path: Path) -> None:
    first = cli.json("backup", str(source), "--tag", "one,two", "--host", "box")
    (source / "c").write_bytes(b"new")
    second = cli.json("backup", str(source), "--host", "box")
    assert (first["files_new"], second["files_new"], second["files_unmodified"]) == (2, 1, 2)
    assert second["parent"] == first["snapshot_id"]
    listed = cli.json("snapshots")
    assert [entry["id"] for entry in listed] == [first["snapshot_id"], second["snapshot_id"]]
    assert (listed[0]["hostname"], listed[0]["paths"], listed[0]["tags"]) == ("box", [str(source)], ["one", "two"])
    assert cli.json("snapshots", "--tag", "one,two") == listed[:1]
    assert first["snapshot_id"][:8] in cli.run("snapshots").stdout.decode()
    cli.run("restore", "latest", "--target", str(tmp_path / "out"), "--verify")
    assert differences(fingerprint(source), fingerprint(restored(tmp_path / "out", source))) == {}
    assert cli.run("dump", first["snapshot_id"][:10], str(source / "a")).stdout == b"alpha"
    stats = cli.json("stats")
    assert stats["snapshots_count"] == 2
    assert stats["total_size"] == 2 * (2 * MIB + 5) + 3
    assert cli.json("check", "--read-data")["num_errors"] == 0
    assert b"no errors were found" in cli.run("check").stdout
    planned = cli.json("forget", "--keep-last", "1", "--dry-run")
    assert [entry["id"] for entry in planned[0]["remove"]] == [first["snapshot_id"]]
    assert len(cli.json("snapshots")) == 2
    cli.run("forget", "--keep-last", "1")
    assert [entry["id"] for entry in cli.json("snapshots")] == [second["snapshot_id"]]
    restic(cli.repo, "check", "--read-data")


def test_json_output_has_what_restics_has(cli: Cli, source: Path) -> None:
    cli.run("backup", str(source), "--host", "box")
    ours, theirs = cli.json("snapshots")[0], json.loads(restic(cli.repo, "snapshots", "--json").stdout)[0]
    assert {key: ours[key] for key in theirs} == theirs
    assert cli.json("stats").items() >= json.loads(restic(cli.repo, "stats", "--json").stdout).items()
    our_plan = cli.json("forget", "--keep-last", "3", "--dry-run")[0]
    their_plan = json.loads(restic(cli.repo, "forget", "--keep-last", "3", "--dry-run", "--json").stdout)[0]
    assert {key: our_plan[key] for key in ("host", "paths", "tags", "remove")} == {
        key: their_plan[key] for key in ("host", "paths", "tags", "remove")
    }
    assert [entry["id"] for entry in our_plan["keep"]] == [entry["id"] for entry in their_plan["keep"]]
    listed = cli.lines("ls", "latest")
    reference = [json.loads(line) for line in restic(cli.repo, "ls", "latest", "--json").stdout.splitlines()]
    assert len(listed) == len(reference)
    for mine, other in zip(listed, reference, strict=True):
        assert {key: mine.get(key) for key in other} == other


def test_ls_shows_files_long_and_below_a_folder(cli: Cli, source: Path) -> None:
    cli.run("backup", str(source))
    assert cli.run("ls", "latest", str(source)).stdout.decode().split() == [str(source / name) for name in "adl"]
    long = cli.run("ls", "-l", "latest", str(source / "d")).stdout.decode()
    assert long.startswith("-rw-r--r--")
    assert f"{2 * MIB}" in long


# --- where repository and password come from ---


@pytest.mark.parametrize("variable", ["BRS_REPOSITORY_PASSWORD", "RESTIC_PASSWORD"])
def test_the_password_may_stand_in_a_variable(cli: Cli, variable: str) -> None:
    del cli.env["BRS_REPOSITORY_PASSWORD"]
    cli.env[variable] = PASSWORD
    assert cli.json("snapshots") == []


def test_the_password_may_stand_in_a_file_with_a_newline(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pw").write_text(PASSWORD + "\n")
    cli.env["BRS_REPOSITORY_PASSWORD"] = "wrong"
    assert cli.json("snapshots", "--password-file", str(tmp_path / "pw")) == []
    del cli.env["BRS_REPOSITORY_PASSWORD"]
    cli.env["RESTIC_PASSWORD_FILE"] = str(tmp_path / "pw")
    assert cli.json("snapshots") == []


def test_repo_may_stand_before_and_after_the_command(cli: Cli) -> None:
    del cli.env["RESTIC_REPOSITORY"]
    assert cli.json("snapshots", "--repo", str(cli.repo)) == []
    assert cli.json("--repo", str(cli.repo), "snapshots") == []
    assert cli.json("snapshots", "--repo", f"local:{cli.repo}") == []


def test_what_is_not_given_is_said_with_a_hint(cli: Cli) -> None:
    del cli.env["BRS_REPOSITORY_PASSWORD"]
    assert "RESTIC_PASSWORD" in cli.error("snapshots")
    del cli.env["RESTIC_REPOSITORY"]
    assert "Give --repo" in cli.error("snapshots")
    assert "cannot be read" in cli.error("snapshots", "--repo", "x", "--password-file", "/nope")


# --- exit codes ---


def test_a_wrong_password_ends_12(cli: Cli) -> None:
    cli.env["BRS_REPOSITORY_PASSWORD"] = "wrong"
    message = cli.error("snapshots", expect=12)
    assert message.startswith("error: ")
    assert "hint: " in message


def test_a_missing_repository_ends_10(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("nowhere", "empty"):
        cli.error("snapshots", "--repo", str(tmp_path / place), expect=10)


def test_a_repository_that_somebody_holds_alone_ends_11(cli: Cli, source: Path) -> None:
    with open_repo(cli.repo).lock(exclusive=True):
        assert "lock" in cli.error("backup", str(source), expect=11)
    cli.run("backup", str(source))


def test_an_existing_repository_is_not_made_again(cli: Cli) -> None:
    assert "already" in cli.error("init")


def test_a_path_that_does_not_exist_ends_1(cli: Cli) -> None:
    assert "/no/such does not exist" in cli.error("backup", "/no/such")
    assert cli.json("snapshots") == []


def test_errors_are_json_when_asked(cli: Cli) -> None:
    answer = json.loads(cli.error("backup", "/no/such", "--json"))
    assert answer["message_type"] == "exit_error"
    assert answer["error"] == "source-missing"
    assert answer["hint"]


def test_a_file_that_nobody_may_read_ends_3_and_is_listed(open_folder: Path) -> None:
    (open_folder / "source").mkdir()
    (open_folder / "source" / "secret").write_bytes(b"x")
    (open_folder / "source" / "secret").chmod(0)
    (open_folder / "source" / "open").write_bytes(b"y")
    open_folder.chmod(0o777)
    cli = Cli(open_folder)

    def run() -> tuple[int, int, str]:
        os.environ.update(cli.env)
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            made = main(["repo", "init"])
            return made, main(["repo", "backup", str(open_folder / "source")]), errors.getvalue()

    made, code, said = as_nobody(run)
    assert (made, code) == (0, 3)
    assert f"left out: {open_folder}/source/secret: It cannot be read" in said
    assert json.loads(restic(cli.repo, "snapshots", "--json").stdout)[0]["tags"] == ["brs.partial"]


def test_a_damaged_pack_is_named_by_check_and_restore(cli: Cli, source: Path, tmp_path: Path) -> None:
    cli.run("backup", str(source))
    pack = max(stored(cli.repo, "data"), key=lambda path: path.stat().st_size)
    flip(pack, 1000)
    told = [line for line in cli.error("check", "--read-data").splitlines() if line.startswith("error: pack")]
    assert told and all(line.count(pack.name) == 1 for line in told)
    assert cli.json("check", "--read-data", expect=1)["num_errors"] >= 1
    done = cli.run("restore", "latest", "--target", str(tmp_path / "out"), expect=1)
    assert pack.name in done.stderr.decode()
    assert "were not restored" in done.stderr.decode()


def test_one_damaged_snapshot_hides_no_other(cli: Cli, source: Path) -> None:
    for _ in range(2):
        cli.run("backup", str(source))
    hurt = sorted((cli.repo / "snapshots").iterdir())[0]
    hurt.chmod(0o600)
    hurt.write_bytes(hurt.read_bytes()[:-1])
    listed = cli.run("snapshots", "--json", expect=1)
    assert hurt.name[:8] in listed.stderr.decode()
    assert [row["id"] for row in json.loads(listed.stdout)] == [sorted((cli.repo / "snapshots").iterdir())[1].name]


def test_a_full_destination_is_said_and_leaves_the_repository_whole(tmp_path: Path, source: Path) -> None:
    (source / "large").write_bytes(os.urandom(40 * MIB))
    with mounted(tmp_path / "small", "tmpfs", "size=24m") as small:
        cli = Cli(small)
        cli.env["BRS_CACHE_DIR"] = str(tmp_path / "cache")
        cli.run("init")
        assert "space" in cli.error("backup", str(source))
        restic(cli.repo, "unlock")
        restic(cli.repo, "check", "--read-data")
        assert cli.json("snapshots") == []


def test_a_read_only_destination_is_said_but_can_be_restored_from(tmp_path: Path, source: Path) -> None:
    with mounted(tmp_path / "store", "tmpfs", "size=64m") as store:
        cli = Cli(store)
        cli.env["BRS_CACHE_DIR"] = str(tmp_path / "cache")
        cli.run("init")
        cli.run("backup", str(source))
        subprocess.run(["mount", "-o", "remount,ro", str(store)], check=True)
        assert (
            "cannot be written" in cli.error("backup", str(source)).lower()
            or "read-only" in cli.error("backup", str(source)).lower()
        )
        cli.run("restore", "latest", "--target", str(tmp_path / "out"))
        assert len(cli.json("snapshots")) == 1


def test_output_into_a_closed_pipe_is_no_crash(cli: Cli, source: Path) -> None:
    cli.run("backup", str(source))
    process = cli.start("dump", "latest", str(source / "d" / "b"))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait()


def test_ctrl_c_ends_130_and_leaves_the_repository_unlocked(cli: Cli, source: Path) -> None:
    (source / "large").write_bytes(os.urandom(200 * MIB))
    process = cli.start("backup", str(source))
    deadline = time.monotonic() + 30
    while not stored(cli.repo, "data") and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    assert stored(cli.repo, "locks") == []
    restic(cli.repo, "check", "--read-data")


# --- images ---


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(20 * MIB)
        for block in (0, 3, 4, 11):
            file.seek(block * MIB)
            file.write(os.urandom(MIB))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_image_is_stored_as_one_sparse_file(cli: Cli, disk: Path, tmp_path: Path) -> None:
    summary = cli.json("backup-image", str(disk), "--name", "sda")
    assert summary["total_bytes_read"] == 4 * MIB
    assert summary["block_size"] == 256 << 10
    cli.run("restore", "latest", "--target", str(tmp_path / "out"))
    copy = tmp_path / "out" / "disks" / "sda.raw"
    assert digest(copy) == digest(disk)
    assert allocated(copy) < 5 * MIB
    dumped = cli.run("dump", "latest", "disks/sda.raw").stdout
    assert hashlib.sha256(dumped).hexdigest() == digest(disk)
    part = cli.run("dump", "latest", "disks/sda.raw", "--offset", str(MIB - 7), "--length", "5000000").stdout
    assert part == dumped[MIB - 7 : MIB - 7 + 5_000_000]
    assert cli.run("dump", "latest", "disks/sda.raw", "--offset", str(len(dumped) - 3)).stdout == dumped[-3:]
    restic(cli.repo, "check", "--read-data")


def test_changed_extents_are_all_that_is_read(cli: Cli, disk: Path, tmp_path: Path) -> None:
    cli.run("backup-image", str(disk))
    expected = bytearray(disk.read_bytes())
    with disk.open("r+b") as file:
        block = 256 << 10
        for start in range(0, 20 * MIB, block):  # every block is overwritten, but only one is said to have changed
            file.seek(start)
            data = os.urandom(block)
            file.write(data)
            if start == 4 * MIB:
                expected[start : start + block] = data
    extents = tmp_path / "extents.json"
    extents.write_text(json.dumps([{"offset": 4 * MIB + 100, "length": 50}]))
    known = ["backup-image", str(disk), "--parent", "latest", "--changed-extents", str(extents)]
    summary = cli.json(*known)
    assert (summary["total_bytes_read"], summary["total_bytes_compared"]) == (block, 0)
    cli.run("restore", "latest", "--target", str(tmp_path / "out"))
    assert (tmp_path / "out" / "disks" / "disk.raw").read_bytes() == expected
    told = cli.run(*known, "--compare")
    assert b"change tracking is wrong" in told.stderr
    cli.run("restore", "latest", "--target", str(tmp_path / "out2"))
    assert digest(tmp_path / "out2" / "disks" / "disk.raw") == digest(disk)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("not json", "is not JSON"),
        ("{}", "does not say what it is relative to"),
        ("5", "holds no list"),
        ("[5]", "entry 1: 5 is not an object"),
        ('[{"offset": 0, "length": 1}, {"offset": 0}]', 'entry 2: "length" must be'),
        ('[{"offset": -1, "length": 1}]', '"offset" must be'),
        ('[{"offset": "0", "length": 1}]', '"offset" must be'),
        ('[{"offset": 1.5, "length": 1}]', '"offset" must be'),
        ('[{"offset": true, "length": 1}]', '"offset" must be'),
        ('[{"offset": 20971520, "length": 1}]', "ends beyond the image"),
        ('[{"offset": 1e400, "length": 1}]', '"offset" must be'),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_change_list_that_makes_no_sense_is_refused(tmp_path: Path, content: str, says: str) -> None:
    extents = tmp_path / "extents.json"
    extents.write_text(content)
    with pytest.raises(SourceError, match=re.escape(says)) as caught:
        read_changes(extents, 20 * MIB)
    assert any(word in caught.value.hint for word in ("offset", "change list", "tracking_base"))


def test_a_bad_change_list_stores_nothing(cli: Cli, disk: Path, tmp_path: Path) -> None:
    cli.run("backup-image", str(disk))
    (tmp_path / "e.json").write_text('[{"offset": 20971520, "length": 1}]')
    arguments = ["backup-image", str(disk), "--parent", "latest", "--changed-extents", str(tmp_path / "e.json")]
    assert "ends beyond the image" in cli.error(*arguments)
    assert len(cli.json("snapshots")) == 1


def test_a_change_list_needs_a_parent_that_exists(cli: Cli, disk: Path, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text("[]")
    assert "needs --parent" in cli.error("backup-image", str(disk), "--changed-extents", str(tmp_path / "e.json"))
    arguments = ["backup-image", str(disk), "--changed-extents", str(tmp_path / "e.json"), "--parent"]
    assert "no snapshot" in cli.error(*arguments, "latest")
    assert "no snapshot" in cli.error(*arguments, "abcdef")


def test_a_qcow2_image_is_stored_as_the_disk_it_holds(cli: Cli, disk: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk), str(image)], check=True)
    overlay = tmp_path / "overlay.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", str(overlay)], check=True
    )
    for path in (image, overlay):
        summary = cli.json("backup-image", str(path), "--name", "sda")
        assert summary["total_bytes_read"] <= 5 * MIB
        cli.run("restore", "latest", "--target", str(tmp_path / path.stem))
        assert digest(tmp_path / path.stem / "disks" / "sda.raw") == digest(disk)


# --- the terminal ---


def test_a_cut_off_qcow2_image_is_partial_and_says_why(cli: Cli, disk: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, image], check=True)
    os.truncate(image, image.stat().st_size // 2)
    assert "qemu-img check" in cli.run("backup-image", str(image), expect=3).stderr.decode()
    assert "brs.partial" in cli.json("snapshots")[0]["tags"]


def test_a_path_given_twice_is_one_path_of_the_snapshot(cli: Cli, source: Path) -> None:
    cli.run("backup", str(source), f"{source}/")
    assert cli.json("snapshots")[0]["paths"] == [str(source)]


def test_a_terminal_shows_a_bar_and_a_pipe_does_not(cli: Cli, source: Path) -> None:
    (source / "large").write_bytes(os.urandom(150 * MIB))
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "node_agent", "repo", "backup", str(source)],
        env=cli.env,
        stdout=subprocess.PIPE,
        stderr=slave,
    )
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 4096):
            shown += part
    except OSError:  # the other side is closed
        pass
    os.close(master)
    assert b"snapshot" in process.communicate()[0]
    assert b"\r\x1b[K" in shown
    assert b"\r" not in cli.run("backup", str(source), "--force").stderr


def test_the_bar_tells_share_and_sizes() -> None:
    assert bar_line(Counters(total_bytes=100 * MIB, done_bytes=50 * MIB), width=10) == (
        "[#####.....]  50.0%  50.00 MiB of 100.00 MiB"
    )
    check = Counters(phase="check snapshots", total_files=8, done_files=2)
    assert bar_line(check, width=8) == "[##......]  25.0%  2 of 8  check snapshots"
    assert bar_line(Counters(phase="prune: plan")) == "0 B in 0 files  prune: plan  "
    assert human_size(5) == "5 B"
    assert human_size(1536) == "1.50 KiB"


def test_help_starts_without_the_engine(cli: Cli) -> None:
    probe = "import sys; from node_agent.cli import build_parser; build_parser(); print('zstandard' in sys.modules)"
    command = [sys.executable, "-c", probe]
    assert subprocess.run(command, env=cli.env, capture_output=True, text=True, check=True).stdout == "False\n"
    assert b"backup-image" in cli.run("--help").stdout


def test_blocks_of_another_size_are_cut_when_asked_for(cli: Cli, disk: Path) -> None:
    cli.run("backup-image", str(disk), "--block-size", "1M")
    assert cli.json("backup-image", str(disk))["block_size"] == MIB  # as the backup before
    assert cli.json("backup-image", str(disk), "--block-size", "512K")["block_size"] == MIB // 2
    restic(cli.repo, "check", "--read-data")
