"""What fills a locked repository besides files: disk images and copies; and what a node's tasks say of such a store."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from uuid import uuid4

import pytest

from node_agent.config import RootsConfig
from node_agent.errors import LockRefused
from node_agent.guard import Guard
from node_agent.progress import Progress
from node_agent.protocol import (
    BackupResult,
    BackupSource,
    BackupSpec,
    InitResult,
    InitSpec,
    ProbeSpec,
    RepositoryAccess,
)
from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.immutable import NOT_IMMUTABLE_TAG
from node_agent.repository.lock import LockHolder
from node_agent.repository.prune import PruneOptions, prune
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import list_snapshots, remove_snapshot
from node_agent.tasks.context import TaskContext
from node_agent.tasks.dispatch import perform
from node_agent.tasks.throttle import ThrottledBackend
from tests.contracts.backend_peers import Place, Radosgw
from tests.contracts.lock_world import DAY_S, Quick, World, allow, env, restic, wait_until_unlocked
from tests.repository.core_world import FAST, PASSWORD

MIB = 1 << 20
KINDS = ("/data/", "/index/", "/snapshots/")


def _all_locked(world: World, since: float, days: float = 1) -> None:
    wanted = [v for v in world.versions() if any(kind in v["Key"] for kind in KINDS)]
    assert {kind for kind in KINDS for v in wanted if kind in v["Key"]} == set(KINDS)
    assert all(world.until(version) >= since + days * DAY_S for version in wanted)


def test_full_and_incremental_images_are_immutable_and_come_back_after_an_attack(world: World, tmp_path: Path) -> None:
    disk, extents = tmp_path / "disk", tmp_path / "extents.json"
    disk.write_bytes(os.urandom(3 * MIB) + bytes(2 * MIB) + os.urandom(MIB))
    cli = world.cli(tmp_path)
    cli.run(*world.options(), "init")
    begun = time.time()
    first = cli.json(*world.options(), "backup-image", str(disk), "--name", "sda")
    assert first["immutable"] is True
    before = disk.read_bytes()
    with disk.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(os.urandom(MIB))
    extents.write_text(json.dumps([{"offset": 2 * MIB, "length": MIB}]))
    known = ("--name", "sda", "--parent", "latest", "--changed-extents", str(extents))
    second = cli.json(*world.options(), "backup-image", str(disk), *known)
    assert second["immutable"] is True and second["total_bytes_read"] == MIB
    _all_locked(world, begun)
    assert world.attack() > 8
    other = world.cli(tmp_path / "another machine")
    for snapshot, content in ((first["snapshot_id"], before), (second["snapshot_id"], disk.read_bytes())):
        other.run(*world.options(), "restore", snapshot, "--target", str(tmp_path / snapshot[:8]))
        assert (tmp_path / snapshot[:8] / "disks" / "sda.raw").read_bytes() == content
    other.run(*world.options(), "repair", "undelete")
    assert "no errors were found" in restic(other, "check", "--read-data")


def test_an_increment_extends_the_blocks_that_it_inherits(world: World, tmp_path: Path) -> None:
    disk, extents = tmp_path / "disk", tmp_path / "extents.json"
    disk.write_bytes(os.urandom(2 * MIB))
    cli = world.cli(tmp_path)
    cli.run(*world.options(), "init")
    cli.run(*world.options(), "backup-image", str(disk), "--name", "sda")
    inherited = [v for v in world.versions() if "/data/" in v["Key"] and v["Size"] > MIB]
    assert len(inherited) == 1
    extents.write_text("[]")
    longer = ["--option", "object-lock=compliance", "--option", "object-lock-days=60"]
    known = ("--name", "sda", "--parent", "latest", "--changed-extents", str(extents))
    assert cli.json(*longer, "backup-image", str(disk), *known)["immutable"] is True
    assert world.until(inherited[0]) >= time.time() + 59 * DAY_S


def test_a_copy_into_a_locked_repository_is_locked_and_a_second_one_stores_nothing(
    world: World, source: Path, tmp_path: Path
) -> None:
    elsewhere = world.cli(tmp_path / "elsewhere", Place(str(tmp_path / "plain")))
    elsewhere.run("init")
    elsewhere.run("backup", str(source))
    cli = world.cli(tmp_path)
    cli.env["RESTIC_FROM_PASSWORD"] = PASSWORD
    cli.run(*world.options(), "init")
    begun = time.time()
    from_there = ("copy", "--from-repo", str(tmp_path / "plain"))
    assert len(cli.json(*world.options(), *from_there)["copied"]) == 1
    _all_locked(world, begun)
    assert NOT_IMMUTABLE_TAG not in (cli.json(*world.options(), "snapshots")[0].get("tags") or [])
    versions = len(world.versions())
    assert cli.json(*world.options(), *from_there)["copied"] == [] and len(world.versions()) == versions
    name = cli.json(*world.options(), "snapshots")[0]["id"]
    assert "locked until" in cli.run(*world.options(), "forget", name).stderr.decode()
    assert "no errors were found" in restic(cli, "check", "--read-data")


def test_a_copy_that_may_not_be_locked_is_kept_and_says_so(
    gateway: Radosgw, world: World, source: Path, tmp_path: Path
) -> None:
    elsewhere = world.cli(tmp_path / "elsewhere", Place(str(tmp_path / "plain")))
    elsewhere.run("init")
    elsewhere.run("backup", str(source))
    world.cli(tmp_path).run(*world.options(), "init")
    node = gateway.lab.make_user(f"node-{uuid.uuid4().hex[:6]}")
    allow(world, node, lock=True)
    policy = world.s3.get_bucket_policy(Bucket=world.bucket)["Policy"]
    world.s3.put_bucket_policy(Bucket=world.bucket, Policy=policy.replace('"s3:PutObjectRetention"', '"s3:GetObject"'))
    cli = world.cli(tmp_path, Place(world.place.url, {}, env(node)))
    cli.env["RESTIC_FROM_PASSWORD"] = PASSWORD
    options = ["--option", "object-lock=compliance", "--option", "object-lock-days=30"]  # keys need a later date
    done = cli.run(*options, "copy", "--from-repo", str(tmp_path / "plain"))
    assert b"is not immutable" in done.stderr
    assert NOT_IMMUTABLE_TAG in cli.json(*options, "snapshots")[0]["tags"]


def test_images_are_forgotten_and_pruned_when_their_time_is_over(world: World, tmp_path: Path) -> None:
    quick = Quick(world, tmp_path, 8)
    kept = os.urandom(60_000)
    first, _ = quick.point([os.urandom(60_000), kept], host="vm")
    quick.point([kept], host="vm")
    wait_until_unlocked(world)
    with quick.open() as repo:
        with repo.lock(exclusive=True):
            remove_snapshot(repo, first)
        result = prune(repo, PruneOptions(max_unused="0"))
        assert result.locked_packs == 0 and result.freed_bytes > 50_000
        assert len(list_snapshots(repo)) == 1
    assert world.markers() == []
    assert sum(v["Size"] for v in world.versions() if "/data/" in v["Key"]) < 70_000
    assert "no errors were found" in restic(world.cli(tmp_path), "check", "--read-data")


# --- the tasks of a node ---


class NoServer:
    def directories_wanted(self, tree_ids: list[str]) -> list[str]:
        return []

    def send_directories(self, directories: object) -> None: ...

    def upload(self, offset: int, piece: bytes) -> None: ...


def _context(folder: Path, source: Path | None = None) -> TaskContext:
    return TaskContext(
        task_id=uuid4(),
        guard=Guard(RootsConfig(stores=["s3:"], read=[str(source)] if source else []), own=[]),
        progress=Progress(),
        outlet=NoServer(),
        holder=LockHolder.for_node(str(uuid4()), folder / "holder"),
        cache_dir=folder / "cache",
        staging_dir=folder / "staging",
    )


def _told(place: Place) -> dict[str, str]:
    """As a lease carries it."""
    keys = {"access-key-id": place.env["AWS_ACCESS_KEY_ID"], "secret-access-key": place.env["AWS_SECRET_ACCESS_KEY"]}
    return {**place.options, **keys}


def _probe(place: Place, folder: Path) -> list[tuple[str, bool]]:
    spec = ProbeSpec(driver="", path=place.url, repository_url=place.url, options=_told(place), password="")
    result = perform(_context(folder), spec)
    return [(check.name, check.ok) for check in result.checks]  # type: ignore[union-attr]


def test_the_connection_test_tries_to_break_a_lock_with_the_nodes_credentials(
    gateway: Radosgw, world: World, tmp_path: Path
) -> None:
    checks = _probe(world.place, tmp_path)
    promise = "What is locked there stays until its time, also against this node"
    assert (promise, True) in checks and all(ok for _, ok in checks)
    unlocked = gateway.place_in("buck", object_lock="compliance", object_lock_days="7")
    assert _probe(unlocked, tmp_path)[-1] == (promise, False)
    assert _probe(World(gateway, "governance").place, tmp_path)[-1] == (promise, False)  # its owner may bypass


def test_the_init_task_refuses_a_bucket_that_cannot_keep_the_promise(
    gateway: Radosgw, world: World, tmp_path: Path
) -> None:
    def init(place: Place) -> InitResult:
        access = RepositoryAccess(
            repository=uuid4(), url=place.url, options=_told(place), password=PASSWORD, repository_id=""
        )
        return perform(_context(tmp_path), InitSpec(repository=access))  # type: ignore[return-value]

    with pytest.raises(LockRefused, match="Object Lock is not on"):
        init(gateway.place_in("buck", object_lock="compliance", object_lock_days="7"))
    assert init(world.place).repository_id == init(world.place).repository_id
    plain = gateway.place_in("buck")
    init(plain)
    with pytest.raises(LockRefused, match="Object Lock is not on"):  # also where a repository is already
        init(Place(plain.url, {"object-lock": "compliance", "object-lock-days": "7"}, plain.env))


def test_a_backup_task_with_a_bandwidth_limit_is_locked_all_the_same(
    world: World, source: Path, tmp_path: Path
) -> None:
    backend = ThrottledBackend(world.place.open(), 100 << 20, lambda: None)
    assert backend.object_lock is not None
    begun = time.time()
    with Repository.init(backend, PASSWORD, scrypt=FAST):
        pass
    access = RepositoryAccess(
        repository=uuid4(), url=world.place.url, options=_told(world.place), password=PASSWORD, repository_id=""
    )
    spec = BackupSpec(
        workload=uuid4(),
        workload_name="tree",
        point=uuid4(),
        source=BackupSource(driver="files", paths=[str(source)]),
        repository=access,
        host="h",
        snapshot_paths=[str(source)],
        tags=[],
        bandwidth_bytes_s=100 << 20,
    )
    context = _context(tmp_path, source)
    result = perform(context, spec)
    assert isinstance(result, BackupResult) and context.issues.items == []
    _all_locked(world, begun)
    with Repository.open(open_backend(world.place.url, _told(world.place), {}), PASSWORD) as repo:
        assert {info.name for info in repo.backend.list(Kind.SNAPSHOT)} == {result.snapshot_id}
