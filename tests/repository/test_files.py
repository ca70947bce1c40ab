"""Backups of folder trees: what is kept, what is not read, and what happens when the source does not hold still."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from node_agent.errors import Cancelled, ConfigError, SourceError, SourceMissing
from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.repository import files_small, files_walk
from node_agent.repository.excludes import Excludes, Marker
from node_agent.repository.files_browse import find_node
from node_agent.repository.files_estimate import estimated
from node_agent.repository.files_read import FileReader
from node_agent.repository.files_restore import list_tree
from node_agent.repository.snapshot import list_snapshots
from tests.repository.core_world import new_repo, open_repo, restic
from tests.repository.data_world import (
    MIB,
    allocated,
    as_nobody,
    back_up,
    bring_back,
    differences,
    fingerprint,
    make_hard_tree,
    mounted,
    names_of,
    need_root,
    open_folder,
    restored,
)

__all__ = ["open_folder"]


def test_everything_hard_comes_back_as_it_was(tmp_path: Path) -> None:
    need_root()
    make_hard_tree(tmp_path / "source")
    before = fingerprint(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    issues = Issues()
    result = back_up(repo, tmp_path / "source", issues=issues)
    assert not result.partial
    assert names_of(issues) == [("socket", "socket")]
    issues = Issues()
    bring_back(repo, result.snapshot_id, tmp_path / "out", issues=issues, verify=True)
    assert [issue.code for issue in issues.items] == ["socket"]
    assert differences(before, fingerprint(restored(tmp_path / "out", tmp_path / "source"))) == {}


def test_an_empty_tree_is_a_snapshot_of_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    repo = new_repo(tmp_path / "repo")
    result = back_up(repo, tmp_path / "source")
    bring_back(repo, result.snapshot_id, tmp_path / "out")
    assert list(restored(tmp_path / "out", tmp_path / "source").iterdir()) == []
    assert result.files == 0
    restic(tmp_path / "repo", "check", "--read-data")


def test_unchanged_files_are_not_read_again(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        (source / f"f{number}").write_bytes(os.urandom(1000))
    (source / "large").write_bytes(os.urandom(3 * MIB))
    later = datetime.now(UTC) + timedelta(seconds=1)
    repo = new_repo(tmp_path / "repo")
    first = back_up(repo, source, time=later)
    (source / "f3").write_bytes(os.urandom(1000))
    second = back_up(repo, source, parent=first.snapshot_id)
    assert (first.files_new, first.read_bytes) == (21, 20 * 1000 + 3 * MIB)
    assert (second.files_unmodified, second.files_changed, second.read_bytes) == (20, 1, 1000)
    assert second.parent_id == first.snapshot_id
    assert second.size_bytes == first.size_bytes


def test_the_size_of_the_run_is_known_beside_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "cache").mkdir(parents=True)
    for name in ("a", "b", "cache/c"):
        (source / name).write_bytes(bytes(1000))
    (source / "link").symlink_to("a")
    progress = Progress()
    with estimated([source, source / "a"], Excludes(["cache/"]), progress):
        deadline = time.monotonic() + 10
        while not progress.counters.total_bytes and time.monotonic() < deadline:
            time.sleep(0.001)
    assert (progress.counters.total_bytes, progress.counters.total_files) == (2000, 2)


def test_nothing_is_counted_for_a_bar_that_nobody_sees(tmp_path: Path) -> None:
    for watched in (True, False):
        with estimated([tmp_path], Excludes([]), Progress(watched=watched)):
            assert watched == any(thread.name == "estimate" for thread in threading.enumerate())


def test_an_unchanged_tree_adds_no_tree(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"a")
    repo = new_repo(tmp_path / "repo")
    first = back_up(repo, tmp_path / "source")
    second = back_up(repo, tmp_path / "source", parent=first.snapshot_id)
    with repo.lock():  # folders above, such as /tmp, may change at any time
        trees = {find_node(repo, run.snapshot_id, os.fsencode(tmp_path / "source")).subtree for run in (first, second)}
    assert len(trees) == 1


def test_a_file_that_may_have_changed_in_the_parents_last_tick_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"aaaa")
    repo = new_repo(tmp_path / "repo")
    first = back_up(repo, tmp_path / "source", time=datetime.now(UTC) - timedelta(hours=1))
    second = back_up(repo, tmp_path / "source", parent=first.snapshot_id)
    assert second.files_unmodified == 0
    assert second.read_bytes == 4


def test_content_that_the_index_lost_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"precious")
    later = datetime.now(UTC) + timedelta(seconds=1)
    repo = new_repo(tmp_path / "repo")
    first = back_up(repo, tmp_path / "source", time=later)
    for path in [*(tmp_path / "repo" / "index").iterdir()]:
        path.unlink()
    again = open_repo(tmp_path / "repo")
    second = back_up(again, tmp_path / "source", parent=first.snapshot_id)
    assert second.read_bytes == len(b"precious")
    bring_back(again, second.snapshot_id, tmp_path / "out")
    assert (restored(tmp_path / "out", tmp_path / "source") / "a").read_bytes() == b"precious"


def test_a_parent_that_is_gone_means_that_everything_is_read(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"a")
    said: list[str] = []
    progress = Progress(log=lambda level, message: said.append(f"{level} {message}"))
    result = back_up(new_repo(tmp_path / "repo"), tmp_path / "source", parent="f" * 64, progress=progress)
    assert result.read_bytes == 1
    assert result.parent_id is None
    assert said == ["warning The parent snapshot ffffffff is gone: all files are read."]


def test_holes_are_not_read_and_come_back_as_holes(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with (tmp_path / "source" / "sparse").open("wb") as file:
        file.seek(300 * MIB)
        file.write(b"x" * 5000)
        file.truncate(1000 * MIB)
    repo = new_repo(tmp_path / "repo")
    result = back_up(repo, tmp_path / "source")
    assert result.size_bytes == 1000 * MIB
    assert result.read_bytes < MIB
    bring_back(repo, result.snapshot_id, tmp_path / "out")
    copy = restored(tmp_path / "out", tmp_path / "source") / "sparse"
    assert copy.stat().st_size == 1000 * MIB
    assert allocated(copy) < MIB
    with copy.open("rb") as file:
        file.seek(300 * MIB)
        assert file.read(5001) == b"x" * 5000 + b"\0"


def test_a_missing_root_fails_the_run(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with pytest.raises(SourceMissing, match="nowhere"):
        back_up(repo, tmp_path / "nowhere")
    assert list_snapshots(repo) == []


def test_what_nobody_may_read_is_left_out_and_listed(open_folder: Path) -> None:
    source = open_folder / "source"
    (source / "closed").mkdir(parents=True)
    (source / "secret").write_bytes(b"secret")
    (source / "secret").chmod(0)
    (source / "closed").chmod(0o700)
    (source / "public").write_bytes(b"public")
    (open_folder / "repo").mkdir(mode=0o777)
    (open_folder / "repo").chmod(0o777)

    def run() -> tuple[object, list[tuple[str, str]], list[str], list[bytes]]:
        repo = new_repo(open_folder / "repo")
        issues = Issues()
        result = back_up(repo, source, issues=issues)
        tags = list(list_snapshots(repo)[0].tags)
        with repo.lock():
            names = [path for path, _ in list_tree(repo, result.snapshot_id, os.fsencode(source))]
        return result, list(names_of(issues)), tags, names

    result, left_out, tags, names = as_nobody(run)
    assert result.partial
    assert sorted(left_out) == [("closed", "unreadable"), ("secret", "unreadable")]
    assert tags == ["brs.partial"]
    assert names == [os.fsencode(source / "public")]


def test_a_root_that_nobody_may_read_fails_the_run(open_folder: Path) -> None:
    (open_folder / "source").mkdir(mode=0o700)
    (open_folder / "repo").mkdir()
    (open_folder / "repo").chmod(0o777)
    with pytest.raises(SourceError, match="cannot be read"):
        as_nobody(lambda: back_up(new_repo(open_folder / "repo"), open_folder / "source"))


def test_a_file_that_vanishes_is_left_out_and_the_others_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b", "c"):
        (source / name).write_bytes(name.encode())
    honest = files_small.open_regular

    def vanish(name: bytes, folder_fd: int) -> int:
        (source / "b").unlink(missing_ok=True)
        return honest(name, folder_fd)

    monkeypatch.setattr(files_small, "open_regular", vanish)
    issues = Issues()
    result = back_up(new_repo(tmp_path / "repo"), source, issues=issues)
    assert result.files == 2
    assert names_of(issues) == [("b", "vanished")]
    assert result.partial


@pytest.mark.parametrize("size", [100, 3 * MIB])
def test_a_file_that_changes_while_it_is_read_makes_the_snapshot_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "log").write_bytes(b"x" * size)
    honest = files_small.describe_file

    def append_first(*args: Any) -> object:
        with (source / "log").open("ab") as file:
            file.write(b"more")
        return honest(*args)

    for module in (files_small, files_walk):
        monkeypatch.setattr(module, "describe_file", append_first)
    issues = Issues()
    repo = new_repo(tmp_path / "repo")
    result = back_up(repo, source, issues=issues)
    assert names_of(issues) == [("log", "changed")]
    assert result.partial
    assert restic(tmp_path / "repo", "dump", "latest", str(source / "log")).stdout == "x" * size


def test_a_file_that_shrinks_while_it_is_read_is_stored_as_far_as_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_bytes(os.urandom(3 * MIB))
    honest = FileReader.read

    def shrink_first(self: FileReader, fd: int, before: os.stat_result) -> object:
        os.truncate(source / "f", MIB)
        return honest(self, fd, before)

    monkeypatch.setattr(FileReader, "read", shrink_first)
    issues = Issues()
    back_up(new_repo(tmp_path / "repo"), source, issues=issues)
    assert names_of(issues) == [("f", "changed")]
    restic(tmp_path / "repo", "check", "--read-data")
    assert "1048576" in restic(tmp_path / "repo", "ls", "-l", "latest").stdout


def test_a_fifo_that_takes_a_files_place_does_not_hang_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"a")
    honest = files_small.open_regular

    def replace(name: bytes, folder_fd: int) -> int:
        (source / "a").unlink()
        os.mkfifo(source / "a")
        return honest(name, folder_fd)

    monkeypatch.setattr(files_small, "open_regular", replace)
    issues = Issues()
    assert back_up(new_repo(tmp_path / "repo"), source, issues=issues).files == 0
    assert names_of(issues) == [("a", "changed")]


def test_a_link_that_takes_a_files_place_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"a")
    (tmp_path / "secret").write_bytes(b"secret")
    honest = files_small.open_regular

    def replace(name: bytes, folder_fd: int) -> int:
        (source / "a").unlink()
        (source / "a").symlink_to(tmp_path / "secret")
        return honest(name, folder_fd)

    monkeypatch.setattr(files_small, "open_regular", replace)
    issues = Issues()
    assert back_up(new_repo(tmp_path / "repo"), source, issues=issues).files == 0
    assert names_of(issues) == [("a", "unreadable")]


def test_a_root_may_be_a_link_and_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"a")
    (tmp_path / "link").symlink_to("real")
    repo = new_repo(tmp_path / "repo")
    result = back_up(repo, tmp_path / "link")
    bring_back(repo, result.snapshot_id, tmp_path / "out")
    copy = restored(tmp_path / "out", tmp_path / "link")
    assert not copy.is_symlink()
    assert (copy / "a").read_bytes() == b"a"


def test_several_roots_share_the_folders_above_them_with_their_metadata(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "one" / "inner").mkdir(parents=True)
    (top / "two").mkdir()
    (top / "not asked for").write_bytes(b"")
    (top / "one" / "inner" / "a").write_bytes(b"a")
    (top / "file").write_bytes(b"f")
    top.chmod(0o751)
    os.utime(top, ns=(0, 1_600_000_000_123456789))
    repo = new_repo(tmp_path / "repo")
    result = back_up(repo, top / "one", top / "two", top / "file", top / "one" / "inner")
    bring_back(repo, result.snapshot_id, tmp_path / "out")
    copy = restored(tmp_path / "out", top)
    assert sorted(path.name for path in copy.iterdir()) == ["file", "one", "two"]
    assert (copy / "one" / "inner" / "a").read_bytes() == b"a"
    assert (stat.S_IMODE(copy.stat().st_mode), copy.stat().st_mtime_ns) == (0o751, 1_600_000_000_123456789)
    assert result.files == 2


@pytest.fixture
def deep_folder(tmp_path: Path) -> Iterator[Path]:
    """Emptied by rm: pytest's own cleaning recurses and would fail in a deep tree."""
    folder = tmp_path / "deep"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_a_tree_deeper_than_the_interpreters_stack_is_stored_and_restored(deep_folder: Path) -> None:
    depth = 1500
    tmp_path = deep_folder
    fd = os.open(tmp_path, os.O_RDONLY)
    for name in ["source", *["d"] * depth]:
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    repo = new_repo(tmp_path / "repo")
    issues = Issues()
    result = back_up(repo, tmp_path / "source", issues=issues)
    assert (result.files, issues.items) == (1, [])
    back = bring_back(repo, result.snapshot_id, tmp_path / "out", issues=issues)
    assert (back.files, issues.items) == (1, [])
    assert back.dirs >= depth


