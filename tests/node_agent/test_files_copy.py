"""Copies for disk staging are faithful, stay inside their two roots, and name what they could not take."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from node_agent.drivers.files_copy import Overwrite, TreeCopy
from node_agent.errors import Cancelled, TargetFull
from node_agent.items import Issues, Severity
from node_agent.progress import Progress
from node_agent.tasks.staging import Staged, remove_tree
from tests.node_agent.nodes import Place, open_below, same_trees


def copied(source: Path, target: Path, *, overwrite: Overwrite = "always") -> tuple[TreeCopy, Issues]:
    issues = Issues()
    copy = TreeCopy(Progress(), issues, overwrite=overwrite)
    copy.run(source, target, str(source))
    return copy, issues


def test_a_copy_is_the_same_tree(place: Place, dice: random.Random) -> None:
    place.fill(dice)
    os.mkfifo(place.source / "fifo")
    os.setxattr(place.source / "empty", "user.colour", b"blue")
    (place.source / "d0").chmod(0o2750)
    (place.source / "d1" / "e1").chmod(0o500)
    copy, issues = copied(place.source, place.target)
    assert issues.items == []
    assert same_trees(place.source, place.target)
    assert (place.target / "sparse").stat().st_blocks * 512 < 1_000_000
    assert copy.done.files > 40


def test_a_single_file_is_copied_to_its_place(place: Place) -> None:
    (place.source / "one").write_bytes(b"1")
    copied(place.source / "one", place.target / "below" / "new")
    assert (place.target / "below" / "new").read_bytes() == b"1"


def test_links_planted_in_the_target_are_not_followed(place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    (place.source / "folder").mkdir()
    (place.source / "folder" / "file").write_bytes(b"ours")
    (place.source / "file").write_bytes(b"ours")
    (place.target / "folder").symlink_to(outside)
    (place.target / "file").symlink_to(outside / "file")
    _, issues = copied(place.source, place.target)
    assert (outside / "file").read_bytes() == b"precious"
    assert sorted(os.listdir(outside)) == ["file"]
    assert [issue.path for issue in issues.items] == [f"{place.source}/folder"]
    assert (place.target / "file").read_bytes() == b"ours" and not (place.target / "file").is_symlink()


@pytest.mark.parametrize(("rule", "content"), [("never", b"old"), ("changed", b"new"), ("always", b"new")])
def test_the_overwrite_rule_decides_about_files_that_are_there(place: Place, rule: Overwrite, content: bytes) -> None:
    (place.source / "a").write_bytes(b"new")
    (place.target / "a").write_bytes(b"old")
    os.utime(place.target / "a", (1, 1))
    copy, _ = copied(place.source, place.target, overwrite=rule)
    assert (place.target / "a").read_bytes() == content
    assert copy.done.skipped == (rule == "never")


def test_an_unchanged_file_is_left_alone_by_the_rule_changed(place: Place) -> None:
    (place.source / "a").write_bytes(b"new")
    (place.target / "a").write_bytes(b"old")
    os.utime(place.target / "a", ns=(0, (place.source / "a").stat().st_mtime_ns))
    copy, _ = copied(place.source, place.target, overwrite="changed")
    assert (place.target / "a").read_bytes() == b"old" and copy.done.skipped == 1


def test_what_vanishes_or_cannot_be_read_is_listed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gone", "shut", "fine"):
        (place.source / name).write_bytes(b"x")
    real_open = os.open

    def trouble(path: object, *args: object, **kwargs: object) -> int:
        if path == b"gone":
            raise FileNotFoundError(2, "No such file or directory")
        if path == b"shut":
            raise PermissionError(13, "Permission denied")
        return real_open(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", trouble)
    _, issues = copied(place.source, place.target)
    assert {(issue.path.rpartition("/")[2], issue.code) for issue in issues.items} == {
        ("gone", "vanished"),
        ("shut", "unreadable"),
    }
    assert all(issue.severity is Severity.LEFT_OUT for issue in issues.items)
    assert os.listdir(place.target) == ["fine"]


def test_a_full_target_ends_the_copy(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.source / "a").write_bytes(b"x")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TargetFull):
        copied(place.source, place.target)
    assert os.listdir(place.target) == []


def test_a_copy_can_be_stopped_and_leaves_no_open_files(place: Place, dice: random.Random) -> None:
    place.fill(dice)
    progress = Progress()
    progress.stop(Cancelled())
    with pytest.raises(Cancelled):
        TreeCopy(progress, Issues()).run(place.source, place.target, "x")
    assert open_below(place.base) == []


def test_a_deep_tree_does_not_exhaust_the_interpreter(place: Place) -> None:
    here = os.open(place.source, os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    _, issues = copied(place.source, place.target)
    assert issues.items == []
    depth, path = 0, place.target
    while (path / "d").is_dir():
        path, depth = path / "d", depth + 1
    assert depth == 400


def test_owners_travel_beside_the_copy(tmp_path: Path) -> None:
    staged = Staged(tmp_path, "s")
    staged.begin()
    owners = {b"/a b/\xff\n": (0, 5), b"/c": (1000, 1000)}
    staged.keep_owners(owners)
    assert staged.owners() == owners
    remove_tree(staged.folder)
    assert not staged.folder.exists()
