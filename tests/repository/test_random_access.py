"""Reads at any offset give the bytes of the file, whatever happens to cache, index and packs meanwhile."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node_agent.drivers.image import open_image
from node_agent.errors import DamagedError, SourceError
from node_agent.repository.backend import Kind
from node_agent.repository.backend.local import LocalBackend
from node_agent.repository.image import ImageBackup
from node_agent.repository.pack import BlobKind
from node_agent.repository.random_access import BlobCache, OpenFile, RandomAccess
from node_agent.repository.repository import Repository
from tests.repository.core_world import flip, new_repo, open_repo, stored
from tests.repository.data_world import MIB, back_up, back_up_images

CONTENT = os.urandom(3 * MIB + 5) + bytes(6 * MIB) + b"x" * (2 * MIB) + os.urandom(4 * MIB + 777)


@pytest.fixture(scope="module")
def stored_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, bytes]:
    folder = tmp_path_factory.mktemp("random")
    (folder / "file").write_bytes(CONTENT)
    (folder / "empty").touch()
    repo = new_repo(folder / "repo")
    snapshot = back_up(repo, folder / "file", folder / "empty").snapshot_id
    repo.close()
    return folder, snapshot, os.fsencode(folder / "file")


@pytest.fixture
def access(stored_file: tuple[Path, str, bytes]) -> Iterator[RandomAccess]:
    repo = open_repo(stored_file[0] / "repo")
    repo.load_index()
    with RandomAccess(repo, cache_bytes=4 * MIB) as opened:
        yield opened


@pytest.fixture
def file(access: RandomAccess, stored_file: tuple[Path, str, bytes]) -> OpenFile:
    return access.open(*stored_file[1:])


def data_packs(repo: Repository, folder: Path) -> list[Path]:
    repo.load_index()
    names = {name for name, blobs in repo.index.packs() if blobs[0].kind is BlobKind.DATA}
    return [path for path in stored(folder, "data") if path.name in names]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(offset=st.integers(0, len(CONTENT) + 10), length=st.integers(0, 3 * MIB))
def test_any_range_is_what_the_file_holds(file: OpenFile, offset: int, length: int) -> None:
    assert file.read(offset, length) == CONTENT[offset : offset + length]


def test_a_sequential_reader_gets_everything_and_the_cache_keeps_its_bound(
    access: RandomAccess, file: OpenFile
) -> None:
    offset, parts = 0, []
    while part := file.read(offset, 100_000):
        parts.append(part)
        offset += len(part)
        assert access.cache.size <= 4 * MIB or len(access.cache._blobs) == 1
    assert b"".join(parts) == CONTENT


def test_the_end_of_a_file_is_not_passed_and_nothing_is_before_its_start(file: OpenFile) -> None:
    assert file.size == len(CONTENT)
    assert file.read(len(CONTENT) - 3, 10) == CONTENT[-3:]
    assert file.read(len(CONTENT), 1) == b""
    with pytest.raises(ValueError, match="negative"):
        file.read(-1, 1)


def test_an_empty_file_and_a_folder(access: RandomAccess, stored_file: tuple[Path, str, bytes]) -> None:
    folder, snapshot, _ = stored_file
    assert access.open(snapshot, os.fsencode(folder / "empty")).read(0, 10) == b""
    with pytest.raises(SourceError, match="is not a file"):
        access.open(snapshot, os.fsencode(folder))


def test_zeros_of_a_hole_are_answered_without_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(32 * MIB)
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, tmp_path / "sparse").snapshot_id

    def refuse(blob_id: bytes) -> bytes:
        raise AssertionError("the store was asked")

    with RandomAccess(repo) as access:
        file = access.open(snapshot, os.fsencode(tmp_path / "sparse"))
        monkeypatch.setattr(access, "_load", refuse)
        assert file.read(0, 24 * MIB) == bytes(24 * MIB)


def test_many_readers_at_once_get_what_each_asked_for(file: OpenFile) -> None:
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            offset, length = rng.randrange(len(CONTENT)), rng.randrange(300_000)
            if file.read(offset, length) != CONTENT[offset : offset + length]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_blob_that_many_want_is_loaded_once() -> None:
    cache = BlobCache(100)
    begun, go_on = threading.Event(), threading.Event()
    loads: list[bytes] = []

    def load(blob_id: bytes) -> bytes:
        loads.append(blob_id)
        begun.set()
        assert go_on.wait(20)
        return b"content"

    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(cache.get(b"id", load))) for _ in range(5)]
    threads[0].start()
    assert begun.wait(20)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert (loads, answers) == ([b"id"], [b"content"] * 5)


def test_a_load_that_failed_is_tried_anew() -> None:
    cache = BlobCache(100)

    def fail(blob_id: bytes) -> bytes:
        raise DamagedError("not now")

    with pytest.raises(DamagedError):
        cache.get(b"id", fail)
    assert cache.get(b"id", lambda blob_id: b"now") == b"now"


def test_what_was_used_last_stays_in_the_cache() -> None:
    cache = BlobCache(10)
    for blob_id in (b"a", b"b", b"a", b"c"):
        cache.get(blob_id, lambda blob_id: blob_id * 5)
    asked: list[bytes] = []
    cache.fill([b"a", b"b", b"c", b"b"], lambda ids: asked.extend(ids) or {b"b": b"b" * 5}, lambda blob_id: blob_id)
    assert (asked, cache.size) == ([b"b"], 10)


def test_of_neighbours_one_of_which_is_lost_the_others_are_kept() -> None:
    cache = BlobCache(100)

    def together(ids: Sequence[bytes]) -> dict[bytes, bytes]:
        raise DamagedError("one of them")

    def alone(blob_id: bytes) -> bytes:
        if blob_id == b"lost":
            raise DamagedError("this one")
        return blob_id * 2

    cache.fill([b"a", b"lost", b"b"], together, alone)
    assert [cache.get(one, lambda _: b"anew") for one in (b"a", b"lost", b"b")] == [b"aa", b"anew", b"bb"]


def test_who_waits_for_neighbours_is_told_when_their_load_breaks() -> None:
    cache = BlobCache(100)
    begun, go_on = threading.Event(), threading.Event()

    def together(ids: Sequence[bytes]) -> dict[bytes, bytes]:
        begun.set()
        assert go_on.wait(20)
        raise MemoryError

    def alone(blob_id: bytes) -> bytes:
        raise MemoryError

    def fill() -> None:
        with pytest.raises(MemoryError):
            cache.fill([b"a", b"b"], together, alone)

    filling = threading.Thread(target=fill)
    filling.start()
    assert begun.wait(20)
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            cache.get(b"b", lambda _: b"never asked")
        except MemoryError as error:
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    go_on.set()
    waiting.join(20)
    filling.join(20)
    assert not waiting.is_alive() and not filling.is_alive()


def test_a_sequential_reader_costs_a_request_for_each_megabyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(8 * MIB)
    repo = new_repo(tmp_path / "repo")
    (tmp_path / "disk").write_bytes(data)
    with open_image(tmp_path / "disk", format="raw") as source:
        snapshot = back_up_images(repo, ImageBackup("sda", source)).snapshot_id
    asked: list[int] = []
    get = LocalBackend.get

    def counted(self: LocalBackend, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if kind is Kind.PACK:
            asked.append(length or 0)
        return get(self, kind, name, offset, length)

    with RandomAccess(repo) as access:
        disk = access.open(snapshot, b"/disks/sda.raw")
        monkeypatch.setattr(LocalBackend, "get", counted)
        assert b"".join(disk.read(at, 128 << 10) for at in range(0, len(data), 128 << 10)) == data
    assert len(asked) <= 8 + 4, asked  # what the reader meets first it may fetch by itself


def test_packs_that_a_prune_replaced_are_found_anew(tmp_path: Path) -> None:
    data = os.urandom(3 * MIB)
    (tmp_path / "file").write_bytes(data)
    repo = new_repo(tmp_path / "repo")
    back_up(repo, tmp_path / "file")
    old = {path: path.read_bytes() for kind in ("data", "index") for path in stored(tmp_path / "repo", kind)}
    for path in old:
        path.unlink()
    snapshot = back_up(open_repo(tmp_path / "repo"), tmp_path / "file").snapshot_id  # other packs, the same blobs
    new = {path: path.read_bytes() for kind in ("data", "index") for path in stored(tmp_path / "repo", kind)}
    for path in new:
        path.unlink()
    for path, content in old.items():
        path.write_bytes(content)
    for path, content in new.items():
        if path.parent.parent.name == "data" and path not in old:
            path.write_bytes(content)
    reader = open_repo(tmp_path / "repo")
    reader.load_index()  # knows the old packs only
    with RandomAccess(reader) as access:
        file = access.open(snapshot, os.fsencode(tmp_path / "file"))
        assert file.read(10, 10) == data[10:20]
        for path in old:
            if path not in new:
                path.unlink()
        for path, content in new.items():
            path.write_bytes(content)
        access.cache._blobs.clear()
        assert b"".join(file.read(offset, MIB) for offset in range(0, len(data), MIB)) == data


def test_a_pack_that_is_gone_for_good_is_named_with_file_and_offset(
    tmp_path: Path, stored_file: tuple[Path, str, bytes]
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(1000))
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, tmp_path / "file").snapshot_id
    (pack,) = data_packs(repo, tmp_path / "repo")
    pack.unlink()
    with RandomAccess(repo) as access:
        file = access.open(snapshot, os.fsencode(tmp_path / "file"))
        with pytest.raises(DamagedError, match=rf"{tmp_path}/file cannot be read at offset 100: pack {pack.name}"):
            file.read(100, 10)


def test_a_damaged_blob_hurts_only_its_own_range(tmp_path: Path) -> None:
    data = os.urandom(8 * MIB)
    (tmp_path / "file").write_bytes(data)
    repo = new_repo(tmp_path / "repo")
    snapshot = back_up(repo, tmp_path / "file").snapshot_id
    repo.load_index()
    name, blobs = next((n, b) for n, b in repo.index.packs() if b[0].kind is BlobKind.DATA)
    pack = next(path for path in stored(tmp_path / "repo", "data") if path.name == name)
    hurt = blobs[len(blobs) // 2]
    flip(pack, hurt.offset + 40)
    with RandomAccess(repo) as access:
        file = access.open(snapshot, os.fsencode(tmp_path / "file"))
        bad = file._ids.find(hurt.id)
        start, end = file._ends[bad - 1] if bad else 0, file._ends[bad]
        assert file.read(0, start) + file.read(end, len(data)) == data[:start] + data[end:]
        for offset, length in ((start, 1), (end - 1, 1), (start - 5 if start else 0, 10)):
            with pytest.raises(DamagedError, match=name):
                file.read(offset, length)
