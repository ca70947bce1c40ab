"""Stock restic reads what the core wrote, and the core reads what stock restic wrote."""

from __future__ import annotations

import json
import os
import stat
from functools import partial
from pathlib import Path

import pytest

from node_agent.errors import RepositoryUnsupported
from node_agent.progress import Progress
from node_agent.repository.check import check
from node_agent.repository.lock import LockHolder
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import find_snapshot, list_snapshots, new_snapshot, remove_snapshot, save_snapshot
from node_agent.repository.tree import Node, encode_tree, go_mode, load_tree, walk
from tests.repository.core_world import JUDGES, NOON, PASSWORD, make_snapshot, new_repo, open_repo, restic, stored

NAMES = [
    b"plain",
    b"with space",
    b'quote"and\\slash',
    b"line\nbreak\ttab",
    b"\x01\x7f",
    b"latin \xe9\xff",
    "é日😀\u200b\u00a0".encode(),
    b"<html>&amp;",
    b"-rf",
    b"x" * 255,
]


def _store_names(repo: Repository) -> None:
    with repo.lock() as lock:
        with repo.writer(Progress()) as writer:
            nodes = []
            for number, name in enumerate(NAMES):
                content = b"%d" % number * 10_000
                node = Node(
                    name, "file", mode=0o640, mtime=1_600_000_000_123_456_789 + number, size=len(content), links=1
                )
                node.content = [writer.save(BlobKind.DATA, content).id]
                nodes.append(node)
            nodes.append(Node(b"empty", "file", mode=0o600))
            nodes.append(Node(b"link", "symlink", mode=go_mode(stat.S_IFLNK | 0o777), linktarget=b"to\xff/x"))
            root = writer.save(BlobKind.TREE, encode_tree(nodes))
        save_snapshot(
            repo, lock, new_snapshot(time=NOON, tree=root.id.hex(), hostname="h", paths=["/x"], tags=["brs.a=1"])
        )


@pytest.mark.parametrize("program", JUDGES)
def test_stock_restic_checks_lists_and_restores_names_of_every_kind(tmp_path: Path, program: str) -> None:
    repo = new_repo(tmp_path / "repo")
    _store_names(repo)
    judge = partial(restic, tmp_path / "repo", program=program)
    assert "no errors" in judge("check", "--read-data").stdout
    (shown,) = json.loads(judge("snapshots", "--json").stdout)
    assert (shown["hostname"], shown["paths"], shown["tags"]) == ("h", ["/x"], ["brs.a=1"])
    judge("restore", "latest", "--target", str(tmp_path / "out"))
    folder = os.fsencode(tmp_path / "out")
    assert sorted(os.listdir(folder)) == sorted([*NAMES, b"empty", b"link"])
    for number, name in enumerate(NAMES):
        path = os.path.join(folder, name)
        with open(path, "rb") as file:
            assert file.read() == b"%d" % number * 10_000
        assert os.stat(path).st_mtime_ns == 1_600_000_000_123_456_789 + number
        assert os.stat(path).st_mode & 0o777 == 0o640
    # 0.14 knows no linktarget_raw and restores the readable form; newer ones restore the bytes.
    readable = "restic 0.14" in judge("version").stdout
    assert os.readlink(os.path.join(folder, b"link")) == ("to\ufffd/x".encode() if readable else b"to\xff/x")


