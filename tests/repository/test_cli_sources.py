"""What a backup takes and leaves out, by restic's options: the same files, as stock restic says."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repository.cli_world import Cli
from tests.repository.core_world import PASSWORD, open_repo, restic

TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# more"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("tree")
    for name, content in {
        "a.txt": "a",
        "B.TXT": "b",
        "deep/C.Txt": "c",
        "large.bin": "x" * 5000,
        "exact.bin": "x" * 4096,
        "cache/CACHEDIR.TAG": TAG,
        "cache/thing": "t",
        "cache/below/thing": "t",
        "fake/CACHEDIR.TAG": "Signature: of something else",
        "fake/kept": "k",
        "marked/.nobackup": "",
        "marked/gone": "g",
        "headed/.mark": "yes, leave it",
        "headed/gone": "g",
        "unheaded/.mark": "no",
        "unheaded/kept": "k",
        "odd/*star": "s",
        "Ärger.TXT": "u",
        "ärgste.dat": "u",
        "ΑΣ": "u",
    }.items():
        file = top / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return top


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    cli = Cli(tmp_path_factory.mktemp("cli"))
    cli.run("init")
    return cli


def kept(cli: Cli) -> set[str]:
    listed = restic(cli.repo, "ls", "latest").stdout.splitlines()
    return {line for line in listed if line.startswith("/")}


def backed_up(cli: Cli, tree: Path, *args: str) -> set[str]:
    """What is in a snapshot of ours, which must be what is in one of stock restic by the same options."""
    cli.run("backup", *args)
    ours = kept(cli)
    restic(cli.repo, "backup", *args)
    assert ours == kept(cli)
    return {path.removeprefix(f"{tree}/") for path in ours if path.startswith(f"{tree}/")}


def soon(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_patterns_that_ignore_case(cli: Cli, tree: Path, tmp_path: Path) -> None:
    left = backed_up(cli, tree, "--iexclude", "*.txt", str(tree))
    assert not {"a.txt", "B.TXT", "deep/C.Txt"} & left and "large.bin" in left
    left = backed_up(cli, tree, "--iexclude", "ÄRG*", "--iexclude", "ας", "--iexclude", "ασ", str(tree))
    assert not {"Ärger.TXT", "ärgste.dat", "ΑΣ"} & left and "a.txt" in left
    left = backed_up(cli, tree, "--exclude", "?rger.TXT", "--exclude", "[ä-ö]*", str(tree))
    assert not {"Ärger.TXT", "ärgste.dat"} & left and "ΑΣ" in left
    assert {"B.TXT", "deep/C.Txt"} <= backed_up(cli, tree, "--exclude", "*.txt", str(tree))
    patterns = tmp_path / "patterns"
    patterns.write_text("# what\n\n*.TXT\n")
    assert not {"a.txt", "B.TXT"} & backed_up(cli, tree, "--iexclude-file", str(patterns), str(tree))


def test_folders_that_are_marked(cli: Cli, tree: Path) -> None:
    left = backed_up(cli, tree, "--exclude-caches", str(tree))
    assert {"cache", "cache/CACHEDIR.TAG", "fake/kept"} <= left
    assert not {"cache/thing", "cache/below"} & left
    left = backed_up(cli, tree, "--exclude-if-present", ".nobackup", "--exclude-if-present", ".mark:yes", str(tree))
    assert {"marked/.nobackup", "headed/.mark", "unheaded/kept"} <= left
    assert not {"marked/gone", "headed/gone"} & left


def test_a_marker_with_a_header_is_read_without_following_a_link(cli: Cli, tree: Path, tmp_path: Path) -> None:
    """restic follows it; a link may lead to a pipe, or to what the backup's user alone may read."""
    (tmp_path / ".mark").symlink_to(tree / "headed/.mark")
    (tmp_path / "kept").write_text("k")
    cli.run("backup", "--exclude-if-present", ".mark:yes", str(tmp_path))
    assert f"{tmp_path}/kept" in kept(cli)


def test_files_that_are_too_large(cli: Cli, tree: Path) -> None:
    left = backed_up(cli, tree, "--exclude-larger-than", "4k", str(tree))
    assert "exact.bin" in left and "large.bin" not in left
    assert "no size" in cli.error("backup", "--exclude-larger-than", "lots", str(tree))


def test_another_choice_is_seen_though_nothing_changed(cli: Cli, tree: Path) -> None:
    """The cache of folders and the parent say that all is as it was."""
    cli.run("backup", str(tree))
    assert f"{tree}/large.bin" in kept(cli)
    cli.run("backup", "--exclude-larger-than", "4k", "--exclude-caches", str(tree))
    assert not {f"{tree}/large.bin", f"{tree}/cache/thing"} & kept(cli)
    cli.run("backup", str(tree))
    assert {f"{tree}/large.bin", f"{tree}/cache/thing"} <= kept(cli)


