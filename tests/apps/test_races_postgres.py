"""Races: what two threads, each with its own connection, can do to one another.

The derived state of a job is PostgreSQL's to break (SQLite has one writer at a time), so the first group runs there
only. The rest must hold on both.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from apps.catalog.models import RestorePoint
from apps.errors import LeaseLost
from apps.inventory.models import Node
from apps.jobs import lease
from apps.jobs.lease import state as moves
from apps.jobs.models import ACTIVE, ENDED, Gate, Job, JobKind, State, Task
from node_agent.protocol import CompleteReport, ProbeCheck, ProbeResult, ReleaseReport, TaskKind
from tests.apps.leasing import add, add_backup, ask, done, failing, make_job, make_task, request_for, take, working
from tests.world import House, make_node

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def needs_postgres():
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL lets two writers interleave: set BRS_DATABASE_URL")


class Racers:
    """Two threads that start each round together."""

    def __init__(self, count: int = 2) -> None:
        self._pool = ThreadPoolExecutor(count)
        self._line = threading.Barrier(count)

    def run(self, *works: Callable[[], Any]) -> list[Any]:
        """What each returned, or the exception that it raised."""
        return [future.result(60) for future in [self._pool.submit(self._one, work) for work in works]]

    def _one(self, work: Callable[[], Any]) -> Any:
        self._line.wait(30)
        try:
            return work()
        except Exception as error:  # noqa: BLE001  the test looks at it
            return error
        finally:
            connections.close_all()

    def close(self) -> None:
        self._pool.shutdown()


@pytest.fixture
def racers():
    two = Racers()
    yield two
    two.close()


def probes(house: House, count: int) -> list[Task]:
    """A job of several independent tasks that write no common row but their job's (so that nothing else than its
    lock can bring them into an order)."""
    tasks = [make_task(house, TaskKind.PROBE) for _ in range(count)]
    assert lease.add(make_job(house, JobKind.PROBE, destination=None), tasks)
    return tasks


def probed(token: str) -> CompleteReport:
    return CompleteReport(token=token, result=ProbeResult(checks=[ProbeCheck(name="Folder", ok=True)]))


# --- two tasks of one job finish together --------------------------------------------------------------------


@pytest.mark.postgres
@pytest.mark.parametrize(("other", "rounds"), [("complete", 200), ("fail", 50)])
def test_two_finishing_tasks_of_one_job_leave_no_job_running(world, racers, needs_postgres, other, rounds):
    """Two connections, released by a barrier. Without the lock on the job both would see the other's
    task still running: the next test shows that this very race then goes wrong."""
    node, now = world.alpha.node, timezone.now()
    left: Counter[str] = Counter()
    for _ in range(rounds):
        probes(world.alpha, 2)
        one, two = ask(node).tasks

        def finish(handed=one):
            return lease.complete(node, handed.task_id, probed(handed.token), now)

        def finish_or_fail(handed=two):
            if other == "complete":
                return lease.complete(node, handed.task_id, probed(handed.token), now)
            return lease.fail(node, handed.task_id, failing(handed.token), now)

        answers = racers.run(finish, finish_or_fail)
        assert not [answer for answer in answers if isinstance(answer, Exception)], answers
        left[Job.objects.get(pk=one.job_id).state] += 1
    assert left == {State.SUCCEEDED if other == "complete" else State.FAILED: rounds}


@pytest.mark.postgres
def test_the_race_is_a_real_one_without_the_lock_on_the_job_it_goes_wrong(world, racers, needs_postgres, monkeypatch):
    """The race above proves something only if its threads really interleave."""
    monkeypatch.setattr(moves, "lock_job", lambda job_id: Job.objects.get(pk=job_id))
    meeting = threading.Barrier(2)
    derive = moves.derive

    def derive_then_wait(states):
        derived = derive(states)
        meeting.wait(10)  # both have ended their task and looked at the other's, neither has committed
        return derived

    node, now = world.alpha.node, timezone.now()
    probes(world.alpha, 2)
    one, two = ask(node).tasks
    monkeypatch.setattr(moves, "derive", derive_then_wait)
    racers.run(
        lambda: lease.complete(node, one.task_id, probed(one.token), now),
        lambda: lease.complete(node, two.task_id, probed(two.token), now),
    )
    assert Job.objects.get(pk=one.job_id).state in ACTIVE
    assert {task.state for task in Task.objects.filter(job=one.job_id)} == {State.SUCCEEDED}


@pytest.mark.postgres
def test_finishing_races_with_cancelling_and_expiry_and_every_job_ends(world, needs_postgres):
    node = world.alpha.node
    three = Racers(3)
    for _ in range(30):
        probes(world.alpha, 2)
        start = timezone.now()
        one, _two = ask(node, start).tasks
        job = Job.objects.get(pk=one.job_id)
        late = start + timedelta(hours=1)
        answers = three.run(
            lambda one=one, late=late: lease.complete(node, one.task_id, probed(one.token), late),
            lambda job=job, late=late: lease.cancel(job, "Ann", late),
            lambda late=late: lease.sweep(late),
        )
        unexpected = [a for a in answers if isinstance(a, Exception) and not isinstance(a, LeaseLost)]
        assert not unexpected, unexpected
        lease.sweep(late + timedelta(hours=1))
        assert Job.objects.get(pk=one.job_id).state in ENDED
    three.close()


# --- one task, many askers --------------------------------------------------------------------------------------


def test_two_nodes_never_hold_one_task(world):
    """Eight nodes ask for forty tasks at once; some answer, some fail, some stay silent until they expire."""
    house = world.alpha
    nodes = [house.node]
    for number in range(7):
        node, _token = make_node(f"racer-{number}", house.tenant, slots=4)
        house.destination.nodes.add(node)
        nodes.append(node)
    tasks = [add_backup(house, max_attempts=50) for _ in range(40)]
    handed: list[tuple[uuid.UUID, int, str]] = []
    refused: list[Exception] = []
    guard = threading.Lock()

    def one_node(node: Node) -> None:
        dice = random.Random(node.name)
        for turn in range(12):
            now = timezone.now() + timedelta(minutes=10 * turn)
            for task in ask(node, now, free_slots=4).tasks:
                with guard:
                    handed.append((task.task_id, task.attempt, task.token))
                try:
                    fate = dice.random()
                    if fate < 0.5:
                        lease.progress(node, task.task_id, working(task.token), now)
                        lease.complete(node, task.task_id, done(task.token), now)
                    elif fate < 0.7:
                        lease.fail(node, task.task_id, failing(task.token, retryable=True), now)
                    elif fate < 0.8:
                        lease.release(node, task.task_id, ReleaseReport(token=task.token), now)
                except LeaseLost as error:
                    with guard:
                        refused.append(error)
            lease.sweep(now)

    crowd = Racers(len(nodes))
    answers = crowd.run(*[lambda node=node: one_node(node) for node in nodes])
    crowd.close()

    assert not [answer for answer in answers if isinstance(answer, Exception)], answers
    assert len({token for _task, _attempt, token in handed}) == len(handed)
    most = Counter((task, attempt) for task, attempt, _token in handed).most_common(1)
    assert most[0][1] == 1, "one attempt of one task was handed out twice"
    counts = Counter(RestorePoint.objects.filter(task__in=[t.pk for t in tasks]).values_list("task", flat=True))
    assert all(count == 1 for count in counts.values())
    for task in Task.objects.filter(pk__in=[t.pk for t in tasks]).select_related("job"):
        assert task.job.state == task.state


def test_one_task_goes_to_one_of_two_nodes_that_ask_at_the_same_moment(world, racers):
    house = world.alpha
    second, _token = make_node("second-node", house.tenant)
    house.destination.nodes.add(second)
    for _ in range(20):
        task = add_backup(house)
        replies = racers.run(lambda: ask(house.node), lambda: ask(second))
        assert not [reply for reply in replies if isinstance(reply, Exception)], replies
        (winner,) = [
            (reply.tasks[0], node) for reply, node in zip(replies, (house.node, second), strict=True) if reply.tasks
        ]
        handed, node = winner
        assert handed.task_id == task.pk
        lease.complete(node, task.pk, done(handed.token), timezone.now())


def test_a_request_that_arrives_twice_at_once_gets_one_set_of_tasks(world, racers):
    node = world.alpha.node
    for _ in range(20):
        task = add_backup(world.alpha)
        told = request_for(node, free_slots=1)
        now = timezone.now()

        def arrive(told=told, now=now):
            return lease.acquire(Node.objects.get(pk=node.pk), told, now)

        replies = racers.run(arrive, arrive)
        tokens = {handed.token for reply in replies for handed in reply.tasks}
        assert len(tokens) == 1, replies
        assert Task.objects.get(pk=task.pk).attempt == 1
        lease.complete(node, task.pk, done(tokens.pop()), now)


def test_a_node_never_holds_more_than_its_slots_however_often_it_asks(world, racers):
    node = world.alpha.node
    for _ in range(10):
        for _ in range(4):
            add_backup(world.alpha)
        racers.run(lambda: ask(node, free_slots=2), lambda: ask(node, free_slots=2))
        held = Task.objects.filter(node=node, state__in=ACTIVE)
        assert held.count() <= node.slots
        for task in held:
            lease.complete(node, task.pk, done(task.lease_token), timezone.now())


def test_a_gate_is_never_entered_by_one_that_excludes_and_one_that_shares(world, racers):
    house = world.alpha
    second, _token = make_node("second-node", house.tenant)
    house.destination.nodes.add(second)
    for _ in range(20):
        backup, forget = add_backup(house), add(house, TaskKind.FORGET)
        replies = racers.run(lambda: ask(house.node, free_slots=1), lambda: ask(second, free_slots=1))
        assert not [reply for reply in replies if isinstance(reply, Exception)], replies
        inside = Task.objects.filter(pk__in=(backup.pk, forget.pk), state__in=ACTIVE)
        assert inside.count() == 1
        for task in (backup, forget):
            lease.cancel(task.job, "test", timezone.now())
        for task in inside:
            node = task.node
            lease.fail(node, task.pk, failing(task.lease_token), timezone.now())
    assert Gate.objects.filter(pk=f"repository:{house.repository.pk}").count() == 1


def test_a_completion_that_arrives_twice_at_once_makes_one_point(world, racers):
    node = world.alpha.node
    for _ in range(20):
        task = add_backup(world.alpha)
        report = done(take(node).token)

        def finish(task=task, report=report):
            return lease.complete(node, task.pk, report, timezone.now())

        answers = racers.run(finish, finish)
        assert answers[0] == answers[1] and not isinstance(answers[0], Exception), answers
        assert RestorePoint.objects.filter(task=task.pk).count() == 1


def test_the_same_job_added_twice_at_once_is_there_once(world, racers):
    for number in range(20):
        key = f"schedule/{number}"

        def plan(key=key):
            return lease.add(make_job(world.alpha, dedupe_key=key), [make_task(world.alpha)])

        assert sorted(racers.run(plan, plan)) == [False, True]
        job = Job.objects.get(dedupe_key=key)
        assert job.tasks.count() == 1


def test_an_expired_task_is_either_taken_or_renewed_never_both(world, racers):
    house = world.alpha
    second, _token = make_node("second-node", house.tenant)
    house.destination.nodes.add(second)
    for _ in range(20):
        task = add_backup(house)
        start = timezone.now()
        stale = take(house.node, start)
        late = start + timedelta(hours=1)
        lease.sweep(late)
        later = late + timedelta(minutes=1)
        renewed, reply = racers.run(
            partial(lease.progress, house.node, task.pk, working(stale.token), later),
            partial(ask, second, later, free_slots=1),
        )
        assert isinstance(renewed, LeaseLost) != (reply.tasks == []), (renewed, reply)
        with transaction.atomic():
            holder = Task.objects.get(pk=task.pk)
        assert holder.node == (second if reply.tasks else house.node)
        lease.complete(holder.node, task.pk, done(holder.lease_token), later)
