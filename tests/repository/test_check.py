from __future__ import annotations

import random
from pathlib import Path

import pytest

from node_agent.errors import Cancelled
from node_agent.progress import Progress
from node_agent.repository.backend import Kind
from node_agent.repository.check import CheckReport, check
from node_agent.repository.pack import BlobKind
from node_agent.repository.snapshot import Snapshot
from node_agent.repository.tree import Node, encode_tree, load_tree
from tests.repository.core_world import flip, make_snapshot, new_repo, open_repo, restic, store, stored

RNG = random.Random(9)
BIG = [RNG.randbytes(200_000) for _ in range(6)]


@pytest.fixture
def world(tmp_path: Path):
    """A repository with two snapshots that share a file, each with one of its own."""
    repo = new_repo(tmp_path / "repo")
    with repo.lock() as lock:
        first = make_snapshot(repo, lock, {b"shared": BIG[:2], b"first": BIG[2:4]})
        second = make_snapshot(repo, lock, {b"shared": BIG[:2], b"second": BIG[4:]}, host="other")
    return open_repo(tmp_path / "repo"), tmp_path / "repo", first, second


def _check(repo, **options: bool) -> CheckReport:
    with repo.lock():
        return check(repo, **options)


def _pack_of(repo, content: bytes, kind: BlobKind = BlobKind.DATA):
    import hashlib

    (place,) = repo.index.locations(kind, hashlib.sha256(content).digest())
    return place


@pytest.mark.parametrize("read_data", [False, True])
def test_a_healthy_repository_has_no_errors_and_no_notes(world, read_data: bool) -> None:
    repo, folder, *_ = world
    report = _check(repo, read_data=read_data)
    assert report.ok and report.notes == []
    assert (report.snapshots, report.trees, report.packs, report.blobs) == (2, 4, 4, 10)
    assert report.read_bytes == (sum(p.stat().st_size for p in stored(folder, "data")) if read_data else 0)


def test_a_flipped_blob_is_found_by_reading_and_names_pack_blob_and_snapshots(world) -> None:
    repo, folder, first, second = world
    for content, hurt in ((BIG[0], {first.id, second.id}), (BIG[3], {first.id})):
        place = _pack_of(repo, content)
        path = folder / "data" / place.pack[:2] / place.pack
        flip(path, place.blob.offset + 1000)
        assert _check(repo).ok  # not read
        (error,) = _check(repo, read_data=True).errors
        assert (error.kind, error.name, set(error.snapshots)) == ("pack", place.pack, hurt)
        assert place.blob.id.hex() in error.message
        assert restic(folder, "check", "--read-data", check=False).returncode
        flip(path, place.blob.offset + 1000)


@pytest.mark.parametrize("harm", ["delete", "truncate", "header"])
def test_a_pack_that_is_gone_cut_or_hurt_in_its_header_is_named_without_reading(world, harm: str) -> None:
    repo, folder, first, _ = world
    place = _pack_of(repo, BIG[3])
    path = folder / "data" / place.pack[:2] / place.pack
    path.chmod(0o600)
    if harm == "delete":
        path.unlink()
    elif harm == "truncate":
        path.write_bytes(path.read_bytes()[:100])
    else:
        flip(path, path.stat().st_size - 30)
    (error, *more) = _check(repo).errors
    assert more == [] and (error.kind, error.name) == ("pack", place.pack)
    if harm != "header":
        assert first.id in error.snapshots
    else:
        assert error.snapshots == ()  # every blob can still be had by the index


def test_extra_bytes_at_a_packs_end_are_noticed(world) -> None:
    repo, folder, *_ = world
    path = stored(folder, "data")[0]
    path.chmod(0o600)
    path.write_bytes(path.read_bytes() + b"extra")
    assert [error.name for error in _check(repo).errors] == [path.name]


def test_two_packs_that_changed_places_are_both_named(world) -> None:
    repo, folder, *_ = world
    one, two = stored(folder, "data")[:2]
    first, second = one.read_bytes(), two.read_bytes()
    for path, content in ((one, second), (two, first)):
        path.chmod(0o600)
        path.write_bytes(content)
    assert {error.name for error in _check(repo).errors} >= {one.name, two.name}


@pytest.mark.parametrize("kind", ["index", "snapshots", "keys"])
def test_a_flipped_file_is_named_by_kind_and_name(world, kind: str) -> None:
    repo, folder, *_ = world
    path = stored(folder, kind)[0]
    position = path.read_bytes().index(b'"username":"') + 13 if kind == "keys" else 33
    flip(path, position)
    errors = _check(repo).errors
    assert (kind.rstrip("s"), path.name) in {(error.kind, error.name) for error in errors}
    assert all(error.name and error.message for error in errors)


def test_a_missing_index_file_makes_the_snapshots_that_need_it_fail(world) -> None:
    repo, folder, first, second = world
    for path in stored(folder, "index"):
        path.unlink()
    report = _check(repo)
    assert {error.name for error in report.errors} == {first.tree, second.tree}
    assert {name for error in report.errors for name in error.snapshots} == {first.id, second.id}
    assert len(report.notes) == 4  # the packs that nobody names now


