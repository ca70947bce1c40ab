from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from pathlib import Path

import pytest

from node_agent.errors import DamagedError
from node_agent.repository import index_rewrite
from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.crypto import Key
from node_agent.repository.index import Index
from node_agent.repository.index_file import Marks, encode_index, load_index_file, open_index_file, save_index_file
from node_agent.repository.pack import BlobKind, PackedBlob
from node_agent.repository.sealed import SealedFiles
from tests.repository.core_world import flip, new_repo, stored


@pytest.fixture
def files(tmp_path: Path) -> SealedFiles:
    backend = open_backend(str(tmp_path / "repo"))
    backend.create()
    return SealedFiles(backend, Key.random())


def _blobs(seed: int, count: int = 5, kind: BlobKind = BlobKind.DATA) -> list[PackedBlob]:
    rng = random.Random(seed)
    return [PackedBlob(kind, rng.randbytes(32), 100 * n, 100, rng.choice([0, 250])) for n in range(count)]


def _pack(seed: int) -> str:
    return random.Random(~seed).randbytes(32).hex()


@pytest.mark.parametrize("cached", [False, True])
def test_what_an_index_file_says_is_found(files: SealedFiles, tmp_path: Path, cached: bool) -> None:
    save_index_file(files, [(_pack(1), _blobs(1)), (_pack(2), _blobs(2, kind=BlobKind.TREE))])
    index = Index(files, "repo", tmp_path / "cache" / "index" if cached else None)
    index.refresh()
    for blob in _blobs(1):
        assert index.has(BlobKind.DATA, blob.id) and not index.has(BlobKind.TREE, blob.id)
        (place,) = index.locations(BlobKind.DATA, blob.id)
        assert (place.pack, place.blob) == (_pack(1), blob)
    assert index.locations(BlobKind.DATA, bytes(32)) == []
    assert dict(index.packs()) == {_pack(1): _blobs(1), _pack(2): _blobs(2, kind=BlobKind.TREE)}
    assert index.blob_count() == 10


def test_rows_of_a_vanished_index_file_are_dropped_and_new_ones_are_read(files: SealedFiles, tmp_path: Path) -> None:
    old = save_index_file(files, [(_pack(1), _blobs(1))])
    index = Index(files, "repo", tmp_path / "index")
    index.refresh()
    files.backend.delete(Kind.INDEX, old)
    new = save_index_file(files, [(_pack(2), _blobs(2))])
    index.refresh()
    assert index.missing(BlobKind.DATA, [b.id for b in _blobs(1)]) == {b.id for b in _blobs(1)}
    assert index.missing(BlobKind.DATA, [b.id for b in _blobs(2)]) == set()
    assert index.file_names() == {new}


def test_a_blob_in_two_index_files_stays_known_when_one_vanishes(files: SealedFiles) -> None:
    first = save_index_file(files, [(_pack(1), _blobs(1))])
    save_index_file(files, [(_pack(1), _blobs(1)), (_pack(2), _blobs(2))])
    index = Index(files, "repo")
    index.refresh()
    assert len(index.locations(BlobKind.DATA, _blobs(1)[0].id)) == 1  # the same place said twice is one copy
    files.backend.delete(Kind.INDEX, first)
    index.refresh()
    assert index.has(BlobKind.DATA, _blobs(1)[0].id)


def test_two_copies_in_two_packs_are_both_found(files: SealedFiles) -> None:
    save_index_file(files, [(_pack(1), _blobs(1)), (_pack(2), _blobs(1))])
    index = Index(files, "repo")
    index.refresh()
    assert {place.pack for place in index.locations(BlobKind.DATA, _blobs(1)[0].id)} == {_pack(1), _pack(2)}


def test_a_cache_is_used_again_without_reading_the_store(files: SealedFiles, tmp_path: Path) -> None:
    save_index_file(files, [(_pack(1), _blobs(1))])
    Index(files, "repo", tmp_path / "index").refresh()
    again = Index(files, "repo", tmp_path / "index")
    assert again.has(BlobKind.DATA, _blobs(1)[0].id)


