"""What backups keep on platforms: remembered before it is made, removed when unneeded, found when nobody knew."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from apps.catalog.models import RestorePoint, Trace
from apps.errors import Conflict, Denied, NotFound
from apps.iam.models import AuditEvent
from apps.inventory import exclusion
from apps.inventory.models import Platform, PlatformKind
from apps.jobs import building, chores, lease, placement, requests, traces
from apps.jobs.models import Job, JobKind, State
from apps.policies import assignment
from apps.policies.models import Assignment, Schedule
from apps.reports import alerts
from node_agent.protocol import MachineTarget, RemoveTracesResult, RestoreTarget, TraceFacts, owner_of
from tests.apps.acting import ActingNode, backup_result
from tests.apps.clouds import find, machine, make_platform, workload

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


@pytest.fixture
def kvm(world):
    platform = make_platform(world.alpha)
    find(world.alpha, platform, [machine(1)])
    assignment.assign(world.admin, [workload(platform)], world.alpha.policy)
    return platform


@pytest.fixture
def mark(world) -> str:
    return world.alpha.repository.repository_id[:8]


def back_up(world, kvm, kept=("brs-1 (vda)",)):
    """A backup by the node, which tells what stays on the platform."""
    requests.backup_now(world.admin, workload(kvm))
    node = ActingNode(world.alpha.node)
    task = node.take()
    assert task is not None and task.spec.kind == "backup"
    node.complete(task, backup_result(kept=None if kept is None else list(kept)))


def removals() -> list[Job]:
    return list(Job.objects.filter(kind=JobKind.REMOVE_TRACES).order_by("created_at"))


def carry_out(world, **result) -> None:
    node = ActingNode(world.alpha.node)
    task = node.take(later(48))
    assert task is not None and task.spec.kind == "remove-traces", task
    node.complete(task, RemoveTracesResult(**result))


def later(hours: float):
    return timezone.now() + hours * HOUR


# --- remembered ---------------------------------------------------------------------------------------


def test_a_run_is_remembered_before_it_can_leave_anything_and_says_at_its_end_what_it_keeps(world, kvm, mark):
    requests.backup_now(world.admin, workload(kvm))
    assert not Trace.objects.exists()
    node = ActingNode(world.alpha.node)
    task = node.take()
    row = Trace.objects.get()
    assert (row.workload, row.repository, row.owner, row.names) == (workload(kvm), world.alpha.repository, mark, [])
    node.fail(task)  # what a run that died left has a row, too
    assert Trace.objects.count() == 1
    back_up(world, kvm, ["brs-1 (vda)\x00"])
    assert Trace.objects.get().names == ["brs-1 (vda)\\0"]


def test_a_machine_that_can_keep_nothing_has_no_row_and_an_older_node_that_says_nothing_has_one(world, kvm):
    back_up(world, kvm, [])
    assert not Trace.objects.exists()
    back_up(world, kvm, None)
    assert Trace.objects.get().names == []
    back_up(world, kvm)
    back_up(world, kvm, [])  # this time: what went before may still be there
    assert Trace.objects.get().names == []


def test_backups_of_files_keep_nothing(world):
    requests.backup_now(world.admin, world.alpha.workload)
    ActingNode(world.alpha.node).back_up()
    assert not Trace.objects.exists()


# --- removed when nothing needs it --------------------------------------------------------------------


def leaves(world, kvm, how: str) -> None:
    policy = world.alpha.policy
    if how == "unprotected":
        assignment.assign(world.admin, [workload(kvm)], None)
    elif how == "policy disabled":
        type(policy).objects.filter(pk=policy.pk).update(enabled=False)
    elif how == "schedule disabled":
        Schedule.objects.update(enabled=False)
    elif how == "policy deleted":
        policy.delete()
    elif how == "set aside":
        exclusion.exclude(world.admin, [workload(kvm)], "moved")
    elif how == "gone":
        find(world.alpha, kvm, [])
    else:
        elsewhere = type(policy.destination).objects.create(tenant=world.alpha.tenant, name="elsewhere", path="/b")
        elsewhere.nodes.add(world.alpha.node)
        type(policy).objects.filter(pk=policy.pk).update(destination=elsewhere)


WAYS = ["unprotected", "policy disabled", "schedule disabled", "policy deleted", "set aside", "gone", "elsewhere"]


@pytest.mark.parametrize("how", WAYS)
def test_what_no_schedule_needs_any_more_is_removed_once_after_an_hour(world, kvm, mark, how):
    back_up(world, kvm)
    assert traces.plan(later(0)) == 0 and Trace.objects.get().unneeded_since is None
    leaves(world, kvm, how)
    assert traces.plan(later(0)) == 0 and Trace.objects.get().unneeded_since is not None
    assert traces.plan(later(0.9)) == 0
    assert [traces.plan(later(1.1)) for _ in range(3)] == [1, 0, 0]
    [job] = removals()
    spec = job.tasks.get().spec
    assert (spec["marks"], spec["bitmaps"], spec["snapshots"]) == ([mark], True, False)
    assert spec["machine"]["id"] == machine(1).id and "platform" not in spec
    carry_out(world, removed=["brs-1"])
    assert not Trace.objects.exists() and Job.objects.get(pk=job.pk).state == State.SUCCEEDED
    assert traces.plan(later(30)) == 0
    assert AuditEvent.objects.filter(verb="traces.removal-planned", object_id=str(workload(kvm).pk)).count() == 1


def test_the_beat_plans_it(world, kvm):
    back_up(world, kvm)
    Assignment.objects.all().delete()
    chores.plan()
    Trace.objects.update(unneeded_since=later(-2))
    chores.plan()
    assert len(removals()) == 1


def test_back_under_a_policy_within_the_hour_nothing_goes_and_a_removal_not_begun_is_taken_back(world, kvm):
    back_up(world, kvm)
    leaves(world, kvm, "unprotected")
    traces.plan(later(0))
    assignment.assign(world.admin, [workload(kvm)], world.alpha.policy)
    assert traces.plan(later(2)) == 0 and Trace.objects.get().unneeded_since is None
    leaves(world, kvm, "unprotected")
    traces.plan(later(0))
    assert traces.plan(later(2)) == 1
    assignment.assign(world.admin, [workload(kvm)], world.alpha.policy)
    assert traces.plan(later(2)) == 0
    assert [job.state for job in removals()] == [State.CANCELLED]
    row = Trace.objects.get()
    assert (row.problem, row.unneeded_since) == ("", None)
    leaves(world, kvm, "unprotected")
    traces.plan(later(3))
    assert traces.plan(later(5)) == 1, "and the next time it is planned anew"


def test_never_beside_a_backup_in_whichever_order_they_come(world, kvm):
    back_up(world, kvm)
    requests.backup_now(world.admin, workload(kvm))
    leaves(world, kvm, "policy disabled")
    traces.plan(later(-3))
    assert traces.plan(later(0)) == 0, "a backup waits"
    node = ActingNode(world.alpha.node)
    backup = node.take()
    assert traces.plan(later(0)) == 0, "a backup runs"
    node.complete(backup, backup_result(kept=["brs-2 (vda)"]))
    assert traces.plan(later(0)) == 1
    # The removal waits; now somebody starts a backup by hand, and the node has room for both.
    type(node.node).objects.filter(pk=node.node.pk).update(slots=5)
    removal = node.take()
    assert removal is not None and removal.spec.kind == "remove-traces"
    requests.backup_now(world.admin, workload(kvm))
    assert node.take() is None, "they hold one gate"
    backup = Job.objects.get(kind=JobKind.BACKUP, state=State.QUEUED)
    assert "Remove kept snapshots" in placement.why_waiting(backup.tasks.get(), timezone.now())
    node.complete(removal, RemoveTracesResult(removed=["brs-2"]))
    taken = node.take()
    assert taken is not None and taken.spec.kind == "backup"
    assert Trace.objects.count() == 1, "what this run will keep is remembered anew"
    assert traces.plan(later(0)) == 0, "a backup runs again"


def test_two_machines_do_not_wait_for_one_another(world, kvm):
    find(world.alpha, kvm, [machine(1), machine(2)])
    assignment.assign(world.admin, [workload(kvm, 2)], world.alpha.policy)
    type(world.alpha.node).objects.filter(pk=world.alpha.node.pk).update(slots=5)
    node = ActingNode(world.alpha.node)
    for number in (1, 2):
        requests.backup_now(world.admin, workload(kvm, number))
    assert node.take() and node.take()


def restored_in_place(world, point, kind: PlatformKind):
    platform = Platform.objects.get(kind=kind)
    target = RestoreTarget(
        driver=kind, path="", in_place=True, overwrite="always", machine=MachineTarget(host="kvm1.example")
    )
    copy = point.copies.get()
    made, tasks = building.restore(
        point, copy, platform.node, target, later(0), chosen=[], verify=False, staging="stream", platform=platform
    )
    return made, tasks


@pytest.mark.parametrize("kind", [PlatformKind.KVM, PlatformKind.RBD])
def test_never_beside_a_restore_that_puts_the_machine_back(world, kvm, kind):
    Platform.objects.filter(pk=kvm.pk).update(kind=kind)
    type(world.alpha.node).objects.filter(pk=world.alpha.node.pk).update(drivers=["kvm", "rbd"], slots=5)
    back_up(world, kvm)
    assert lease.add(*restored_in_place(world, workload(kvm).points.get(), kind))
    leaves(world, kvm, "policy disabled")
    traces.plan(later(-3))
    assert traces.plan(later(0)) == 0, "a restore waits"
    restore = Job.objects.get(kind=JobKind.RESTORE)
    Job.objects.filter(pk=restore.pk).update(state=State.FAILED)  # as if it had come a moment later
    assert traces.plan(later(0)) == 1
    Job.objects.filter(pk=restore.pk).update(state=State.QUEUED)
    node = ActingNode(world.alpha.node)
    first = node.take()
    assert first is not None and node.take() is None, "they come one after the other"
    node.fail(first)
    second = node.take()
    assert second is not None and {first.spec.kind, second.spec.kind} == {"restore", "remove-traces"}


def test_an_unreachable_platform_is_told_and_tried_again_after_a_while(world, kvm):
    back_up(world, kvm)
    leaves(world, kvm, "unprotected")
    traces.plan(later(-3))
    assert traces.plan(later(-1)) == 1
    node = ActingNode(world.alpha.node)
    node.fail(node.take(), "The hypervisor does not answer.")
    row = Trace.objects.get()
    assert row.problem == "The hypervisor does not answer." and row.tried_at
    [said] = [one for one in alerts.alerts(world.owner, later(0)) if one.icon == "photo_camera"]
    assert "could not be removed" in said.title and said.detail == "web01: The hypervisor does not answer."
    assert not [one for one in alerts.alerts(world.stranger, later(0)) if one.icon == "photo_camera"]
    assert traces.plan(later(5)) == 0
    assert traces.plan(later(6.5)) == 1
    carry_out(world, gone=True)
    assert not Trace.objects.exists()


def test_a_machine_that_another_platform_of_the_tenant_protects_keeps_what_it_needs(world, kvm):
    back_up(world, kvm)
    twin = make_platform(world.alpha, "kvm-again")
    find(world.alpha, twin, [machine(1, "web01-again")])
    leaves(world, kvm, "unprotected")
    assignment.assign(world.admin, [workload(twin)], world.alpha.policy)
    traces.plan(later(0))
    assert traces.plan(later(2)) == 0


def test_a_platform_that_wants_no_snapshots_in_ceph_any_more_loses_those_alone(world, kvm):
    type(kvm).objects.filter(pk=kvm.pk).update(options={"rbd-snapshots": "yes"})
    back_up(world, kvm)
    assert traces.plan(later(0)) == 0 and Trace.objects.get().in_cluster
    type(kvm).objects.filter(pk=kvm.pk).update(options={})
    assert [traces.plan(later(0)) for _ in range(2)] == [1, 0]
    spec = removals()[0].tasks.get().spec
    assert (spec["bitmaps"], spec["snapshots"]) == (False, True)
    carry_out(world, removed=["rbd/vm@brs-1"])
    row = Trace.objects.get()
    assert not row.in_cluster and row.names
    assert traces.plan(later(0)) == 0
    # One that left its policy meanwhile loses all of it, in the cluster, too.
    type(kvm).objects.filter(pk=kvm.pk).update(options={"rbd-snapshots": "yes"})
    back_up(world, kvm)
    type(kvm).objects.filter(pk=kvm.pk).update(options={})
    leaves(world, kvm, "unprotected")
    traces.plan(later(0))
    assert traces.plan(later(2)) == 1
    spec = removals()[-1].tasks.get().spec
    assert (spec["bitmaps"], spec["snapshots"]) == (True, True)


# --- by hand ------------------------------------------------------------------------------------------


def test_whoever_operates_a_workload_removes_what_is_kept_at_it_and_nobody_else(world, kvm, mark):
    back_up(world, kvm)
    mine = workload(kvm)
    for who, refusal in ((world.viewer, Denied), (world.stranger, NotFound), (world.nobody, NotFound)):
        with pytest.raises(refusal):
            requests.remove_traces(who, mine, traces.of_backups(mine))
    job = requests.remove_traces(world.operator, mine, traces.of_backups(mine))
    assert job.requested_by == world.operator
    event = AuditEvent.objects.get(verb="traces.removal-requested")
    assert event.detail["names"] == ["brs-1 (vda)"] and event.detail["owners"] == [mark]
    with pytest.raises(Conflict, match="waiting or running"):
        requests.remove_traces(world.operator, mine, traces.of_backups(mine))
    ActingNode(world.alpha.node).fail(ActingNode(world.alpha.node).take())
    again = requests.retry(world.operator, Job.objects.get(pk=job.pk))
    assert again.kind == JobKind.REMOVE_TRACES
    carry_out(world, removed=["brs-1"])
    with pytest.raises(Conflict, match="Nothing is kept"):
        requests.remove_traces(world.operator, mine, traces.of_backups(mine))


def test_what_a_backup_is_about_to_need_is_not_removed_by_hand_either(world, kvm):
    back_up(world, kvm)
    requests.backup_now(world.admin, workload(kvm))
    with pytest.raises(Conflict, match="Back up web01"):
        requests.remove_traces(world.admin, workload(kvm), traces.of_backups(workload(kvm)))


# --- found --------------------------------------------------------------------------------------------


def bears(owner: str, *names: str) -> TraceFacts:
    return TraceFacts(owner=owner, names=list(names))


def test_what_nobody_here_knows_is_found_shown_and_never_removed_by_itself(world, kvm, mark):
    find(world.alpha, kvm, [machine(1, traces=[bears("feedbeef", "brs-feedbeef-3 (vda)"), bears(mark, "brs-1 (vda)")])])
    ours, unknown = Trace.objects.get(owner=mark), Trace.objects.get(owner="feedbeef")
    assert ours.repository == world.alpha.repository and unknown.repository is None
    assert not ours.by_backup and not unknown.by_backup
    leaves(world, kvm, "unprotected")
    traces.plan(later(0))
    assert traces.plan(later(9)) == 0
    with pytest.raises(Denied):
        requests.remove_traces(world.operator, workload(kvm), [unknown])  # it may be another server's
    requests.remove_traces(world.admin, workload(kvm), [unknown])
    carry_out(world, removed=["brs-feedbeef-3"])
    assert Trace.objects.get() == ours
    find(world.alpha, kvm, [machine(1, traces=None)])
    assert Trace.objects.count() == 1, "nobody has looked"
    find(world.alpha, kvm, [machine(1, traces=[])])
    assert not Trace.objects.exists()


def test_what_runs_keep_is_no_find_whichever_way_it_is_seen(world, kvm, mark):
    back_up(world, kvm)
    twin = make_platform(world.alpha, "kvm-again")
    find(world.alpha, twin, [machine(1, "twin", traces=[bears(mark, "brs-1 (vda)")])])
    hashed = owner_of(mark, machine(1).id)  # at an image of a disk of the machine, seen by its cluster's platform
    cluster = make_platform(world.alpha, "ceph", kind=PlatformKind.RBD, options={"fsid": "x", "pools": "vms"})
    type(world.alpha.node).objects.filter(pk=world.alpha.node.pk).update(drivers=["kvm", "rbd"])
    find(world.alpha, cluster, [machine(7, "vm-disk", traces=[bears(hashed, f"vms/a@brs-{hashed}-1")])])
    assert Trace.objects.count() == 1
    find(world.alpha, kvm, [machine(1, traces=[])])
    assert Trace.objects.get().names == ["brs-1 (vda)"], "a look may not see what a running machine holds"


def test_another_tenants_traces_are_not_shown_to_this_one(world, kvm):
    theirs = world.beta.repository.repository_id[:8]
    find(world.alpha, kvm, [machine(1, traces=[bears(theirs, f"brs-{theirs}-1 (vda)")])])
    assert not Trace.objects.exists()


def test_a_copied_machine_bears_what_its_original_was_given(world, kvm, mark):
    back_up(world, kvm)
    find(world.alpha, kvm, [machine(1), machine(2, "copy", traces=[bears(mark, "brs-1 (vda)")])])
    row = Trace.objects.get(workload=workload(kvm, 2))
    assert row.repository == world.alpha.repository and not row.by_backup
    requests.remove_traces(world.operator, workload(kvm, 2), [row])


# --- installations that were there before ---------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_points_of_machines_made_before_have_their_rows_afterwards(world, kvm, mark):
    RestorePoint.objects.filter(pk=world.alpha.point.pk).update(workload=workload(kvm))
    before, after = [("catalog", "0004_traces")], [("catalog", "0005_traces_of_points")]
    executor = MigrationExecutor(connection)
    executor.migrate(before)
    Trace.objects.all().delete()
    executor = MigrationExecutor(connection)
    executor.migrate(after)
    row = Trace.objects.get()
    assert (row.workload, row.owner, row.by_backup, row.in_cluster) == (workload(kvm), mark, True, False)
