"""Results that wait for the server's acknowledgement, on disk until they have it.

A result is written here before it is sent the first time and removed once the server has said yes, or
that the task is no longer ours. A node that is restarted in between sends it again. Nothing secret is
kept: a report holds facts and the lease's fence, which is worth nothing without the node's own token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol
from uuid import UUID

from pydantic import ValidationError

from node_agent.errors import LeaseLost, NotEnrolled, ServerError, ServerNotTrusted, ServerUnreachable
from node_agent.protocol import BackupResult, CompleteReport, ExportResult, FailReport, ReleaseReport, Wire
from node_agent.state import replace_file

log = logging.getLogger("brs.node.outbox")


class Courier(Protocol):
    """What an outbox needs of a client; :class:`node_agent.client.ServerClient` has it."""

    def complete(self, task_id: UUID, report: CompleteReport) -> None: ...
    def fail(self, task_id: UUID, report: FailReport) -> None: ...
    def release(self, task_id: UUID, report: ReleaseReport) -> None: ...


class Parcel(Wire):
    """The last word about one lease. ``made_at`` (seconds, server's clock) corrects ages when it is sent late."""

    task_id: UUID
    made_at: float
    verb: Literal["complete", "fail", "release"]
    complete: CompleteReport | None = None
    fail: FailReport | None = None
    release: ReleaseReport | None = None


class Outbox:
    def __init__(self, folder: Path, now: Callable[[], float]) -> None:
        self._folder = folder
        self._now = now

    def put(self, parcel: Parcel) -> None:
        replace_file(self._path(parcel.task_id), parcel.model_dump_json(exclude_none=True).encode())

    def drop(self, task_id: UUID) -> None:
        self._path(task_id).unlink(missing_ok=True)

    def waiting(self) -> list[Parcel]:
        """Everything kept, oldest first. An unreadable file is moved aside, never in the way of the others."""
        parcels = []
        for path in sorted(self._folder.glob("*.json"), key=lambda found: found.stat().st_mtime):
            try:
                parcels.append(Parcel.model_validate_json(path.read_bytes()))
            except ValidationError:
                log.error("outbox file=%s is damaged and was set aside", path)
                path.rename(path.with_suffix(".damaged"))
        return parcels

    def send(self, parcel: Parcel, client: Courier) -> None:
        """Deliver once. Acknowledged or refused for good: removed. Not reached or not let in: it stays, and raises."""
        try:
            _hand_over(parcel, client, late_s=max(0.0, self._now() - parcel.made_at))
        except (ServerUnreachable, NotEnrolled, ServerNotTrusted):
            raise
        except LeaseLost as error:
            log.info("task=%s result dropped: %s", parcel.task_id, error)
        except ServerError as error:
            log.error("task=%s result refused by the server: %s", parcel.task_id, error)
        self.drop(parcel.task_id)

    def _path(self, task_id: UUID) -> Path:
        return self._folder / f"{task_id}.json"


def _hand_over(parcel: Parcel, client: Courier, late_s: float) -> None:
    if parcel.complete is not None:
        client.complete(parcel.task_id, _aged(parcel.complete, late_s))
    elif parcel.fail is not None:
        client.fail(parcel.task_id, parcel.fail)
    elif parcel.release is not None:
        client.release(parcel.task_id, parcel.release)


def _aged(report: CompleteReport, late_s: float) -> CompleteReport:
    result = report.result
    if not isinstance(result, BackupResult | ExportResult):
        return report
    older = result.model_copy(update={"started_age_s": result.started_age_s + late_s})
    return report.model_copy(update={"result": older})
