"""A repository on a real gateway (radosgw) in a bucket with Object Lock, and what tests do to it."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from node_agent.progress import Progress
from node_agent.repository.backend import Kind
from node_agent.repository.backend.lock_rule import LockRule
from node_agent.repository.publish import save_point
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import new_snapshot
from node_agent.repository.tree import Node, encode_tree
from tests.contracts.backend_peers import Place, Radosgw
from tests.lab import ceph
from tests.repository.cli_world import Cli
from tests.repository.core_world import FAST, NOON, PASSWORD

DAY_S = 86400.0


class World:
    """One bucket of the gateway with Object Lock, its owner's client, and a place in it."""

    def __init__(self, gateway: Radosgw, mode: str = "compliance") -> None:
        self.gateway = gateway
        self.bucket = f"lock-{uuid.uuid4().hex[:12]}"
        self.s3 = gateway.s3(gateway.state.user)
        self.s3.create_bucket(Bucket=self.bucket, ObjectLockEnabledForBucket=True)
        self.place = gateway.place_in(self.bucket, object_lock=mode, object_lock_days="1")
        self.prefix = self.place.url.rpartition("/")[2] + "/"

    def cli(self, folder: Path, place: Place | None = None) -> Cli:
        place = place or self.place
        return Cli(folder, RESTIC_REPOSITORY=place.url, **place.env)

    def options(self, place: Place | None = None) -> list[str]:
        given = (place or self.place).options
        return [part for name, value in given.items() for part in ("--option", f"{name}={value}")]

    def versions(self) -> list[dict[str, Any]]:
        pages = self.s3.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=self.prefix)
        return [version for page in pages for version in page.get("Versions", [])]

    def markers(self) -> list[dict[str, Any]]:
        pages = self.s3.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=self.prefix)
        return [marker for page in pages for marker in page.get("DeleteMarkers", [])]

    def until(self, version: dict[str, Any]) -> float:
        try:
            answer = self.s3.get_object_retention(
                Bucket=self.bucket, Key=version["Key"], VersionId=version["VersionId"]
            )
        except self.s3.exceptions.ClientError:
            return 0.0
        return float(answer["Retention"]["RetainUntilDate"].timestamp())

    def key(self, kind: Kind, name: str) -> str:
        folder = f"{kind.value}/{name[:2]}/" if kind is Kind.PACK else f"{kind.value}/"
        return f"{self.prefix}{folder}{name}"

    def attack(self) -> int:
        """Everything an account with all rights over objects can do: overwrite, delete, delete every version."""
        hurt = 0
        for number, version in enumerate(self.versions()):
            key = version["Key"]
            if number % 3 != 0:
                self.s3.put_object(Bucket=self.bucket, Key=key, Body=b"ransom" * (number + 1))
            if number % 3 != 1:
                self.s3.delete_object(Bucket=self.bucket, Key=key)
            for bypass in (False, True):
                try:
                    self.s3.delete_object(
                        Bucket=self.bucket, Key=key, VersionId=version["VersionId"], BypassGovernanceRetention=bypass
                    )
                except self.s3.exceptions.ClientError as error:
                    assert error.response["Error"]["Code"] == "AccessDenied"
            hurt += 1
        return hurt


def restored(cli: Cli, options: list[str], target: Path, source: Path) -> None:
    cli.run(*options, "restore", "latest", "--target", str(target), "--strip", str(source))
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {p.name: p.read_bytes() for p in source.iterdir()}


def restic(cli: Cli, *args: str) -> str:
    env = cli.env | {"RESTIC_PASSWORD": PASSWORD}
    done = subprocess.run(["restic", "--no-cache", *args], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def env(user: ceph.S3User) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": user.access_key, "AWS_SECRET_ACCESS_KEY": user.secret_key, "HOME": "/nowhere"}


def allow(world: World, node: ceph.S3User, *, lock: bool) -> None:
    """The policy that docs/destinations.md gives, read from there."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "destinations.md").read_text()
    name = "node-object-lock" if lock else "node"
    block = text.split(f"<!-- policy: {name} -->", 1)[1].split("```json", 1)[1].split("```", 1)[0]
    policy = block.replace("BUCKET", world.bucket).replace("PREFIX", world.prefix.rstrip("/"))
    policy = policy.replace("arn:aws:iam::ACCOUNT:user/NODE", f"arn:aws:iam:::user/{node.name}")
    json.loads(policy)
    world.s3.put_bucket_policy(Bucket=world.bucket, Policy=policy)


class Quick:
    """One repository whose locks last some seconds, opened as often as wanted."""

    def __init__(self, world: World, folder: Path, period_s: float) -> None:
        self.world = world
        self.folder = folder
        self.period_s = period_s
        Repository.init(self._backend(), PASSWORD, scrypt=FAST).close()

    @classmethod
    def again(cls, world: World, folder: Path, period_s: float) -> Quick:
        """The one that is there already."""
        quick = cls.__new__(cls)
        quick.world, quick.folder, quick.period_s = world, folder, period_s
        return quick

    def _backend(self) -> Any:
        backend = self.world.place.open()
        lock = backend.object_lock
        assert lock is not None
        lock.rule = LockRule("COMPLIANCE", self.period_s, grid_s=1.0)  # type: ignore[attr-defined]
        return backend

    def open(self) -> Repository:
        return Repository.open(self._backend(), PASSWORD, cache_dir=self.folder)

    def point(self, contents: list[bytes], host: str = "host") -> tuple[str, str]:
        with self.open() as repo:
            return point(repo, contents, host)


def point(repo: Repository, contents: list[bytes], host: str = "host") -> tuple[str, str]:
    """A snapshot of one file with these contents. Returns its id, and why it is not immutable."""
    with repo.lock() as lock:
        repo.load_index()
        with repo.writer(Progress()) as writer:
            ids = [writer.save(BlobKind.DATA, content).id for content in contents]
            node = Node(b"file", "file", mode=0o644, size=sum(map(len, contents)), links=1, content=ids)
            root = writer.save(BlobKind.TREE, encode_tree([node]))
        facts = {"time": NOON, "hostname": host, "paths": ["/x"]}
        saved, reason = save_point(repo, lock, new_snapshot(tree=root.id.hex(), **facts), Progress())  # type: ignore[arg-type]
        return saved.id, reason


def wait_until_unlocked(world: World, names: Collection[str] = ()) -> None:
    """By the store's clock: locks of some seconds cannot be made shorter, which is what they are for."""
    wanted = [v for v in world.versions() if "probe-tmp" not in v["Key"] and (not names or v["Key"][-64:] in names)]
    last = max(map(world.until, wanted))
    while datetime.now(UTC).timestamp() <= last + 1:
        time.sleep(0.2)