def test_stock_restic_prunes_and_forgets_in_our_repository(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with repo.lock() as lock:
        gone = make_snapshot(repo, lock, {b"f": [os.urandom(100_000)]}, host="a")
        keep = make_snapshot(repo, lock, {b"f": [os.urandom(100_000)]}, host="b")
    restic(
        tmp_path / "repo",
        "forget",
        "--prune",
        "--max-unused",
        "0",
        gone.id,
    )
    before = len(stored(tmp_path / "repo", "data"))
    assert "no errors" in restic(tmp_path / "repo", "check", "--read-data").stdout
    with repo.lock():
        repo.load_index()
        assert check(repo, read_data=True).ok
        assert [s.id for s in list_snapshots(repo)] == [keep.id]
    # Nothing of ours gives stock prune a reason to repack again and again.
    again = restic(tmp_path / "repo", "prune", "--max-unused", "0").stdout
    assert [line.split(":")[1].split()[0] for line in again.splitlines() if line.startswith("to repack")] == ["0"]
    assert len(stored(tmp_path / "repo", "data")) == before


def test_stock_restic_goes_on_in_our_repository_and_we_go_on_in_its(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo", cache_dir=tmp_path / "cache")
    with repo.lock() as lock:
        make_snapshot(repo, lock, {b"f": [b"ours"]})
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(3 << 20))
    restic(tmp_path / "repo", "backup", str(source), "--tag", "theirs")
    with repo.lock() as lock:
        repo.load_index()
        make_snapshot(repo, lock, {b"g": [b"ours again"]})
        assert len(list_snapshots(repo)) == 3
        assert check(repo, read_data=True).ok
    assert "no errors" in restic(tmp_path / "repo", "check", "--read-data").stdout


@pytest.fixture(params=["1", "2"])
def of_restic(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A repository that stock restic made, in both versions of the format, and what it holds."""
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    for name in NAMES:
        with open(os.path.join(os.fsencode(source), name), "wb") as file:
            file.write(name * 500)
    (source / "large").write_bytes(os.urandom(9 << 20))
    (source / "deep" / "empty").touch()
    os.symlink("large", source / "link")
    os.mkfifo(source / "fifo")
    os.link(source / "large", source / "deep" / "hard")
    os.setxattr(source / "large", "user.x", b"\x00value")
    folder = tmp_path / "repo"
    restic(folder, "init", "--repository-version", request.param)
    restic(folder, "backup", str(source), "--host", "h", "--tag", "a,b")
    return folder, source


def test_what_stock_restic_wrote_is_read_wholly(of_restic: tuple[Path, Path]) -> None:
    folder, source = of_restic
    repo = open_repo(folder)
    with repo.lock():
        snapshot = find_snapshot(repo, "latest", hosts=["h"], tags=[["a", "b"]])
        assert list(snapshot.paths) == [str(source)]
        found = dict(walk(repo, bytes.fromhex(snapshot.tree)))
        for path, node in found.items():
            if not path.startswith(os.fsencode(source) + b"/"):
                continue
            real = os.lstat(path)
            assert (node.st_mode, node.uid, node.gid, node.mtime) == (
                real.st_mode,
                real.st_uid,
                real.st_gid,
                real.st_mtime_ns,
            )
            if node.is_file:
                contents = dict(repo.load_blobs(BlobKind.DATA, node.content))
                with open(path, "rb") as file:
                    assert b"".join(contents[blob_id] for blob_id in node.content) == file.read()
        inside = os.fsencode(source)
        assert {path.removeprefix(inside + b"/") for path in found if path.startswith(inside + b"/")} >= set(NAMES)
        assert found[inside + b"/link"].linktarget == b"large"
        assert found[inside + b"/large"].xattrs == [("user.x", b"\x00value")]
        assert found[inside + b"/large"].inode == found[inside + b"/deep/hard"].inode
        report = check(repo, read_data=True)
    assert report.ok and report.notes == []


def test_a_tree_that_stock_restic_wrote_is_written_the_same_by_us(of_restic: tuple[Path, Path]) -> None:
    folder, _ = of_restic
    repo = open_repo(folder)
    pending = [bytes.fromhex(find_snapshot(repo, "latest").tree)]
    seen = 0
    while pending:
        tree_id = pending.pop()
        nodes = load_tree(repo, tree_id)
        assert encode_tree(nodes) == repo.load_blob(BlobKind.TREE, tree_id)
        pending += [node.subtree for node in nodes if node.subtree]
        seen += 1
    assert seen >= 3


def test_a_repository_of_version_1_is_never_written(of_restic: tuple[Path, Path]) -> None:
    folder, _ = of_restic
    repo = open_repo(folder)
    with repo.lock():
        if repo.config.version == 1:
            assert repo.read_only
            with pytest.raises(RepositoryUnsupported):
                repo.writer(Progress())
        else:
            repo.writer(Progress()).__exit__(None, None, None)
    assert "no errors" in restic(folder, "check").stdout


def test_stock_restic_respects_our_lock_and_we_respect_its(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with repo.lock(exclusive=True):
        refused = restic(tmp_path / "repo", "snapshots", check=False)
        assert refused.returncode and "locked" in refused.stderr
        restic(tmp_path / "repo", "unlock")  # we are alive, so it leaves our lock alone
        assert len(stored(tmp_path / "repo", "locks")) == 1
    with repo.lock():
        restic(tmp_path / "repo", "snapshots")
        assert restic(tmp_path / "repo", "prune", check=False).returncode


def test_a_nodes_lock_is_none_of_this_machines_for_stock_restic(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo", holder=LockHolder.for_node("12345678-9abc", tmp_path / "state"))
    with repo.lock():
        restic(tmp_path / "repo", "unlock")
        assert len(stored(tmp_path / "repo", "locks")) == 1


def test_a_key_that_stock_restic_added_opens_and_ours_opens_for_it(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with repo.lock():
        repo.add_key("ours too")
    restic(tmp_path / "repo", "snapshots", password="ours too")
    (tmp_path / "new").write_text("theirs")
    restic(tmp_path / "repo", "key", "add", "--new-password-file", str(tmp_path / "new"))
    from node_agent.repository.backend import open_backend

    for password in (PASSWORD, "ours too", "theirs"):
        assert Repository.open(open_backend(str(tmp_path / "repo")), password).id == repo.id


def test_what_a_removed_snapshot_held_is_found_again_by_stock_restic(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with repo.lock(exclusive=True) as lock:
        make_snapshot(repo, lock, {b"stays": [b"here" * 1000]})
        gone = make_snapshot(repo, lock, {b"wanted": [b"back" * 1000]})
        remove_snapshot(repo, gone.id)
    restic(tmp_path / "repo", "recover")
    restic(tmp_path / "repo", "restore", "latest", "--target", str(tmp_path / "found"))
    assert [path.read_bytes() for path in (tmp_path / "found").rglob("wanted")] == [b"back" * 1000]
