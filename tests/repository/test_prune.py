from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from zstandard import ZstdCompressor

from node_agent.errors import Cancelled, DamagedError, RepositoryLocked, SnapshotsMissing
from node_agent.progress import Progress
from node_agent.repository import pack as pack_module
from node_agent.repository import repack
from node_agent.repository.backend import Kind
from node_agent.repository.check import check
from node_agent.repository.index import Index
from node_agent.repository.lock import NoLock
from node_agent.repository.pack import PackedBlob
from node_agent.repository.prune import PruneOptions, _Prune, parse_max_unused, prune
from node_agent.repository.repository import BlobKind
from node_agent.repository.snapshot import list_snapshots, remove_snapshot
from node_agent.repository.tree import walk
from node_agent.repository.writer import BlobWriter
from tests.repository.core_world import flip, make_snapshot, new_repo, open_repo, restic, store, stored

RNG = random.Random(11)
KEPT = [RNG.randbytes(50_000) for _ in range(3)]
GONE = [RNG.randbytes(50_000) for _ in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One snapshot that stays; of what others needed some lies beside its data, some in packs of its own."""
    repo = new_repo(tmp_path / "repo")
    with repo.lock(exclusive=True) as lock:
        store(repo, [KEPT[0], GONE[0], KEPT[1]])  # one pack that holds both
        make_snapshot(repo, lock, {b"f": KEPT})
        other = make_snapshot(repo, lock, {b"g": GONE}, host="other")
        remove_snapshot(repo, other.id)
    orphan = b"named by nobody" * 100
    repo.backend.put(Kind.PACK, hashlib.sha256(orphan).hexdigest(), [orphan])
    return tmp_path / "repo"


def _prove_kept(folder: Path) -> None:
    """The snapshot that stays is whole: for us by its bytes, for stock restic by its own check."""
    repo = open_repo(folder)
    with repo.lock():
        (snapshot,) = list_snapshots(repo)
        (node,) = [node for path, node in walk(repo, bytes.fromhex(snapshot.tree)) if path == b"/data/f"]
        assert [repo.load_blob(BlobKind.DATA, blob_id) for blob_id in node.content] == KEPT
        assert check(repo, read_data=True).ok
    restic(folder, "check", "--read-data")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in stored(folder, "data"))


def test_what_no_snapshot_needs_is_gone_and_the_rest_is_whole(folder: Path) -> None:
    before = _size(folder)
    repo = open_repo(folder)
    planned = prune(repo, PruneOptions(dry_run=True))
    assert _size(folder) == before
    result = prune(repo)
    assert (planned.removed_packs, planned.rewritten_packs, planned.orphaned_packs) == (
        result.removed_packs,
        result.rewritten_packs,
        result.orphaned_packs,
    )
    assert result.rewritten_packs == 1 and result.orphaned_packs == 1 and result.removed_packs >= 2
    assert _size(folder) < 160_000 < before
    assert abs(before - _size(folder) - result.freed_bytes) < 2000  # but for headers
    _prove_kept(folder)
    assert not open_repo(folder).has(BlobKind.DATA, hashlib.sha256(GONE[0]).digest())


def test_pruning_again_finds_nothing(folder: Path) -> None:
    repo = open_repo(folder)
    prune(repo)
    before = stored(folder, "data") + stored(folder, "index")
    assert prune(repo).to_json()["freed_bytes"] == 0
    assert stored(folder, "data") + stored(folder, "index") == before


def test_beside_a_running_backup_nothing_is_removed_and_a_later_prune_finishes(folder: Path) -> None:
    repo, other = open_repo(folder), open_repo(folder)
    before = set(stored(folder, "data"))
    with other.lock():
        with pytest.raises(RepositoryLocked):
            prune(repo)
        assert before <= set(stored(folder, "data"))
    _prove_kept(folder)
    result = prune(repo)
    # What was stored anew beside the backup serves now: nothing is copied twice.
    assert result.rewritten_bytes == 0 and result.removed_packs >= 3
    assert _size(folder) < 160_000
    _prove_kept(folder)


@pytest.mark.parametrize("kind", ["snapshots", "index", "data"])
def test_a_damaged_repository_is_left_as_it_is(folder: Path, kind: str) -> None:
    repo = open_repo(folder)
    if kind == "data":
        (tree,) = [bytes.fromhex(snapshot.tree) for snapshot in list_snapshots(repo)]
        (place,) = repo.index.locations(BlobKind.TREE, tree)
        flip(folder / "data" / place.pack[:2] / place.pack, place.blob.offset + 20)
    else:
        flip(stored(folder, kind)[0], 40)
    before = stored(folder, "data") + stored(folder, "index")
    repo = open_repo(folder)
    with pytest.raises(DamagedError):
        prune(repo)
    assert stored(folder, "data") + stored(folder, "index") == before


def test_needed_data_that_is_damaged_ends_a_rewrite_with_nothing_removed(folder: Path) -> None:
    repo = open_repo(folder)
    (place,) = repo.index.locations(BlobKind.DATA, hashlib.sha256(KEPT[0]).digest())
    flip(folder / "data" / place.pack[:2] / place.pack, place.blob.offset + 20)
    before = stored(folder, "data")
    with pytest.raises(DamagedError, match=place.pack):
        prune(repo)
    assert set(before) <= set(stored(folder, "data"))


def test_nothing_is_removed_while_a_snapshot_is_missed(folder: Path) -> None:
    """Somebody else removed it, or the store does not list it: what it holds may be wanted back."""
    (there,) = list_snapshots(open_repo(folder))
    before = stored(folder, "data") + stored(folder, "index")
    with pytest.raises(SnapshotsMissing, match=r"^1 of 2 snapshots .* \(aaaaaaaa\)\. Nothing was removed\.$"):
        prune(open_repo(folder), PruneOptions(expected=frozenset([there.id, "a" * 64])))
    assert stored(folder, "data") + stored(folder, "index") == before
    assert prune(open_repo(folder), PruneOptions(expected=frozenset([there.id]))).removed_packs


def test_a_snapshot_that_goes_while_space_is_reclaimed_is_missed_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (there,) = list_snapshots(open_repo(folder))
    look_again, before = _Prune._look_again, set(stored(folder, "data"))

    def gone_first(self: _Prune, files: set[str]) -> None:
        (folder / "snapshots" / there.id).unlink()
        look_again(self, files)

    monkeypatch.setattr(_Prune, "_look_again", gone_first)
    with pytest.raises(SnapshotsMissing):
        prune(open_repo(folder), PruneOptions(expected=frozenset([there.id])))
    assert before <= set(stored(folder, "data"))


def _harm(folder: Path, name: str, position: int) -> None:
    flip(folder / "data" / name[:2] / name, position)


def _stored_twice(folder: Path) -> tuple[str, str]:
    """KEPT[2] lies in two packs. Their names: first the one that a prune would let go."""
    repo = open_repo(folder)
    with repo.lock():
        again = BlobWriter(repo.files, Index(repo.files, "empty"), repo.guard, Progress())
        with again as writer:
            writer.save(BlobKind.DATA, KEPT[2])
    repo = open_repo(folder)
    first, second = repo.index.locations(BlobKind.DATA, hashlib.sha256(KEPT[2]).digest())
    return first.pack, second.pack


def test_of_what_is_stored_twice_one_copy_goes_after_the_other_was_read(folder: Path) -> None:
    packs = _stored_twice(folder)
    prune(open_repo(folder), PruneOptions(max_unused="0%"))
    assert len(open_repo(folder).index.locations(BlobKind.DATA, hashlib.sha256(KEPT[2]).digest())) == 1
    assert sum((folder / "data" / name[:2] / name).exists() for name in packs) <= 1
    _prove_kept(folder)


@pytest.mark.parametrize("hurt", [0, 1])
def test_the_good_copy_is_never_dropped_for_a_damaged_one(folder: Path, hurt: int) -> None:
    name = _stored_twice(folder)[hurt]
    repo = open_repo(folder)
    places = repo.index.locations(BlobKind.DATA, hashlib.sha256(KEPT[2]).digest())
    (place,) = [place for place in places if place.pack == name]
    _harm(folder, name, place.blob.offset + 100)
    prune(repo, PruneOptions(max_unused="0%"))
    repo = open_repo(folder)
    assert repo.load_blob(BlobKind.DATA, hashlib.sha256(KEPT[2]).digest()) == KEPT[2]


@pytest.mark.parametrize("level", [1, 19])
def test_a_damaged_copy_is_replaced_by_one_that_was_compressed_otherwise(tmp_path: Path, level: int) -> None:
    """The copy that is to be kept is damaged; the other has the same content in another length."""
    text = b"".join(b"%d times %d\n" % (RNG.randrange(1 << 20), i % 97) for i in range(20_000))
    repo = new_repo(tmp_path / "repo")
    with repo.lock(exclusive=True) as lock:
        store(repo, [text, GONE[1]])  # of both packs something goes
        make_snapshot(repo, lock, {b"f": [text, *KEPT]})
        packed = repo.index.locations(BlobKind.DATA, hashlib.sha256(text).digest())
        with repack.PackStore(repo.files, repo.guard) as packs:
            sealed = repo.files.key.seal(ZstdCompressor(level=level).compress(text))
            twin = PackedBlob(BlobKind.DATA, hashlib.sha256(text).digest(), 0, len(sealed), len(text))
            packs.add(twin, sealed)
            packs.add_content(BlobKind.DATA, GONE[0])
            packs.flush()
    assert twin.length != packed[0].blob.length
    repo = open_repo(tmp_path / "repo")
    for place in repo.index.locations(BlobKind.DATA, twin.id):
        again = tmp_path / place.pack[:8]
        shutil.copytree(tmp_path / "repo", again)
        _harm(again, place.pack, place.blob.offset + 100)
        prune(open_repo(again), PruneOptions(max_unused="0%"))
        whole = open_repo(again)
        assert [whole.load_blob(BlobKind.DATA, hashlib.sha256(one).digest()) for one in (text, *KEPT)] == [text, *KEPT]
        restic(again, "check", "--read-data")


def test_what_a_new_snapshot_needs_stays_though_the_plan_let_it_go(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = open_repo(folder)
    look_again = _Prune._look_again

    def backup_first(self: _Prune, files: set[str]) -> None:
        """Between the two phases a backup finds blobs known that were to go."""
        stored_before = len(stored(folder, "data"))
        make_snapshot(open_locked, held, {b"back": GONE}, host="late")
        assert len(stored(folder, "data")) == stored_before + 1  # only its trees are new
        look_again(self, files)

    # The second repository works under the lock that the prune holds: what matters is the order of events.
    open_locked = open_repo(folder)
    monkeypatch.setattr(_Prune, "_look_again", backup_first)
    monkeypatch.setattr(open_locked, "guard", lambda **_: None)
    held = NoLock()
    monkeypatch.setattr(NoLock, "prove", lambda self: None)
    prune(repo, PruneOptions(max_unused="0%"))
    monkeypatch.undo()
    repo = open_repo(folder)
    for content in (*GONE, *KEPT):
        assert repo.load_blob(BlobKind.DATA, hashlib.sha256(content).digest()) == content
    with repo.lock():
        assert check(repo, read_data=True).ok
    restic(folder, "check", "--read-data")


def test_index_files_that_vanish_between_the_phases_make_it_plan_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_again, calls = _Prune._look_again, []

    def pruned_first(self: _Prune, files: set[str]) -> None:
        if not calls:
            calls.append(1)
            for lock in stored(folder, "locks"):
                lock.rename(folder / lock.name)  # stock restic may work as if we had not taken the lock yet
            restic(folder, "prune", "--max-unused", "0")
            for lock in folder.glob("?" * 64):
                lock.rename(folder / "locks" / lock.name)
        look_again(self, files)

    monkeypatch.setattr(_Prune, "_look_again", pruned_first)
    prune(open_repo(folder), PruneOptions(max_unused="0%"))
    assert calls
    _prove_kept(folder)


def test_limits_are_kept(folder: Path) -> None:
    def rewritten(**options: Any) -> int:
        return prune(open_repo(folder), PruneOptions(dry_run=True, **options)).rewritten_packs

    assert rewritten(max_unused="0") == 1
    assert rewritten(max_unused="unlimited") == 0
    assert rewritten(max_unused="60k") == 0  # 50,000 bytes of waste lie beside what is needed
    assert rewritten(max_unused="40k") == 1
    assert rewritten(max_unused="0", max_repack_bytes=10_000) == 0
    result = prune(open_repo(folder), PruneOptions(max_unused="0", max_duration_s=0))
    assert result.rewritten_bytes == 0 and result.rewritten_packs == 0 and result.unused_bytes > 50_000
    _prove_kept(folder)
    assert prune(open_repo(folder), PruneOptions(max_unused="0")).rewritten_packs == 1


@pytest.mark.parametrize("text", ["", "x%", "100%", "-1%", "1.5P", "5 apples"])
def test_only_sizes_and_shares_are_limits(text: str) -> None:
    limit = parse_max_unused("50%")
    assert limit is not None and limit(1000) == 1000  # half of all that is then there
    with pytest.raises(ValueError, match=r"size|share"):
        parse_max_unused(text)


def test_an_unneeded_pack_that_is_gone_leaves_the_index(folder: Path) -> None:
    repo = open_repo(folder)
    (place,) = repo.index.locations(BlobKind.DATA, hashlib.sha256(GONE[1]).digest())
    (folder / "data" / place.pack[:2] / place.pack).unlink()
    prune(repo)
    _prove_kept(folder)


def test_a_prune_that_is_stopped_goes_on_from_what_it_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "TARGET_SIZE", 100_000)
    monkeypatch.setattr(repack, "MAX_AGE_S", 0.0)  # an index file for each pack
    monkeypatch.setattr(repack, "_RUN_BYTES", 1)
    repo = new_repo(tmp_path / "repo")
    kept = [RNG.randbytes(50_000) for _ in range(12)]
    with repo.lock(exclusive=True) as lock:
        for number, blob in enumerate(kept):
            store(repo, [blob, RNG.randbytes(50_000 + number)])
        make_snapshot(repo, lock, {b"f": kept})

    class StopsHalfWay(Progress):
        def check(self) -> None:
            if len(stored(tmp_path / "repo", "index")) > before:
                self.stop(Cancelled())
            super().check()

    before = len(stored(tmp_path / "repo", "index"))
    with pytest.raises(Cancelled):
        prune(open_repo(tmp_path / "repo"), PruneOptions(max_unused="0"), progress=StopsHalfWay())
    restic(tmp_path / "repo", "check", "--read-data")
    result = prune(open_repo(tmp_path / "repo"), PruneOptions(max_unused="0"))
    assert 0 < result.rewritten_bytes < 550_000  # of 600,384
    assert _size(tmp_path / "repo") < 620_000
    restic(tmp_path / "repo", "check", "--read-data")
