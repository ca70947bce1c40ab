"""Everything that writes points at once: backups, expiry, deletion, holds, restores, verification, refreshing.

On PostgreSQL this finds lock orders that go in a circle; on both databases, states that do not fit together.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
from django.db import connection
from django.utils import timezone

from apps.catalog import ingest, protection
from apps.catalog.models import CopyState, PointCopy, RestorePoint
from apps.errors import DomainError
from apps.inventory.models import Node, Repository
from apps.jobs import expiry, lease, objectives, planner, requests
from apps.jobs.models import ENDED, OPEN, Job, JobKind
from apps.policies.models import Policy
from node_agent.protocol import ForgetResult, LeasedTask, RestoreResult, RestoreTarget, VerifyResult
from tests.apps.acting import ActingNode, backup_result
from tests.world import World, make_world

ROUNDS = 15
KEEP = {f"keep_{name}": 0 for name in ("hourly", "daily", "weekly", "monthly", "yearly", "within_days")}


def work(node: Node) -> None:
    """Take a task and do it as a node would."""
    acting = ActingNode(node)
    task = acting.take()
    if task is not None:
        acting.complete(task, _result(task))


def _result(task: LeasedTask):
    kind = task.spec.kind
    if kind == "backup":
        return backup_result(started_age_s=0)
    if kind == "forget":
        return ForgetResult(removed=task.spec.snapshot_ids)
    if kind == "verify":
        present = PointCopy.objects.filter(repository=task.spec.repository.repository)
        return VerifyResult(snapshots=list(present.values_list("snapshot_id", flat=True)))
    if kind == "restore":  # taken in the moment between its request and its cancellation
        return RestoreResult(files=1, bytes_written=1, target="/restore/x")
    raise AssertionError(kind)


def actions(world: World) -> dict[str, Callable[[random.Random], object]]:
    house, owner = world.alpha, world.owner

    def any_point(dice: random.Random) -> RestorePoint:
        return dice.choice(list(RestorePoint.objects.filter(workload=house.workload)))

    def restore(dice: random.Random) -> None:
        target = RestoreTarget(driver="files", path="/restore/x")
        job = requests.restore(owner, any_point(dice), chosen=[], target=target, node=house.node)
        requests.cancel(owner, job)

    def hold(dice: random.Random) -> None:
        point = any_point(dice)
        requests.hold(owner, point, "why")
        requests.unhold(owner, point)

    return {
        "back up": lambda _dice: requests.backup_now(owner, house.workload),
        "work": lambda _dice: work(house.node),
        "work too": lambda _dice: work(house.node),
        "expire": lambda _dice: expiry.expire(timezone.now()),
        "delete": lambda dice: requests.delete_point(owner, any_point(dice), house.workload.name),
        "hold": hold,
        "restore": restore,
        "verify": lambda _dice: requests.verify(owner, house.repository),
        "refresh": lambda _dice: objectives.refresh([house.workload.pk]),
        "plan": lambda _dice: planner.plan(timezone.now()),
        "stranded": lambda _dice: expiry.put_back_stranded(timezone.now()),
    }


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_all_who_write_points_at_once_neither_block_one_another_nor_leave_a_mess():
    world = make_world()
    Policy.objects.filter(pk=world.alpha.policy.pk).update(**KEEP, keep_last=2)
    Node.objects.filter(pk=world.alpha.node.pk).update(slots=8)
    for _number in range(6):
        _backed_up(world)
    errors: list[BaseException] = []
    done: list[str] = []

    def repeat(name: str, act: Callable[[random.Random], object]) -> None:
        dice = random.Random(name)
        try:
            for _round in range(ROUNDS):
                try:
                    act(dice)
                    done.append(name)
                except (DomainError, IndexError, RestorePoint.DoesNotExist):
                    continue  # refused, or the point went away meanwhile: both are answers
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=repeat, args=one) for one in actions(world).items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []
    assert set(done) == set(actions(world))  # each of them came through at least once
    _settle(world)
    _fits_together(world)


def _backed_up(world: World) -> None:
    requests.backup_now(world.owner, world.alpha.workload)
    work(world.alpha.node)


def _settle(world: World) -> None:
    """What is still open is done; then nothing is left half-way."""
    for _task in range(500):
        if not Job.objects.filter(state__in=OPEN, tenant=world.alpha.tenant).exists():
            break
        work(world.alpha.node)
        for job in Job.objects.filter(state__in=OPEN, kind__in=[JobKind.RESTORE, JobKind.BACKUP]):
            lease.cancel(job, "test", timezone.now())
    expiry.put_back_stranded(timezone.now())


def _fits_together(world: World) -> None:
    workload = world.alpha.workload
    assert not Job.objects.filter(tenant=world.alpha.tenant).exclude(state__in=ENDED).exists()
    assert not PointCopy.objects.filter(state__in=[CopyState.EXPIRING, CopyState.EXPIRED]).exists()
    assert not RestorePoint.objects.filter(copies=None).exists()
    row = workload.protection
    row.refresh_from_db()
    told = (row.state, row.last_good_id, row.points)
    protection.refresh([workload.pk])
    row.refresh_from_db()
    assert (row.state, row.last_good_id, row.points) == told
    found = ingest.reconcile(
        Repository.objects.get(pk=world.alpha.repository.pk),
        VerifyResult(snapshots=list(PointCopy.objects.values_list("snapshot_id", flat=True))),
        since=timezone.now(),
        now=timezone.now(),
    )
    assert found.missing == []
