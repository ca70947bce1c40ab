"""A running job as its page shows it: what the live stream sends, as plain JSON values."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.utils import timezone

from apps.jobs.models import Job, LogLine, State, Task

LOG_AT_START = 200
LOG_AT_ONCE = 500


def picture(job_id: UUID) -> dict[str, Any] | None:
    """The job and its tasks; None when it is gone."""
    job = Job.objects.select_related("workload").filter(pk=job_id).first()
    if job is None:
        return None
    tasks = Task.objects.filter(job=job).select_related("node").order_by("ordinal")
    return {"job": _job(job), "tasks": [_task(task) for task in tasks]}


def log_after(job_id: UUID, known: int | None) -> list[dict[str, Any]]:
    """Log lines with a key above ``known``, in their order; None: the newest ones, for a start."""
    lines = LogLine.objects.filter(job=job_id)
    if known is None:
        found = list(lines.order_by("-pk")[:LOG_AT_START])[::-1]
    else:
        found = list(lines.filter(pk__gt=known).order_by("pk")[:LOG_AT_ONCE])
    return [
        {
            "id": line.pk,
            "at": _iso(line.at),
            "level": line.level,
            "message": line.message,
            "task": str(line.task_id) if line.task_id else None,
        }
        for line in found
    ]


def with_figures(task: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """The task's entry with newer figures of its node, as ``publish.job_progress`` carries them."""
    told = {name: value for name, value in figures.items() if name != "phase"}
    return {**task, "phase": figures.get("phase") or task["phase"], "progress": told, **_derived(told)}


def _job(job: Job) -> dict[str, Any]:
    return {
        "id": str(job.pk),
        "kind": job.kind,
        "kind_label": str(job.get_kind_display()),
        "state": job.state,
        "state_label": str(job.get_state_display()),
        "title": job.title,
        "due_at": _iso(job.due_at),
        "started_at": _iso(job.started_at),
        "finished_at": _iso(job.finished_at),
        "waiting_for": job.waiting_for,
        "cancel_requested": job.cancel_requested_at is not None,
        "error_code": job.error_code,
        "error_message": job.error_message,
        "error_hint": job.error_hint,
        "restore_point": str(job.restore_point_id) if job.restore_point_id else None,
        "server_time": _iso(timezone.now()),
    }


def _task(task: Task) -> dict[str, Any]:
    return {
        "id": str(task.pk),
        "kind": task.kind,
        "state": task.state,
        "state_label": str(task.get_state_display()),
        "node": task.node.name if task.node is not None else "",
        "attempt": task.attempt,
        "max_attempts": task.max_attempts,
        "phase": task.phase,
        "progress": task.progress,
        "left_out_count": task.left_out_count,
        "error_message": task.error_message if task.state in (State.FAILED, State.QUEUED, State.CANCELLED) else "",
        "error_hint": task.error_hint,
        "started_at": _iso(task.started_at),
        "finished_at": _iso(task.finished_at),
        **_derived(task.progress),
    }


def _derived(figures: dict[str, Any]) -> dict[str, Any]:
    """percent (0-100) and seconds to go, where the node's figures allow to say; else None."""
    total, done_bytes = figures.get("total_bytes") or 0, figures.get("done_bytes") or 0
    rate = figures.get("rate_bytes_s") or 0
    if whole := figures.get("whole"):  # bytes are of one of several phases then
        return {"percent": min(100.0, round(100 * whole, 1)), "eta_s": None}
    percent = min(100.0, round(100 * done_bytes / total, 1)) if total else None
    eta_s = round(max(0, total - done_bytes) / rate) if total and rate else None
    return {"percent": percent, "eta_s": eta_s}


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at is not None else None
