"""Platforms of machines, discovered machines, rules and restores through the REST API."""

from __future__ import annotations

import pytest

from apps.catalog.models import RestorePoint
from apps.inventory.models import Platform, Workload
from apps.jobs import requests
from apps.policies import assignment
from tests.api_client import person
from tests.apps.acting import ActingNode, backup_result
from tests.apps.clouds import KEY, SECRET, find, machine, make_platform, workload

pytestmark = pytest.mark.django_db


@pytest.fixture
def body(world):
    return {
        "tenant": str(world.alpha.tenant.pk), "kind": "kvm", "name": "cluster", "node": str(world.alpha.node.pk),
        "addresses": ["kvm1.example", "kvm2.example:2222"], "secrets": {"private-key": "-----BEGIN KEY"},
    }  # fmt: skip


def test_a_platform_is_added_tested_believed_and_looked_through(world, body):
    admin = person(world.admin)
    made = admin.post("platforms/", body)
    assert made.status_code == 201, made.content
    told = made.json()
    assert (told["login"], told["secret_names"], told["host_keys"]) == ("root", ["private-key"], {})
    assert "BEGIN KEY" not in made.content.decode()
    platform = Platform.objects.get(pk=told["id"])
    assert admin.post(f"platforms/{platform.pk}/test/").status_code == 202
    platform.offered_keys = {"kvm1.example": KEY}
    platform.save()
    assert admin.get(f"platforms/{platform.pk}/").json()["unconfirmed_keys"] == {"kvm1.example": KEY}
    wrong = admin.post(f"platforms/{platform.pk}/confirm-keys/", {"keys": {"kvm1.example": "other"}})
    assert wrong.status_code == 409
    assert admin.post(f"platforms/{platform.pk}/confirm-keys/", {"keys": {"kvm1.example": 5}}).status_code == 400
    right = admin.post(f"platforms/{platform.pk}/confirm-keys/", {"keys": {"kvm1.example": KEY}})
    assert right.json()["host_keys"] == {"kvm1.example": KEY}
    assert admin.post(f"platforms/{platform.pk}/discover/").json()["kind"] == "discover"
    assert admin.post(f"platforms/{platform.pk}/discover/").status_code == 409


@pytest.mark.parametrize(
    "wrong",
    [
        {"addresses": []}, {"addresses": ["a b"]}, {"addresses": None}, {"login": "a b"}, {"options": {"x": "y"}},
        {"secrets": {"x": "y"}}, {"kind": "files"}, {"addresses": "kvm1"}, {"secrets": []},
    ],
)  # fmt: skip
def test_what_it_may_not_be_told_is_refused(world, body, wrong):
    answer = person(world.admin).post("platforms/", {**body, **wrong})
    assert answer.status_code == 400, answer.content
    assert not Platform.objects.filter(name="cluster").exists()


def test_a_password_does_not_follow_to_another_host(world):
    kvm = make_platform(world.alpha)
    admin = person(world.admin)
    answer = admin.patch(f"platforms/{kvm.pk}/", {"addresses": ["evil.example"]})
    assert answer.status_code == 400 and "evil.example" in answer.content.decode()
    assert admin.patch(f"platforms/{kvm.pk}/", {"name": "renamed"}).status_code == 200
    moved = admin.patch(f"platforms/{kvm.pk}/", {"addresses": ["new.example"], "secrets": {"password": "x"}})
    assert moved.status_code == 200, moved.content


def test_those_who_may_only_look_change_nothing_and_strangers_see_nothing(world):
    kvm = make_platform(world.alpha, offered_keys={"kvm1.example": "ssh-rsa new"})
    find(world.alpha, kvm, [machine(1)])
    paths = {
        f"platforms/{kvm.pk}/discover/": {}, f"platforms/{kvm.pk}/test/": {},
        f"platforms/{kvm.pk}/confirm-keys/": {"keys": {"kvm1.example": "ssh-rsa new"}},
    }  # fmt: skip
    for path, told in paths.items():
        assert person(world.viewer).post(path, told).status_code == 403, path
        assert person(world.stranger).post(path, told).status_code == 404, path
    assert SECRET not in person(world.owner).get(f"platforms/{kvm.pk}/").content.decode()
    assert person(world.stranger).get(f"workloads/{workload(kvm).pk}/").status_code == 404
    assert person(world.viewer).get(f"workloads/?platform={kvm.pk}&gone=false").json()["count"] == 1


