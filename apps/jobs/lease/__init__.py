"""Who runs which task, and how it stands: the only writer of task and job state.

    queued → leased → running → succeeded | partial | failed | cancelled

A lease is time-limited (BRS_LEASE_TTL_S) and fenced by a token that every word about the task must carry. It is
renewed by progress reports and by the polls of its holder. When it runs out, the task returns to the queue with
back-off, or fails after its last attempt. Two classes, by the kind of task (``protocol.LEASE_CLASS``):

    append      (backup, verify …) the holder carries on while the server is away, and may renew a lease that ran
                out as long as nobody else took the task
    exclusive   (restore, forget …) the holder stops itself before the deadline by its own clock; the server hands
                the task on only at the deadline plus BRS_LEASE_MARGIN_S

Promises: two nodes never hold one task; a repeated request gets the first one's answer; a task's end, the
catalogue and the job's derived state are one transaction; who watches is told after the commit.
Lock order: node → gate → job → task (``lease.state``).
"""

from apps.jobs.lease.acquire import acquire
from apps.jobs.lease.reports import complete, fail, holding, progress, release
from apps.jobs.lease.upkeep import add, cancel, give_up, server_started, sweep

__all__ = [
    "acquire",
    "add",
    "cancel",
    "complete",
    "fail",
    "give_up",
    "holding",
    "progress",
    "release",
    "server_started",
    "sweep",
]
