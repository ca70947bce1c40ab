"""The long poll: a node asks for work, and gets leases."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import Field

from node_agent.protocol.kinds import Capabilities, LeaseClass
from node_agent.protocol.specs import Spec
from node_agent.protocol.wire import Wire


class LeaseRequest(Wire):
    request_id: UUID
    incarnation: UUID  # new at every start of the node: a new one frees the leases of the old
    node_time: datetime
    free_slots: int = Field(ge=0, le=64)
    holding: list[UUID] = []
    wait_s: float = Field(default=25, ge=0, le=60)
    capabilities: Capabilities | None = None  # at start and when they change
    draining: bool = False


class LeasedTask(Wire):
    task_id: UUID
    job_id: UUID
    token: str  # the fence
    attempt: int
    ttl_s: float  # the lease ends this long after the server answered
    lease_class: LeaseClass
    spec: Spec


class LeaseReply(Wire):
    tasks: list[LeasedTask] = []
    cancel: list[UUID] = []  # held tasks that should stop
    lost: list[UUID] = []  # held tasks that are no longer this node's
    server_time: datetime
    drain: bool = False
    report_s: float = 2.0  # pace of progress reports
    message: str = ""  # why there is no work, for the node's log
