"""Reading the answer to a lease request. One task that makes no sense does not spoil the others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from node_agent.errors import ServerUnreachable
from node_agent.protocol import LeasedTask, LeaseReply


@dataclass(frozen=True)
class Unreadable:
    """A task of a newer server: enough of it is known to say that it cannot be done here."""

    task_id: UUID
    token: str


def read_lease(answer: bytes) -> tuple[LeaseReply, list[Unreadable]]:
    """ServerUnreachable (ask again) when not even the frame of the reply makes sense."""
    try:
        data = json.loads(answer)
        raw_tasks = data.pop("tasks", [])
        reply = LeaseReply.model_validate_json(json.dumps(data))
        if not isinstance(raw_tasks, list):
            raise TypeError
    except (ValueError, AttributeError, TypeError, RecursionError):
        # Not chained: the reply may hold secrets.
        raise ServerUnreachable("The server's reply to a lease request makes no sense.") from None
    tasks, unreadable = [], []
    for raw in raw_tasks:
        try:
            tasks.append(LeasedTask.model_validate_json(json.dumps(raw)))
        except ValidationError:
            strange = _named(raw)
            if strange is not None:
                unreadable.append(strange)
    return reply.model_copy(update={"tasks": tasks}), unreadable


def _named(raw: Any) -> Unreadable | None:
    try:
        return Unreadable(UUID(raw["task_id"]), str(raw["token"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
