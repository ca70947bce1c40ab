"""A node as far as the server sees it: leases the next task and reports what the test says."""

from __future__ import annotations

import uuid
from datetime import datetime

from django.utils import timezone

from apps.inventory.models import Node
from apps.jobs import lease
from node_agent.protocol import BackupResult, CompleteReport, FailReport, LeasedTask, LeaseRequest, Outcome


class ActingNode:
    def __init__(self, node: Node) -> None:
        self.node = node
        self.node.refresh_from_db()

    def take(self, now: datetime | None = None) -> LeasedTask | None:
        """The next task for this node; None when there is none."""
        moment = now or timezone.now()
        self.node.refresh_from_db()
        request = LeaseRequest(
            request_id=uuid.uuid4(), incarnation=self.node.incarnation, node_time=moment, free_slots=1
        )
        tasks = lease.acquire(self.node, request, moment).tasks
        return tasks[0] if tasks else None

    def complete(self, task: LeasedTask, result, now: datetime | None = None, **report) -> None:
        said = CompleteReport(token=task.token, result=result, **report)
        lease.complete(self.node, task.task_id, said, now or timezone.now())

    def fail(self, task: LeasedTask, message: str = "It broke.", *, retryable: bool = False) -> None:
        report = FailReport(token=task.token, code="broken", message=message, retryable=retryable)
        lease.fail(self.node, task.task_id, report, timezone.now())

    def back_up(self, now: datetime | None = None, *, partial: bool = False) -> LeasedTask:
        """Take the next task, which must be a backup, and report a new snapshot."""
        task = self.take(now)
        assert task is not None and task.spec.kind == "backup", task
        outcome = Outcome.PARTIAL if partial else Outcome.SUCCEEDED
        self.complete(task, backup_result(), now, outcome=outcome)
        return task


def backup_result(**facts) -> BackupResult:
    told = {
        "snapshot_id": uuid.uuid4().hex * 2,
        "tree_id": uuid.uuid4().hex * 2,
        "size_bytes": 5_000,
        "read_bytes": 3_000,
        "new_bytes": 2_000,
        "stored_bytes": 1_000,
        "files": 7,
        "started_age_s": 60,
    }
    return BackupResult(**{**told, **facts})
