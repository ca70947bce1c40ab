"""Backups of disk images: what is read, what is inherited, and when a parent may be trusted."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.errors import RepositoryLocked, SourceError
from node_agent.items import Extent, Issues
from node_agent.progress import Progress
from node_agent.repository.backend import Kind
from node_agent.repository.files_browse import find_node
from node_agent.repository.image import Ahead, Comparison, ImageBackup, backup_images
from node_agent.repository.image_blocks import (
    MIN_BLOCK,
    ZeroCover,
    block_size_for,
    changed_blocks,
    count_blocks,
    mark_blobs,
    mark_span,
    read_block_list,
)
from node_agent.repository.lock import Lock, Locks
from node_agent.repository.publish import BackupResult
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import list_snapshots, remove_snapshot
from node_agent.repository.zeros import MARK_SIZE, is_zero, zero_id
from tests.repository.core_world import new_repo, open_repo, restic
from tests.repository.data_world import MIB, Log, allocated, back_up, back_up_images, bring_back, names_of

GIB = 1 << 30
TIB = 1 << 40
KIB = 1 << 10
SIZES = (MIN_BLOCK, 512 * KIB, MIB, 2 * MIB)


class Disk:
    """An image in memory. Blocks of zeros are holes; reading a hole or a poisoned byte fails the test."""

    def __init__(self, content: bytes, poison: Sequence[tuple[int, int]] = ()) -> None:
        self.content = bytearray(content)
        self.size = len(content)
        self.poison = list(poison)
        self.read_ranges: list[tuple[int, int]] = []

    def extents(self) -> Iterator[Extent]:
        step = 64 << 10
        for start in range(0, self.size, step):
            piece = self.content[start : start + step]
            yield Extent(start, len(piece), zero=not any(piece))

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and offset + length <= self.size, "read outside of the image"
        for start, end in self.poison:
            assert offset + length <= start or end <= offset, f"the poisoned range {start}-{end} was read"
        self.read_ranges.append((offset, length))
        return bytes(self.content[offset : offset + length])

    @property
    def read_bytes(self) -> int:
        return sum(length for _, length in self.read_ranges)


def random_disk(size: int = 10 * MIB, seed: int = 1) -> Disk:
    return Disk(random.Random(seed).randbytes(size))


def store(
    repo: Repository,
    disk: Disk,
    changed: Sequence[Extent] | None = None,
    block_size: int | None = None,
    **options: object,
) -> BackupResult:
    return back_up_images(repo, ImageBackup("d", disk, changed, block_size=block_size), **options)


def store_under(repo: Repository, lock: Lock, image: ImageBackup, parent: str | None = None) -> BackupResult:
    options = {"host": "host", "paths": ["/vm"], "parent": parent, "time": datetime.now(UTC)}
    return backup_images(repo, lock, [image], progress=Progress(), issues=Issues(), **options)


def content_of(repo: Repository, snapshot: str) -> list[bytes]:
    return list(find_node(repo, snapshot, b"/disks/d.raw").content)


def bytes_of(repo: Repository, snapshot: str, folder: Path) -> bytes:
    bring_back(repo, snapshot, folder)
    return (folder / "disks" / "d.raw").read_bytes()


# --- the whole image ---


@pytest.mark.parametrize("size", [1, 511, MIB - 1, MIB, MIB + 1, 10 * MIB + 12345])
def test_an_image_comes_back_exactly(tmp_path: Path, size: int) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk(size)
    result = store(repo, disk)
    assert bytes_of(repo, result.snapshot_id, tmp_path / "out") == disk.content
    assert (result.size_bytes, result.read_bytes, result.block_size) == (size, size, MIN_BLOCK)
    restic(tmp_path / "repo", "check", "--read-data")


def test_an_empty_image_is_an_empty_file(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    result = store(repo, Disk(b""))
    assert bytes_of(repo, result.snapshot_id, tmp_path / "out") == b""
    restic(tmp_path / "repo", "check", "--read-data")


def test_holes_are_not_read_and_come_back_as_holes(tmp_path: Path) -> None:
    content = bytearray(64 * MIB)
    content[5 * MIB : 6 * MIB] = os.urandom(MIB)
    content[-1] = 1
    disk = Disk(bytes(content))
    repo = new_repo(tmp_path / "repo")
    result = store(repo, disk)
    assert disk.read_ranges == [(5 * MIB, MIB), (64 * MIB - MIN_BLOCK, MIN_BLOCK)]
    assert result.read_bytes == MIB + MIN_BLOCK
    assert bytes_of(repo, result.snapshot_id, tmp_path / "out") == content
    assert allocated(tmp_path / "out" / "disks" / "d.raw") <= 2 * MIB


@pytest.mark.parametrize(
    ("block_size", "expected"),
    [
        (MIB, ["data", "mark", "mark", "block", "data", "tail"]),
        (512 * KIB, ["data", "data", "mark", "mark", "mark", "mark", "data", "data", "tail"]),
        # The zeros begin in the middle of a pair, which the mark must be.
        (MIN_BLOCK, ["data"] * 4 + ["mark"] + ["block"] * 6 + ["data"] * 4 + ["tail"]),
    ],
)
def test_the_first_zeros_are_stored_as_the_blobs_that_restic_takes_for_sparse(
    tmp_path: Path, block_size: int, expected: list[str]
) -> None:
    repo = new_repo(tmp_path / "repo")
    content = os.urandom(MIB) + bytes(2 * MIB) + os.urandom(MIB) + bytes(100)
    result = store(repo, Disk(content), block_size=block_size)
    with repo.lock():
        ids = content_of(repo, result.snapshot_id)
    names = {zero_id(block_size): "block", zero_id(MARK_SIZE): "mark", zero_id(100): "tail"}
    assert [names.get(blob_id, "data") for blob_id in ids] == expected
    assert bytes_of(repo, result.snapshot_id, tmp_path / "out") == content


def test_of_small_blocks_only_a_pair_in_its_place_is_the_mark(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    one, zeros = os.urandom(MIN_BLOCK), bytes(MIN_BLOCK)
    disk = Disk(one + zeros + zeros + one + zeros + zeros + zeros)
    first = store(repo, disk)
    with repo.lock():
        ids = content_of(repo, first.snapshot_id)
    block, mark = zero_id(MIN_BLOCK), zero_id(MARK_SIZE)
    data = hashlib.sha256(one).digest()
    assert ids == [data, block, block, data, mark, block]
    disk.content[5 * MIN_BLOCK] = 1  # half of the mark
    second = store(repo, disk, [Extent(5 * MIN_BLOCK, 1)], parent=first.snapshot_id)
    with repo.lock():
        ids = content_of(repo, second.snapshot_id)
    assert ids[:5] + ids[6:] == [data, block, block, data, block, block]
    assert bytes_of(repo, second.snapshot_id, tmp_path / "out") == disk.content
    restic(tmp_path / "repo", "check", "--read-data")


def test_zeros_that_the_source_does_not_know_of_cost_no_storage(tmp_path: Path) -> None:
    class Opaque(Disk):
        def extents(self) -> Iterator[Extent]:
            yield Extent(0, self.size)

    result = store(new_repo(tmp_path / "repo"), Opaque(bytes(32 * MIB)))
    assert result.read_bytes == 32 * MIB
    assert result.stored_bytes < 4000


def test_metadata_files_lie_beside_the_disks(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    result = back_up_images(
        repo,
        ImageBackup("sda", random_disk(MIB)),
        ImageBackup("sdb", random_disk(2 * MIB, 2)),
        metadata={"vm.json": b'{"name": "vm"}', "empty": b""},
        tags=["brs.point=1"],
    )
    bring_back(repo, result.snapshot_id, tmp_path / "out")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*"))
    assert found == ["disks", "disks/sda.raw", "disks/sdb.raw", "empty", "vm.json"]
    assert (tmp_path / "out" / "vm.json").read_bytes() == b'{"name": "vm"}'
    assert list(list_snapshots(repo)[0].tags) == ["brs.point=1"]
    restic(tmp_path / "repo", "check", "--read-data")


@pytest.mark.parametrize("name", ["", "a/b", "..\0", "x" * 300])
def test_a_disk_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="name"):
        back_up_images(new_repo(tmp_path / "repo"), ImageBackup(name, random_disk(MIB)))


def test_two_disks_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="different names"):
        back_up_images(new_repo(tmp_path / "repo"), ImageBackup("a", random_disk(5)), ImageBackup("a", random_disk(5)))


def test_a_disk_that_was_written_meanwhile_makes_the_snapshot_partial(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    issues = Issues()
    result = back_up_images(repo, ImageBackup("d", random_disk(MIB), None, lambda: True), issues=issues)
    assert result.partial
    assert names_of(issues) == [("d", "changed")]
    assert list(list_snapshots(repo)[0].tags) == ["brs.partial"]


def test_a_source_that_fails_leaves_no_snapshot(tmp_path: Path) -> None:
    class Failing(Disk):
        def read(self, offset: int, length: int) -> bytes:
            if offset >= 3 * MIB:
                raise SourceError("The disk cannot be read.")
            return super().read(offset, length)

    repo = new_repo(tmp_path / "repo")
    with pytest.raises(SourceError):
        store(repo, Failing(os.urandom(5 * MIB)))
    assert list_snapshots(repo) == []
    restic(tmp_path / "repo", "check", "--read-data")


# --- increments ---


def test_only_blocks_of_changed_extents_are_read_and_the_list_is_full(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk(20 * MIB + 777)
    first = store(repo, disk)
    before = bytes(disk.content)
    # Everything outside of the blocks that are touched is overwritten and poisoned: it must be neither read nor stored.
    touched = [(3 * MIB, 4 * MIB), (7 * MIB, 8 * MIB + MIN_BLOCK)]
    changed = Disk(bytes(len(before)), poison=[(0, 3 * MIB), (4 * MIB, 7 * MIB), (8 * MIB + MIN_BLOCK, disk.size)])
    expected = bytearray(before)
    for start, end in touched:
        changed.content[start:end] = expected[start:end] = os.urandom(end - start)
    extents = [Extent(7 * MIB + 5, MIB), Extent(3 * MIB + 1, MIB - 1)]
    second = store(repo, changed, extents, parent=first.snapshot_id)
    assert second.read_bytes == 2 * MIB + MIN_BLOCK
    assert bytes_of(repo, second.snapshot_id, tmp_path / "out") == expected
    with repo.lock() as _:
        remove_snapshot(repo, first.snapshot_id)  # no chain: the second stands alone
    restic(tmp_path / "repo", "prune")
    assert bytes_of(open_repo(tmp_path / "repo"), second.snapshot_id, tmp_path / "out2") == expected
    restic(tmp_path / "repo", "check", "--read-data")


def test_no_changed_extents_means_that_nothing_is_read(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    first = store(repo, random_disk())
    second = store(repo, Disk(bytes(10 * MIB), poison=[(0, 10 * MIB)]), [], parent=first.snapshot_id)
    assert second.read_bytes == 0
    with repo.lock():
        assert content_of(repo, second.snapshot_id) == content_of(repo, first.snapshot_id)


def test_without_extents_everything_is_read_and_only_changes_are_stored(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk()
    first = store(repo, disk)
    disk.content[5 * MIB] ^= 1
    second = store(repo, disk, parent=first.snapshot_id)
    assert second.read_bytes == 10 * MIB
    assert MIN_BLOCK <= second.new_bytes < MIN_BLOCK + 10_000


@pytest.mark.parametrize("block_size", SIZES)
def test_zeros_keep_their_form_through_increments(tmp_path: Path, block_size: int) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = Disk(os.urandom(MIB) + bytes(3 * MIB) + os.urandom(MIB))
    first = store(repo, disk, block_size=block_size)
    disk.content[MIB : 2 * MIB] = os.urandom(MIB)  # the marked zero block
    disk.content[4 * MIB :] = bytes(MIB)
    second = store(repo, disk, [Extent(MIB, MIB), Extent(4 * MIB, MIB)], parent=first.snapshot_id)
    assert bytes_of(repo, second.snapshot_id, tmp_path / "out") == disk.content
    third = store(repo, disk, block_size=block_size)  # a full backup of the same content has the very same list
    with repo.lock():
        assert content_of(repo, second.snapshot_id) == content_of(repo, third.snapshot_id)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block_size", SIZES)
def test_any_increment_is_the_list_that_a_full_backup_makes(tmp_path: Path, block_size: int, seed: int) -> None:
    """Chains of changes at any offset, many of them to or from zeros, and of sizes that are no multiple of a block."""
    repo, dice = new_repo(tmp_path / "repo"), random.Random(seed)
    disk = Disk(bytes(dice.randrange(3 * MIB, 5 * MIB)))
    parent = store(repo, disk, block_size=block_size)
    for _ in range(4):
        changed = []
        for _ in range(dice.randrange(1, 6)):
            length = dice.choice((1, 4096, 64 * KIB, MIN_BLOCK, 700 * KIB))
            step = dice.choice((1, 512, MIN_BLOCK))
            offset = dice.randrange(disk.size - length) // step * step
            disk.content[offset : offset + length] = dice.choice((bytes, dice.randbytes))(length)
            changed.append(Extent(offset, length))
        reader = Ahead(disk, changed, "auto", block_size=block_size) if dice.random() < 0.5 else None
        parent = back_up_images(
            repo, ImageBackup("d", disk, changed, ahead=reader), parent=parent.snapshot_id, compare=Comparison.none()
        )
        whole = store(repo, disk, block_size=block_size)
        assert (parent.block_size, whole.block_size) == (block_size, block_size)
        with repo.lock():
            assert content_of(repo, parent.snapshot_id) == content_of(repo, whole.snapshot_id)
    assert bytes_of(repo, parent.snapshot_id, tmp_path / "out") == disk.content


@pytest.mark.parametrize("block_size", SIZES)
def test_blocks_of_every_size_are_whole_for_stock_restic(tmp_path: Path, block_size: int) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = Disk(os.urandom(2 * MIB) + bytes(2 * MIB) + os.urandom(MIB + 777))
    first = store(repo, disk, block_size=block_size)
    disk.content[MIB + 5 : MIB + 9] = b"here"
    disk.content[3 * MIB + 100] = 1
    second = store(repo, disk, [Extent(MIB + 5, 4), Extent(3 * MIB + 100, 1)], parent=first.snapshot_id)
    assert (second.block_size, second.read_bytes) == (block_size, 2 * block_size)
    restic(tmp_path / "repo", "check", "--read-data")
    restic(tmp_path / "repo", "restore", second.snapshot_id, "--target", str(tmp_path / "out"))
    assert (tmp_path / "out" / "disks" / "d.raw").read_bytes() == disk.content


def test_a_disk_is_cut_anew_when_another_block_size_is_asked_for(tmp_path: Path) -> None:
    repo, disk = new_repo(tmp_path / "repo"), random_disk(5 * MIB + 7)
    first = store(repo, disk, block_size=MIB)
    log = Log()
    second = store(repo, disk, [], 256 * KIB, parent=first.snapshot_id, progress=Progress(log=log))
    assert (second.block_size, second.read_bytes) == (256 * KIB, disk.size)
    assert "everything is read, because it is to have blocks of 256 KiB" in log
    third = store(repo, disk, [Extent(0, 1)], parent=second.snapshot_id)
    assert (third.block_size, third.read_bytes) == (256 * KIB, 256 * KIB)


@pytest.mark.parametrize(("old", "new"), [(5 * MIB, 8 * MIB), (5 * MIB + 100, 5 * MIB + 200), (5 * MIB, 5 * MIB + 1)])
def test_what_an_image_grew_is_read(tmp_path: Path, old: int, new: int) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk(new)
    first = store(repo, Disk(bytes(disk.content[:old])))
    disk.poison = [(0, old // MIB * MIB)]
    second = store(repo, disk, [], parent=first.snapshot_id)
    assert bytes_of(repo, second.snapshot_id, tmp_path / "out") == disk.content
    assert second.read_bytes == new - old // MIB * MIB


@pytest.mark.parametrize("new", [3 * MIB, 3 * MIB + 100, 100, 5 * MIB + 50])
def test_a_shrunken_image_loses_its_tail(tmp_path: Path, new: int) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk(5 * MIB + 100)
    first = store(repo, disk)
    smaller = Disk(bytes(disk.content[:new]), poison=[(0, new // MIB * MIB)])
    second = store(repo, smaller, [], parent=first.snapshot_id)
    assert bytes_of(repo, second.snapshot_id, tmp_path / "out") == disk.content[:new]


@pytest.mark.parametrize("extent", [Extent(10 * MIB, 1), Extent(-1, 5), Extent(5, 11 * MIB), Extent(0, -1)])
def test_an_extent_outside_of_the_image_is_refused(tmp_path: Path, extent: Extent) -> None:
    repo = new_repo(tmp_path / "repo")
    first = store(repo, random_disk())
    with pytest.raises(SourceError, match="outside"):
        store(repo, random_disk(), [extent], parent=first.snapshot_id)


# --- read ahead, while the repository is being opened ---


def ahead(repo: Repository, disk: Disk, changed: Sequence[Extent], parent: str) -> BackupResult:
    reader = Ahead(disk, changed, "auto")
    reader._workers.shutdown(wait=True)  # until it has read all
    return back_up_images(repo, ImageBackup("d", disk, changed, ahead=reader), parent=parent)


def test_what_was_read_ahead_is_not_read_again(tmp_path: Path) -> None:
    repo, disk = new_repo(tmp_path / "repo"), random_disk(10 * MIB + 77)
    first = store(repo, disk)
    for block in (2, 5, 6):
        disk.content[block * MIB : (block + 1) * MIB] = os.urandom(MIB // 2) + bytes(MIB // 2)
    disk.content[6 * MIB : 7 * MIB] = bytes(MIB)
    disk.content[-1] ^= 1
    disk.read_ranges.clear()
    changed = [Extent(2 * MIB + 5, MIB - 5), Extent(5 * MIB, 2 * MIB), Extent(10 * MIB, 77)]
    result = ahead(repo, disk, changed, first.snapshot_id)
    assert sorted(start for start, _ in disk.read_ranges) == [2 * MIB, 5 * MIB, 6 * MIB, 10 * MIB]
    assert bytes_of(repo, result.snapshot_id, tmp_path / "out") == disk.content
    again = ahead(repo, disk, changed, result.snapshot_id)
    assert again.new_bytes < 10_000  # known blocks are not stored again; the root tree has another time
    restic(tmp_path / "repo", "check", "--read-data")


def test_blocks_of_another_size_than_the_parents_are_read_again(tmp_path: Path) -> None:
    repo, disk = new_repo(tmp_path / "repo"), random_disk(12 * MIB)
    first = store(repo, disk, block_size=4 * MIB)
    disk.content[0] ^= 1
    result = ahead(repo, disk, [Extent(0, 1)], first.snapshot_id)
    assert (result.block_size, result.read_bytes) == (4 * MIB, 4 * MIB)
    assert bytes_of(repo, result.snapshot_id, tmp_path / "out") == disk.content


def test_what_cannot_be_read_ahead_fails_where_it_is_needed(tmp_path: Path) -> None:
    class Failing(Disk):
        def read(self, offset: int, length: int) -> bytes:
            raise SourceError("The disk cannot be read.")

    repo = new_repo(tmp_path / "repo")
    first = store(repo, random_disk())
    with pytest.raises(SourceError, match="cannot be read"):
        ahead(repo, Failing(bytes(random_disk().content)), [Extent(0, 1)], first.snapshot_id)
    assert len(list_snapshots(repo)) == 1


def test_reading_ahead_holds_no_more_than_it_may() -> None:
    disk = random_disk(40 * MIB)
    reader = Ahead(disk, [Extent(0, 40 * MIB)], "off", limit=3 * MIB)
    reader._workers.shutdown(wait=True)
    assert disk.read_bytes <= 5 * MIB  # the limit, and what two threads had in hand


def test_the_time_of_an_early_lock_is_used_to_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    repo, disk = new_repo(tmp_path / "repo"), random_disk()
    first = store(repo, disk)
    monkeypatch.setattr(Locks.acquire, "__kwdefaults__", Locks.acquire.__kwdefaults__ | {"settle_s": 0.3})
    monkeypatch.setattr(Ahead, "take", lambda self, number: used.append(number) or self._ready.pop(number))
    disk.content[MIB] ^= 1
    with repo.lock(early=True) as lock:
        repo.load_index()
        image = ImageBackup("d", disk, [Extent(MIB, 1)])
        second = store_under(repo, lock, image, first.snapshot_id)
    assert used == [MIB // MIN_BLOCK]
    assert bytes_of(repo, second.snapshot_id, tmp_path / "out") == disk.content


def test_what_went_before_an_early_locks_second_look_is_not_taken_for_stored(tmp_path: Path) -> None:
    repo, disk = new_repo(tmp_path / "repo"), random_disk()
    first = store(repo, disk)
    with repo.lock():
        remove_snapshot(repo, first.snapshot_id)
    with repo.lock(early=True) as lock:
        repo.load_index()
        for kind in ("index", "data"):  # as somebody prunes who was alone when the index was loaded
            for path in (tmp_path / "repo" / kind).rglob("*"):
                if path.is_file():
                    path.unlink()
        second = store_under(repo, lock, ImageBackup("d", disk))
    assert bytes_of(repo, second.snapshot_id, tmp_path / "out") == disk.content
    restic(tmp_path / "repo", "check", "--read-data")


def test_a_parent_that_goes_while_an_early_lock_is_waited_for_is_not_built_upon(tmp_path: Path) -> None:
    repo, disk = new_repo(tmp_path / "repo"), random_disk()
    first = store(repo, disk)
    disk.content[MIB] ^= 1
    alone = {"time": "2026-01-01T00:00:00Z", "exclusive": True, "hostname": "other", "username": "eve", "pid": 1}

    def pause(_why: RepositoryLocked, _seconds: float) -> None:  # who works alone forgets, prunes, and goes
        for kind in ("snapshots", "index", "data", "locks"):
            for path in (tmp_path / "repo" / kind).rglob("*"):
                if path.is_file():
                    path.unlink()

    with repo.lock(early=True, wait_s=60, pause=pause) as lock:
        repo.load_index()
        repo.files.save(Kind.LOCK, json.dumps(alone).encode())
        second = store_under(repo, lock, ImageBackup("d", disk, [Extent(MIB, 1)]), first.snapshot_id)
    assert second.read_bytes == disk.size and second.parent_id is None
    assert bytes_of(repo, second.snapshot_id, tmp_path / "out") == disk.content
    restic(tmp_path / "repo", "check", "--read-data")


def test_a_source_is_let_go_when_the_second_look_finds_somebody_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, disk = new_repo(tmp_path / "repo"), random_disk()
    first = store(repo, disk)
    monkeypatch.setattr(Locks.acquire, "__kwdefaults__", Locks.acquire.__kwdefaults__ | {"settle_s": 0.3})
    image = ImageBackup("d", disk, [Extent(0, disk.size)])
    with repo.lock(early=True) as lock:
        repo.load_index()
        monkeypatch.setattr(lock, "settle", lambda: (_ for _ in ()).throw(RepositoryLocked("in use")))
        with pytest.raises(RepositoryLocked):
            store_under(repo, lock, image, first.snapshot_id)
        assert image.ahead is not None and image.ahead._workers._shutdown
    assert len(list_snapshots(repo)) == 1


# --- which parent may be trusted ---


def untrusted(repo: Repository, parent: str | None, disk: Disk, name: str = "d") -> tuple[BackupResult, Log]:
    log = Log()
    options = {"parent": parent, "progress": Progress(log=log)}
    return back_up_images(repo, ImageBackup(name, disk, []), **options), log


def test_a_partial_parent_is_not_inherited_from(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk()
    first = back_up_images(repo, ImageBackup("d", disk, None, lambda: True))
    result, log = untrusted(repo, first.snapshot_id, disk)
    assert result.read_bytes == disk.size
    assert "is partial: everything is read" in log


def test_a_parent_that_is_gone_is_not_inherited_from(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk()
    first = store(repo, disk)
    with repo.lock():
        remove_snapshot(repo, first.snapshot_id)
    result, log = untrusted(repo, first.snapshot_id, disk)
    assert result.read_bytes == disk.size
    assert result.parent_id is None
    assert "is gone: everything is read" in log


def test_a_disk_of_another_name_is_not_inherited_from(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk()
    result, log = untrusted(repo, store(repo, disk).snapshot_id, disk, name="other")
    assert result.read_bytes == disk.size
    assert "holds no disk of this name" in log


def test_no_parent_means_that_everything_is_read_and_said_so(tmp_path: Path) -> None:
    disk = random_disk()
    result, log = untrusted(new_repo(tmp_path / "repo"), None, disk)
    assert result.read_bytes == disk.size
    assert "there is no parent" in log


def test_a_parent_that_restic_cut_is_not_inherited_from(tmp_path: Path) -> None:
    disk = random_disk()
    (tmp_path / "disks").mkdir()
    (tmp_path / "disks" / "d.raw").write_bytes(disk.content)
    repo = new_repo(tmp_path / "repo")
    env = os.getcwd()
    os.chdir(tmp_path)
    try:
        restic(tmp_path / "repo", "backup", "disks")
    finally:
        os.chdir(env)
    result, log = untrusted(repo, list_snapshots(repo)[0].id, disk)
    assert result.read_bytes == disk.size
    assert "cut differently" in log


def test_a_parent_whose_blocks_left_the_index_is_not_inherited_from(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk()
    (tmp_path / "other").mkdir()
    first = store(repo, disk)
    # Keep the parent's trees, lose its data: as after a prune that somebody ran on a damaged repository.
    with repo.lock():
        repo.load_index()
        lost = {name for name, blobs in repo.index.packs() if blobs[0].kind is BlobKind.DATA}
    for path in (tmp_path / "repo" / "data").rglob("*"):
        if path.name in lost:
            path.unlink()
    restic(tmp_path / "repo", "rebuild-index")
    result, log = untrusted(open_repo(tmp_path / "repo"), first.snapshot_id, disk)
    assert result.read_bytes == disk.size
    assert "some are missing" in log
    restic(tmp_path / "repo", "check", "--read-data")


def test_a_sample_that_agrees_costs_only_the_sample(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk(40 * MIB)
    first = store(repo, disk)
    log = Log()
    second = store(
        repo, disk, [Extent(5, 5)], parent=first.snapshot_id, compare=Comparison(4, 0), progress=Progress(log=log)
    )
    # The changed block, 4 at random, and the rest of the first MiB and the last one (the metadata areas).
    assert 2 * MIB <= second.read_bytes <= 2 * MIB + 4 * MIN_BLOCK
    assert log.lines == []


@pytest.mark.parametrize("where", [0, 39 * MIB + 5, 20 * MIB])
def test_a_sample_that_differs_makes_everything_be_read(tmp_path: Path, where: int) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk(40 * MIB)
    first = store(repo, disk)
    disk.content[where] ^= 1  # a change that the tracking missed
    log = Log()
    second = store(repo, disk, [], parent=first.snapshot_id, compare=Comparison(160, 0), progress=Progress(log=log))
    assert ("error", True) in [(level, "change tracking is wrong" in message) for level, message in log.lines]
    assert bytes_of(repo, second.snapshot_id, tmp_path / "out") == disk.content


def test_the_block_size_is_inherited(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk(12 * MIB)
    first = store(repo, disk, block_size=4 * MIB)
    second = store(repo, disk, [Extent(0, 1)], parent=first.snapshot_id)
    assert (first.block_size, second.block_size, second.read_bytes) == (4 * MIB, 4 * MIB, 4 * MIB)


def test_an_image_that_outgrew_its_blocks_is_read_wholly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = new_repo(tmp_path / "repo")
    first = store(repo, random_disk(4 * MIB))
    monkeypatch.setattr("node_agent.repository.image_blocks.MAX_SMALL_BLOCKS", 2)
    monkeypatch.setattr("node_agent.repository.image_blocks.MAX_BLOCKS", 2)
    disk = random_disk(12 * MIB)
    log = Log()
    second = store(repo, disk, [], parent=first.snapshot_id, progress=Progress(log=log))
    assert (second.block_size, second.read_bytes) == (8 * MIB, 12 * MIB)
    assert "it now has blocks of 8192 KiB" in log


def test_a_files_backup_in_the_same_repository_does_not_disturb(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    disk = random_disk()
    files = back_up(repo, Path("/etc/hostname").parent / "apt", time=datetime.now(UTC))
    result, log = untrusted(repo, files.snapshot_id, disk)
    assert result.read_bytes == disk.size
    assert "holds no disk of this name" in log


# --- the pure parts ---


@pytest.mark.parametrize(
    ("size", "block_size"),
    [
        *[(0, 256 * KIB), (1, 256 * KIB), (64 * GIB, 256 * KIB), (64 * GIB + 1, 512 * KIB), (128 * GIB, 512 * KIB)],
        *[(128 * GIB + 1, MIB), (TIB, MIB), (TIB + 1, 2 * MIB), (4 * TIB, 4 * MIB), (8 * TIB, 8 * MIB)],
        (64 * TIB, 8 * MIB),
    ],
)
def test_the_block_size_follows_the_rule(size: int, block_size: int) -> None:
    assert block_size_for(size) == block_size


@pytest.mark.parametrize(
    ("size", "inherited", "block_size"),
    [
        (256 * GIB, 256 * KIB, 256 * KIB),
        (256 * GIB + 1, 256 * KIB, MIB),
        (4 * TIB, MIB, MIB),
        (4 * TIB + 1, MIB, 8 * MIB),
        (1, 8 * MIB, 8 * MIB),
        (32 * TIB + 1, 8 * MIB, 8 * MIB),
    ],
)
def test_an_inherited_block_size_stays_up_to_four_times_the_cap(size: int, inherited: int, block_size: int) -> None:
    assert block_size_for(size, inherited) == block_size


ranges = st.lists(st.tuples(st.integers(0, 999), st.integers(0, 200)), max_size=20)


@given(ranges, st.integers(1, 100))
def test_changed_blocks_are_exactly_those_that_are_touched(extents: list[tuple[int, int]], block_size: int) -> None:
    inside = [Extent(offset, min(length, 1000 - offset)) for offset, length in extents]
    runs = list(changed_blocks(inside, 1000, block_size))
    touched = {position // block_size for extent in inside for position in range(extent.offset, extent.end)}
    assert {number for first, end in runs for number in range(first, end)} == touched
    assert all(end < first for (_, end), (first, _) in pairwise(runs))


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=30), st.integers(1, 40))
def test_zero_cover_knows_what_lies_in_zero_extents(pieces: list[tuple[int, bool]], step: int) -> None:
    extents, zero = [], bytearray()
    for length, is_hole in pieces:
        extents.append(Extent(len(zero), length, is_hole))
        zero += bytes([is_hole]) * length
    cover = ZeroCover(extents)
    for start in range(0, len(zero), step):
        end = min(start + step, len(zero))
        assert cover.covers(start, end) == all(zero[start:end])


@given(st.integers(1, 40 * MIB), st.integers(0, 39), st.sampled_from(SIZES))
def test_a_stored_list_is_cut_into_the_blocks_that_were_stored(size: int, marked: int, block_size: int) -> None:
    ids, sizes, number, span = [], {}, 0, mark_span(block_size)
    while number < count_blocks(size, block_size):
        if number == marked * span and (number + span) * block_size <= size:
            ids += [zero_id(MARK_SIZE)] * mark_blobs(block_size)
            number += span
            continue
        blob = hashlib.sha256(b"%d" % number).digest()
        ids.append(blob)
        sizes[blob] = min(block_size, size - number * block_size)
        number += 1
    sizes[zero_id(MARK_SIZE)] = MARK_SIZE
    blocks = read_block_list(size, ids, sizes)
    told = {sizes[blob] for blob in ids if blob != zero_id(MARK_SIZE)}
    if block_size not in told:  # nothing in the list tells of the size: another one may fit as well
        return
    assert blocks is not None
    assert blocks.block_size == block_size
    assert sum(blocks.length(n) for n in range(len(blocks))) == size
    for number in range(len(blocks)):
        stored = sum(sizes[blob] for blob in blocks.block(number))
        assert stored == (max(MARK_SIZE, block_size) if blocks.is_marked(number) else blocks.length(number))


def test_a_list_with_a_missing_or_misplaced_blob_is_not_taken_for_blocks() -> None:
    a, b = b"a" * 32, b"b" * 32
    assert read_block_list(2 * MIB, [a, b], {a: MIB}) is None
    assert read_block_list(2 * MIB, [a, b], {a: MIB - 5, b: MIB + 5}) is None
    assert read_block_list(3 * MIB, [a, b], {a: MIB, b: MIB}) is None


@given(st.binary(max_size=300))
def test_zeros_are_recognised(data: bytes) -> None:
    assert is_zero(data) == (not any(data))
    assert is_zero(bytes(len(data)))
