"""Immutability on a real gateway (radosgw): what an attacker with every right over objects can do, and what stays."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from node_agent.errors import BackendReadOnly, ConfigError, LockRefused, ObjectLocked
from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.backend.lock_rule import LockRule
from node_agent.repository.backend.s3_versions import VersionedBucket
from node_agent.repository.immutable import NOT_IMMUTABLE_TAG
from node_agent.repository.prune import PruneOptions, prune
from node_agent.repository.snapshot import list_snapshots, remove_snapshot
from tests.contracts.backend_peers import Moto, Place, Radosgw
from tests.contracts.lock_world import DAY_S, Quick, World, allow, env, restic, restored, wait_until_unlocked
from tests.repository.cli_world import Cli

LOCKED_KINDS = ("data/", "index/", "snapshots/", "keys/", "config")


def test_everything_but_locks_is_locked_for_at_least_the_time_asked_for(
    world: World, source: Path, tmp_path: Path
) -> None:
    cli = world.cli(tmp_path)
    cli.run(*world.options(), "init")
    summary = cli.json(*world.options(), "backup", str(source))
    assert summary["immutable"] is True
    seen = set()
    for version in world.versions():
        kind = next((k for k in LOCKED_KINDS if version["Key"].startswith(world.prefix + k)), "locks")
        seen.add(kind)
        if kind != "locks":
            assert world.until(version) >= time.time() + DAY_S, version["Key"]
    assert {*LOCKED_KINDS} <= seen
    assert not [v for v in world.versions() if "/locks/" in v["Key"] and "probe-tmp" not in v["Key"]]
    assert "no errors were found" in restic(cli, "check", "--read-data")


def test_after_an_attacker_deleted_and_overwrote_everything_it_restores_and_comes_back(
    world: World, source: Path, tmp_path: Path
) -> None:
    cli = world.cli(tmp_path)
    cli.run(*world.options(), "init")
    cli.run(*world.options(), "backup", str(source))
    (source / "later").write_bytes(os.urandom(200_000))
    cli.run(*world.options(), "backup", str(source))
    assert world.attack() > 8
    other = world.cli(tmp_path / "another machine")
    restored(other, world.options(), tmp_path / "target", source)
    assert len(other.json(*world.options(), "snapshots")) == 2
    told = other.run(*world.options(), "repair", "undelete").stdout.decode()
    assert "0 have no right version left" in told
    assert "no errors were found" in restic(other, "check", "--read-data")
    assert "0 objects brought back" in other.run(*world.options(), "repair", "undelete").stdout.decode()
    assert cli.json(*world.options(), "backup", str(source))["immutable"] is True


def test_a_node_with_its_documented_rights_alone_makes_immutable_backups(
    gateway: Radosgw, world: World, source: Path, tmp_path: Path
) -> None:
    node = gateway.lab.make_user(f"node-{uuid.uuid4().hex[:6]}")
    place = Place(world.place.url, world.place.options, env(node))
    allow(world, node, lock=True)
    cli = world.cli(tmp_path, place)
    cli.run(*world.options(), "init")
    for _ in range(2):
        assert cli.json(*world.options(), "backup", str(source))["immutable"] is True
    restored(cli, world.options(), tmp_path / "target", source)
    probe = cli.json(*world.options(), "probe")
    assert probe["ok"], probe
    store = place.open()
    name = next(info.name for info in store.list(Kind.SNAPSHOT))
    with pytest.raises(ObjectLocked, match="locked until"):
        store.delete(Kind.SNAPSHOT, name)
    assert "locked until" in cli.run(*world.options(), "forget", "latest").stderr.decode()
    unlocked = open_backend(place.url, {}, place.env)
    with pytest.raises(BackendReadOnly):
        unlocked.delete(Kind.SNAPSHOT, name)


def test_backups_need_delete_on_locks_alone_also_without_object_lock(
    gateway: Radosgw, source: Path, tmp_path: Path
) -> None:
    bucket = f"plain-{uuid.uuid4().hex[:12]}"
    gateway.s3(gateway.state.user).create_bucket(Bucket=bucket)
    node = gateway.lab.make_user(f"node-{uuid.uuid4().hex[:6]}")
    place = gateway.place_in(bucket, node)
    world = World.__new__(World)
    world.bucket, world.prefix = bucket, place.url.rpartition("/")[2] + "/"
    world.s3 = gateway.s3(gateway.state.user)
    allow(world, node, lock=False)
    cli = world.cli(tmp_path, place)
    cli.run("init")
    for number in range(2):
        (source / f"more{number}").write_bytes(os.urandom(10_000))
        cli.run("backup", str(source))
    restored(cli, [], tmp_path / "target", source)
    assert [v for v in world.versions() if "/locks/" in v["Key"]] == []
    assert "may not be deleted" in cli.error("forget", "latest")
    assert len(cli.json("snapshots")) == 2


# --- what a bucket must be, and is refused for ---


def test_a_bucket_without_object_lock_is_refused(gateway: Radosgw) -> None:
    with pytest.raises(LockRefused, match="cannot keep the promise") as caught:
        gateway.place_in("buck", object_lock="compliance", object_lock_days="1").open().create()
    assert "Object Lock is not on" in caught.value.message


def test_a_bucket_that_locks_everything_for_long_is_refused(world: World) -> None:
    def default(days: int) -> None:
        retention = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": days}}
        world.s3.put_object_lock_configuration(
            Bucket=world.bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": retention}
        )

    default(30)
    with pytest.raises(LockRefused, match="30 days by itself"):
        world.place.open().create()
    with pytest.raises(LockRefused, match="30 days by itself"):
        world.place.open().put(Kind.PACK, hashlib.sha256(b"x").hexdigest(), [b"x"])
    default(1)
    world.place.open().create()


def test_an_account_that_may_bypass_governance_is_refused_and_told_why(gateway: Radosgw) -> None:
    owner = World(gateway, "governance")
    probe = owner.place.open().object_lock.probe()  # type: ignore[union-attr]
    assert "deleted by a bypass" in probe.problem and "cannot keep the promise" in probe.problem


def test_a_store_that_takes_the_headers_and_ignores_them_is_refused(forgetful: Place, tmp_path: Path) -> None:
    cli = Cli(tmp_path, RESTIC_REPOSITORY=forgetful.url, **forgetful.env)
    options = [part for name, value in forgetful.options.items() for part in ("--option", f"{name}={value}")]
    told = cli.run(*options, "probe", expect=1).stdout.decode()
    assert "refused:" in told and "took a lock and did not set it" in told
    assert "did not set it" in cli.error(*options, "init")


@pytest.mark.parametrize("url", ["azure:c:/p", "gs:b:/p", "sftp:h:/p", "rest:http://h/", "/srv/x"])
def test_other_stores_say_that_they_do_not_offer_it(url: str) -> None:
    with pytest.raises(ConfigError, match="not offered"):
        open_backend(url, {"object-lock": "compliance", "object-lock-days": "7"}, {})


@pytest.mark.parametrize(
    "options",
    [
        {"object-lock": "compliance"},
        {"object-lock-days": "7"},
        {"object-lock": "sometimes", "object-lock-days": "7"},
        {"object-lock": "compliance", "object-lock-days": "0"},
    ],
)
def test_half_of_the_options_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="object-lock"):
        open_backend("s3:https://host/bucket", options, {})


# --- the dates ---


@pytest.mark.parametrize("days", [1, 7, 30, 365])
def test_dates_are_a_quarter_longer_and_on_whole_weeks_so_that_daily_backups_rarely_extend(days: int) -> None:
    rule, period = LockRule("COMPLIANCE", days * DAY_S), days * DAY_S
    extended, until = 0, 0.0
    for day in range(365):
        now = 1.8e9 + day * DAY_S
        if until < now + period:
            until = rule.until(now)
            extended += 1
        assert until >= now + period
        assert until <= now + 1.25 * period + 7 * DAY_S
        assert until % (7 * DAY_S) == 0
    assert extended <= 365 / max(days / 4, 1) + 1


def test_an_old_pack_that_a_new_point_needs_is_extended_and_named_by_a_locked_index_file(
    world: World, tmp_path: Path
) -> None:
    quick = Quick(world, tmp_path, 60)
    old = [os.urandom(5000)]
    quick.point(old)
    first = {v["Key"]: world.until(v) for v in world.versions() if "/data/" in v["Key"]}
    quick.period_s = 3600
    begun = time.time()
    _, reason = quick.point([*old, os.urandom(5000)])
    assert reason == ""
    dates = {v["Key"]: world.until(v) for v in world.versions()}
    extended = {key for key, until in first.items() if dates[key] >= begun + 3600}
    # The pack of the first point's tree is needed no more, and stays as it was.
    assert len(first) == 2 and len(extended) == 1
    with quick.open() as repo:
        repo.load_index()
        locked = {key.rpartition("/")[2] for key, until in dates.items() if "/index/" in key and until >= begun + 3600}
        assert {key.rpartition("/")[2] for key in extended} <= repo.index.packs_of(locked)
    for key, until in dates.items():
        if "/keys/" in key or key.endswith("config"):
            assert until >= begun + 3600
    assert "no errors were found" in restic(world.cli(tmp_path), "check", "--read-data")


def test_known_dates_cost_no_calls_and_one_that_the_store_does_not_confirm_is_asked_for_anew(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Quick(world, tmp_path, 3600)
    contents = [os.urandom(300) for _ in range(40)]
    quick.point(contents)
    calls: list[str] = []
    retain = VersionedBucket.retain

    def counted(self: VersionedBucket, path: str, *args: Any, **more: Any) -> None:
        calls.append(path)
        retain(self, path, *args, **more)

    monkeypatch.setattr(VersionedBucket, "retain", counted)
    quick.point(contents, host="again")
    assert calls == []
    honest = VersionedBucket.retention

    def short(self: VersionedBucket, path: str, version: str) -> tuple[str, float]:
        mode, until = honest(self, path, version)
        return (mode, until) if path in calls or "/data/" not in path else (mode, min(until, time.time() + 60))

    monkeypatch.setattr(VersionedBucket, "retention", short)
    assert quick.point(contents, host="third")[1] == ""
    assert any("/data/" in path for path in calls)


def _tags(quick: Quick, snapshot: str) -> list[str]:
    with quick.open() as repo:
        return list(next(one for one in list_snapshots(repo) if one.id == snapshot).tags)


def test_a_point_whose_older_packs_may_not_be_extended_is_kept_and_says_that_it_is_not_immutable(
    gateway: Radosgw, world: World, tmp_path: Path
) -> None:
    quick = Quick(world, tmp_path, 60)
    old = [os.urandom(5000)]
    quick.point(old)
    node = gateway.lab.make_user(f"node-{uuid.uuid4().hex[:6]}")
    allow(world, node, lock=True)
    policy = json.loads(world.s3.get_bucket_policy(Bucket=world.bucket)["Policy"])
    for statement in policy["Statement"]:
        statement["Action"] = [action for action in statement["Action"] if action != "s3:PutObjectRetention"]
    world.s3.put_bucket_policy(Bucket=world.bucket, Policy=json.dumps(policy))
    world.place = Place(world.place.url, world.place.options, env(node))
    quick.period_s = 3600
    snapshot, reason = quick.point([*old, os.urandom(5000)])
    assert "could not be locked" in reason and "AccessDenied" in reason
    assert NOT_IMMUTABLE_TAG in _tags(quick, snapshot)
    allow(world, node, lock=True)
    snapshot, reason = quick.point([*old, os.urandom(5000)])
    assert reason == "" and NOT_IMMUTABLE_TAG not in _tags(quick, snapshot)


@pytest.mark.parametrize("refused", ["/data/", "/index/", "/snapshots/"])
def test_whatever_lock_is_refused_the_point_is_kept_marked_and_made_good_by_the_next(
    refused: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Quick(world, tmp_path, 3600)
    honest = VersionedBucket.put

    def refusing(self: VersionedBucket, path: str, content: Any, digest: bytes, lock: Any = None) -> str:
        if lock is not None and refused in path:
            raise BackendReadOnly("AccessDenied: retention")
        return honest(self, path, content, digest, lock)

    contents = [os.urandom(5000)]
    with monkeypatch.context() as patched:
        patched.setattr(VersionedBucket, "put", refusing)
        snapshot, reason = quick.point(contents)
    assert "AccessDenied: retention" in reason
    assert NOT_IMMUTABLE_TAG in _tags(quick, snapshot)
    assert quick.point(contents)[1] == ""
    needed = [v for v in world.versions() if "/data/" in v["Key"]]
    assert all(world.until(version) >= time.time() + 3500 for version in needed)
    locked = {v["Key"][-64:] for v in world.versions() if "/index/" in v["Key"] and world.until(v) > time.time() + 3500}
    with quick.open() as repo:
        repo.load_index()
        assert {v["Key"][-64:] for v in needed} <= repo.index.packs_of(locked)


def test_the_command_line_says_that_a_backup_is_not_immutable(
    gateway: Radosgw, world: World, source: Path, tmp_path: Path
) -> None:
    cli = world.cli(tmp_path)
    cli.run(*world.options(), "init")
    node = gateway.lab.make_user(f"node-{uuid.uuid4().hex[:6]}")
    allow(world, node, lock=True)
    policy = world.s3.get_bucket_policy(Bucket=world.bucket)["Policy"]
    world.s3.put_bucket_policy(Bucket=world.bucket, Policy=policy.replace('"s3:PutObjectRetention"', '"s3:GetObject"'))
    options = ["--option", "object-lock=compliance", "--option", "object-lock-days=30"]  # keys need a later date
    node_cli = world.cli(tmp_path, Place(world.place.url, {}, env(node)))
    done = node_cli.run(*options, "backup", str(source))
    assert b"NOT IMMUTABLE" in done.stdout and b"not immutable" in done.stderr
    assert node_cli.json(*options, "backup", str(source))["immutable"] is False
    assert all(NOT_IMMUTABLE_TAG in snapshot["tags"] for snapshot in node_cli.json(*options, "snapshots"))


# --- removing ---


def test_what_is_locked_is_not_forgotten_and_not_pruned_and_told_until_when(world: World, tmp_path: Path) -> None:
    quick = Quick(world, tmp_path, 3600)
    first, _ = quick.point([os.urandom(5000)])
    quick.point([os.urandom(5000)])
    with quick.open() as repo:
        with repo.lock(exclusive=True), pytest.raises(ObjectLocked, match="locked until"):
            remove_snapshot(repo, first)
        result = prune(repo, PruneOptions(max_unused="0"))
        assert result.removed_packs == result.rewritten_packs == 0
        assert len(list_snapshots(repo)) == 2
    cli = world.cli(tmp_path)
    assert "locked until" in cli.run(*world.options(), "forget", first).stderr.decode()
    assert len(cli.json(*world.options(), "snapshots")) == 2


def test_when_retention_is_over_prune_deletes_by_version_and_nothing_stays_behind(world: World, tmp_path: Path) -> None:
    quick = Quick(world, tmp_path, 4)
    first, _ = quick.point([os.urandom(50_000)])
    kept = os.urandom(50_000)
    quick.point([kept])
    wait_until_unlocked(world)
    with quick.open() as repo:
        with repo.lock(exclusive=True):
            remove_snapshot(repo, first)
        result = prune(repo, PruneOptions(max_unused="0"))
        assert result.removed_packs + result.rewritten_packs >= 2 and result.locked_packs == 0
    assert world.markers() == []
    packs = [v for v in world.versions() if "/data/" in v["Key"]]
    assert sum(v["Size"] for v in packs) < 60_000
    assert "no errors were found" in restic(world.cli(tmp_path), "check", "--read-data")


def test_a_pack_that_a_locked_index_file_names_stays_as_long_as_that(world: World, tmp_path: Path) -> None:
    """The unneeded pack's own lock is over; its index file's is not: stock restic must not find it gone."""
    quick = Quick(world, tmp_path, 4)
    first, _ = quick.point([os.urandom(50_000)])
    quick.point([os.urandom(50_000)])
    wait_until_unlocked(world)
    with quick.open() as repo:
        until = time.time() + 3600
        for info in repo.backend.list(Kind.INDEX):
            repo.backend.object_lock.lock(Kind.INDEX, info.name, until)  # type: ignore[union-attr]
        with repo.lock(exclusive=True):
            remove_snapshot(repo, first)
        result = prune(repo, PruneOptions(max_unused="0"))
        assert result.removed_packs == 0 and result.locked_packs == 2
        assert result.locked_bytes > 50_000 and result.locked_until >= until - 1
    assert "no errors were found" in restic(world.cli(tmp_path), "check", "--read-data")


# --- a store that forgets ---


def _moto_client(endpoint: str) -> Any:
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    return botocore.session.get_session().create_client("s3", "us-east-1", endpoint_url=endpoint, **keys)


@pytest.fixture
def forgetful() -> Iterator[Place]:
    """moto behind a layer that takes every header of Object Lock and forgets it, as "S3 compatible" stores do."""
    inner = DomainDispatcherApplication(create_backend_app)

    def forgets(environ: dict[str, Any], start: Any) -> Any:
        for name in [name for name in environ if name.startswith("HTTP_X_AMZ_OBJECT_LOCK")]:
            del environ[name]
        if environ["REQUEST_METHOD"] == "PUT" and environ["QUERY_STRING"].startswith("retention"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("200 OK", [("Content-Length", "0")])
            return [b""]
        if environ["REQUEST_METHOD"] == "GET" and environ["QUERY_STRING"].startswith("retention"):
            body = b"<Error><Code>NoSuchObjectLockConfiguration</Code><Message>There is none.</Message></Error>"
            start("404 Not Found", [("Content-Length", str(len(body))), ("Content-Type", "application/xml")])
            return [body]
        return inner(environ, start)

    server = make_server("127.0.0.1", 0, forgets, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    _moto_client(endpoint).create_bucket(Bucket="forgets", ObjectLockEnabledForBucket=True)
    yield Place(f"s3:{endpoint}/forgets/p", {"object-lock": "compliance", "object-lock-days": "7"}, Moto.env)
    server.shutdown()
