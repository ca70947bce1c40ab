"""Repairs where the store keeps what is damaged: it leaves the index, good copies take its place, and it stays gone."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.backend.s3_versions import VersionedBucket
from node_agent.repository.check import check
from node_agent.repository.prune import PruneOptions, prune
from node_agent.repository.repair_index import repair_index
from node_agent.repository.repair_packs import repair_packs
from node_agent.repository.repository import Repository
from tests.contracts.lock_world import DAY_S, Quick, World, point, restic, wait_until_unlocked
from tests.repository.core_world import FAST, PASSWORD

GOOD = "no errors were found"


@contextmanager
def flipping(monkeypatch: pytest.MonkeyPatch, folder: str) -> Iterator[list[str]]:
    """What is put into this folder meanwhile is damaged on its way: a lock on it then protects damage."""
    honest = VersionedBucket.put
    damaged: list[str] = []

    def put(self: VersionedBucket, path: str, content: Any, digest: bytes, lock: Any = None) -> str:
        if folder in path and not damaged:
            damaged.append(path.rpartition("/")[2])
            wrong = bytearray(content)
            wrong[8] ^= 1
            content, digest = bytes(wrong), hashlib.sha256(wrong).digest()
        return honest(self, path, content, digest, lock)

    with monkeypatch.context() as patched:
        patched.setattr(VersionedBucket, "put", put)
        yield damaged


@pytest.fixture
def contents() -> list[bytes]:
    return [os.urandom(50_000) for _ in range(3)]


@pytest.fixture
def healthy(tmp_path: Path, contents: list[bytes]) -> Path:
    """Another repository that has the same data."""
    folder = tmp_path / "healthy"
    with Repository.init(open_backend(str(folder)), PASSWORD, scrypt=FAST) as repo:
        point(repo, contents)
    return folder


def _hurt(world: World, folder: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch, period_s: float) -> str:
    """A repository with a good point, and one whose data were damaged on their way. Returns the damaged pack."""
    quick = Quick(world, folder, period_s)
    quick.point([os.urandom(5000)], host="other")
    with flipping(monkeypatch, "/data/") as damaged:
        quick.point(contents)
    return damaged[0]


def _heal(world: World, folder: Path, healthy: Path, expect: int) -> dict[str, Any]:
    cli = world.cli(folder)
    cli.env["RESTIC_FROM_PASSWORD"] = PASSWORD
    args = ("repair", "packs", "--read-data", "--from", str(healthy), "--json")
    done = cli.run(*world.options(), *args, expect=expect)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def _named(quick_backend: Any, cache: Path) -> set[str]:
    with Repository.open(quick_backend, PASSWORD, cache_dir=cache) as repo:
        repo.load_index()
        return {pack for pack, _ in repo.index.packs()}


def test_a_damaged_locked_pack_leaves_the_index_and_is_healed_and_stays_out_of_sight(
    world: World, tmp_path: Path, contents: list[bytes], healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = _hurt(world, tmp_path, contents, monkeypatch, 30 * DAY_S)  # longer than what the command line is told
    cli = world.cli(tmp_path)
    assert damaged in _named(world.place.open(), tmp_path / "one that knew the old index")
    old = {v["Key"]: world.until(v) for v in world.versions()}
    summary = _heal(world, tmp_path, healthy, expect=3)
    assert summary["healed_blobs"] == 1 and summary["moved_blobs"] == 2 and summary["lost_blobs"] == []
    still = {(one["kind"], one["name"]): one["locked_until"] for one in summary["still_locked"]}
    assert ("pack", damaged) in still and any(kind == "index" for kind, _ in still)
    assert all(until > time.time() + 30 * DAY_S - 60 for until in still.values())
    # What stands in for locked objects is locked as long as they were; nothing that was locked has gone.
    new = {v["Key"]: world.until(v) for v in world.versions()}
    assert all(new[key] >= until for key, until in old.items())
    assert all(
        new[key] >= old[world.key(Kind.PACK, damaged)] for key in new.keys() - old.keys() if "/locks/" not in key
    )
    # Everybody sees it repaired: this machine, another one, one that knew the old index, and stock restic.
    for cache in ("cache", "one that knew the old index", "another"):
        assert damaged not in _named(world.place.open(), tmp_path / cache)
    assert cli.json(*world.options(), "check", "--read-data")["num_errors"] == 0
    assert GOOD in restic(cli, "check", "--read-data")
    # And it stays so.
    assert b"nothing was changed" in cli.run(*world.options(), "repair", "index").stdout
    told = cli.run(*world.options(), "repair", "undelete").stdout.decode()
    assert told.startswith("0 objects brought back, 0 have no right version left")
    assert world.attack() > 8
    assert "0 have no right version left" in cli.run(*world.options(), "repair", "undelete").stdout.decode()
    assert GOOD in restic(cli, "check", "--read-data")
    assert damaged not in _named(world.place.open(), tmp_path / "after the attack")
    told = cli.run(*world.options(), "repair", "index", "--read-all-packs").stdout.decode()
    assert damaged not in _named(world.place.open(), tmp_path / "all packs read"), told
    assert cli.json(*world.options(), "backup", str(healthy))["immutable"] is True


def test_without_the_password_undelete_brings_back_all_and_brs_still_does_not_count_it(
    world: World, tmp_path: Path, contents: list[bytes], healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = _hurt(world, tmp_path, contents, monkeypatch, 3600)
    _heal(world, tmp_path, healthy, expect=3)
    cli = world.cli(tmp_path)
    cli.env.pop("RESTIC_PASSWORD", None)
    cli.env.pop("BRS_REPOSITORY_PASSWORD", None)
    assert "--without-password" in cli.error(*world.options(), "repair", "undelete")
    cli.run(
        *world.options(), "repair", "undelete", "--without-password", expect=1
    )  # the damaged pack has no right version
    assert damaged not in _named(world.place.open(), tmp_path / "another")


def test_when_their_time_is_over_prune_removes_what_a_repair_replaced(
    world: World, tmp_path: Path, contents: list[bytes], healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = _hurt(world, tmp_path, contents, monkeypatch, 15)
    quick = Quick.again(world, tmp_path, 15)
    with Repository.open(open_backend(str(healthy)), PASSWORD) as other, quick.open() as repo:
        other.load_index()
        with repo.lock(exclusive=True) as lock:
            result = repair_packs(repo, lock, [damaged], sources=[other])
        replaced = {one.name for one in result.still_locked}
        assert damaged in replaced and len(replaced) >= 2
        assert prune(repo, PruneOptions(max_unused="0")).locked_packs >= 1
    assert replaced <= {v["Key"][-64:] for v in world.versions()}
    wait_until_unlocked(world, replaced)
    with quick.open() as repo:
        prune(repo, PruneOptions(max_unused="0"))
    left = {v["Key"][-64:] for v in [*world.versions(), *world.markers()]}
    assert not replaced & left
    assert GOOD in restic(world.cli(tmp_path), "check", "--read-data")


def test_a_damaged_locked_index_file_is_superseded_by_what_the_packs_say(
    world: World, tmp_path: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Quick(world, tmp_path, 3600)
    quick.point([os.urandom(5000)], host="other")
    with flipping(monkeypatch, "/index/") as damaged:
        quick.point(contents)
    cli = world.cli(tmp_path)
    done = cli.run(*world.options(), "repair", "index", "--json", expect=3)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["damaged_files"] == damaged
    assert [one["name"] for one in summary["still_locked"]] == damaged
    told = cli.run(*world.options(), "repair", "index").stdout.decode()
    assert "nothing was changed" in told
    assert cli.json(*world.options(), "check", "--read-data")["num_errors"] == 0
    assert GOOD in restic(cli, "check", "--read-data")
    assert "0 objects brought back" in cli.run(*world.options(), "repair", "undelete").stdout.decode()


def test_a_repair_that_was_killed_before_it_could_hide_anything_is_finished_by_the_next(
    world: World, tmp_path: Path, contents: list[bytes], healthy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The superseding file is what counts; markers are for other programs."""
    quick = Quick(world, tmp_path, 3600)
    with flipping(monkeypatch, "/index/") as damaged:
        quick.point(contents)

    class Killed(BaseException):
        pass

    def killed(*_args: Any) -> bool:
        raise Killed

    with quick.open() as repo, repo.lock(exclusive=True) as lock:
        lock_class = type(repo.backend.object_lock)
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(lock_class, "hide", killed)
            repair_index(repo, lock)
    assert world.markers() == []
    with quick.open() as repo, repo.lock():
        repo.load_index()
        assert not check(repo, read_data=True).errors
    with quick.open() as repo, repo.lock(exclusive=True) as lock:
        result = repair_index(repo, lock)
        assert not result.changed and [one.name for one in result.still_locked] == damaged
    assert GOOD in restic(world.cli(tmp_path), "check", "--read-data")


def test_a_locked_pack_that_was_only_overwritten_is_whole_to_a_repair(world: World, tmp_path: Path) -> None:
    quick = Quick(world, tmp_path, 3600)
    quick.point([os.urandom(50_000)])
    packs = [v["Key"] for v in world.versions() if "/data/" in v["Key"]]
    for key in packs:
        world.s3.put_object(Bucket=world.bucket, Key=key, Body=b"ransom" * 20_000)
    cli = world.cli(tmp_path)
    summary = cli.json(*world.options(), "repair", "packs", *(key[-64:] for key in packs))
    assert sorted(summary["healthy_packs"]) == sorted(key[-64:] for key in packs)
    assert summary["still_locked"] == [] and summary["replaced_packs"] == []
