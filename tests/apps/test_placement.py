"""Which node may run what, and why a task waits, in the operator's words."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from apps.inventory.models import Node, Repository, RepositoryState
from apps.jobs import lease, placement
from apps.jobs.models import Job, Task
from node_agent.protocol import API_VERSION, TaskKind
from tests.apps.leasing import add, add_backup, ask, done, failing, forgotten, make_job, make_task, take
from tests.world import make_node

pytestmark = pytest.mark.django_db


@pytest.fixture
def alpha(world):
    return world.alpha


def change(node: Node, **facts) -> None:
    Node.objects.filter(pk=node.pk).update(**facts)


def why(task: Task, later: timedelta = timedelta(seconds=1)) -> str:
    fresh = Task.objects.select_related("job__tenant", "after__node", "repository__destination").get(pk=task.pk)
    return placement.why_waiting(fresh, timezone.now() + later)


# --- who gets it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unfit",
    [{"paused": True}, {"quarantined_at": timezone.now()}, {"kinds": ["restore"]}, {"slots": 0}],
    ids=["paused", "quarantined", "kind", "no-slot"],
)
def test_a_node_that_is_not_fit_gets_nothing(alpha, unfit):
    add_backup(alpha)
    change(alpha.node, **unfit)
    assert ask(alpha.node).tasks == []


def test_a_node_one_version_behind_is_served(alpha):
    add_backup(alpha)
    change(alpha.node, protocol=API_VERSION - 1)
    assert len(ask(alpha.node).tasks) == 1


def test_a_node_two_versions_behind_gets_nothing_and_is_told_why(alpha, monkeypatch):
    monkeypatch.setattr("apps.inventory.presence.OLDEST_PROTOCOL", 2)
    task = add_backup(alpha)
    reply = ask(alpha.node)
    assert reply.tasks == [] and "too old" in reply.message
    assert "too old" in why(task)


def test_a_task_goes_only_to_a_node_with_all_its_labels(alpha):
    second, _token = make_node("second-node", alpha.tenant, labels=["zone:b"], told_labels=["rack:7"])
    alpha.destination.nodes.add(second)
    task = add_backup(alpha, requires=["zone:b", "rack:7", "driver:files", f"destination:{alpha.destination.pk}"])
    assert ask(alpha.node).tasks == []
    assert take(second).task_id == task.pk


def test_a_node_cannot_give_itself_labels_that_the_server_gives(alpha):
    second, _token = make_node("second-node", alpha.tenant, told_labels=[f"node:{alpha.node.pk}", "driver:vmware"])
    alpha.destination.nodes.add(second)
    add_backup(alpha, requires=[f"node:{alpha.node.pk}"])
    add_backup(alpha, requires=["driver:vmware"])
    assert ask(second).tasks == []


def test_a_node_of_another_tenant_gets_nothing_even_if_it_reaches_the_destination(world):
    add_backup(world.alpha)
    world.alpha.destination.nodes.add(world.beta.node)
    assert ask(world.beta.node).tasks == []


def test_a_shared_node_serves_every_tenant_whose_destination_it_reaches(world):
    one, two = add_backup(world.alpha), add_backup(world.beta)
    assert ask(world.shared_node).tasks == []
    world.alpha.destination.nodes.add(world.shared_node)
    world.beta.destination.nodes.add(world.shared_node)
    assert {handed.task_id for handed in ask(world.shared_node).tasks} == {one.pk, two.pk}


def test_a_node_that_does_not_reach_the_destination_gets_nothing(alpha):
    second, _token = make_node("second-node", alpha.tenant)
    add_backup(alpha)
    assert ask(second).tasks == []


def test_tasks_of_a_tenant_that_is_switched_off_rest(alpha):
    task = add_backup(alpha)
    alpha.tenant.is_active = False
    alpha.tenant.save()
    assert ask(alpha.node).tasks == []
    assert "switched off" in why(task)


def test_many_tasks_for_others_do_not_hide_the_one_that_fits(alpha):
    for _ in range(120):
        add_backup(alpha, requires=["zone:elsewhere"])
    fitting = add_backup(alpha)
    assert take(alpha.node).task_id == fitting.pk


# --- why it waits -----------------------------------------------------------------------------------------


def test_a_task_that_starts_any_moment_says_so(alpha):
    assert why(add_backup(alpha)) == "Starts in a moment."


def test_a_running_task_does_not_wait(alpha):
    task = add_backup(alpha)
    take(alpha.node)
    assert why(task) == ""


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"last_seen_at": timezone.now() - timedelta(hours=2)}, "is offline"),
        ({"paused": True}, "is paused"),
        ({"draining": True}, "is stopping"),
        ({"quarantined_at": timezone.now()}, "is quarantined"),
        ({"kinds": ["restore"]}, "cannot do this kind of task"),
    ],
)
def test_the_state_of_the_only_node_is_named(alpha, state, words):
    task = add_backup(alpha, requires=[f"node:{alpha.node.pk}"])
    change(alpha.node, **state)
    assert why(task) == f"Node {alpha.node.name} {words}."


def test_a_busy_node_is_named(alpha):
    add_backup(alpha)
    add_backup(alpha)
    ask(alpha.node)
    task = add_backup(alpha, requires=[f"node:{alpha.node.pk}"])
    assert why(task) == f"Node {alpha.node.name} is busy with other tasks."


def test_a_wrong_clock_is_named_for_exclusive_tasks_only(alpha, world):
    change(alpha.node, clock_offset_s=-3600)
    change(world.shared_node, paused=True)
    forget, backup = add(alpha, TaskKind.FORGET), add_backup(alpha)
    assert "clock of node alpha-node" in why(forget)
    assert why(backup) == "Starts in a moment."


def test_missing_labels_and_missing_reach_are_told_apart(alpha):
    assert why(add_backup(alpha, requires=["zone:mars"])) == "No node has zone:mars."
    alpha.destination.nodes.clear()
    assert why(add_backup(alpha)) == f"No node that could do it reaches {alpha.destination}."


def test_a_tenant_without_nodes_is_told_so(alpha):
    Node.objects.update(last_seen_at=None)
    assert why(add_backup(alpha)) == "No node is enrolled for this tenant."


def test_a_closed_gate_names_the_job_that_holds_it(alpha):
    forget = make_task(alpha, TaskKind.FORGET)
    lease.add(make_job(alpha, title="Expire old points"), [forget])
    ask(alpha.node)
    assert why(add_backup(alpha)) == "Waits until “Expire old points” is finished."


# --- a gate is not held for ever by those who share it -------------------------------------------------------


@pytest.fixture
def turn() -> timedelta:
    return placement.GATE_PATIENCE + timedelta(minutes=1)


def test_newcomers_let_a_task_pass_that_has_waited_long_to_be_alone(alpha, turn):
    change(alpha.node, slots=4)
    add_backup(alpha)
    first = take(alpha.node)
    removal = add(alpha, TaskKind.FORGET, available_at=timezone.now() - turn)
    newcomer = add_backup(alpha)
    assert ask(alpha.node).tasks == []
    assert "waited long" in why(newcomer)

    lease.complete(alpha.node, first.task_id, done(first.token), timezone.now())
    (handed,) = ask(alpha.node).tasks
    assert handed.task_id == removal.pk
    lease.complete(alpha.node, handed.task_id, forgotten(handed.token), timezone.now())
    assert [task.task_id for task in ask(alpha.node).tasks] == [newcomer.pk]


def test_who_came_before_it_does_not_wait_for_it(alpha, turn):
    change(alpha.node, slots=4)
    add_backup(alpha)
    take(alpha.node)
    add(alpha, TaskKind.FORGET, available_at=timezone.now() - turn)
    earlier = add_backup(alpha, available_at=timezone.now() - 2 * turn)
    assert [task.task_id for task in ask(alpha.node).tasks] == [earlier.pk]


@pytest.mark.parametrize(
    "waited",
    [timedelta(minutes=5), placement.GATE_PATIENCE + placement.GATE_TURN + timedelta(minutes=5)],
    ids=["not-long-yet", "its-turn-is-over"],
)
def test_newcomers_start_as_long_as_it_is_not_its_turn(alpha, waited):
    """A run of ten hours that is inside must not hold up all others for ten hours."""
    change(alpha.node, slots=4)
    add_backup(alpha)
    take(alpha.node)
    add(alpha, TaskKind.FORGET, available_at=timezone.now() - waited)
    newcomer = add_backup(alpha)
    assert [task.task_id for task in ask(alpha.node).tasks] == [newcomer.pk]


@pytest.mark.parametrize("reason", [{"clock_offset_s": 3600}, {"kinds": ["backup"]}], ids=["clock", "kind"])
def test_nobody_waits_for_a_task_that_no_node_could_begin(alpha, turn, reason):
    change(alpha.node, slots=4)
    add_backup(alpha)
    take(alpha.node)
    add(alpha, TaskKind.FORGET, available_at=timezone.now() - turn)
    newcomer = add_backup(alpha)
    change(alpha.node, **reason)
    said = {"node_time": timezone.now() + timedelta(seconds=reason.get("clock_offset_s", 0))}
    assert [task.task_id for task in ask(alpha.node, **said).tasks] == [newcomer.pk]


def test_a_retry_says_when_and_what_went_wrong(alpha):
    task = add_backup(alpha)
    handed = take(alpha.node)
    lease.fail(alpha.node, task.pk, failing(handed.token, retryable=True), timezone.now())
    assert why(task).startswith("Tries again at ") and "The disk is gone." in why(task)


def test_a_later_start_is_told(alpha):
    assert why(add_backup(alpha, available_at=timezone.now() + timedelta(hours=1))).startswith("Starts at ")


def test_the_step_before_and_the_repository_that_is_not_ready_are_named(alpha):
    export = make_task(alpha, TaskKind.EXPORT)
    store = make_task(alpha, TaskKind.STORE, after=export, same_node=True)
    lease.add(make_job(alpha), [export, store])
    assert why(store) == "Waits for the step before it."
    Repository.objects.filter(pk=alpha.repository.pk).update(state=RepositoryState.NEW)
    assert why(add_backup(alpha)) == f"Waits until the repository at {alpha.destination} is prepared."


def test_the_sweep_stores_the_reason_and_a_start_clears_it(alpha):
    task = add_backup(alpha, requires=[f"node:{alpha.node.pk}"])
    change(alpha.node, paused=True)
    lease.sweep(timezone.now() + timedelta(seconds=1))
    assert Job.objects.get(tasks=task.pk).waiting_for == f"Node {alpha.node.name} is paused."
    change(alpha.node, paused=False)
    take(alpha.node)
    assert Job.objects.get(tasks=task.pk).waiting_for == ""
