"""Restores: never outside of the target, never more than was proven, and clear about what is missing."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from node_agent.errors import (
    BackendReadOnly,
    Cancelled,
    DamagedError,
    SnapshotNotFound,
    SourceError,
    SourceMissing,
    TargetError,
    TargetFull,
)
from node_agent.items import Issues, Severity
from node_agent.progress import Progress
from node_agent.repository.files_restore import RestoreResult, dump, list_tree
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import new_snapshot, save_snapshot
from tests.repository.core_world import flip, new_repo, open_repo, stored
from tests.repository.data_world import (
    MIB,
    NOBODY,
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


def simple_tree(top: Path) -> Path:
    (top / "d").mkdir(parents=True)
    (top / "a").write_bytes(b"a")
    (top / "d" / "b").write_bytes(b"b" * 5000)
    (top / "d" / "c").write_bytes(os.urandom(2 * MIB))
    return top


def node(name: str, kind: str = "file", **fields: Any) -> dict[str, Any]:
    """A node as a hostile or broken program might write it, for raw JSON."""
    mode = {"dir": 1 << 31 | 0o755, "symlink": 1 << 27 | 0o777}.get(kind, 0o644)
    times = dict.fromkeys(("mtime", "atime", "ctime"), "2026-01-01T00:00:00Z")
    base = {"name": name, "type": kind, "mode": mode, **times, "uid": 0, "gid": 0, "content": None}
    if kind == "file":
        base["content"] = []
    return base | fields


class Hostile:
    """A repository whose trees say whatever we like."""

    def __init__(self, folder: Path) -> None:
        self.repo = new_repo(folder)
        self.evil = b"written by the repository"
        with self.repo.lock(), self.repo.writer(Progress()) as writer:
            self.evil_id = writer.save(BlobKind.DATA, self.evil).id.hex()

    def file(self, name: str, **fields: Any) -> dict[str, Any]:
        return node(name, content=[self.evil_id], size=len(self.evil), **fields)

    def folder(self, name: str, *nodes: dict[str, Any]) -> dict[str, Any]:
        return node(name, "dir", subtree=self.tree(*nodes))

    def tree(self, *nodes: dict[str, Any]) -> str:
        content = json.dumps({"nodes": nodes}).encode()
        with self.repo.lock(), self.repo.writer(Progress()) as writer:
            return writer.save(BlobKind.TREE, content).id.hex()

    def snapshot(self, *nodes: dict[str, Any]) -> str:
        tree = self.tree(*nodes)
        with self.repo.lock() as lock:
            snapshot = new_snapshot(time=datetime.now(UTC), tree=tree, hostname="h", paths=["/p"])
            return save_snapshot(self.repo, lock, snapshot).id


# --- hostile names and links ---


@pytest.mark.parametrize("name", ["..", ".", "", "/etc", "../up", "a/b", "a/../../up", "nul\0byte", "/"])
def test_a_name_that_could_lead_outside_is_refused_as_damage(tmp_path: Path, name: str) -> None:
    hostile = Hostile(tmp_path / "repo")
    snapshot = hostile.snapshot(hostile.file(name), hostile.file("good"))
    (tmp_path / "world" / "target").mkdir(parents=True)
    issues = Issues()
    result = bring_back(hostile.repo, snapshot, tmp_path / "world" / "target", issues=issues)
    assert sorted(path.name for path in (tmp_path / "world").rglob("*")) == ["good", "target"]
    assert (result.files, result.damaged) == (1, 1)
    assert [issue.code for issue in issues.items] == ["damaged"]


@pytest.mark.parametrize("name", ["..", ".", "", "a/b"])
def test_a_folder_with_a_hostile_name_is_not_entered(tmp_path: Path, name: str) -> None:
    hostile = Hostile(tmp_path / "repo")
    snapshot = hostile.snapshot(hostile.folder(name, hostile.file("inside")))
    (tmp_path / "world").mkdir()
    assert bring_back(hostile.repo, snapshot, tmp_path / "world" / "target").damaged == 1
    assert [path.name for path in (tmp_path / "world").rglob("*")] == ["target"]


def test_a_link_and_then_a_folder_of_the_same_name_do_not_lead_outside(tmp_path: Path) -> None:
    hostile = Hostile(tmp_path / "repo")
    outside = tmp_path / "outside"
    outside.mkdir()
    link = node("a", "symlink", linktarget=str(outside))
    snapshot = hostile.snapshot(link, hostile.folder("a", hostile.file("inside")))
    bring_back(hostile.repo, snapshot, tmp_path / "target")
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "target" / "a").is_symlink()
    assert (tmp_path / "target" / "a" / "inside").read_bytes() == hostile.evil


@pytest.mark.parametrize("fresh", [True, False])
def test_of_entries_with_the_same_name_the_last_is_there_and_nothing_else(tmp_path: Path, fresh: bool) -> None:
    hostile = Hostile(tmp_path / "repo")
    first, second = (node("a", "symlink", linktarget=target) for target in ("first", "second"))
    into_file = hostile.folder("into-file", first, hostile.file("a"))
    into_link = hostile.folder("into-link", hostile.file("a"), first, second)
    snapshot = hostile.snapshot(into_file, into_link, hostile.folder("into-fifo", first, node("a", "fifo")))
    target = tmp_path / "target"
    if not fresh:
        for name in ("into-file", "into-link", "into-fifo"):
            (target / name).mkdir(parents=True)
    bring_back(hostile.repo, snapshot, target)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*/*")) == [
        "into-fifo/a",
        "into-file/a",
        "into-link/a",
    ]
    assert (target / "into-fifo" / "a").is_fifo()
    assert (target / "into-file" / "a").read_bytes() == hostile.evil


def test_a_link_and_then_a_file_of_the_same_name_do_not_write_through_the_link(tmp_path: Path) -> None:
    hostile = Hostile(tmp_path / "repo")
    (tmp_path / "victim").write_bytes(b"precious")
    link = node("a", "symlink", linktarget=str(tmp_path / "victim"))
    bring_back(hostile.repo, hostile.snapshot(link, hostile.file("a")), tmp_path / "target")
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_links_that_lie_in_the_target_are_not_followed(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    (tmp_path / "outside").mkdir()
    (tmp_path / "victim").write_bytes(b"precious")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    target = tmp_path / "target"
    target.mkdir()
    (target / "d").symlink_to(tmp_path / "outside")
    (target / "a").symlink_to(tmp_path / "victim")
    bring_back(repo, snapshot, target, strip=os.fsencode(source))
    assert list((tmp_path / "outside").iterdir()) == []
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert differences(fingerprint(source, times=False), fingerprint(target, times=False)).keys() <= {b""}


def test_files_that_claim_one_inode_but_differ_are_not_linked(tmp_path: Path) -> None:
    hostile = Hostile(tmp_path / "repo")
    same = {"inode": 7, "device_id": 1, "links": 2}
    snapshot = hostile.snapshot(hostile.file("a", **same), node("b", size=0, **same))
    bring_back(hostile.repo, snapshot, tmp_path / "target")
    assert (tmp_path / "target" / "b").read_bytes() == b""
    assert (tmp_path / "target" / "a").stat().st_nlink == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"uid": (1 << 32) - 1},
        {"mtime": "9999-12-31T23:59:59Z"},
        {"mtime": "0000-01-01T00:00:00Z"},
        {"extended_attributes": [{"name": "user.a\0b", "value": "eA=="}]},
        {"extended_attributes": [{"name": "nonsense", "value": "eA=="}]},
    ],
)
def test_metadata_that_cannot_be_set_is_a_note(tmp_path: Path, fields: dict[str, Any]) -> None:
    hostile = Hostile(tmp_path / "repo")
    issues = Issues()
    bring_back(hostile.repo, hostile.snapshot(hostile.file("a", **fields)), tmp_path / "target", issues=issues)
    assert (tmp_path / "target" / "a").read_bytes() == hostile.evil
    assert issues.left_out == 0


def test_a_device_number_that_cannot_be_is_listed(tmp_path: Path) -> None:
    hostile = Hostile(tmp_path / "repo")
    issues = Issues()
    snapshot = hostile.snapshot(node("d", "chardev", device=(1 << 64) - 1), hostile.file("a"))
    bring_back(hostile.repo, snapshot, tmp_path / "target", issues=issues)
    assert os.listdir(tmp_path / "target") == ["a"]
    assert names_of(issues) == [("d", "not-written")]


@pytest.mark.parametrize("fields", [{"uid": -5}, {"uid": 1 << 40}, {"device": -1}, {"device": 1 << 70}])
def test_numbers_that_no_restic_can_have_written_are_damage(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Stock restic cannot read such a folder's list either; written anew by a repair they would spoil another."""
    hostile = Hostile(tmp_path / "repo")
    issues = Issues()
    snapshot = hostile.snapshot(hostile.file("a", **fields), hostile.file("b"))
    bring_back(hostile.repo, snapshot, tmp_path / "target", issues=issues)
    assert os.listdir(tmp_path / "target") == []
    assert [(issue.path, issue.code) for issue in issues.items] == [("/", "damaged")]
    assert next(iter(fields)) in issues.items[0].message


