"""Tells who watches, after the commit: browsers that follow a job, and nodes that wait for work.

    job.<id>      its state, figures and log moved            -> the page of one job
    tenant.<id>   something in this tenant's lists moved      -> dashboard and lists look again
    everything    the same, for people who see every tenant
    user.<id>     the rights of this person changed           -> open streams check again
    work          a task may be startable                     -> long polls look again

A message is a hint, never the truth: whoever gets one looks into the database, and whoever misses one looks
again soon anyway. So sending never fails a transaction; it is safe from every thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from asgiref.sync import async_to_sync
from channels.layers import InMemoryChannelLayer, get_channel_layer
from django.db import transaction

log = logging.getLogger(__name__)

EVERYTHING = "everything"
WORK = "work"

_loop: asyncio.AbstractEventLoop | None = None


def attach() -> None:
    """Called on the server's event loop: messages of other threads of this process are delivered through it.
    (``async_to_sync`` from a worker thread reaches the in-memory layer late.)"""
    global _loop
    _loop = asyncio.get_running_loop()


def job_group(job_id: UUID | str) -> str:
    return f"job.{job_id}"


def tenant_group(tenant_id: UUID | str) -> str:
    return f"tenant.{tenant_id}"


def user_group(user_id: UUID | str) -> str:
    return f"user.{user_id}"


def job_changed(job_id: UUID, tenant_id: UUID) -> None:
    """A job's or a task's state moved."""
    transaction.on_commit(lambda: _send(job_group(job_id), {"type": "job.changed", "job": str(job_id)}))
    nudge(tenant_id, "jobs")


def job_progress(job_id: UUID, task_id: UUID, figures: dict[str, Any]) -> None:
    """Figures that may not be in the database yet (they are stored every ten seconds only)."""
    message = {"type": "job.progress", "job": str(job_id), "task": str(task_id), "progress": figures}
    transaction.on_commit(lambda: _send(job_group(job_id), message))


def nudge(tenant_id: UUID | None, what: str) -> None:
    """Lists of this tenant should look again; ``what`` is "jobs", "points", "nodes", "destinations" …"""
    message = {"type": "nudge", "what": what}
    groups = [EVERYTHING, *([tenant_group(tenant_id)] if tenant_id else [])]
    transaction.on_commit(lambda: _send_all(groups, message))


def work(tenant_id: UUID | None = None, node_id: UUID | None = None) -> None:
    """A task of this tenant, or for this node, may have become startable. Both empty: look everybody."""
    message = {"type": "work", "tenant": str(tenant_id or ""), "node": str(node_id or "")}
    transaction.on_commit(lambda: _send(WORK, message))


def rights_changed(user_id: UUID) -> None:
    transaction.on_commit(lambda: _send(user_group(user_id), {"type": "rights.changed"}))


def _send_all(groups: Iterable[str], message: dict[str, Any]) -> None:
    for group in groups:
        _send(group, message)


def _send(group: str, message: dict[str, Any]) -> None:
    layer = get_channel_layer()
    if isinstance(layer, InMemoryChannelLayer) and (_loop is None or not _loop.is_running()):
        return  # it reaches this process only, and nobody listens here
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    sending = layer.group_send(group, message)
    if running is not None:
        _log_failure(running.create_task(sending))
    elif _loop is not None and _loop.is_running():
        _log_failure(asyncio.run_coroutine_threadsafe(sending, _loop))
    else:
        _send_alone(sending)


def _send_alone(sending: Any) -> None:
    """In a process without a server's loop: a Celery worker beside Redis, a management command, a test."""

    async def send() -> None:
        await sending

    try:
        async_to_sync(send)()
    except Exception as error:  # noqa: BLE001  the commit has happened; a lost hint is made good by the next look
        log.warning("a live message could not be sent: %s", error)


def _log_failure(future: Any) -> None:
    def done(finished: Any) -> None:
        if not finished.cancelled() and (error := finished.exception()) is not None:
            log.warning("a live message could not be sent: %s", error)

    future.add_done_callback(done)
