"""Load on production: how many machines of one host are worked on at once, and how fast it is read."""

from __future__ import annotations

import pytest
from django.utils import timezone
from rest_framework.test import APIClient

from apps.catalog.models import RestorePoint
from apps.inventory.models import Platform, Workload
from apps.jobs import placement, requests
from apps.jobs.models import Task
from apps.policies import assignment
from node_agent.protocol import MachineTarget, RestoreTarget
from tests.apps.acting import ActingNode, backup_result
from tests.apps.clouds import find, machine, make_platform, workload
from tests.apps.test_admin_scope import page, signed_in

pytestmark = pytest.mark.django_db


@pytest.fixture
def kvm(world):
    return machines_of(world.alpha, world.admin)


def machines_of(house, admin, name="kvm", **facts) -> Platform:
    """Three machines under a policy: two on the first host, one on the second."""
    hosts = ["kvm1.example", "kvm2.example"]
    made = make_platform(house, name, addresses=hosts, host_keys={}, **facts)
    house.node.slots = 8
    house.node.save()
    find(house, made, [machine(1), machine(2), machine(3, host="kvm2.example")])
    assignment.assign(admin, list(Workload.objects.filter(platform=made)), house.policy)
    return made


def why(task) -> str:
    return placement.why_waiting(
        Task.objects.select_related("job__tenant", "load_limit").get(pk=task.pk), timezone.now()
    )


def queued(vm: Workload) -> Task:
    return Task.objects.get(job__workload=vm, state="queued")


def test_of_one_host_only_so_many_are_backed_up_at_once_and_the_next_says_why(world, kvm):
    Platform.objects.update(max_jobs=1)
    for number in (1, 2, 3):
        requests.backup_now(world.operator, workload(kvm, number))
    node = ActingNode(world.alpha.node)
    taken = [node.take(), node.take(), node.take()]
    assert [task.spec.source.machine.name for task in taken if task] == ["web01", "web03"]
    assert "allows 1 backup or restore on a host at a time" in why(queued(workload(kvm, 2)))
    node.complete(taken[0], backup_result())
    assert node.take().spec.source.machine.name == "web02"


def test_two_at_once_unless_told_otherwise_and_a_changed_limit_counts_at_once(world, kvm):
    assert kvm.max_jobs == 2
    Platform.objects.update(max_jobs=1)
    for number in (1, 2):
        requests.backup_now(world.operator, workload(kvm, number))
    node = ActingNode(world.alpha.node)
    assert node.take() and node.take() is None
    Platform.objects.update(max_jobs=2)
    assert node.take()


def test_a_host_is_one_host_whoever_loads_it(world, kvm):
    """Two tenants, a platform each, and the same hypervisor; neither hears of the other's work."""
    theirs = machines_of(world.beta, world.stranger)
    Platform.objects.update(max_jobs=1)
    requests.backup_now(world.operator, workload(kvm, 1))
    requests.backup_now(world.stranger, workload(theirs, 2))
    assert ActingNode(world.alpha.node).take()
    assert ActingNode(world.beta.node).take() is None
    assert world.alpha.tenant.name not in (said := why(queued(workload(theirs, 2)))) and "at a time" in said


def point_of(world, house, platform, number=1) -> RestorePoint:
    vm = workload(platform, number)
    requests.backup_now(house.tenant.memberships.get(role="owner").user, vm)
    node = ActingNode(house.node)
    node.complete(node.take(), backup_result())
    return RestorePoint.objects.get(workload=vm)


def bring_back(user, point, name, host=""):
    order = MachineTarget(name=name, host=host)
    return requests.restore(
        user, point, chosen=[], target=RestoreTarget(driver="kvm", path="", format="", machine=order)
    )


def test_imports_onto_one_host_run_one_after_the_other(world, kvm):
    """An import keeps one journal on a host: two at once would undo one another."""
    Platform.objects.update(max_jobs=8)
    point = point_of(world, world.alpha, kvm)
    bring_back(world.operator, point, "one", "kvm1.example")
    second = bring_back(world.operator, point, "two", "kvm1.example")
    bring_back(world.operator, point, "three", "kvm2.example")
    node = ActingNode(world.alpha.node)
    taken = [task.spec.target.machine.name for task in (node.take(), node.take(), node.take()) if task]
    assert taken == ["one", "three"]
    assert why(second.tasks.get()).startswith("Waits until “Restore web01 to one”")


def test_that_also_counts_between_tenants_without_a_word_about_the_other(world, kvm):
    theirs = machines_of(world.beta, world.stranger)
    mine, other = point_of(world, world.alpha, kvm), point_of(world, world.beta, theirs)
    bring_back(world.operator, mine, "one")
    waiting = bring_back(world.stranger, other, "two")
    assert ActingNode(world.alpha.node).take()
    assert ActingNode(world.beta.node).take() is None
    assert why(waiting.tasks.get()) == "Waits until another job on the same host is finished."


def test_a_restore_takes_a_place_of_the_host(world, kvm):
    point = point_of(world, world.alpha, kvm)
    Platform.objects.update(max_jobs=1)
    requests.backup_now(world.operator, workload(kvm, 2))
    bring_back(world.operator, point, "one", "kvm1.example")
    node = ActingNode(world.alpha.node)
    assert node.take() and node.take() is None


def test_the_node_is_told_the_bandwidth(world, kvm):
    Platform.objects.update(bandwidth_mib_s=3)
    requests.backup_now(world.operator, workload(kvm))
    assert ActingNode(world.alpha.node).take().spec.platform.bandwidth_bytes_s == 3 << 20


# --- who may say so -------------------------------------------------------------------------------------


def test_limits_are_set_over_the_api_by_who_may_configure(world, kvm):
    api = APIClient()
    address = f"/api/v1/platforms/{kvm.pk}/"
    for user, status in ((world.stranger, 404), (world.viewer, 403), (world.operator, 403), (world.admin, 200)):
        api.force_authenticate(user)
        answer = api.patch(address, {"max_jobs": 3, "bandwidth_mib_s": 40}, format="json")
        assert answer.status_code == status, (user, answer.content)
    assert (answer.data["max_jobs"], answer.data["bandwidth_mib_s"]) == (3, 40)
    for wrong in ({"max_jobs": 0}, {"max_jobs": 65}, {"bandwidth_mib_s": -1}):
        assert api.patch(address, wrong, format="json").status_code == 400
    kvm.refresh_from_db()
    assert (kvm.max_jobs, kvm.bandwidth_mib_s) == (3, 40)


def test_limits_are_in_the_form_and_on_the_page(world, kvm):
    client = signed_in(world.owner)
    address = page(Platform, "change", kvm.pk)
    told = {
        "tenant": kvm.tenant_id, "name": "kvm", "kind": "kvm", "node": kvm.node_id, "login": "root",
        "addresses_text": "kvm1.example\nkvm2.example", "discover_every_hours": "6",
    }  # fmt: skip
    assert client.post(address, told | {"max_jobs": "1", "bandwidth_mib_s": "25"}).status_code == 302
    kvm.refresh_from_db()
    assert (kvm.max_jobs, kvm.bandwidth_mib_s) == (1, 25)
    text = client.get(address).content.decode()
    assert "1 job on a host at a time" in text and "25 MiB/s" in text
    client.post(address, told | {"max_jobs": "", "bandwidth_mib_s": ""})  # left empty: as it was
    kvm.refresh_from_db()
    assert (kvm.max_jobs, kvm.bandwidth_mib_s) == (1, 25)