def test_a_tree_that_needs_unknown_data_names_what_and_whom(world) -> None:
    repo, _, *_ = world
    with repo.lock() as lock:
        from node_agent.repository.snapshot import new_snapshot, save_snapshot
        from tests.repository.core_world import NOON

        with repo.writer(Progress()) as writer:
            bad = writer.save(BlobKind.TREE, encode_tree([Node(b"f", "file", size=1, content=[b"\x07" * 32])]))
        hurt = save_snapshot(repo, lock, new_snapshot(time=NOON, tree=bad.id.hex(), hostname="h", paths=["/x"]))
    (error,) = _check(repo).errors
    assert (error.kind, error.name, error.snapshots) == ("data", "07" * 32, (hurt.id,))
    assert bad.id.hex() in error.message


def test_a_hurt_copy_of_a_blob_hurts_no_snapshot_while_another_is_good(tmp_path: Path) -> None:
    repo, other = new_repo(tmp_path / "repo"), open_repo(tmp_path / "repo")
    other.load_index()
    with repo.lock() as lock, other.lock():
        make_snapshot(repo, lock, {b"f": [BIG[0]]})
        store(other, [BIG[0]])
    hurt = next(p for p in stored(tmp_path / "repo", "data") if p.stat().st_size > 100_000)
    flip(hurt, 500)
    (error,) = _check(open_repo(tmp_path / "repo"), read_data=True).errors
    assert (error.name, error.snapshots) == (hurt.name, ())


@pytest.mark.parametrize("damaged", [False, True])
def test_a_pack_that_no_index_names_is_a_note(world, damaged: bool) -> None:
    repo, folder, *_ = world
    content = b"left by a killed backup"
    import hashlib

    name = hashlib.sha256(content).hexdigest()
    repo.backend.put(Kind.PACK, name, [content])
    if damaged:
        flip(folder / "data" / name[:2] / name, 3)
    report = _check(repo, read_data=True)
    assert report.ok
    (note,) = report.notes
    assert name in note and ("It is damaged" in note) == damaged


def test_a_damaged_lock_is_a_note(world) -> None:
    repo, _, *_ = world
    with repo.lock():
        repo.backend.put(Kind.LOCK, "ab" * 32, [b""])
        report = check(repo)
    assert report.ok and "ab" * 32 in report.notes[0]


def test_the_cache_is_not_trusted(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo", cache_dir=tmp_path / "cache")
    with repo.lock() as lock:
        make_snapshot(repo, lock, {b"f": BIG[:1]})
    for path in stored(tmp_path / "repo", "index"):
        path.unlink()
    with repo.lock():
        assert not check(repo).ok


def test_a_check_can_be_cancelled(world) -> None:
    repo, *_ = world
    progress = Progress()
    progress.stop(Cancelled())
    with repo.lock(), pytest.raises(Cancelled):
        check(repo, read_data=True, progress=progress)


def test_a_backup_beside_a_check_is_no_error(world) -> None:
    repo, folder, *_ = world
    writer_repo = open_repo(folder)
    listing = repo.backend.list
    made: list[Snapshot] = []

    def list_and_back_up(kind: Kind):
        found = list(listing(kind))
        if kind is Kind.SNAPSHOT and not made:
            with writer_repo.lock() as lock:
                made.append(make_snapshot(writer_repo, lock, {b"new": [b"new"]}))
        return iter(found)

    repo.backend.list = list_and_back_up
    assert _check(repo, read_data=True).ok
    assert made


def test_the_report_is_plain_json(world) -> None:
    import json

    repo, folder, *_ = world
    stored(folder, "data")[0].unlink()
    value = json.loads(json.dumps(_check(repo).to_json()))
    assert value["ok"] is False and value["errors"][0]["kind"] == "pack"


def test_every_flipped_byte_of_every_object_is_noticed(world) -> None:
    """Each object hurt in turn, at ends, middle and random places."""
    repo, folder, *_ = world
    for kind in ("data", "index", "snapshots", "keys"):
        for path in stored(folder, kind):
            size = path.stat().st_size
            for position in {0, 15, 16, size // 2, size - 1, RNG.randrange(size)}:
                flip(path, position)
                report = _check(repo, read_data=True)
                flip(path, position)
                assert any(path.name in (error.name, *error.message.split()) for error in report.errors), (
                    kind,
                    position,
                )
    assert _check(repo, read_data=True).ok


def test_a_deep_tree_is_no_problem(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with repo.lock() as lock:
        from node_agent.repository.snapshot import new_snapshot, save_snapshot
        from tests.repository.core_world import NOON

        with repo.writer(Progress()) as writer:
            (content,) = [writer.save(BlobKind.DATA, b"deep").id]
            tree = writer.save(BlobKind.TREE, encode_tree([Node(b"f", "file", size=4, content=[content])])).id
            for _ in range(1500):
                tree = writer.save(BlobKind.TREE, encode_tree([Node(b"d", "dir", mode=1 << 31, subtree=tree)])).id
        deep = save_snapshot(repo, lock, new_snapshot(time=NOON, tree=tree.hex(), hostname="h", paths=["/x"]))
        assert check(repo).trees == 1501
        flip(next(p for p in stored(tmp_path / "repo", "data") if p.stat().st_size < 1000), 20)
        (error,) = check(repo, read_data=True).errors
    assert error.snapshots == (deep.id,)
    assert load_tree(repo, tree)[0].name == b"d"
