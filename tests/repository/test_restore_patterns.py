"""What patterns choose of a snapshot: what stock restic restores by the same options, of the same snapshot."""

from __future__ import annotations

import itertools
import os
import random
import socket
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from node_agent.errors import ConfigError, SourceMissing
from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.repository.patterns import Patterns
from node_agent.repository.repository import Repository
from node_agent.repository.restore_choice import chosen_by
from node_agent.repository.snapshot import find_snapshot
from tests.repository.cli_world import Cli
from tests.repository.core_world import PASSWORD, new_repo, open_repo, restic
from tests.repository.data_world import bring_back

TOPS = (b"a", b"B", b"[a]", b"\xc3\xa9")
FOLDERS = (b"a", b"ab", b"!x", "É".encode(), b"\xff")
FILES = (b"a", b"b.txt", b"B.TXT", b"*", b"a\\b", "é.txt".encode(), b"\xfe.txt", b"#c")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A repository with a snapshot by stock restic whose paths begin with /t, and the snapshot's id."""
    folder = tmp_path_factory.mktemp("patterns")
    new_repo(folder / "repo")
    top = os.fsencode(folder / "t")
    for first, second in itertools.product(TOPS, FOLDERS):
        below = os.path.join(top, first, second)
        os.makedirs(below)
        for name in FILES:
            with open(os.path.join(below, name), "wb") as file:
                file.write(first + second + name)
    deep = os.path.join(top, b"deep")
    os.makedirs(os.path.join(deep, b"1/2/3/4/5"))
    os.makedirs(os.path.join(deep, b"empty/of/files"))
    os.makedirs(os.path.join(deep, b"sockets"))
    Path(os.fsdecode(deep), "1/2/3/4/5/end").write_text("end")
    Path(os.fsdecode(deep), "1/2/a.txt").write_text("text")
    os.link(os.path.join(deep, b"1/2/a.txt"), os.path.join(deep, b"1/linked"))
    os.symlink(b"nowhere", os.path.join(deep, b"1/2/3/link"))
    os.mkfifo(os.path.join(deep, b"1/pipe"))
    there = os.getcwd()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(os.path.join(deep, b"sockets"))  # its path would be too long
        try:
            listener.bind("socket")
        finally:
            os.chdir(there)
    for number, path in enumerate(sorted(Path(os.fsdecode(top)).rglob("*"), reverse=True)):
        if not path.is_symlink():
            path.chmod(0o750 if path.is_dir() else 0o640)
            os.utime(path, ns=(10**18 + number, 10**18 + number * 1000))
    env = os.environ | {"RESTIC_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": str(folder / "repo")}
    subprocess.run(["restic", "--no-cache", "-q", "backup", "t"], cwd=folder, env=env, check=True)
    return folder / "repo", find_snapshot(open_repo(folder / "repo"), "latest").id


