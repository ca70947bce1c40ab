"""Jobs to lease and nodes that ask, for the tests of leases, placement, the node API and the races."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from django.utils import timezone

from apps.inventory.models import Node
from apps.jobs import lease
from apps.jobs.models import Job, JobKind, Task
from node_agent.protocol import (
    BackupResult,
    BackupSource,
    BackupSpec,
    Capabilities,
    CompleteReport,
    FailReport,
    ForgetResult,
    LeasedTask,
    LeaseReply,
    LeaseRequest,
    ProgressReport,
    TaskKind,
    Wire,
)
from tests.world import House, make_node

ALL_KINDS = list(TaskKind)


def make_job(house: House, kind: JobKind = JobKind.BACKUP, **extra: Any) -> Job:
    facts: dict[str, Any] = {
        "tenant": house.tenant,
        "kind": kind,
        "title": f"{kind.label} of {house.workload}",
        "workload": house.workload,
        "repository": house.repository,
        "destination": house.destination,
        "due_at": timezone.now(),
    }
    return Job(**{**facts, **extra})


def make_task(house: House, kind: TaskKind = TaskKind.BACKUP, **extra: Any) -> Task:
    gate = f"repository:{house.repository.pk}"
    facts: dict[str, Any] = {"kind": kind, "repository": house.repository}
    if kind in (TaskKind.BACKUP, TaskKind.STORE):
        facts |= {"spec": backup_spec(house, kind), "shares": gate}
    elif kind == TaskKind.FORGET:
        facts |= {"spec": {"snapshot_ids": []}, "excludes": gate}
    elif kind == TaskKind.EXPORT:
        facts |= {"spec": export_spec(house), "repository": None}
    elif kind == TaskKind.PROBE:
        facts |= {"spec": {"path": "/backup"}, "repository": None}
    elif kind == TaskKind.INIT:
        facts |= {"excludes": gate}
    return Task(**{**facts, **extra})


def backup_spec(house: House, kind: TaskKind = TaskKind.BACKUP) -> dict[str, Any]:
    told = {
        "kind": kind,
        "workload": house.workload.pk,
        "workload_name": house.workload.name,
        "point": uuid.uuid4(),
        "source": BackupSource(driver="files", paths=["/srv/documents"]),
        "host": house.workload.name,
        "snapshot_paths": ["/srv/documents"],
        "tags": [],
    }
    return BackupSpec.model_construct(**told).model_dump(mode="json", warnings=False)


def export_spec(house: House) -> dict[str, Any]:
    return {
        "workload": str(house.workload.pk),
        "workload_name": house.workload.name,
        "source": {"driver": "files", "paths": ["/srv/documents"]},
        "staging": "stage-1",
    }


def add_backup(house: House, **task: Any) -> Task:
    """A queued backup; its only task."""
    made = make_task(house, **task)
    assert lease.add(make_job(house), [made])
    return made


def add(house: House, kind: TaskKind, job_kind: JobKind = JobKind.EXPIRE, **task: Any) -> Task:
    made = make_task(house, kind, **task)
    assert lease.add(make_job(house, job_kind), [made])
    return made


def other_node(house: House, name: str = "second-node", **facts: Any) -> Node:
    """Another node of the tenant that reaches its destination."""
    node, _token = make_node(name, house.tenant, **facts)
    house.destination.nodes.add(node)
    return node


def request_for(node: Node, **facts: Any) -> LeaseRequest:
    told: dict[str, Any] = {
        "request_id": uuid.uuid4(),
        "incarnation": node.incarnation,
        "node_time": timezone.now(),
        "free_slots": 2,
        "wait_s": 0,
    }
    return LeaseRequest(**{**told, **facts})


def ask(node: Node, now: datetime | None = None, **facts: Any) -> LeaseReply:
    now = now or timezone.now()
    fresh = Node.objects.get(pk=node.pk)
    return lease.acquire(fresh, request_for(fresh, **{"node_time": now, **facts}), now)


def take(node: Node, now: datetime | None = None, **facts: Any) -> LeasedTask:
    """The one task that the node gets."""
    (handed,) = ask(node, now, **facts).tasks
    return handed


def done(token: str, **result: Any) -> CompleteReport:
    facts: dict[str, Any] = {
        "snapshot_id": uuid.uuid4().hex * 2,
        "tree_id": uuid.uuid4().hex * 2,
        "size_bytes": 100,
        "read_bytes": 100,
        "new_bytes": 10,
        "stored_bytes": 5,
        "files": 3,
        "started_age_s": 1,
    }
    return CompleteReport(token=token, result=BackupResult(**{**facts, **result}))


def forgotten(token: str) -> CompleteReport:
    return CompleteReport(token=token, result=ForgetResult(removed=[]))


def failing(token: str, **facts: Any) -> FailReport:
    return FailReport(**{"token": token, "code": "disk-gone", "message": "The disk is gone.", **facts})


def working(token: str, **facts: Any) -> ProgressReport:
    return ProgressReport(**{"token": token, "phase": "store", **facts})


def capabilities(**facts: Any) -> Capabilities:
    told: dict[str, Any] = {"version": "1.0", "hostname": "box", "kinds": ALL_KINDS, "drivers": ["files", "image"]}
    return Capabilities(**{**told, **facts})


def wire(body: Wire) -> bytes:
    return body.model_dump_json().encode()


def state_of(task: Task | LeasedTask) -> tuple[str, str]:
    """(task's state, its job's state)"""
    pk = task.task_id if isinstance(task, LeasedTask) else task.pk
    found = Task.objects.select_related("job").get(pk=pk)
    return found.state, found.job.state