def test_lists_of_paths(cli: Cli, tree: Path, tmp_path: Path) -> None:
    names = tmp_path / "names"
    names.write_text(f"# a comment\n\n{tree}/*.txt\n{tree}/deep\n")
    assert backed_up(cli, tree, "--files-from", str(names)) == {"a.txt", "deep", "deep/C.Txt"}
    names.write_text(f"{tree}/odd/*star\n")
    assert backed_up(cli, tree, "--files-from-verbatim", str(names)) == {"odd", "odd/*star"}
    names.write_bytes(os.fsencode(f"{tree}/a.txt\0{tree}/B.TXT\0"))
    assert backed_up(cli, tree, "--files-from-raw", str(names)) == {"a.txt", "B.TXT"}
    names.write_text(f"{tree}/nothing*\n{tree}/a.txt\n")
    assert b"matches no file" in cli.run("backup", "--files-from", str(names)).stderr
    assert "cannot be read" in cli.error("backup", "--files-from", str(tmp_path / "gone"))
    assert "zero bytes" in cli.error("backup", "--files-from-verbatim", _with(names, b"a\0b"))
    assert "No path" in cli.error("backup", "--files-from", _with(names, b"# nothing\n"))
    assert "No path" in cli.error("backup")


def _with(file: Path, content: bytes) -> str:
    file.write_bytes(content)
    return str(file)


def test_what_comes_on_standard_input_is_one_file(cli: Cli, tmp_path: Path) -> None:
    """In pieces as pipes give them, across chunks; stock restic gives it back."""
    data = random.Random(7).randbytes(9 << 20)
    source = tmp_path / "data"
    source.write_bytes(data)
    command = [sys.executable, "-m", "node_agent", "repo", "backup", "--stdin", "--stdin-filename", "db.sql", "--json"]
    with subprocess.Popen(["cat", str(source)], stdout=subprocess.PIPE) as cat:
        done = subprocess.run(
            [*command, "--tag", "sql"], env=cli.env, stdin=cat.stdout, capture_output=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert kept(cli) == {"/db.sql"}
    restic(cli.repo, "restore", "latest", "--target", str(tmp_path / "out"))
    assert (tmp_path / "out/db.sql").read_bytes() == data
    assert cli.run("dump", "latest", "/db.sql").stdout == data
    assert cli.json("snapshots", "--tag", "sql")[0]["paths"] == ["/db.sql"]
    empty = subprocess.run(command, env=cli.env, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert empty.returncode == 0 and cli.run("dump", "latest", "/db.sql").stdout == b""


def test_a_command_that_fails_makes_no_snapshot(cli: Cli) -> None:
    cli.run("backup", "--stdin-from-command", "--stdin-filename", "said", "--", "sh", "-c", "echo all of it")
    assert cli.run("dump", "latest", "/said").stdout == b"all of it\n"
    before = len(cli.json("snapshots"))
    text = cli.error("backup", "--stdin-from-command", "--", "sh", "-c", "echo a part; exit 3")
    assert "ended with 3" in text and "no snapshot" in text
    assert "cannot be started" in cli.error("backup", "--stdin-from-command", "--", "/no/such/program")
    assert len(cli.json("snapshots")) == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--stdin", "/etc"], "no paths"),
        (["--stdin", "--stdin-filename", "a/b"], "no name of a file"),
        (["--stdin", "--stdin-filename", ".."], "no name of a file"),
        (["--stdin-from-command"], "No command"),
        (["--stdin", "--files-from", "x"], "do not go together"),
        (["--exclude-if-present", "a/b", "/etc"], "no name of a file"),
        (["--time", "yesterday", "/etc"], "no time"),
    ],
)
def test_what_makes_no_sense_is_refused(cli: Cli, args: list[str], said: str) -> None:
    assert said in cli.error("backup", *args)


def test_the_time_of_a_snapshot_may_be_given(cli: Cli, tree: Path) -> None:
    cli.run("backup", "--time", "2020-02-29 12:30:00", f"{tree}/a.txt", "--tag", "old")
    cli.env["TZ"] = "UTC"
    assert cli.json("snapshots", "--tag", "old")[0]["time"].startswith("2020-02-29T")
    assert PASSWORD not in cli.run("snapshots").stdout.decode()


QUIET = {
    "it writes nothing more": 'echo a part; : > "$0"; exec sleep 1000',
    "it closed its end and goes on": 'echo a part; exec >&-; : > "$0"; exec sleep 1000',
}


