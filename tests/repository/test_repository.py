from __future__ import annotations

import os
from pathlib import Path

import pytest

from node_agent.errors import (
    BackendReadOnly,
    DamagedError,
    RepositoryError,
    RepositoryExists,
    RepositoryLocked,
    RepositoryMissing,
    RepositoryUnsupported,
    WrongPassword,
)
from node_agent.progress import Progress
from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.backend.local import LocalBackend
from node_agent.repository.crypto import Key
from node_agent.repository.keys import add_key
from node_agent.repository.reader import BlobReader
from node_agent.repository.repository import BlobKind, Config, Repository
from node_agent.repository.sealed import SealedFiles
from tests.repository.core_world import FAST, PASSWORD, flip, new_repo, open_repo, store, stored


def test_a_new_repository_opens_with_its_password_and_only_with_it(tmp_path: Path) -> None:
    made = Repository.init(open_backend(str(tmp_path / "repo")), PASSWORD, repository_id="ab" * 32)
    assert made.id == "ab" * 32 and not made.read_only
    assert open_repo(tmp_path / "repo").id == "ab" * 32
    with pytest.raises(WrongPassword):
        Repository.open(open_backend(str(tmp_path / "repo")), "wrong")


def test_a_second_init_leaves_the_first_alone(tmp_path: Path) -> None:
    first = new_repo(tmp_path / "repo")
    with pytest.raises(RepositoryExists):
        Repository.init(open_backend(str(tmp_path / "repo")), PASSWORD, scrypt=FAST)
    assert open_repo(tmp_path / "repo").id == first.id
    assert len(stored(tmp_path / "repo", "keys")) == 1


def test_an_init_killed_before_its_config_is_simply_repeated(tmp_path: Path) -> None:
    backend = open_backend(str(tmp_path / "repo"))
    backend.create()
    add_key(backend, Key.random(), PASSWORD, FAST)
    with pytest.raises(RepositoryMissing):
        Repository.open(backend, PASSWORD)
    new_repo(tmp_path / "repo")
    assert len(stored(tmp_path / "repo", "keys")) == 1


def test_an_init_never_buries_data_whose_config_was_lost(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with repo.lock():
        store(repo, [b"precious"])
    (tmp_path / "repo" / "config").unlink()
    with pytest.raises(RepositoryExists, match="config is missing"):
        Repository.init(open_backend(str(tmp_path / "repo")), PASSWORD, scrypt=FAST)
    assert len(stored(tmp_path / "repo", "keys")) == 1


@pytest.mark.parametrize("there", [False, True])
def test_where_there_is_no_repository_it_says_so(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "repo").mkdir()
    with pytest.raises(RepositoryMissing, match=str(tmp_path / "repo")):
        open_repo(tmp_path / "repo")


def test_a_flipped_config_is_named(tmp_path: Path) -> None:
    new_repo(tmp_path / "repo")
    flip(tmp_path / "repo" / "config", 20)
    with pytest.raises(DamagedError, match="config"):
        open_repo(tmp_path / "repo")


@pytest.mark.parametrize("kind", ["index", "snapshots"])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str) -> None:
    repo = new_repo(tmp_path / "repo")
    with repo.lock():
        store(repo, [b"x"])
    name = repo.files.save(Kind(kind), b"{}")
    path = tmp_path / "repo" / kind / name
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=name):
        repo.files.load(Kind(kind), name)


def test_a_format_of_the_future_is_refused_by_its_number(tmp_path: Path) -> None:
    backend = open_backend(str(tmp_path / "repo"))
    backend.create()
    master = Key.random()
    add_key(backend, master, PASSWORD, FAST)
    SealedFiles(backend, master).save(Kind.CONFIG, Config(3, "ab" * 32, 0x3DA3358B4DC173).to_json())
    with pytest.raises(RepositoryUnsupported, match="version 3"):
        open_repo(tmp_path / "repo")


