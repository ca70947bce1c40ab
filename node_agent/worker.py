"""The node at work: asks the server for tasks, runs them in slots, stops in good order.

    lease thread   long poll with the number of free slots; the same request is repeated (same request_id)
                   until it is answered, so that a lost reply loses no lease
    runs           see :mod:`node_agent.task_run`
    main thread    watchdog of the runs, and the stop: on the first SIGTERM or SIGINT no new leases, running
                   tasks may end for ``drain_grace_s``, then they go back to the queue; the second signal
                   skips the grace; the third ends the process

Every start is a new incarnation: the server frees the leases of the one before at the first request.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from uuid import UUID, uuid4

from node_agent.client import ServerClient, backoff_s
from node_agent.clock import Clock
from node_agent.errors import BrsError, NotEnrolled, ServerError, ServerUnreachable
from node_agent.items import Issues
from node_agent.lease_reply import Unreadable, read_lease
from node_agent.outbox import Outbox
from node_agent.protocol import Capabilities, FailReport, LeasedTask, LeaseReply, LeaseRequest, ReleaseReport, Result
from node_agent.state import State
from node_agent.task_run import Desk, Run

log = logging.getLogger("brs.node")

POLL_S = 25.0
FULL_POLL_S = 10.0  # with every slot taken the lease call only says that the node lives
TOKEN_AGE_S = 24 * 3600.0
CHORE_S = 3600.0
CAPABILITIES_S = 600.0  # free staging space changes, so capabilities are told again this often
LAST_WORDS_S = 10.0  # how long a stopping node tries to deliver what its tasks said at the end
STOP_S = 60.0  # how long a task may take to notice that it should stop

Perform = Callable[[Run], tuple[Result, Issues]]


class Worker:
    """``perform`` joins a run to the verbs of :mod:`node_agent.tasks`."""

    def __init__(
        self,
        *,
        client: ServerClient,
        clock: Clock,
        state: State,
        capabilities: Callable[[], Capabilities],
        perform: Perform,
        slots: int,
        grace_s: float = 20.0,
        away_limit_s: float = 24 * 3600.0,
        poll_s: float = POLL_S,
        chore: Callable[[], None] = lambda: None,
    ) -> None:
        self.incarnation = uuid4()
        self._client = client
        self._clock = clock
        self._state = state
        self._capabilities = capabilities
        self._told_at = -CAPABILITIES_S
        self._perform = perform
        self._chore = chore  # called now and then while no task runs, and none can begin
        self._chore_at = time.monotonic()
        self._slots = slots
        self._grace_s = grace_s
        self._poll_s = poll_s
        self._outbox = Outbox(state.folder / "outbox", clock.now)
        self._desk = Desk(client, self._outbox, clock.now, away_limit_s)
        self._runs: dict[UUID, Run] = {}
        self._guard = threading.Lock()
        self._changed = threading.Event()  # a slot came free, or the node stops
        self._draining = threading.Event()
        self._hurry = threading.Event()
        self._signals = 0
        self._report_s = 2.0
        self._contact_at = 0.0
        self._message = ""

    # --- the whole life

    def stop(self) -> None:
        """Called by signals (and tests): first drain, then hurry, then out."""
        self._signals += 1
        if self._signals >= 3:
            os._exit(1)
        if self._signals == 2:
            self._hurry.set()
        self._draining.set()
        self._changed.set()

    def run(self) -> None:
        """Until stopped. Returns when every task has ended and its last word was said or kept."""
        leasing = threading.Thread(target=self._lease_loop, name="lease", daemon=True)
        leasing.start()
        while not self._draining.wait(0.25):
            self._watch()
        self._drain()
        self._farewell()
        self._client.close()

    def _watch(self) -> None:
        for run in self._current():
            run.watch()

    def _drain(self) -> None:
        log.info("draining tasks=%d grace_s=%g", len(self._current()), self._grace_s)
        self._wait_for_runs(self._grace_s, self._hurry)
        for run in self._current():
            run.interrupt("The node is being stopped.")
        self._wait_for_runs(STOP_S, None)

    def _wait_for_runs(self, seconds: float, unless: threading.Event | None) -> None:
        until = time.monotonic() + seconds
        last_words: float | None = None
        while (runs := self._current()) and time.monotonic() < until:
            self._watch()
            if unless is not None and unless.is_set():
                return
            if all(run.speaking for run in runs):
                last_words = last_words or time.monotonic() + LAST_WORDS_S
                if time.monotonic() > last_words:
                    break
            time.sleep(0.05)
        if unless is None:
            for run in self._current():
                run.give_up()
                run.join(1)
                log.warning("task=%s left as it is; the server takes it back when the lease ends", run.task.task_id)

    def _farewell(self) -> None:
        """Tell the server that nothing more comes; if it is away it will notice by itself."""
        try:
            self._client.lease(self._request(0, 0.0).model_dump_json(exclude_none=True).encode(), 0.0)
        except ServerError as error:
            log.info("server not told about the stop: %s", error)

    # --- leases

    def _lease_loop(self) -> None:
        self._deliver_leftovers()
        while not self._draining.is_set():
            try:
                self._lease_once()
            except BrsError as error:
                log.error("lease: %s", error)
                self._draining.wait(backoff_s(5))
            except Exception:
                log.exception("lease: unexpected error")
                self._draining.wait(backoff_s(5))

    def _lease_once(self) -> None:
        self._rotate_when_due()
        self._tidy_when_idle()
        free = self._free_slots()
        if free == 0:
            self._changed.clear()
            if self._free_slots() == 0:
                self._changed.wait(FULL_POLL_S)
                free = self._free_slots()
        if self._draining.is_set():
            return
        request = self._request(free, self._poll_s if free else 0.0)
        reply, unreadable = self._ask(request)
        if reply is None:
            return
        self._take(reply, unreadable)

    def _request(self, free: int, wait_s: float) -> LeaseRequest:
        due = time.monotonic() - self._told_at >= CAPABILITIES_S
        return LeaseRequest(
            request_id=uuid4(),
            incarnation=self.incarnation,
            node_time=datetime.now().astimezone(),
            free_slots=free,
            holding=[run.task.task_id for run in self._current()],
            wait_s=wait_s,
            capabilities=self._capabilities() if due else None,
            draining=self._draining.is_set(),
        )

    def _ask(self, request: LeaseRequest) -> tuple[LeaseReply | None, list[Unreadable]]:
        """The answer to ``request``, repeated until there is one or the node stops."""
        body = request.model_dump_json(exclude_none=True).encode()
        attempt = 0
        while True:
            try:
                reply, unreadable = read_lease(self._client.lease(body, request.wait_s))
                break
            except NotEnrolled as error:
                self._message = str(error)
                log.error("the server does not accept this node: %s %s", error, error.hint)
                self._lose_all()
                pause = 30 + backoff_s(6, cap_s=60)
            except ServerError as error:
                self._message = str(error)
                (log.warning if attempt < 3 else log.debug)("no lease: %s", error)
                pause = backoff_s(attempt)
            attempt += 1
            if self._draining.wait(pause):
                return None, []
        if attempt:
            log.info("the server answers again")
        if request.capabilities is not None:
            self._told_at = time.monotonic()
        return reply, unreadable

    def _take(self, reply: LeaseReply, unreadable: list[Unreadable]) -> None:
        self._clock.learn(reply.server_time)
        self._report_s = reply.report_s
        if reply.message and reply.message != self._message:
            log.info("server: %s", reply.message)
        self._message = reply.message
        self._contact_at = self._clock.now()
        for strange in unreadable:
            self._refuse(strange)
        for run in self._current():
            if run.task.task_id in reply.lost:
                run.lose()
            elif run.task.task_id in reply.cancel:
                run.cancel()
        for task in reply.tasks:
            self._begin(task)
        self._keep_status()

    def _begin(self, task: LeasedTask) -> None:
        if self._draining.is_set():
            self._give_back(task)
            return
        with self._guard:
            before = self._runs.get(task.task_id)
            if before is not None and before.task.token == task.token:
                return  # a repeated answer
            run = Run(task, self._desk, self._perform, report_s=self._report_s, ended=self._changed.set, before=before)
            self._runs[task.task_id] = run
        if before is not None:
            before.lose()  # its lease ended unnoticed and the task came back to us: one run at a time
        run.start()

    def _give_back(self, task: LeasedTask) -> None:
        try:
            self._client.release(task.task_id, ReleaseReport(token=task.token, reason="The node is being stopped."))
        except ServerError as error:
            log.warning("task=%s not released: %s", task.task_id, error)

    def _refuse(self, strange: Unreadable) -> None:
        log.error("task=%s cannot be understood by this version of the node", strange.task_id)
        report = FailReport(
            token=strange.token,
            code="unsupported-task",
            message="This node does not understand the task.",
            hint="Update the node, or give the task to a newer one.",
        )
        try:
            self._client.fail(strange.task_id, report)
        except ServerError as error:
            log.warning("task=%s refusal not delivered: %s", strange.task_id, error)

    def _lose_all(self) -> None:
        for run in self._current():
            run.lose()

    # --- odds of a lease loop

    def _deliver_leftovers(self) -> None:
        """What a former incarnation could not deliver goes out before the first lease request frees its leases."""
        for parcel in self._outbox.waiting():
            for attempt in range(8):
                try:
                    self._outbox.send(parcel, self._client)
                    log.info("task=%s result of an earlier run delivered or dropped", parcel.task_id)
                    break
                except ServerUnreachable as error:
                    log.warning("task=%s result of an earlier run waits: %s", parcel.task_id, error)
                except ServerError as error:
                    log.error("task=%s result of an earlier run waits: %s", parcel.task_id, error)
                if self._draining.wait(backoff_s(attempt)):
                    return

    def _rotate_when_due(self) -> None:
        if self._clock.now() - self._state.identity().token_at < TOKEN_AGE_S or self._clock.offset_s is None:
            return
        try:
            self._client.rotate(uuid4(), lambda token: self._state.keep_token(token, self._clock.now()))
            log.info("token rotated")
        except ServerError as error:
            log.warning("token not rotated: %s", error)

    def _tidy_when_idle(self) -> None:
        if time.monotonic() - self._chore_at >= CHORE_S and not self._current():
            self._chore_at = time.monotonic()
            self._chore()

    def _current(self) -> list[Run]:
        with self._guard:
            for task_id, run in list(self._runs.items()):
                if run.over:
                    del self._runs[task_id]
            return list(self._runs.values())

    def _free_slots(self) -> int:
        return max(0, self._slots - len(self._current()))

    def _keep_status(self) -> None:
        self._state.keep_status(
            {
                "contact_at": self._contact_at,
                "clock_offset_s": self._clock.offset_s,
                "message": self._message,
                "tasks": [{"id": str(run.task.task_id), "kind": run.task.spec.kind} for run in self._current()],
                "pid": os.getpid(),
            }
        )