def test_other_file_systems_are_left_alone_when_asked(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"a")
    repo = new_repo(tmp_path / "repo")
    with mounted(source / "mount", "tmpfs", "size=1m") as other:
        (other / "b").write_bytes(b"b")
        one = back_up(repo, source, one_file_system=True)
        both = back_up(repo, source)
    assert (one.files, both.files) == (1, 2)
    bring_back(repo, one.snapshot_id, tmp_path / "out")
    assert list((restored(tmp_path / "out", source) / "mount").iterdir()) == []


def test_a_cancelled_run_leaves_no_snapshot(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"a")
    repo = new_repo(tmp_path / "repo")
    progress = Progress()
    progress.stop(Cancelled())
    with pytest.raises(Cancelled):
        back_up(repo, tmp_path / "source", progress=progress)
    assert list_snapshots(repo) == []
    restic(tmp_path / "repo", "check", "--read-data")


def test_files_with_the_same_content_are_stored_once(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    data = os.urandom(4 * MIB)
    for name in "abc":
        (tmp_path / "source" / name).write_bytes(data)
    result = back_up(new_repo(tmp_path / "repo"), tmp_path / "source")
    assert result.size_bytes == 3 * len(data)
    assert result.stored_bytes < 1.1 * len(data)


def test_a_hard_link_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(os.urandom(MIB))
    os.link(tmp_path / "source" / "a", tmp_path / "source" / "b")
    assert back_up(new_repo(tmp_path / "repo"), tmp_path / "source").read_bytes == MIB


def test_excluded_files_are_not_in_the_snapshot(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "cache" / "deep").mkdir(parents=True)
    (source / "keep" / "cache").mkdir(parents=True)
    for name in ("a.tmp", "a.txt", "cache/x", "keep/b.tmp", "keep/cache/y"):
        (source / name).write_bytes(b"1")
    repo = new_repo(tmp_path / "repo")
    issues = Issues()
    result = back_up(repo, source, excludes=["*.tmp", "/cache"], issues=issues)
    bring_back(repo, result.snapshot_id, tmp_path / "out")
    copy = restored(tmp_path / "out", source)
    files = sorted(str(path.relative_to(copy)) for path in copy.rglob("*"))
    assert files == ["a.txt", "keep", "keep/cache", "keep/cache/y"]
    assert issues.items == []
    assert list(list_snapshots(repo)[0].excludes) == ["*.tmp", "/cache"]


@pytest.mark.parametrize(
    ("pattern", "path", "is_dir", "excluded"),
    [
        ("*.tmp", b"/src/a.tmp", False, True),
        ("*.tmp", b"/src/a.tmpx", False, False),
        ("*.tmp", b"/src/d/a.tmp", False, True),
        ("cache/", b"/src/cache", True, True),
        ("cache/", b"/src/cache", False, False),
        ("/cache", b"/src/cache", True, True),
        ("/cache", b"/src/x/cache", True, False),
        ("/src/cache", b"/src/cache", True, True),
        ("a/b", b"/src/x/a/b", False, True),
        ("a/b", b"/src/x/a/c/b", False, False),
        ("a/**/b", b"/src/a/c/d/b", False, True),
        ("a/**/b", b"/src/a/b", False, True),
        ("/x/**", b"/src/x/y/z", False, True),
        ("*", b"/src/anything", False, True),
        ("?", b"/src/ab", False, False),
        ("[ab]c", b"/src/bc", False, True),
        ("[!ab]c", b"/src/bc", False, False),
        ("[", b"/src/[", False, True),
        ("a.c", b"/src/abc", False, False),
        ("\udcff*", b"/src/\xffx", False, True),
        ("new\nline", b"/src/new\nline", False, True),
    ],
)
def test_patterns_exclude(pattern: str, path: bytes, is_dir: bool, excluded: bool) -> None:
    assert Excludes([pattern]).match(path, b"/src", is_dir) is excluded


@pytest.mark.parametrize(
    ("pattern", "path", "excluded"),
    [
        ("*.TXT", b"/src/a.txt", True),
        ("ÄRGER*", "/src/ärger.txt".encode(), True),
        ("/src/gr\u00fc\u00dfe", "/src/GR\u00dc\u1e9eE".encode(), True),
        ("[Ä-Ü]x", "/src/öX".encode(), True),
        ("\u0130", b"/src/I", True),  # one sign becomes one sign, as in Go
        ("ΑΣ", "/src/ασ".encode(), True),  # at the end of a word, too
        ("\udcffÄ*", b"/src/\xff\xc3\xa4x", True),
        ("\udcff", b"/src/\xfe", False),
        ("?.txt", "/src/é.TXT".encode(), True),
        ("?.txt", b"/src/\xe9.TXT", True),
        ("??.txt", "/src/é.TXT".encode(), False),
    ],
)
def test_patterns_that_ignore_case_know_more_than_ascii(pattern: str, path: bytes, excluded: bool) -> None:
    assert Excludes([], ignoring_case=[pattern]).match(path, b"/src", False) is excluded


def test_a_pipe_is_no_marker_whatever_it_says(tmp_path: Path) -> None:
    excludes = Excludes([], markers=[Marker.of("mark:yes")])
    os.mkfifo(tmp_path / "mark")
    pipe, folder = os.open(tmp_path / "mark", os.O_RDWR | os.O_NONBLOCK), os.open(tmp_path, os.O_RDONLY)
    try:
        os.write(pipe, b"yes yes yes")
        assert excludes.marker(folder, {b"mark"}) is None
        assert excludes.marker(os.fsencode(tmp_path), {b"mark"}) is None
    finally:
        os.close(pipe)
        os.close(folder)
    (tmp_path / "mark").unlink()
    (tmp_path / "mark").write_text("yes")
    assert excludes.marker(os.fsencode(tmp_path), {b"mark"}) == b"mark"


@pytest.mark.parametrize("pattern", ["!keep", "/", "[z-a]"])
def test_unusable_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError):
        Excludes([pattern])
