"""Platforms of machines on the server: found, named, gone and back; matched by rules; backed up and restored."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from apps.catalog.models import ProtectionState, RestorePoint
from apps.errors import Conflict, Denied, Invalid, NotFound
from apps.iam.models import AuditEvent
from apps.inventory import platforms
from apps.inventory.models import Workload
from apps.jobs import discovery, planner, requests
from apps.jobs.models import Job, JobKind, State, Task, Trigger
from apps.policies import assignment, matching, rules
from apps.policies.models import Assignment, AssignmentRule, Policy, Schedule
from node_agent.protocol import MachineTarget, ProbeCheck, ProbeResult, RestoreTarget
from tests.apps.acting import ActingNode, backup_result
from tests.apps.clouds import KEY, SECRET, find, last_job, machine, make_platform, workload

pytestmark = pytest.mark.django_db


@pytest.fixture
def kvm(world):
    return make_platform(world.alpha)


# --- found --------------------------------------------------------------------------------------------


def test_what_was_found_becomes_workloads_that_show_as_unprotected(world, kvm):
    find(world.alpha, kvm, [machine(1), machine(2)])
    found = workload(kvm)
    assert (found.name, found.tenant, found.facts["disks"][0]["size_bytes"]) == ("web01", world.alpha.tenant, 10 << 30)
    assert found.protection.state == ProtectionState.UNPROTECTED
    kvm.refresh_from_db()
    assert kvm.discovered_at and kvm.discovery_problem == ""
    assert AuditEvent.objects.filter(verb="workload.discovered", object_id=found.pk).exists()


def test_renamed_it_is_the_same_gone_it_keeps_its_points_and_back_it_is_the_same_again(world, kvm):
    find(world.alpha, kvm, [machine(1), machine(2)])
    first = workload(kvm)
    RestorePoint.objects.filter(pk=world.alpha.point.pk).update(workload=first)
    find(world.alpha, kvm, [machine(1, "shop"), machine(2)])
    assert Workload.objects.get(pk=first.pk).name == "shop"
    find(world.alpha, kvm, [machine(2)])
    gone = Workload.objects.get(pk=first.pk)
    assert gone.gone_at and gone.points.count() == 1 and gone.protection.state == ProtectionState.EXCLUDED
    with pytest.raises(Conflict, match="gone"):
        assignment.assign(world.admin, [gone], world.alpha.policy)
        requests.backup_now(world.admin, gone)
    find(world.alpha, kvm, [machine(1, "shop"), machine(2)])
    back = Workload.objects.get(pk=first.pk)
    assert back.gone_at is None and back.protection.state != ProtectionState.EXCLUDED
    assert Workload.objects.filter(platform=kvm).count() == 2


def test_of_a_machine_that_is_gone_no_run_is_planned(world, kvm):
    find(world.alpha, kvm, [machine(1), machine(2)])
    assignment.assign(world.admin, [workload(kvm, 1), workload(kvm, 2)], world.alpha.policy)
    find(world.alpha, kvm, [machine(2)])
    now = timezone.now()
    Assignment.objects.update(created_at=now - timedelta(days=3))
    Schedule.objects.update(planned_until=now - timedelta(days=2))
    planner.plan(now)
    jobs = Job.objects.filter(kind=JobKind.BACKUP, workload__platform=kvm)
    assert [job.workload.name for job in jobs] == ["web02"]


def test_a_name_that_a_user_gave_stays_until_the_machine_is_renamed(world, kvm):
    find(world.alpha, kvm, [machine(1)])
    Workload.objects.filter(pk=workload(kvm).pk).update(name="The shop")
    find(world.alpha, kvm, [machine(1)])
    assert workload(kvm).name == "The shop"


def test_two_machines_of_one_name_are_told_apart(world, kvm):
    other = make_platform(world.alpha, "kvm b")
    find(world.alpha, kvm, [machine(1), machine(2, "web01")])
    find(world.alpha, other, [machine(1)])
    names = set(Workload.objects.exclude(external_id="").values_list("name", flat=True))
    assert len(names) == 3 and {"web01", "web01 (kvm)", "web01 (kvm b)"} == names


def test_a_look_that_did_not_reach_all_takes_nothing_for_gone_and_says_so(world, kvm):
    find(world.alpha, kvm, [machine(1), machine(2)])
    find(world.alpha, kvm, [machine(1)], whole=False, problems=["kvm2: It does not answer."])
    assert workload(kvm, 2).gone_at is None
    kvm.refresh_from_db()
    assert "kvm2" in kvm.discovery_problem
    assert last_job().state == State.FAILED and "kvm2" in last_job().error_message


def test_pieces_told_twice_make_nothing_twice(world, kvm):
    find(world.alpha, kvm, [machine(number) for number in range(1, 140)] + [machine(1)])
    assert Workload.objects.filter(platform=kvm).count() == 139


def test_hostile_names_are_kept_without_harm(world, kvm):
    find(world.alpha, kvm, [machine(1, "<script>\x00alert(1)"), machine(2, "   "), machine(3, "x" * 200)])
    assert workload(kvm, 1).name == "<script>\\0alert(1)"
    assert workload(kvm, 2).name == machine(2).id


def test_only_a_look_may_tell_of_machines(world, kvm):
    from apps.jobs import discovered

    requests.test_platform(world.owner, kvm)
    task = ActingNode(world.alpha.node).take()
    with pytest.raises(Invalid):
        discovered.piece(Task.objects.get(pk=task.task_id), [machine(1)], timezone.now())


def test_it_is_looked_again_when_it_is_due_and_soon_after_a_failure(world, kvm):
    now = timezone.now()
    assert discovery.plan(now) == 0, "nobody has tested it yet"
    kvm.tested_at = now
    kvm.save()
    assert discovery.plan(now) == 1 and discovery.plan(now) == 0
    assert last_job().trigger == Trigger.SYSTEM
    node = ActingNode(world.alpha.node)
    node.fail(node.take(), "The host is down.")
    kvm.refresh_from_db()
    assert kvm.discovery_problem == "The host is down."
    assert discovery.plan(now + timedelta(minutes=5)) == 0
    assert discovery.plan(now + timedelta(minutes=20)) == 1
    kvm.discover_every_hours = 0
    kvm.save()
    Job.objects.filter(kind=JobKind.DISCOVER).update(state=State.SUCCEEDED)
    assert discovery.plan(now + timedelta(days=9)) == 0


# --- whom to believe, and what is told to whom ---------------------------------------------------------


def _tested(world, kvm, key=KEY):
    requests.test_platform(world.owner, kvm)
    node = ActingNode(world.alpha.node)
    task = node.take()
    checks = [ProbeCheck(name="kvm1.example is who it should be", ok=kvm.host_keys.get("kvm1.example") == key)]
    node.complete(task, ProbeResult(checks=checks, host_keys={"kvm1.example": key, "evil.example": "x"}))
    kvm.refresh_from_db()
    return task


def test_a_key_is_believed_only_when_a_user_confirms_the_one_that_was_met(world, kvm):
    kvm.host_keys = {}
    kvm.save()
    task = _tested(world, kvm)
    assert task.spec.platform.host_keys == {} and kvm.problem
    assert platforms.unconfirmed(kvm) == {"kvm1.example": KEY}
    for keys in ({"kvm1.example": "ssh-ed25519 AAAAother"}, {"evil.example": "x"}, {}):
        with pytest.raises(Conflict):
            platforms.confirm_keys(world.admin, kvm, keys)
    with pytest.raises(Denied):
        platforms.confirm_keys(world.viewer, kvm, {"kvm1.example": KEY})
    with pytest.raises(NotFound):
        platforms.confirm_keys(world.stranger, kvm, {"kvm1.example": KEY})
    platforms.confirm_keys(world.admin, kvm, {"kvm1.example": KEY})
    assert _tested(world, kvm).spec.platform.host_keys == {"kvm1.example": KEY} and not kvm.problem
    _tested(world, kvm, "ssh-ed25519 AAAAchanged")
    assert kvm.problem and platforms.unconfirmed(kvm) == {"kvm1.example": "ssh-ed25519 AAAAchanged"}


def test_secrets_are_in_a_lease_and_nowhere_else(world, kvm):
    requests.discover(world.owner, kvm)
    task = ActingNode(world.alpha.node).take()
    assert task.spec.platform.secrets == {"password": SECRET} and SECRET not in repr(task)
    rows = [json.dumps(row.spec) for row in Task.objects.all()] + [str(row.detail) for row in AuditEvent.objects.all()]
    assert not any(SECRET in row for row in rows)


def test_a_password_is_not_sent_to_a_host_that_it_was_not_given_for(kvm):
    with pytest.raises(platforms.InvalidPlatform, match=r"evil\.example"):
        platforms.refuse_theft(kvm, ["kvm1.example", "evil.example"], {})
    platforms.refuse_theft(kvm, ["kvm1.example"], {})
    platforms.refuse_theft(kvm, ["evil.example"], {"password": "given again"})


FSID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"


def _of_rbd(_kind, given):
    return platforms.clean_options("rbd", given)


def test_a_cluster_is_named_by_its_fsid_and_pools():
    told = {"fsid": FSID, "pools": "vms, images"}
    assert platforms.clean_options("rbd", told) == told


@pytest.mark.parametrize(
    ("clean", "given"),
    [
        (platforms.clean_addresses, []), (platforms.clean_addresses, ["a b"]), (platforms.clean_addresses, ["-oProxy"]),
        (platforms.clean_addresses, ["x@y"]), (platforms.clean_addresses, "kvm1"), (platforms.clean_addresses, ["a/b"]),
        (platforms.clean_login, "root; rm"), (platforms.clean_login, "-x"),
        (platforms.clean_options, {"nonsense": "1"}), (platforms.clean_options, {"scratch": "tmp"}),
        (platforms.clean_options, {"rbd-snapshots": "maybe"}),
        (_of_rbd, {"pools": "vms"}), (_of_rbd, {"fsid": FSID}), (_of_rbd, {"fsid": "x", "pools": "vms"}),
        (platforms.clean_secrets, {"token": "x"}), (platforms.clean_secrets, {"password": 5}),
    ],
)  # fmt: skip
def test_what_a_platform_may_not_be_told_is_refused(clean, given):
    with pytest.raises(platforms.InvalidPlatform) as caught:
        clean("kvm", given)
    assert caught.value.field and caught.value.message


# --- rules --------------------------------------------------------------------------------------------


SEEN = matching.Seen("Web01", ("prod", "tier-1"), "shop")


@pytest.mark.parametrize(
    ("by", "pattern", "fits"),
    [
        ("name", "web*", True), ("name", "WEB0?", True), ("name", "web", False), ("name", "", False),
        ("name", "*" * 80 + "x", False), ("tag", "prod", True), ("tag", "tier-?", True), ("tag", "pro", False),
        ("project", "shop", True), ("project", "*", True), ("project", "other", False), ("nonsense", "*", False),
    ],
)  # fmt: skip
def test_a_rule_matches_whole_names_with_wildcards(by, pattern, fits):
    assert matching.matches(matching.Rule(by, pattern), SEEN) is fits
    assert not matching.matches(matching.Rule("project", "*"), matching.Seen("x"))


def _rule(policy, by="name", pattern="web*"):
    return AssignmentRule.objects.create(policy=policy, by=by, pattern=pattern)


def test_rules_bring_machines_under_policies_but_leave_alone_what_people_decided(world, kvm):
    policy = world.alpha.policy
    by_hand = Policy.objects.create(tenant=world.alpha.tenant, name="by hand", destination=world.alpha.destination)
    find(world.alpha, kvm, [machine(1), machine(2), machine(3), machine(4, "db01")])
    assignment.assign(world.admin, [workload(kvm, 2)], by_hand)
    Workload.objects.filter(pk=workload(kvm, 3).pk).update(excluded=True)
    _rule(policy)
    discovery.follow(timezone.now())
    covers = {row.workload.name: row.policy.name for row in Assignment.objects.filter(workload__platform=kvm)}
    assert covers == {"web01": policy.name, "web02": "by hand"}
    assert workload(kvm, 1).protection.objective_hours == policy.objective_hours
    assert discovery.follow(timezone.now()) == 0


def test_a_new_machine_is_covered_as_soon_as_it_is_found_and_let_go_when_nothing_matches(world, kvm):
    rule = _rule(world.alpha.policy, "tag", "prod")
    find(world.alpha, kvm, [machine(1, tags=["prod"])])
    assert assignment.policy_of(workload(kvm)) == world.alpha.policy
    find(world.alpha, kvm, [machine(1, tags=["test"])])
    assert assignment.policy_of(workload(kvm)) is None
    find(world.alpha, kvm, [machine(1, tags=["prod"])])
    rule.delete()
    discovery.follow(timezone.now())
    assert assignment.policy_of(workload(kvm)) is None


def test_what_a_person_confirms_by_hand_no_rule_takes_away(world, kvm):
    rule = _rule(world.alpha.policy)
    find(world.alpha, kvm, [machine(1)])
    assignment.assign(world.admin, [workload(kvm)], world.alpha.policy)
    rule.delete()
    discovery.follow(timezone.now())
    assert assignment.policy_of(workload(kvm)) == world.alpha.policy


def test_of_several_policies_the_more_urgent_one_counts_and_never_another_tenants(world, kvm):
    urgent = Policy.objects.create(
        tenant=world.alpha.tenant, name="zz", destination=world.alpha.destination, priority=90
    )
    for policy in (world.alpha.policy, urgent, world.beta.policy):
        _rule(policy, "name", "*")
    find(world.alpha, kvm, [machine(1)])
    assert assignment.policy_of(workload(kvm)) == urgent
    urgent.enabled = False
    urgent.save()
    discovery.follow(timezone.now())
    assert assignment.policy_of(workload(kvm)) == world.alpha.policy


def test_a_policy_that_wants_it_gets_a_new_machines_first_backup_once(world, kvm):
    Policy.objects.filter(pk=world.alpha.policy.pk).update(backup_new=True)
    _rule(world.alpha.policy)
    find(world.alpha, kvm, [machine(1), machine(2, "db01")])
    now = timezone.now()
    discovery.follow(now)
    discovery.follow(now)
    jobs = Job.objects.filter(kind=JobKind.BACKUP, workload__platform=kvm)
    assert [(job.workload.name, job.trigger) for job in jobs] == [("web01", Trigger.EVENT)]
    jobs.update(state=State.FAILED)
    discovery.follow(now)
    assert jobs.count() == 1, "afterwards the schedule takes over"


def test_rules_are_changed_by_who_may_configure_all_of_the_tenant(world):
    rules.keep(world.admin, world.alpha.policy, [("name", "web*")])
    assert rules.told(world.alpha.policy) == [("name", "web*")]
    for user in (world.operator, world.viewer):
        with pytest.raises(Denied):
            rules.keep(user, world.alpha.policy, [("name", "*")])
    with pytest.raises(NotFound):
        rules.keep(world.stranger, world.alpha.policy, [("name", "*")])
    with pytest.raises(Invalid):
        rules.keep(world.admin, world.alpha.policy, [("name", "")])


def test_a_preview_shows_what_would_match_and_what_covers_it_now(world, kvm):
    find(world.alpha, kvm, [machine(1), machine(2), machine(3, "db01")])
    assignment.assign(world.admin, [workload(kvm, 2)], world.alpha.policy)
    found = rules.preview(world.viewer, world.alpha.tenant, [("name", "web*")])
    assert [(row["name"], row["by_hand"]) for row in found] == [("web01", False), ("web02", True)]
    assert rules.preview(world.stranger, world.alpha.tenant, [("name", "*")]) == []


# --- backup and restore --------------------------------------------------------------------------------


def _covered(world, kvm):
    find(world.alpha, kvm, [machine(1)])
    assignment.assign(world.admin, [workload(kvm)], world.alpha.policy)
    return workload(kvm)


def test_a_backup_names_the_machine_by_what_does_not_change(world, kvm):
    vm = _covered(world, kvm)
    requests.backup_now(world.operator, vm)
    spec = ActingNode(world.alpha.node).take().spec
    assert spec.platform.secrets == {"password": SECRET} and spec.source.driver == "kvm"
    assert (spec.source.machine.id, spec.source.machine.host) == (machine(1).id, "kvm1.example")
    assert (spec.host, spec.snapshot_paths) == ("web01", [f"/kvm/{machine(1).id}"])
    Job.objects.update(state=State.CANCELLED)
    Task.objects.update(state=State.CANCELLED)
    find(world.alpha, kvm, [machine(1, "shop")])
    requests.backup_now(world.operator, workload(kvm))
    spec = ActingNode(world.alpha.node).take().spec
    assert (spec.workload_name, spec.host) == ("shop", "web01")


def test_a_node_without_the_driver_does_not_get_it(world, kvm):
    vm = _covered(world, kvm)
    requests.backup_now(world.operator, vm)
    world.alpha.node.drivers = ["files", "image"]
    world.alpha.node.save()
    assert ActingNode(world.alpha.node).take() is None


def test_a_policy_that_stages_on_disk_says_that_machines_cannot(world, kvm):
    vm = _covered(world, kvm)
    Policy.objects.filter(pk=world.alpha.policy.pk).update(staging="disk")
    with pytest.raises(Conflict, match="stored while they are read"):
        requests.backup_now(world.operator, vm)


@pytest.fixture
def point(world, kvm):
    vm = _covered(world, kvm)
    requests.backup_now(world.operator, vm)
    node = ActingNode(world.alpha.node)
    node.complete(node.take(), backup_result())
    return RestorePoint.objects.get(workload=vm)


def _restore(user, point, **target):
    machine_target = MachineTarget(**target.pop("machine", {}))
    told = RestoreTarget(driver="kvm", path="", format="", machine=machine_target, **target)
    return requests.restore(user, point, chosen=target.pop("chosen", []), target=told)


def _leased(world):
    return ActingNode(world.alpha.node).take().spec


def test_a_machine_comes_back_beside_the_old_one_under_a_new_name(world, kvm, point):
    _restore(world.operator, point, machine={"start": True, "storage": "/pool", "networks": {"a": "b"}})
    spec = _leased(world)
    assert spec.machine_id == machine(1).id and spec.platform.secrets == {"password": SECRET}
    order = spec.target.machine
    assert order.name.startswith("web01-") and order.new_identity and order.start and order.networks == {"a": "b"}
    assert spec.target.overwrite == "never"


def test_in_place_takes_that_right_and_puts_the_machine_back_as_it_was(world, kvm, point):
    with pytest.raises(Denied):
        _restore(world.operator, point, in_place=True)
    with pytest.raises(Denied):
        _restore(world.operator, point, overwrite="always", machine={"name": "other"})
    _restore(world.admin, point, in_place=True)
    spec = _leased(world)
    assert (spec.target.machine.name, spec.target.machine.new_identity) == ("web01", False)
    assert spec.target.overwrite == "always"


def test_another_platform_is_one_of_the_tenant_and_of_the_kind(world, kvm, point):
    other = make_platform(world.alpha, "kvm b", addresses=["kvm9.example"])
    foreign = make_platform(world.beta)
    with pytest.raises(NotFound):
        _restore(world.operator, point, machine={"platform": foreign.pk})
    with pytest.raises(Invalid):
        _restore(world.operator, point, machine={"platform": world.alpha.platform.pk})
    with pytest.raises(Invalid, match="no host"):
        _restore(world.operator, point, machine={"host": "kvm9.example"})
    _restore(world.operator, point, machine={"platform": other.pk, "host": "kvm9.example"})
    assert _leased(world).platform.addresses == ["kvm9.example"]


def test_a_platform_that_is_deleted_before_the_restore_starts_fails_it_with_the_reason(world, kvm, point):
    other = make_platform(world.alpha, "kvm b")
    job = _restore(world.operator, point, machine={"platform": other.pk})
    other.delete()
    assert ActingNode(world.alpha.node).take() is None
    job.refresh_from_db()
    assert job.state == State.FAILED and "deleted" in job.error_message


@pytest.mark.parametrize(
    "order",
    [
        {"name": "a/b"}, {"name": "a\nb"}, {"storage": "../x"}, {"storage": "/a/../b"}, {"storage": "two words"},
        {"networks": {"a": ""}}, {"networks": {"a": "b\x00"}},
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_is_refused(world, kvm, point, order):
    with pytest.raises(Invalid):
        _restore(world.operator, point, machine=order)
    assert not Job.objects.filter(kind=JobKind.RESTORE).exists()


def test_a_machine_is_neither_staged_nor_read_back_and_says_so(world, kvm, point):
    target = RestoreTarget(driver="kvm", path="", format="", machine=MachineTarget())
    for more in ({"verify": True}, {"staging": "disk"}):
        with pytest.raises(Invalid):
            requests.restore(world.operator, point, chosen=[], target=target, **more)
    with pytest.raises(NotFound):
        requests.restore(world.stranger, point, chosen=[], target=target)
    with pytest.raises(Denied):
        requests.restore(world.viewer, point, chosen=[], target=target)


def test_a_restore_can_be_run_again(world, kvm, point):
    job = _restore(world.operator, point, machine={"name": "copy"})
    node = ActingNode(world.alpha.node)
    node.fail(node.take(), "The pool is full.")
    again = requests.retry(world.operator, Job.objects.get(pk=job.pk))
    assert again.tasks.get().spec["target"]["machine"]["name"] == "copy"


def test_a_file_restore_onto_the_node_does_not_stumble_over_machines(world, kvm):
    find(world.alpha, kvm, [machine(1)])
    target = RestoreTarget(driver="files", path="/restore/x")
    assert requests.restore(world.operator, world.alpha.point, chosen=[], target=target).pk