def test_machines_are_found_not_written(world):
    kvm = make_platform(world.alpha)
    find(world.alpha, kvm, [machine(1)])
    admin, vm = person(world.admin), workload(kvm)
    told = {"tenant": str(world.alpha.tenant.pk), "platform": str(kvm.pk), "name": "x", "source": {"known_as": "x"}}
    assert admin.post("workloads/", told).status_code == 400
    shown = admin.get(f"workloads/{vm.pk}/").json()
    assert shown["external_id"] == machine(1).id and shown["facts"]["disks"][0]["name"] == "vda"
    source = {"leave_out": ["vdb"], "freeze": "require", "freeze_limit_s": 5, "known_as": "somebody else"}
    changed = admin.patch(f"workloads/{vm.pk}/", {"source": source})
    assert changed.status_code == 200, changed.content
    assert Workload.objects.get(pk=vm.pk).source == {**source, "known_as": "web01"}
    for bad in ({"freeze": "perhaps"}, {"freeze_limit_s": 0}, {"leave_out": "vda"}, {"before": "rm -rf /"}):
        assert admin.patch(f"workloads/{vm.pk}/", {"source": bad}).status_code == 400, bad
    assert admin.patch(f"workloads/{vm.pk}/", {"platform": str(world.alpha.platform.pk)}).status_code == 400
    moved = admin.patch(f"workloads/{world.alpha.workload.pk}/", {"platform": str(kvm.pk), "source": {"known_as": "x"}})
    assert moved.status_code == 400


def test_rules_are_written_with_the_policy_previewed_and_act_at_once(world):
    kvm = make_platform(world.alpha)
    find(world.alpha, kvm, [machine(1), machine(2, "db01")])
    admin, path = person(world.admin), f"policies/{world.alpha.policy.pk}/"
    seen = admin.post(f"{path}matches/", {"rules": [{"by": "name", "pattern": "WEB*"}]})
    assert seen.json()["count"] == 1 and seen.json()["matches"][0]["name"] == "web01", seen.content
    assert assignment.policy_of(workload(kvm)) is None
    changed = admin.patch(path, {"rules": [{"by": "name", "pattern": "web*"}, {"by": "name", "pattern": "web*"}]})
    assert changed.json()["rules"] == [{"by": "name", "pattern": "web*"}], changed.content
    assert assignment.policy_of(workload(kvm)) == world.alpha.policy
    assert admin.post(f"{path}matches/").json()["count"] == 1
    assert admin.patch(path, {"rules": [{"by": "nonsense", "pattern": "x"}]}).status_code == 400
    assert admin.patch(path, {"rules": []}).json()["rules"] == []
    assert assignment.policy_of(workload(kvm)) is None
    assert person(world.viewer).patch(path, {"rules": []}).status_code == 403
    assert person(world.stranger).post(f"{path}matches/").status_code == 404


def test_a_machine_is_restored_with_its_options(world):
    kvm = make_platform(world.alpha)
    find(world.alpha, kvm, [machine(1)])
    assignment.assign(world.admin, [workload(kvm)], world.alpha.policy)
    requests.backup_now(world.operator, workload(kvm))
    node = ActingNode(world.alpha.node)
    node.complete(node.take(), backup_result())
    point = RestorePoint.objects.get(workload=workload(kvm))
    foreign = make_platform(world.beta)
    operator, path = person(world.operator), f"restore-points/{point.pk}/restore/"
    order = {"name": "copy", "storage": "/pool", "networks": {"default": "lab"}, "start": True}
    refused = operator.post(path, {"target": {"machine": {**order, "platform": str(foreign.pk)}}})
    assert refused.status_code in (400, 404), refused.content
    assert operator.post(path, {"target": {"machine": {"networks": {"a": 5}}}}).status_code == 400
    answer = operator.post(path, {"target": {"format": "raw", "machine": order}})
    assert answer.status_code == 202, answer.content
    spec = node.take().spec
    assert spec.target.machine.name == "copy" and spec.target.format == "raw" and spec.target.machine.start
    plain = operator.post(path, {"target": {}})
    assert plain.status_code == 202, plain.content
