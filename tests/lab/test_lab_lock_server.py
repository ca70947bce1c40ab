"""Server and node with a destination that locks: refused or proven, immutable or amber, and open to stock restic."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from typing import Any

import pytest

from brs.local import TENANT_SLUG
from tests.contracts.backend_peers import Peers, Place
from tests.contracts.lock_world import World, allow, env
from tests.node_agent.test_stores_through_server import Running, as_destination, peers, running, stock

__all__ = ["peers", "running"]
pytestmark = [pytest.mark.timeout(600)]
LOCK = {"object-lock": "compliance", "object-lock-days": "1"}


def _told(place: Place, peers: Peers, **options: str) -> dict[str, Any]:
    told = as_destination("s3", place, peers)
    told["options"] = {**LOCK, **{name.replace("_", "-"): value for name, value in options.items()}}
    return told


def test_a_locked_destination_is_proven_backed_up_to_and_restored_from_and_its_points_say_when_they_are_not_locked(
    running: Running, peers: Peers
) -> None:
    gateway: Any = peers["radosgw"]
    refused = running.destination("without lock", "s3", **_told(gateway.place_in("buck"), peers))
    job = running.job(f"destinations/{refused}/test/", state="failed")
    assert "Object Lock is not on" in job["error_message"]

    world = World(gateway)
    node = gateway.lab.make_user(f"node-{uuid.uuid4().hex[:6]}")
    bucket_prefix, world.prefix = world.prefix, f"{world.prefix}{TENANT_SLUG}/"
    allow(world, node, lock=True)
    world.prefix = bucket_prefix
    place = Place(world.place.url, {}, env(node))
    store = running.destination("locked", "s3", **_told(place, peers))
    tested = running.job(f"destinations/{store}/test/")["tasks"][0]["outcome"]["checks"]
    assert {"What is locked there stays until its time, also against this node": True}.items() <= {
        check["name"]: check["ok"] for check in tested
    }.items()
    workload = running.workload("tree to locked", store)
    running.job(f"workloads/{workload}/backup/")
    snapshots = [v for v in world.versions() if "/snapshots/" in v["Key"]]
    (made,) = snapshots
    facts = gateway.s3(node).get_object_retention(Bucket=world.bucket, Key=made["Key"], VersionId=made["VersionId"])
    assert facts["Retention"]["Mode"] == "COMPLIANCE"
    assert facts["Retention"]["RetainUntilDate"] > made["LastModified"] + timedelta(days=1)
    assert "not immutable" not in running.api.get(f"workloads/{workload}/")["protection"]["reason"]

    policy = json.loads(world.s3.get_bucket_policy(Bucket=world.bucket)["Policy"])
    everything = policy["Statement"][1]  # denied, since what the node stored is its own
    policy["Statement"].append({**everything, "Effect": "Deny", "Action": ["s3:PutObjectRetention"]})
    world.s3.put_bucket_policy(Bucket=world.bucket, Policy=json.dumps(policy))
    longer = {"options": {**LOCK, "object-lock-days": "30"}}  # keys need a later date, and may not have it
    running.api.client.patch(f"/api/v1/destinations/{store}/", json=longer).raise_for_status()
    running.job(f"workloads/{workload}/backup/")
    told = running.api.get(f"workloads/{workload}/")["protection"]
    assert told["state"] == "attention" and "is not immutable" in told["reason"]

    judge = stock("s3", place, peers)
    assert judge is not None
    url, options, variables = judge
    out = running.restic(store, url, "check", "--read-data", options=options, env=variables)
    assert "no errors were found" in out