def contents(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder, with what a restore is to bring back of it."""
    found: dict[str, tuple[object, ...]] = {}
    for path in folder.rglob("*"):
        st = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(st.st_mode) else b""
        target = os.readlink(path) if path.is_symlink() else ""
        found[str(path.relative_to(folder))] = (
            stat.S_IFMT(st.st_mode),
            stat.S_IMODE(st.st_mode),
            st.st_mtime_ns,
            content,
            target,
        )
    return found


def options_of(patterns: Sequence[tuple[str, str]]) -> list[str]:
    return [word for option, pattern in patterns for word in (f"--{option}", pattern)]


def ours(repo: Repository, snapshot: str, target: Path, patterns: Sequence[tuple[str, str]]) -> None:
    kinds = ("include", "iinclude", "exclude", "iexclude")
    of = {kind: [pattern for option, pattern in patterns if option == kind] for kind in kinds}
    choice = chosen_by(Patterns(of["include"], of["iinclude"]), Patterns(of["exclude"], of["iexclude"]))
    issues = Issues()
    try:
        bring_back(repo, snapshot, target, choice=choice, issues=issues)
    except SourceMissing:
        assert not contents(target)
    assert not issues.left_out


CASES = [
    [("include", "/t/a/ab")],
    [("include", "/t/a/ab/b.txt")],
    [("include", "b.txt")],
    [("include", "*.txt")],
    [("include", "?.txt")],
    [("include", "t/a")],
    [("include", "a/ab"), ("include", "/t/B/a/")],
    [("include", "/t/*/a/[ab]*")],
    [("include", "/t/**/b.txt")],
    [("include", "/t/a/**")],
    [("include", "a/**/end"), ("include", "1/**/5")],
    [("include", "/t/**/2/**/end")],
    [("include", "/**/2/**/end/**")],
    [("include", "**/3")],
    [("include", "/")],
    [("include", "/t")],
    [("include", "//t/./deep/../a//ab/")],
    [("include", "")],
    [("include", "nowhere")],
    [("include", "sockets")],
    [("include", "socket")],
    [("include", "link"), ("include", "pipe"), ("include", "linked")],
    [("include", "files")],
    [("include", "empty")],
    [("include", "\\*")],
    [("include", "[*]")],
    [("include", "\\[a\\]")],
    [("include", "a\\\\b")],
    [("include", "[^a-z]*")],
    [("include", "[b-a]"), ("include", "#c")],
    [("include", "\udcff")],
    [("include", "\udcff/a"), ("iinclude", "É.*")],
    [("include", "?/a")],
    [("include", "\\!x")],
    [("include", "/t/a"), ("include", "!/t/a/ab")],
    [("include", "a"), ("include", "!b.txt"), ("include", "*.txt")],
    [("include", "!a")],
    [("iinclude", "B.txt")],
    [("iinclude", "/T/é/É")],
    [("iinclude", "[A-B].TXT"), ("include", "end")],
    [("exclude", "*.txt")],
    [("exclude", "/t/a"), ("exclude", "a")],
    [("exclude", "*")],
    [("exclude", "**")],
    [("exclude", "/t/*/ab/*")],
    [("exclude", "*"), ("exclude", "!t"), ("exclude", "!deep"), ("exclude", "!1"), ("exclude", "!a.txt")],
    [("exclude", "deep/**/end")],
    [("exclude", "")],
    [("iexclude", "B.TXT"), ("exclude", "É")],
    [("iexclude", "É")],
]


@pytest.mark.parametrize("patterns", CASES, ids=lambda patterns: ascii(" ".join(options_of(patterns))))
def test_the_same_is_restored_as_by_stock_restic(
    world: tuple[Path, str], tmp_path: Path, patterns: Sequence[tuple[str, str]]
) -> None:
    folder, snapshot = world
    restic(folder, "restore", snapshot, "--target", str(tmp_path / "theirs"), *options_of(patterns))
    ours(open_repo(folder), snapshot, tmp_path / "ours", patterns)
    (tmp_path / "theirs").mkdir(exist_ok=True)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


NAMES = (
    "a",
    "*",
    "?",
    "a*",
    "**",
    "[ab]",
    "[^a]",
    "*.txt",
    "\\*",
    "é",
    "É",
    "B*",
    "1",
    "deep",
    "t",
    "!x",
    "..",
    ".",
    "",
)


def made_up(number: int) -> list[tuple[str, str]]:
    """Some patterns, the same each time."""
    chance = random.Random(number)
    kinds = chance.choice((("include", "iinclude"), ("exclude", "iexclude")))
    found = []
    for _ in range(chance.randint(1, 4)):
        names = [chance.choice(NAMES) for _ in range(chance.randint(1, 4))]
        front = chance.choice(("", "", "/", "/t/", "/t/**/", "!"))
        found.append((chance.choice(kinds), front + "/".join(names)))
    return found


@pytest.mark.parametrize("number", range(24))
def test_what_chance_says_is_restored_as_by_stock_restic(world: tuple[Path, str], tmp_path: Path, number: int) -> None:
    test_the_same_is_restored_as_by_stock_restic(world, tmp_path, made_up(number))


MALFORMED = ("[", "[]", "[a", "[a-]", "[-a]", "[^]", "a\\", "[\\", "/t/[a/b]", "!x/[")


@pytest.mark.parametrize("option", ["include", "iinclude", "exclude", "iexclude"])
def test_a_pattern_that_says_nothing_certain_is_refused(world: tuple[Path, str], tmp_path: Path, option: str) -> None:
    folder, snapshot = world
    for text in MALFORMED:
        with pytest.raises(ConfigError, match="cannot be understood"):
            ours(open_repo(folder), snapshot, tmp_path / "out", [(option, text)])
    refused = restic(folder, "restore", snapshot, "--target", str(tmp_path), f"--{option}", "[a", check=False)
    assert refused.returncode == 1 and "invalid pattern" in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def cli(world: tuple[Path, str], tmp_path: Path) -> Cli:
    return Cli(tmp_path, RESTIC_REPOSITORY=str(world[0]), NAME="b", OTHER="/t/a")


def restored(cli: Cli, target: Path, *args: str) -> set[str]:
    cli.run("restore", "latest", "--target", str(target), *args)
    return {path for path, found in contents(target).items() if found[0] == stat.S_IFREG}


def test_patterns_of_files_and_of_the_command_line_add_up(cli: Cli, tmp_path: Path) -> None:
    wanted = tmp_path / "wanted"
    wanted.write_bytes(b"\xef\xbb\xbf  # what is wanted\r\n\n $NAME.txt \n${OTHER}/ab/a\n/t/$$no\n$NOT_SET\n")
    files = restored(cli, tmp_path / "out", "--include-file", str(wanted), "-i", "/t/a/a/#c")
    assert files == {
        f"t/{top}/{folder}/b.txt" for top in ("a", "B", "[a]", "é") for folder in ("a", "ab", "!x", "É", "\udcff")
    } | {"t/a/ab/a", "t/a/a/#c"}
    wanted.write_text("/T/B/A/b.TXT", encoding="utf-16")
    assert restored(cli, tmp_path / "two", "--iinclude-file", str(wanted)) == {"t/B/a/b.txt", "t/B/a/B.TXT"}
    left_out = tmp_path / "left_out"
    left_out.write_text("*.txt\n/t/?/*/*\n")
    assert restored(cli, tmp_path / "three", "--exclude-file", str(left_out), "-e", "deep", "-e", "[[]a]") == set()
    left_out.write_text("A\nAB\n\\!X\nÉ\n\\[A\\]\n")
    kept = restored(cli, tmp_path / "four", "--iexclude-file", str(left_out), "-e", "deep")
    assert kept == {f"t/B/\udcff/{os.fsdecode(name)}" for name in FILES if name != b"a"}
    assert "no-such" in cli.error("restore", "latest", "--target", str(tmp_path / "five"), "--include-file", "no-such")


def test_what_to_include_and_what_to_exclude_are_not_both_said(cli: Cli, tmp_path: Path) -> None:
    for include, exclude in itertools.product(("--include", "--iinclude"), ("--exclude", "--iexclude")):
        said = cli.error("restore", "latest", "--target", str(tmp_path / "out"), include, "a", exclude, "b")
        assert "cannot both be said" in said
    assert not (tmp_path / "out").exists()


def test_a_choice_that_fits_nothing_is_an_error(cli: Cli, tmp_path: Path) -> None:
    said = cli.error("restore", "latest", "--target", str(tmp_path / "out"), "--include", "/t/misspelt")
    assert "Nothing in the snapshot matches" in said


def test_folders_that_only_lead_there_are_made_for_what_is_there_and_else_left_alone(
    world: tuple[Path, str], tmp_path: Path
) -> None:
    folder, snapshot = world
    repo, target = open_repo(folder), tmp_path / "out"
    (target / "t/a/ab").mkdir(parents=True)
    (target / "t/a").chmod(0o711)
    (target / "t/B").write_text("in the way")
    issues = Issues()
    result = bring_back(
        repo, snapshot, target, choice=chosen_by(Patterns(["b.txt"]), Patterns()), issues=issues, overwrite="never"
    )
    assert (target / "t/a").stat().st_mode & 0o777 == 0o711  # it was there
    assert (target / "t/é").stat().st_mode & 0o777 == 0o750  # it was not
    assert not (target / "t/deep").exists()
    assert [(issue.code, issue.path) for issue in issues.items] == [("in-the-way", "/t/B")]  # once for all below
    assert result.files == 15 and (target / "t/a/ab/b.txt").exists()


def test_the_totals_are_those_of_what_is_chosen(world: tuple[Path, str], tmp_path: Path) -> None:
    for number, choice in enumerate(
        (chosen_by(Patterns(["?.txt"]), Patterns()), chosen_by(Patterns(), Patterns(["a"])))
    ):
        progress = Progress()
        result = bring_back(open_repo(world[0]), world[1], tmp_path / str(number), choice=choice, progress=progress)
        counters = progress.counters
        assert counters.total_files == counters.done_files == result.files > 20
        assert counters.total_bytes == counters.done_bytes > 0