@pytest.mark.parametrize("said", QUIET.values(), ids=QUIET)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_quiet_is_stopped_at_once(
    cli: Cli, tmp_path: Path, said: str, number: signal.Signals
) -> None:
    before, began = len(cli.json("snapshots")), tmp_path / "began"
    process = cli.start("backup", "--stdin-from-command", "--", "sh", "-c", said, str(began))
    soon(began.exists)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert len(cli.json("snapshots")) == before and not cli.run("list", "locks").stdout


def test_a_quiet_standard_input_does_not_keep_a_backup_from_stopping(cli: Cli) -> None:
    before = len(cli.json("snapshots"))
    command = [sys.executable, "-m", "node_agent", "repo", "backup", "--stdin"]
    with subprocess.Popen(command, env=cli.env, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        soon(lambda: any((cli.repo / "locks").iterdir()))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert len(cli.json("snapshots")) == before and not cli.run("list", "locks").stdout


def everything(cli: Cli) -> dict[Path, tuple[int, int]]:
    """All objects that the store holds, with size and time."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in cli.repo.rglob("*") if path.is_file()}


COUNTS = ("files_new", "files_changed", "files_unmodified", "total_files_processed", "total_bytes_processed")


def test_a_dry_run_says_what_a_backup_would_add_and_stores_nothing(tmp_path: Path, tree: Path) -> None:
    cli, source = Cli(tmp_path), tmp_path / "source"
    cli.run("init")
    subprocess.run(["cp", "-a", str(tree), str(source)], check=True)
    (source / "large").write_bytes(random.Random(3).randbytes(3 << 20))
    for step in ("all is new", "something changed"):
        before = everything(cli)
        args = (str(source), "--exclude", "*.bin")
        would = cli.json("backup", "--dry-run", *args)
        theirs = restic(cli.repo, "backup", "--dry-run", "--json", *args).stdout.splitlines()[-1]
        assert {name: would[name] for name in COUNTS} == {name: json.loads(theirs)[name] for name in COUNTS}, step
        assert would["dry_run"] is True and would["snapshot_id"] is None
        said = cli.run("backup", "-n", *args).stdout.decode()
        assert "would add" in said and "there is no snapshot" in said and "saved" not in said
        assert everything(cli) == before
        done = cli.json("backup", *args)
        assert {name: would[name] for name in COUNTS} == {name: done[name] for name in COUNTS}
        # trees may differ by some times of access
        assert abs(would["data_added"] - done["data_added"]) < 1000 and "dry_run" not in done
        assert abs(would["data_added_packed"] - done["data_added_packed"]) < 1000
        (source / "new").write_bytes(random.Random(4).randbytes(1 << 20))
        (source / "large").write_bytes(random.Random(5).randbytes(3 << 20))
    restic(cli.repo, "check", "--read-data")


def test_a_dry_run_holds_the_lock_of_a_reader(tmp_path: Path, tree: Path) -> None:
    cli = Cli(tmp_path)
    cli.run("init")
    repo = open_repo(cli.repo)
    with repo.lock():
        assert cli.json("backup", "-n", str(tree))["files_new"] == 20
    with repo.lock(exclusive=True):
        assert "in use alone" in cli.error("backup", "-n", str(tree), expect=11)
        before = everything(cli)
        assert cli.json("backup", "-n", "--no-lock", str(tree))["files_new"] == 20
        assert everything(cli) == before
        assert "needs a lock" in cli.error("backup", "--no-lock", str(tree))


def test_a_dry_run_of_a_stream(cli: Cli) -> None:
    before = everything(cli)
    would = json.loads(cli.run("backup", "-n", "--json", "--stdin-from-command", "--", "echo", "never stored").stdout)
    assert would["files_new"] == 1 and would["total_bytes_processed"] == 13 < would["data_added"]
    assert "ended with 3" in cli.error("backup", "-n", "--stdin-from-command", "--", "sh", "-c", "exit 3")
    assert everything(cli) == before


def test_find_knows_the_case_of_all_scripts_as_restic_does(cli: Cli, tree: Path) -> None:
    cli.run("backup", str(tree))
    snapshot = cli.json("snapshots", "--latest", "1", "--path", str(tree))[0]["id"]
    hits = []
    for pattern in ("ÄRG*", "ärg*", "ασ", "ας"):
        args = ("find", "-i", "--snapshot", snapshot, pattern)
        theirs, ours = json.loads(restic(cli.repo, *args, "--json").stdout), cli.json(*args)
        found = [[match["path"] for one in answer for match in one["matches"]] for answer in (ours, theirs)]
        assert sorted(found[0]) == sorted(found[1])
        hits.append(len(found[0]))
    assert hits == [2, 2, 1, 0]