def test_a_cache_of_another_repository_at_the_same_place_is_thrown_away(files: SealedFiles, tmp_path: Path) -> None:
    save_index_file(files, [(_pack(1), _blobs(1))])
    Index(files, "first", tmp_path / "index").refresh()
    other = Index(files, "second", tmp_path / "index")
    assert not other.has(BlobKind.DATA, _blobs(1)[0].id)


@pytest.mark.parametrize("damage", [b"", b"this is no database" * 1000])
def test_a_broken_cache_is_made_anew(files: SealedFiles, tmp_path: Path, damage: bytes) -> None:
    save_index_file(files, [(_pack(1), _blobs(1))])
    cache = tmp_path / "index"
    index = Index(files, "repo", cache)
    index.refresh()
    index.close()
    cache.write_bytes(damage)
    for suffix in ("-wal", "-shm"):
        Path(f"{cache}{suffix}").unlink(missing_ok=True)
    index = Index(files, "repo", cache)
    index.refresh()
    assert index.has(BlobKind.DATA, _blobs(1)[0].id)


def test_a_damaged_index_file_is_named_and_nothing_is_half_loaded(files: SealedFiles, tmp_path: Path) -> None:
    save_index_file(files, [(_pack(1), _blobs(1))])
    name = save_index_file(files, [(_pack(2), _blobs(2))])
    flip(tmp_path / "repo" / "index" / name, 30)
    index = Index(files, "repo")
    with pytest.raises(DamagedError, match=name):
        index.refresh()
    assert index.blob_count() == 0
    told: list[DamagedError] = []
    index.refresh(on_damaged=told.append)
    assert len(told) == 1 and index.has(BlobKind.DATA, _blobs(1)[0].id)


@pytest.mark.parametrize(
    "content",
    [b"{", b'"x"', b'{"packs":[{}]}', b'{"packs":[{"id":"00"}]}', b'{"packs":3}', b'[{"id":5}]']
    + [
        b'{"packs":[{"id":"' + b"0" * 64 + b'","blobs":[{"id":"' + b"1" * 64 + b'",' + rest + b"}]}]}"
        for rest in (
            b'"type":"data","offset":-1,"length":1',
            b'"type":"link","offset":0,"length":1',
            b'"type":"data","offset":0',
        )
    ],
)
def test_an_index_file_that_is_sealed_but_makes_no_sense_is_named(files: SealedFiles, content: bytes) -> None:
    name = files.save(Kind.INDEX, content)
    with pytest.raises(DamagedError, match=name):
        list(load_index_file(files, name))


def test_the_oldest_form_of_an_index_file_is_read(files: SealedFiles) -> None:
    name = files.save(Kind.INDEX, encode_index([(_pack(1), _blobs(1))]).strip()[len(b'{"packs":') : -1])
    assert list(load_index_file(files, name)) == [(_pack(1), _blobs(1))]


def test_what_was_just_written_need_not_be_read_again(files: SealedFiles) -> None:
    index = Index(files, "repo")
    packs = [(_pack(1), _blobs(1))]
    index.add_file(save_index_file(files, packs), packs)
    for path in stored(Path(files.backend.url.removeprefix("local:")), "index"):
        path.chmod(0o600)
        path.write_bytes(b"unreadable")  # would be noticed if it were read
    index.refresh()
    assert index.has(BlobKind.DATA, _blobs(1)[0].id)