@pytest.mark.parametrize("size", [0, 5, 10_000, -1, 1 << 50])
def test_a_file_whose_blobs_do_not_have_its_length_is_damaged(tmp_path: Path, size: int) -> None:
    hostile = Hostile(tmp_path / "repo")
    snapshot = hostile.snapshot(node("a", content=[hostile.evil_id], size=size))
    assert bring_back(hostile.repo, snapshot, tmp_path / "target").damaged == 1
    assert list((tmp_path / "target").iterdir()) == []


# --- what is chosen, and what is in the way ---


def test_only_what_is_included_is_restored(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    result = bring_back(repo, snapshot, tmp_path / "out", include=[os.fsencode(source / "d" / "b")])
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files == [restored(tmp_path / "out", source) / "d" / "b"]
    assert result.files == 1
    bring_back(repo, snapshot, tmp_path / "out2", include=[os.fsencode(source / "d")])
    assert sorted(p.name for p in (tmp_path / "out2").rglob("*") if p.is_file()) == ["b", "c"]


def test_strip_puts_a_folders_content_into_the_target(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    bring_back(repo, back_up(repo, source).snapshot_id, tmp_path / "out", strip=os.fsencode(source))
    assert differences(fingerprint(source), fingerprint(tmp_path / "out")) == {}


def test_strip_of_a_single_file_puts_it_into_the_target(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    bring_back(repo, back_up(repo, source).snapshot_id, tmp_path / "out", strip=os.fsencode(source / "d" / "b"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


@pytest.mark.parametrize("option", ["include", "strip"])
def test_a_path_that_is_not_in_the_snapshot_is_an_error(tmp_path: Path, option: str) -> None:
    source = simple_tree(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    value = [b"/no/such"] if option == "include" else b"/no/such"
    with pytest.raises(SourceMissing, match="/no"):
        bring_back(repo, back_up(repo, source).snapshot_id, tmp_path / "out", **{option: value})
    assert not (tmp_path / "out").exists()


def test_existing_files_are_kept_or_replaced_as_asked(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    out = tmp_path / "out"
    strip = os.fsencode(source)
    bring_back(repo, snapshot, out, strip=strip)
    (out / "a").write_bytes(b"A")  # other time
    keep = os.stat(out / "d" / "b")
    (out / "d" / "b").write_bytes(b"B" * 5000)
    os.utime(out / "d" / "b", ns=(keep.st_mtime_ns, keep.st_mtime_ns))  # same size and time: not seen
    never = bring_back(repo, snapshot, out, strip=strip, overwrite="never")
    assert (never.files, never.skipped, (out / "a").read_bytes()) == (0, 3, b"A")
    changed = bring_back(repo, snapshot, out, strip=strip, overwrite="changed")
    assert (changed.files, changed.skipped) == (1, 2)
    assert ((out / "a").read_bytes(), (out / "d" / "b").read_bytes()) == (b"a", b"B" * 5000)
    always = bring_back(repo, snapshot, out, strip=strip, overwrite="always")
    assert always.files == 3
    assert differences(fingerprint(source), fingerprint(out)).keys() == {b""}  # the target itself stays as it is


def test_a_folder_in_a_files_place_is_left_and_listed(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    (tmp_path / "out" / "a").mkdir(parents=True)
    issues = Issues()
    bring_back(repo, snapshot, tmp_path / "out", strip=os.fsencode(source), issues=issues)
    assert names_of(issues) == [("a", "in-the-way")]
    assert (tmp_path / "out" / "a").is_dir()
    assert (tmp_path / "out" / "d" / "b").exists()


def test_a_file_in_a_folders_place_gives_way_unless_never(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "d").write_bytes(b"in the way")
    issues = Issues()
    bring_back(repo, snapshot, tmp_path / "out", strip=os.fsencode(source), overwrite="never", issues=issues)
    assert names_of(issues) == [("d", "in-the-way")]
    bring_back(repo, snapshot, tmp_path / "out", strip=os.fsencode(source))
    assert (tmp_path / "out" / "d" / "b").exists()


def test_folders_that_only_lead_to_what_is_wanted_keep_what_they_were(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    existing = restored(tmp_path / "out", source)
    existing.mkdir(parents=True)
    existing.chmod(0o711)
    bring_back(repo, snapshot, tmp_path / "out", include=[os.fsencode(source / "a")])
    assert stat.S_IMODE(existing.stat().st_mode) == 0o711


def test_a_snapshot_that_does_not_exist_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SnapshotNotFound):
        bring_back(new_repo(tmp_path / "repo"), "feed", tmp_path / "out")


# --- targets that do not play along ---


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".part")]


def test_a_full_target_ends_the_restore_and_leaves_no_half_files(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    (source / "large").write_bytes(os.urandom(8 * MIB))
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    with mounted(tmp_path / "small", "tmpfs", "size=4m") as small:
        with pytest.raises(TargetFull):
            bring_back(repo, snapshot, small / "out")
        assert leftovers(small) == []


def test_a_target_without_inodes_is_full(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(100):
        (source / f"f{number}").write_bytes(b"x")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    with mounted(tmp_path / "small", "tmpfs", "nr_inodes=50") as small:
        with pytest.raises(TargetFull):
            bring_back(repo, snapshot, small / "out")


def test_a_read_only_target_is_an_error(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, simple_tree(tmp_path / "source")).snapshot_id
    with mounted(tmp_path / "ro", "tmpfs", "ro") as read_only:
        with pytest.raises(TargetError, match="Read-only"):
            bring_back(repo, snapshot, read_only / "out")


def test_a_file_as_target_is_an_error(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, simple_tree(tmp_path / "source")).snapshot_id
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TargetError):
        bring_back(repo, snapshot, tmp_path / "file")


def test_attributes_that_the_target_has_not_are_a_note(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    os.setxattr(source / "a", b"user.x", b"1")
    os.setxattr(source / "d", b"user.y", b"2")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    issues = Issues()
    with mounted(tmp_path / "ram", "ramfs", "mode=755") as ram:
        result = bring_back(repo, snapshot, ram / "out", issues=issues)
        assert (restored(ram / "out", source) / "a").read_bytes() == b"a"
    assert result.files == 3
    assert [(issue.code, issue.severity) for issue in issues.items] == [("xattrs-unsupported", Severity.NOTE)]
    assert "(and of 1 more)" in issues.items[0].message


def test_nobody_restores_everything_but_owners_and_devices(open_folder: Path) -> None:
    need_root()
    make_hard_tree(open_folder / "source", sockets=False)
    repo = new_repo(open_folder / "repo")
    snapshot = back_up(repo, open_folder / "source").snapshot_id
    repo.close()
    for path in [open_folder / "repo", *(open_folder / "repo").rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    (open_folder / "out").mkdir()
    (open_folder / "out").chmod(0o777)

    def run() -> tuple[RestoreResult, Issues, dict[bytes, tuple[Any, ...]]]:
        issues = Issues()
        target = open_folder / "out" / "mine"
        result = bring_back(
            open_repo(open_folder / "repo"), snapshot, target, strip=os.fsencode(open_folder / "source"), issues=issues
        )
        (target / "none").chmod(0o400)  # to compare its content
        return result, issues, fingerprint(target)

    result, issues, found = as_nobody(run)
    left_out = {(Path(issue.path).name, issue.code) for issue in issues.items if issue.severity is Severity.LEFT_OUT}
    assert left_out == {("null", "not-written"), ("disk", "not-written")}
    assert {issue.code for issue in issues.items if issue.severity is Severity.NOTE} == {"owner", "xattrs"}
    expected = fingerprint(open_folder / "source")
    content, modes = 5, 0
    assert expected.keys() - found.keys() == {b"null", b"disk"}
    assert [path for path in found if path != b"none" and found[path][content] != expected[path][content]] == []
    # A set-id bit without its owner would lend the rights of nobody: it is dropped.
    assert {path for path in found if found[path][modes] != expected[path][modes]} == {b"none", b"setuid", b"setgid"}
    assert result.files > 40


@pytest.mark.parametrize("strip", [False, True])
def test_a_target_that_takes_nothing_is_an_error_and_not_a_partial_restore(open_folder: Path, strip: bool) -> None:
    need_root()
    source = simple_tree(open_folder / "source")
    repo = new_repo(open_folder / "repo")
    snapshot = back_up(repo, source).snapshot_id
    repo.close()
    for path in [open_folder / "repo", *(open_folder / "repo").rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    (open_folder / "out").mkdir(mode=0o755)

    def run() -> None:
        options: dict[str, Any] = {"strip": os.fsencode(source)} if strip else {}
        bring_back(open_repo(open_folder / "repo"), snapshot, open_folder / "out", **options)

    with pytest.raises(TargetError, match=r"Nothing could be restored.*Permission denied"):
        as_nobody(run)


def test_times_of_the_next_century_come_back(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    far = 7_500_000_000 * 10**9 + 123_456_789  # in 2207
    os.utime(source / "a", ns=(far, far))
    if (source / "a").stat().st_mtime_ns != far:
        pytest.skip("NEEDS a file system with times beyond 2106")
    repo = new_repo(tmp_path / "repo")
    bring_back(repo, back_up(repo, source).snapshot_id, tmp_path / "out")
    assert (restored(tmp_path / "out", source) / "a").stat().st_mtime_ns == far


def test_a_cancelled_restore_leaves_no_half_files(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, simple_tree(tmp_path / "source")).snapshot_id
    progress = Progress()
    progress.stop(Cancelled())
    with pytest.raises(Cancelled):
        bring_back(repo, snapshot, tmp_path / "out", progress=progress)
    assert leftovers(tmp_path) == []


def test_a_read_only_repository_is_restored_from(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    with mounted(tmp_path / "store", "tmpfs", "size=64m") as store:
        snapshot = back_up(new_repo(store / "repo"), source).snapshot_id
        os.system(f"mount -o remount,ro {store}")
        repo = open_repo(store / "repo")
        with pytest.raises(BackendReadOnly):
            back_up(repo, source)
        with repo.lock(read_only_ok=True):
            assert next(path for path, _ in list_tree(repo, snapshot, os.fsencode(source / "d"))).endswith(b"/b")


# --- damage ---


def data_packs(repo: Repository, folder: Path) -> list[Path]:
    with repo.lock():
        repo.load_index()
        names = {name for name, blobs in repo.index.packs() if blobs[0].kind is BlobKind.DATA}
    return [path for path in stored(folder, "data") if path.name in names]


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
def test_a_damaged_pack_is_named_and_other_files_are_restored(tmp_path: Path, how: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "hurt").write_bytes(os.urandom(MIB))
    repo = new_repo(tmp_path / "repo")
    back_up(repo, source)
    (pack,) = data_packs(repo, tmp_path / "repo")
    (source / "whole").write_bytes(os.urandom(MIB))
    snapshot = back_up(repo, source).snapshot_id
    if how == "flip":
        flip(pack, 5000)
    elif how == "truncate":
        os.truncate(pack, 5000)
    else:
        pack.unlink()
    issues = Issues()
    result = bring_back(
        open_repo(tmp_path / "repo"), snapshot, tmp_path / "out", strip=os.fsencode(source), issues=issues
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole"]
    assert (result.files, result.damaged) == (1, 1)
    assert pack.name in issues.items[0].message
    assert issues.items[0].path == str(source / "hurt")


def test_a_damaged_tree_is_named_and_other_folders_are_restored(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    hurt = back_up(repo, source / "d")
    (pack,) = [path for path in stored(tmp_path / "repo", "data") if path not in data_packs(repo, tmp_path / "repo")]
    snapshot = back_up(repo, source).snapshot_id
    flip(pack, 10)  # the first blob of the pack is the deepest tree: that of d
    issues = Issues()
    result = bring_back(
        open_repo(tmp_path / "repo"), snapshot, tmp_path / "out", strip=os.fsencode(source), issues=issues
    )
    assert hurt.files == 2
    assert (result.files, result.damaged) == (1, 1)
    assert issues.items[0].path == str(source / "d")


# --- browsing ---


def test_dump_gives_a_files_content_in_order(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    data = os.urandom(9 * MIB) + bytes(3 * MIB) + b"end"
    (source / "big").write_bytes(data)
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    parts: list[bytes] = []
    with repo.lock():
        assert dump(repo, snapshot, os.fsencode(source / "big"), parts.append) == len(data)
    assert b"".join(parts) == data


def test_dump_of_a_folder_or_a_missing_path_is_refused(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    with repo.lock():
        with pytest.raises(SourceError, match="is not a file"):
            dump(repo, snapshot, os.fsencode(source / "d"), lambda data: None)
        with pytest.raises(SourceMissing):
            dump(repo, snapshot, os.fsencode(source / "nope"), lambda data: None)


def test_dump_of_a_damaged_file_raises(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    for pack in data_packs(repo, tmp_path / "repo"):
        os.truncate(pack, 3)
    with repo.lock(), pytest.raises(DamagedError, match="pack"):
        dump(repo, snapshot, os.fsencode(source / "d" / "c"), lambda data: None)


def test_a_listing_goes_down_only_when_asked(tmp_path: Path) -> None:
    source = simple_tree(tmp_path / "source")
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, source).snapshot_id
    base = os.fsencode(source)
    with repo.lock():
        flat = [path for path, _ in list_tree(repo, snapshot, base)]
        deep = [path for path, _ in list_tree(repo, snapshot, base, recursive=True)]
    assert flat == [base + b"/a", base + b"/d"]
    assert deep == [base + b"/a", base + b"/d", base + b"/d/b", base + b"/d/c"]