def test_blobs_are_loaded_one_by_one_and_many_at_once(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    contents = [os.urandom(300_000) if n % 2 else b"%d" % n * 50_000 for n in range(40)]
    with repo.lock():
        ids = store(repo, contents)
    again = open_repo(tmp_path / "repo")
    assert [again.load_blob(BlobKind.DATA, blob_id) for blob_id in ids] == contents
    assert dict(again.load_blobs(BlobKind.DATA, ids + ids[:3])) == dict(zip(ids, contents, strict=True))
    assert [again.blob_size(BlobKind.DATA, blob_id) for blob_id in ids] == list(map(len, contents))
    assert again.blob_sizes(BlobKind.DATA, [*ids, bytes(32)]) == dict(zip(ids, map(len, contents), strict=True))
    assert again.missing(BlobKind.DATA, [*ids, bytes(32)]) == {bytes(32)}


def test_an_unknown_blob_is_named(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    for load in (repo.load_blob, lambda kind, blob_id: list(repo.load_blobs(kind, [blob_id]))):
        with pytest.raises(DamagedError, match="00" * 32):
            load(BlobKind.DATA, bytes(32))


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_a_hurt_pack_is_named_with_the_blob(tmp_path: Path, harm: str) -> None:
    repo = new_repo(tmp_path / "repo")
    with repo.lock():
        (blob_id,) = store(repo, [b"content" * 100])
    (pack,) = stored(tmp_path / "repo", "data")
    if harm == "flip":
        flip(pack, 25)
    elif harm == "truncate":
        pack.chmod(0o600)
        pack.write_bytes(pack.read_bytes()[:30])
    else:
        pack.unlink()
    for load in (repo.load_blob, lambda kind, wanted: list(repo.load_blobs(kind, [wanted]))):
        with pytest.raises(DamagedError) as caught:
            load(BlobKind.DATA, blob_id)
        assert pack.name in caught.value.message and blob_id.hex() in caught.value.message


def test_a_second_copy_of_a_blob_is_used_when_the_first_is_hurt(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    other = open_repo(tmp_path / "repo")
    other.load_index()  # knows nothing of what repo stores next, so it stores the blob again
    with repo.lock(), other.lock():
        (blob_id,) = store(repo, [b"twice" * 100])
        store(other, [b"twice" * 100])
    packs = stored(tmp_path / "repo", "data")
    assert len(packs) == 2
    again = open_repo(tmp_path / "repo")
    for hurt, healthy in (packs, packs[::-1]):
        flip(hurt, 20)
        assert again.load_blob(BlobKind.DATA, blob_id) == b"twice" * 100
        assert list(again.load_blobs(BlobKind.DATA, [blob_id])) == [(blob_id, b"twice" * 100)]
        flip(hurt, 20)
        assert healthy.exists()


def test_nothing_is_written_without_a_lock(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with pytest.raises(RepositoryError, match="lock"):
        repo.writer(Progress())
    with repo.lock():
        pass
    with pytest.raises(RepositoryError, match="lock"):
        repo.writer(Progress())


def test_nothing_is_written_once_the_lock_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = new_repo(tmp_path / "repo")
    with repo.lock() as lock:
        with pytest.raises(RepositoryLocked), repo.writer(Progress()) as writer:
            writer.submit(BlobKind.DATA, b"x")
            lock._lost = "for the test"
        assert stored(tmp_path / "repo", "data") == stored(tmp_path / "repo", "index") == []


def test_a_read_only_store_is_read_without_a_lock_only_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = new_repo(tmp_path / "repo")
    with repo.lock():
        (blob_id,) = store(repo, [b"x"])

    def refuse(*_: object) -> float:
        raise BackendReadOnly

    monkeypatch.setattr(LocalBackend, "now", refuse)
    with pytest.raises(BackendReadOnly), repo.lock():
        pass
    with repo.lock(read_only_ok=True) as lock:
        assert repo.load_blob(BlobKind.DATA, blob_id) == b"x"
        with pytest.raises(BackendReadOnly):
            lock.check()
        with pytest.raises(BackendReadOnly):
            repo.writer(Progress())


def test_another_password_can_be_added(tmp_path: Path) -> None:
    repo = new_repo(tmp_path / "repo")
    with repo.lock():
        repo.add_key("second")
    assert Repository.open(open_backend(str(tmp_path / "repo")), "second").id == repo.id


def test_a_recreated_repository_at_one_place_never_uses_the_old_cache(tmp_path: Path) -> None:
    backend = open_backend(str(tmp_path / "repo"))
    Repository.init(backend, PASSWORD, repository_id="ab" * 32, scrypt=FAST)
    repo = open_repo(tmp_path / "repo", cache_dir=tmp_path / "cache")
    with repo.lock():
        (blob_id,) = store(repo, [b"x"])
    os.rename(tmp_path / "repo", tmp_path / "old")
    Repository.init(backend, PASSWORD, repository_id="ab" * 32, scrypt=FAST)
    again = open_repo(tmp_path / "repo", cache_dir=tmp_path / "cache")
    assert not again.has(BlobKind.DATA, blob_id)


def test_blobs_are_read_ahead_by_the_size_of_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of a disk compresses to a hundredth: many of them lie in one small read."""
    monkeypatch.setattr("node_agent.repository.reader._MAX_HELD", 3 << 20)
    repo = new_repo(tmp_path / "repo")
    contents = [bytes([number]) * (1 << 20) for number in range(20)]
    with repo.lock():
        ids = store(repo, contents)
        in_hand: list[int] = []
        load = BlobReader._load_run

        def count(reader: BlobReader, run: object) -> object:
            loaded = load(reader, run)  # type: ignore[arg-type]
            in_hand.append(sum(len(content) for _, content in loaded))
            return loaded

        monkeypatch.setattr(BlobReader, "_load_run", count)
        assert dict(repo.load_blobs(BlobKind.DATA, ids)) == dict(zip(ids, contents, strict=True))
    assert max(in_hand) <= 3 << 20
    assert sum(in_hand) == 20 << 20