def test_processes_that_share_a_cache_agree(files: SealedFiles, tmp_path: Path) -> None:
    indexes = [Index(files, "repo", tmp_path / "index") for _ in range(4)]
    for number in range(20):
        save_index_file(files, [(_pack(number), _blobs(number))])
    threads = [threading.Thread(target=index.refresh) for index in indexes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [index.blob_count() for index in indexes] == [100] * 4


def test_rows_that_another_process_adds_during_a_refresh_are_not_taken_for_vanished(
    files: SealedFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = Index(files, "repo", tmp_path / "index"), Index(files, "repo", tmp_path / "index")
    packs = [(_pack(1), _blobs(1))]
    listing, threads = files.backend.list, []

    def list_while_another_writes(kind: Kind):
        found = list(listing(kind))  # without what is written now
        if not threads:
            name = save_index_file(files, packs)
            threads.append(threading.Thread(target=writer.add_file, args=(name, packs)))
            threads[0].start()
            threads[0].join(0.3)
        return iter(found)

    monkeypatch.setattr(files.backend, "list", list_while_another_writes)
    reader.refresh()
    threads[0].join()
    assert writer.has(BlobKind.DATA, _blobs(1)[0].id)


def test_131072_lookups_in_200000_blobs_take_less_than_two_seconds(files: SealedFiles, tmp_path: Path) -> None:
    index = Index(files, "repo", tmp_path / "index")
    for number in range(4):
        packs = [(os.urandom(32).hex(), _blobs(1000 * number + n, 500)) for n in range(100)]
        index.add_file(os.urandom(32).hex(), packs)
    known = [blob.id for n in range(100) for blob in _blobs(n, 500)] + [
        b.id for n in range(31) for b in _blobs(1000 + n, 500)
    ]
    wanted = known[:65536] + [os.urandom(32) for _ in range(65536)]
    random.Random(1).shuffle(wanted)
    index.close()
    started = time.monotonic()
    missing = Index(files, "repo", tmp_path / "index").missing(BlobKind.DATA, wanted)
    assert time.monotonic() - started < 2
    assert len(missing) == 65536


def test_a_superseded_index_file_does_not_count_though_it_is_still_there(files: SealedFiles, tmp_path: Path) -> None:
    old = save_index_file(files, [(_pack(1), _blobs(1)), (_pack(2), _blobs(2))])
    index = Index(files, "binding", tmp_path / "cache")
    index.refresh()
    epoch = index.epoch
    marks = Marks(frozenset({old}), frozenset({_pack(2)}))
    new = save_index_file(files, [(_pack(1), _blobs(1))], marks)
    index.refresh()
    for now in (index, Index(files, "binding", tmp_path / "anew")):
        now.refresh()
        assert now.file_names() == {new} and now.marks() == marks
        assert [pack for pack, _ in now.packs()] == [_pack(1)]
    assert index.epoch != epoch  # who relied on what was listed must look again
    files.backend.delete(Kind.INDEX, new)
    index.refresh()
    assert index.file_names() == {old} and index.marks() == Marks()


def test_a_superseded_index_file_may_be_damaged_and_no_other(files: SealedFiles, tmp_path: Path) -> None:
    damaged = hashlib.sha256(b"damaged").hexdigest()
    files.backend.put(Kind.INDEX, damaged, [b"damaged"])
    index = Index(files, "binding")
    with pytest.raises(DamagedError, match=damaged):
        index.refresh()
    save_index_file(files, [(_pack(1), _blobs(1))], Marks(frozenset({damaged})))
    index.refresh()
    assert index.blob_count() == len(_blobs(1))


@pytest.mark.parametrize("field", ["supersedes", "brs_dropped"])
@pytest.mark.parametrize("value", ["[1]", '["x"]', '"text"', "{}", "7"])
def test_marks_that_are_no_names_are_damage(files: SealedFiles, field: str, value: str) -> None:
    name = files.save(Kind.INDEX, f'{{"{field}":{value},"packs":[]}}'.encode())
    if value == "{}":
        assert list(load_index_file(files, name)) == []  # as null: nothing is named
        return
    with pytest.raises(DamagedError, match=name):
        list(load_index_file(files, name))


def test_marks_stand_in_the_last_file_of_a_set_so_that_a_kill_never_hides_what_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_rewrite, "MAX_BLOBS", 10)
    marks = Marks(frozenset({"ab" * 32}))
    repo = new_repo(tmp_path / "repo")
    with repo.lock(exclusive=True) as lock:
        packs = [(_pack(number), _blobs(number)) for number in range(5)]
        names = index_rewrite.write_index(repo, lock, packs, lambda: marks)
        found = [open_index_file(repo.files, name) for name in names]
        assert [len(one.packs) for one in found] == [2, 2, 1]
        assert [one.marks for one in found] == [Marks(), Marks(), marks]
        (alone,) = index_rewrite.write_index(repo, lock, [], lambda: marks)
        assert open_index_file(repo.files, alone).marks == marks
        assert index_rewrite.write_index(repo, lock, []) == []
