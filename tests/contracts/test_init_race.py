"""Two who make a repository at one place in the same instant: one has made it, and everybody sees that one."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore

from node_agent.errors import BackendUnavailable, RepositoryExists
from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.backend import s3 as s3_module
from node_agent.repository.backend.gate import Gate
from node_agent.repository.backend.s3 import S3Backend
from node_agent.repository.crypto import Key
from node_agent.repository.keys import add_key
from node_agent.repository.repository import Repository
from tests.contracts.backend_peers import Place, Radosgw
from tests.contracts.lock_world import World
from tests.repository.core_world import FAST, PASSWORD

RACERS = 3


def _race(place: Place) -> list[str | RepositoryExists]:
    """What each of the racers got: the id of the repository that it made, or that there is one."""
    results: list[str | RepositoryExists] = []
    start = threading.Barrier(RACERS)

    def make() -> None:
        backend = place.open()
        start.wait()
        try:
            with Repository.init(backend, PASSWORD, scrypt=FAST) as repo:
                results.append(repo.id)
        except RepositoryExists as error:
            results.append(error)

    threads = [threading.Thread(target=make) for _ in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _one_won(place: Place) -> None:
    results = _race(place)
    made = [result for result in results if isinstance(result, str)]
    assert len(results) == RACERS and len(made) == 1, results
    store = place.open()
    assert len(list(store.list(Kind.KEY))) == 1
    with Repository.open(store, PASSWORD) as repo:
        assert repo.id == made[0]


@pytest.mark.parametrize("attempt", range(3))
def test_in_a_folder(tmp_path: Path, attempt: int) -> None:
    _one_won(Place(str(tmp_path / str(attempt))))


@pytest.mark.parametrize("attempt", range(3))
def test_in_a_bucket_with_versions_of_radosgw_which_keeps_no_conditions(gateway: Radosgw, attempt: int) -> None:
    bucket = f"versions-{uuid.uuid4().hex[:12]}"
    s3 = gateway.s3(gateway.state.user)
    s3.create_bucket(Bucket=bucket)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    place = gateway.place_in(bucket)
    _one_won(place)
    versions = [v for v in s3.list_object_versions(Bucket=bucket)["Versions"] if v["Key"].endswith("/config")]
    assert len(versions) == 1, attempt


def test_in_a_bucket_with_object_lock(world: World) -> None:
    _one_won(world.place)
    assert len([v for v in world.versions() if v["Key"].endswith("/config")]) == 1


def test_a_key_that_a_killed_init_left_goes_when_the_config_is_there(tmp_path: Path) -> None:
    backend = open_backend(str(tmp_path / "repo"))
    backend.create()
    left = "ab" * 32
    backend.put(Kind.KEY, left, [b"{}"])
    with Repository.init(backend, PASSWORD, scrypt=FAST):
        assert left not in {info.name for info in backend.list(Kind.KEY)}


def test_a_key_of_a_killed_loser_does_not_hide_the_repository(tmp_path: Path) -> None:
    """Its password is the same, its master key is not: which of the two is tried first is chance."""
    backend = open_backend(str(tmp_path / "repo"))
    with Repository.init(backend, PASSWORD, scrypt=FAST) as repo:
        first = repo.id
    for _ in range(4):
        add_key(backend, Key.random(), PASSWORD, FAST)
    with Repository.open(backend, PASSWORD) as repo:
        assert repo.id == first


def test_the_claim_of_a_killed_program_counts_for_some_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    backend = S3Backend(store, Gate(), url="s3:memory", bucket="b", prefix="p")
    obstore.put(store, "p/locks/init-tmp-0123456789abcdef", b"")
    with pytest.raises(BackendUnavailable, match="Another program is making a repository"):
        backend.put(Kind.CONFIG, "config", [b"x"])
    assert [meta["path"] for page in obstore.list(store) for meta in page] == ["p/locks/init-tmp-0123456789abcdef"]
    monkeypatch.setattr(s3_module, "CLAIM_S", -1.0)
    backend.put(Kind.CONFIG, "config", [b"x"])
    with pytest.raises(RepositoryExists):
        backend.put(Kind.CONFIG, "config", [b"y"])
    assert backend.get(Kind.CONFIG, "config") == b"x"
    assert backend.remove_leftovers() == 1
