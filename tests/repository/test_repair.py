from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from node_agent.errors import DamagedError, RepositoryError
from node_agent.progress import Progress
from node_agent.repository.backend import Kind
from node_agent.repository.backend.base import Buffer
from node_agent.repository.backend.local import LocalBackend
from node_agent.repository.check import CheckReport, check
from node_agent.repository.files_restore import dump
from node_agent.repository.repack import PackStore
from node_agent.repository.repair_index import RepairIndexResult, repair_index
from node_agent.repository.repair_packs import RepairPacksResult, repair_packs
from node_agent.repository.repair_snapshots import HurtSnapshot, find_hurt, repair_snapshots
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import Snapshot, list_snapshots
from tests.repository.core_world import flip, make_snapshot, new_repo, open_repo, restic, stored
from tests.repository.power import recording

RNG = random.Random(3)
BLOCKS = [RNG.randbytes(40_000) for _ in range(6)]


def _id(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    repo = new_repo(tmp_path / "repo")
    with repo.lock() as lock:
        make_snapshot(repo, lock, {b"disk": BLOCKS[:4], b"odd": [b"a" * 1000, b"b" * 5000]})
        make_snapshot(repo, lock, {b"disk": [*BLOCKS[:2], *BLOCKS[4:]]}, host="other")
    return tmp_path / "repo"


@pytest.fixture
def twin(folder: Path, tmp_path: Path) -> Path:
    """Another repository, with another key, that has all the blobs."""
    repo = new_repo(tmp_path / "twin")
    with repo.lock() as lock:
        make_snapshot(repo, lock, {b"disk": BLOCKS[:4], b"odd": [b"a" * 1000, b"b" * 5000]})
        make_snapshot(repo, lock, {b"disk": [*BLOCKS[:2], *BLOCKS[4:]]}, host="other")
    return tmp_path / "twin"


def _check(folder: Path, read_data: bool = True) -> CheckReport:
    repo = open_repo(folder)
    with repo.lock():
        return check(repo, read_data=read_data)


def _prove(folder: Path) -> None:
    """Everything is whole, by our check, by stock restic's, and by its content."""
    report = _check(folder)
    assert report.ok, report.errors
    restic(folder, "check", "--read-data")
    repo = open_repo(folder)
    for snapshot in list_snapshots(repo):
        parts: list[bytes] = []
        dump(repo, snapshot.id, b"/data/disk", parts.append)
        wanted = [*BLOCKS[:2], *BLOCKS[4:]] if snapshot.hostname == "other" else BLOCKS[:4]
        assert b"".join(parts) == b"".join(wanted)


# --- the index ---


def _repair_index(folder: Path, **options: bool) -> RepairIndexResult:
    repo = open_repo(folder)
    with repo.lock(exclusive=True) as lock:
        return repair_index(repo, lock, **options)


def test_an_index_that_is_right_is_left_alone(folder: Path) -> None:
    before = stored(folder, "index")
    for options in ({}, {"read_all": True}, {"dry_run": True}):
        assert not _repair_index(folder, **options).changed
    assert stored(folder, "index") == before


@pytest.mark.parametrize("harm", ["deleted", "all deleted", "flipped", "emptied"])
def test_lost_index_files_are_made_again_from_the_packs(folder: Path, harm: str) -> None:
    first, *others = stored(folder, "index")
    if harm == "flipped":
        flip(first, 50)
    elif harm == "emptied":
        first.chmod(0o600)
        first.write_bytes(b"")
    for path in [first, *others] if harm == "all deleted" else [first] if harm == "deleted" else []:
        path.unlink()
    assert not _check(folder).ok
    planned = _repair_index(folder, dry_run=True)
    result = _repair_index(folder)
    assert result.changed and planned.added_packs == result.added_packs and result.added_packs
    assert bool(result.damaged_files) == (harm in ("flipped", "emptied"))
    _prove(folder)


def test_packs_that_are_gone_leave_the_index(folder: Path) -> None:
    repo = open_repo(folder)
    (place,) = repo.index.locations(BlobKind.DATA, _id(BLOCKS[5]))
    (folder / "data" / place.pack[:2] / place.pack).unlink()
    assert _repair_index(folder).missing_packs == [place.pack]
    assert not open_repo(folder).has(BlobKind.DATA, _id(BLOCKS[5]))
    assert not _repair_index(folder).changed


def test_a_pack_that_nobody_can_read_is_named(folder: Path) -> None:
    path = stored(folder, "data")[0]
    flip(path, path.stat().st_size - 20)
    for index in stored(folder, "index"):
        index.unlink()
    assert _repair_index(folder).unreadable_packs == [path.name]


# --- packs ---


def _repair_packs(folder: Path, packs: list[str], *sources: Path) -> RepairPacksResult:
    others: list[Repository] = []
    for source in sources:
        others.append(open_repo(source))
        others[-1].load_index()
    repo = open_repo(folder)
    with repo.lock(exclusive=True) as lock:
        return repair_packs(repo, lock, packs, sources=others)


def _hurt(folder: Path, content: bytes, kind: BlobKind = BlobKind.DATA) -> str:
    """Flip a bit of a blob; the pack's name."""
    (place,) = open_repo(folder).index.locations(kind, _id(content))
    flip(folder / "data" / place.pack[:2] / place.pack, place.blob.offset + 30)
    return place.pack


def test_a_damaged_pack_is_healed_from_a_repository_that_has_the_blobs(folder: Path, twin: Path) -> None:
    pack = _hurt(folder, BLOCKS[2])
    result = _repair_packs(folder, [pack], twin)
    assert (result.replaced_packs, result.healed_blobs, result.lost_blobs) == ([pack], 1, [])
    assert result.moved_blobs >= 4
    assert not (folder / "data" / pack[:2] / pack).exists()
    _prove(folder)


def test_the_damaged_entry_goes_first_and_the_damaged_pack_last(folder: Path, twin: Path) -> None:
    pack = _hurt(folder, BLOCKS[2])
    old_indexes = {path.name for path in stored(folder, "index")}
    with recording(folder) as steps:
        assert _repair_packs(folder, [pack], twin).replaced_packs == [pack]
    shown = [step for step in steps if step.call in ("rename", "unlink") and not step.path.startswith("locks/")]
    kinds = [f"{step.call} {(step.other or step.path).split('/')[0]}" for step in shown]
    first_pack = kinds.index("rename data")
    # The index without the entry is there and the one with it gone before anything is stored anew …
    assert kinds[:2] == ["rename index", "unlink index"] and shown[1].path.split("/")[1] in old_indexes
    assert first_pack == 2
    # … and the pack goes when new packs and an index that names them are there, and no index names it.
    assert kinds[-1] == "unlink data" and shown[-1].path.endswith(pack)
    assert "rename index" in kinds[first_pack:-1] and kinds[-2] == "unlink index"


def test_a_new_copy_that_does_not_read_back_leaves_the_old_pack_where_it_is(
    folder: Path, twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = _hurt(folder, BLOCKS[2])
    put = LocalBackend.put

    def spoilt(self: LocalBackend, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        content = bytearray(b"".join(parts))
        if kind is Kind.PACK:
            content[50] ^= 1
        put(self, kind, name, [content])

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "put", spoilt)
        with pytest.raises(DamagedError):
            _repair_packs(folder, [pack], twin)
    assert (folder / "data" / pack[:2] / pack).exists()
    damaged = [error.name for error in _check(folder).errors if error.kind == "pack"]
    assert _repair_packs(folder, [pack, *damaged], twin).lost_blobs == []
    _prove(folder)


def test_a_copy_elsewhere_that_is_damaged_does_not_count(folder: Path) -> None:
    """The pack that is repaired holds the only good copy; the other, which nobody named, holds a damaged one."""
    (place,) = open_repo(folder).index.locations(BlobKind.DATA, _id(BLOCKS[2]))
    repo = open_repo(folder)
    with repo.lock(), PackStore(repo.files, repo.guard) as packs:
        packs.add_content(BlobKind.DATA, BLOCKS[2])
        packs.flush()
    (other,) = [at for at in open_repo(folder).index.locations(BlobKind.DATA, _id(BLOCKS[2])) if at.pack != place.pack]
    flip(folder / "data" / other.pack[:2] / other.pack, other.blob.offset + 30)
    path = folder / "data" / place.pack[:2] / place.pack
    flip(path, path.stat().st_size - 20)  # its header
    result = _repair_packs(folder, [place.pack])
    assert (result.replaced_packs, result.lost_blobs) == ([place.pack], [])
    assert open_repo(folder).load_blob(BlobKind.DATA, _id(BLOCKS[2])) == BLOCKS[2]


def test_a_header_alone_is_healed_without_another_repository(folder: Path) -> None:
    (place,) = open_repo(folder).index.locations(BlobKind.DATA, _id(BLOCKS[2]))
    path = folder / "data" / place.pack[:2] / place.pack
    flip(path, path.stat().st_size - 20)
    result = _repair_packs(folder, [place.pack])
    assert result.replaced_packs == [place.pack] and result.healed_blobs == 0
    _prove(folder)


def test_a_pack_and_a_tree_that_are_gone_are_fetched(folder: Path, twin: Path) -> None:
    repo = open_repo(folder)
    for snapshot in list_snapshots(repo):
        (place,) = repo.index.locations(BlobKind.TREE, bytes.fromhex(snapshot.tree))
        (folder / "data" / place.pack[:2] / place.pack).unlink(missing_ok=True)
    packs = [error.name for error in _check(folder).errors if error.kind == "pack"]
    assert len(packs) == 2
    assert _repair_packs(folder, packs, twin).lost_blobs == []
    _prove(folder)


def test_what_was_lost_long_ago_is_fetched_when_a_source_turns_up(folder: Path, twin: Path) -> None:
    pack = _hurt(folder, BLOCKS[2])
    result = _repair_packs(folder, [pack])
    assert result.lost_blobs == [f"data {_id(BLOCKS[2]).hex()}"] and result.kept_aside_packs == [pack]
    assert (folder / "data" / pack[:2] / pack).exists()
    errors = _check(folder).errors
    assert {error.kind for error in errors} == {"data"}  # what is lost is named as missing
    assert _repair_packs(folder, [], twin).healed_blobs == 1
    _prove(folder)


def test_a_pack_that_was_kept_aside_is_not_named_again_unless_it_proves_to_be_whole(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in stored(folder, "data")}
    pack = _hurt(folder, BLOCKS[2])
    assert _repair_packs(folder, [pack]).kept_aside_packs == [pack]
    assert not _repair_index(folder).changed  # although its header can be read
    assert _repair_index(folder, read_all=True).added_packs == []
    (folder / "data" / pack[:2] / pack).write_bytes(before[pack])  # brought back from elsewhere
    assert not _repair_index(folder).changed
    assert _repair_index(folder, read_all=True).added_packs == [pack]
    _prove(folder)


def test_a_healthy_pack_stays(folder: Path) -> None:
    names = [path.name for path in stored(folder, "data")]
    result = _repair_packs(folder, [*names, "00" * 32])
    assert sorted(result.healthy_packs) == names and result.unknown_packs == ["00" * 32]
    assert [path.name for path in stored(folder, "data")] == names


def test_packs_are_repaired_alone(folder: Path) -> None:
    repo = open_repo(folder)
    with repo.lock() as lock, pytest.raises(RepositoryError, match="alone"):
        repair_packs(repo, lock, [])


# --- snapshots ---


def _find(folder: Path) -> list[HurtSnapshot]:
    repo = open_repo(folder)
    with repo.lock():
        report = check(repo, read_data=True)
        return find_hurt(repo, list_snapshots(repo), report.lost, Progress())


def _repair(folder: Path, forget: bool = False) -> list[HurtSnapshot]:
    repo = open_repo(folder)
    with repo.lock(exclusive=forget) as lock:
        report = check(repo, read_data=True)
        repo.load_index()
        return repair_snapshots(repo, lock, list_snapshots(repo), report.lost, forget=forget, progress=Progress())


def test_nothing_is_said_of_snapshots_that_are_whole(folder: Path) -> None:
    assert _find(folder) == [] and _repair(folder) == []


def test_every_hurt_file_is_named_with_what_is_lost_of_it(folder: Path) -> None:
    _hurt(folder, BLOCKS[1])
    found = _find(folder)
    assert [[(file.path, file.lost) for file in hurt.files] for hurt in found] == [
        [(b"/data/disk", ((40_000, 40_000),))],
        [(b"/data/disk", ((40_000, 40_000),))],
    ]
    assert _find(folder)[0].to_json()["files"][0]["lost"] == [[40_000, 40_000]]


def _content(folder: Path, snapshot: str, path: bytes) -> bytes:
    parts: list[bytes] = []
    dump(open_repo(folder), snapshot, path, parts.append)
    return b"".join(parts)


@pytest.mark.parametrize("forget", [False, True])
def test_a_repaired_snapshot_holds_zeros_in_place_of_what_is_lost(folder: Path, forget: bool) -> None:
    pack = _hurt(folder, BLOCKS[3])
    (hurt,) = _repair(folder, forget)
    assert hurt.repaired and hurt.forgotten is forget
    assert _content(folder, hurt.repaired, b"/data/disk") == b"".join(BLOCKS[:3]) + bytes(40_000)
    assert _content(folder, hurt.repaired, b"/data/odd") == b"a" * 1000 + b"b" * 5000
    snapshots: dict[str, Snapshot] = {snapshot.id: snapshot for snapshot in list_snapshots(open_repo(folder))}
    new = snapshots[hurt.repaired]
    assert new.partial and new.original == hurt.snapshot.id and (hurt.snapshot.id in snapshots) is not forget
    if forget:
        _repair_packs(folder, [pack])
        assert _check(folder).ok
        restic(folder, "check", "--read-data")
        assert _repair(folder) == []


def test_a_file_whose_pieces_have_no_certain_length_is_left_out(folder: Path) -> None:
    repo = open_repo(folder)
    with repo.lock() as lock:
        make_snapshot(repo, lock, {b"two": [b"x" * 3000, b"y" * 4000], b"good": [b"good"]}, host="third")
    lost = [(BlobKind.DATA, _id(b"x" * 3000)), (BlobKind.DATA, _id(b"y" * 4000))]
    (place,) = repo.index.locations(*lost[0])
    packs = folder / "data" / place.pack[:2] / place.pack
    packs.unlink()
    _repair_index(folder)
    hurt = next(hurt for hurt in _repair(folder) if hurt.snapshot.hostname == "third")
    assert hurt.repaired is not None
    assert {(file.path, file.lost) for file in hurt.files} == {(b"/data/two", ()), (b"/data/good", ((0, 4),))}
    assert "left out" in next(file.message for file in hurt.files if file.path == b"/data/two")


def test_a_lost_folder_becomes_empty_and_a_lost_top_ends_the_attempt(folder: Path) -> None:
    repo = open_repo(folder)
    with repo.lock() as lock:
        snapshot = make_snapshot(repo, lock, {b"only": [b"here"]}, host="third")
    from node_agent.repository.tree import load_tree

    top = bytes.fromhex(snapshot.tree)
    below = load_tree(repo, top)[0].subtree
    assert below is not None
    with repo.lock() as lock:
        (hurt,) = repair_snapshots(repo, lock, [snapshot], {(BlobKind.TREE, below)}, progress=Progress())
        assert [file.path for file in hurt.files] == [b"/data"] and hurt.repaired
        (hurt,) = repair_snapshots(repo, lock, [snapshot], {(BlobKind.TREE, top)}, forget=True, progress=Progress())
        assert hurt.repaired is None and not hurt.forgotten
    restic(folder, "check", "--read-data")


def test_a_damaged_index_file_ends_a_healing_before_it_began(folder: Path) -> None:
    pack = _hurt(folder, BLOCKS[2])
    flip(stored(folder, "index")[0], 40)
    before = stored(folder, "data")
    with pytest.raises(DamagedError):
        _repair_packs(folder, [pack])
    assert stored(folder, "data") == before
