"""One leased task on this node, from lease to acknowledged result.

Three threads know a run: *work* performs the task and delivers its result, *reports* sends progress
(which is the heartbeat that renews the lease), and the worker's watchdog calls :meth:`Run.watch`.

    append tasks     go on while the server is away, up to ``server_away_h``
    exclusive tasks  begin only after a heartbeat was answered, and stop at ttl minus a margin by the
                     monotonic clock: after that the server may give the task to another node
    lease lost       the task stops and nothing more is said about it
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from node_agent.client import READ_S, ServerClient, backoff_s
from node_agent.errors import (
    BrsError,
    Cancelled,
    Interrupted,
    LeaseLost,
    NotEnrolled,
    ServerError,
    ServerNotTrusted,
    ServerUnreachable,
)
from node_agent.items import Issues
from node_agent.outbox import Outbox, Parcel
from node_agent.progress import Counters, Progress
from node_agent.protocol import (
    CompleteReport,
    DirectoriesReport,
    DirectoriesWanted,
    Directory,
    FailReport,
    FoundReport,
    LeaseClass,
    LeasedTask,
    MachineFacts,
    ProgressReply,
    ProgressReport,
    ReleaseReport,
    Result,
)
from node_agent.task_log import A_REPORT, TaskLog
from node_agent.task_report import completed, failed, progress_report

log = logging.getLogger("brs.node.task")
Answer = TypeVar("Answer")
FLUSH_S = 10.0
FIRST_REPORT_S = 0.3  # soon after the start: who watches sees it running, and in which phase


@dataclass(frozen=True)
class Desk:
    """What all runs of a node share."""

    client: ServerClient
    outbox: Outbox
    now: Callable[[], float]
    away_limit_s: float


class Run:
    """``perform(run)`` does the work and returns the result; it is called on the work thread."""

    def __init__(
        self,
        task: LeasedTask,
        desk: Desk,
        perform: Callable[[Run], tuple[Result, Issues]],
        *,
        report_s: float,
        ended: Callable[[], None],
        before: Run | None = None,
    ) -> None:
        self.task = task
        self.lines = TaskLog()
        self.progress = Progress(log=self._log)
        self.delivered = False
        self._desk = desk
        self._perform = perform
        self._ended = ended
        self._before = before
        self._report_s = report_s
        self._ttl_s = task.ttl_s
        self._renewed = time.monotonic()  # when the lease was last known to be ours
        self._lost = threading.Event()
        self._over = threading.Event()  # delivered, lost, or given up: no more heartbeats
        self._give_up = threading.Event()  # the process ends: leave the result in the outbox
        self._started = False
        self._speaking = threading.Event()
        self._rate = _Rate()
        self._work = threading.Thread(target=self._live, name=f"task-{task.task_id}", daemon=True)
        self._reports = threading.Thread(target=self._report, name=f"report-{task.task_id}", daemon=True)

    # --- from the worker

    def start(self) -> None:
        self._work.start()
        self._reports.start()

    @property
    def over(self) -> bool:
        """The slot is free again."""
        return self._over.is_set()

    @property
    def speaking(self) -> bool:
        """The work has ended; only its result is still on the way."""
        return self._speaking.is_set()

    def join(self, timeout_s: float | None = None) -> None:
        self._work.join(timeout_s)

    def cancel(self) -> None:
        self.progress.stop(Cancelled())

    def interrupt(self, why: str) -> None:
        self.progress.stop(Interrupted(why))

    def lose(self) -> None:
        self._lost.set()
        self.progress.stop(LeaseLost())

    def give_up(self) -> None:
        self._give_up.set()

    def watch(self) -> None:
        """Stop what may not go on. Called often, from a thread that never waits for the network."""
        away_s = time.monotonic() - self._renewed
        if self.task.lease_class is LeaseClass.EXCLUSIVE:
            if self._started and away_s > self._ttl_s - margin_s(self._ttl_s):
                self.interrupt("The server was out of reach until just before the lease ended.")
        elif away_s > self._desk.away_limit_s:
            self.interrupt("The server was out of reach for too long.")

    # --- work

    def _live(self) -> None:
        try:
            if self._before is not None:
                self._before.join()
            parcel = self._outcome()
            if parcel is not None:
                self._deliver(parcel)
        finally:
            self._over.set()
            self._ended()

    def _outcome(self) -> Parcel | None:
        log.info("task=%s kind=%s attempt=%d started", self.task.task_id, self.task.spec.kind, self.task.attempt)
        try:
            if self.task.lease_class is LeaseClass.EXCLUSIVE:
                self._confirm()
            self._started = True
            self.progress.check()
            result, issues = self._perform(self)
            self._flush_log()
            return self._parcel(complete=completed(self.task.token, result, issues, self._now_report()))
        except LeaseLost as error:
            log.warning("task=%s stopped: %s", self.task.task_id, error)
            return None
        except Interrupted as error:
            log.warning("task=%s goes back to the queue: %s", self.task.task_id, error)
            return self._parcel(release=ReleaseReport(token=self.task.token, reason=str(error)[:1000]))
        except BrsError as error:
            log.error("task=%s failed code=%s: %s", self.task.task_id, error.code, error, exc_info=_trace(error))
            return self._parcel(fail=failed(self.task.token, error, self.lines))
        except Exception as error:
            log.exception("task=%s failed unexpectedly", self.task.task_id)
            return self._parcel(fail=failed(self.task.token, error, self.lines))

    def _confirm(self) -> None:
        """A lease that was answered late may be over already; one answered heartbeat proves that it is not."""
        self.persist(lambda: self._send(self._now_report()))
        if self._lost.is_set():
            raise LeaseLost()

    def persist(self, call: Callable[[], Answer]) -> Answer:
        """``call`` until the server answers; raises what stops the task, and what the server refuses."""
        attempt = 0
        while True:
            self.progress.check()
            try:
                return call()
            except (ServerUnreachable, ServerNotTrusted) as error:
                if attempt == 0:
                    log.warning("task=%s waits for the server: %s", self.task.task_id, error)
                self._pause(backoff_s(attempt))
                attempt += 1

    def _flush_log(self) -> None:
        """A result takes only the last lines along; those before are sent first. Without the server they are cut."""
        until = time.monotonic() + FLUSH_S
        while self.lines.waiting > A_REPORT and not self._lost.is_set() and time.monotonic() < until:
            try:
                self._send(self._now_report())
            except ServerError as error:
                log.info("task=%s log not flushed yet: %s", self.task.task_id, error)
                self._pause(0.5)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.progress.stopping:
            self._lost.wait(min(0.2, seconds))

    def _parcel(
        self,
        *,
        complete: CompleteReport | None = None,
        fail: FailReport | None = None,
        release: ReleaseReport | None = None,
    ) -> Parcel | None:
        if self._lost.is_set():
            return None
        verb = "complete" if complete else "fail" if fail else "release"
        return Parcel.model_validate(
            {
                "task_id": self.task.task_id,
                "made_at": self._desk.now(),
                "verb": verb,
                "complete": complete,
                "fail": fail,
                "release": release,
            }
        )

    def _deliver(self, parcel: Parcel) -> None:
        """Until acknowledged; the lease is kept alive meanwhile by the reports thread."""
        self._desk.outbox.put(parcel)
        self._speaking.set()
        attempt = 0
        while not self._give_up.is_set():
            if self._lost.is_set():
                self._desk.outbox.drop(parcel.task_id)
                return
            try:
                self._desk.outbox.send(parcel, self._desk.client)
                self.delivered = True
                log.info("task=%s %s delivered", parcel.task_id, parcel.verb)
                return
            except ServerError as error:
                log.warning("task=%s result not delivered yet: %s", parcel.task_id, error)
            self._give_up.wait(backoff_s(attempt))
            attempt += 1

    # --- reports

    def _report(self) -> None:
        sent_at = 0.0
        last: ProgressReport | None = None
        failures = 0
        pause = min(FIRST_REPORT_S, self._report_s)
        while not self._over.wait(backoff_s(failures, cap_s=self._ttl_s / 4) if failures else pause):
            pause = self._report_s
            report = self._now_report()
            unchanged = last is not None and report == last and not report.log
            if unchanged and time.monotonic() - sent_at < self._ttl_s / 3:
                continue
            try:
                self._send(report)
            except (LeaseLost, NotEnrolled) as error:
                # A result may be acknowledged while a heartbeat is on its way: then this is no news.
                level = logging.DEBUG if self.speaking else logging.WARNING
                log.log(level, "task=%s is no longer ours: %s", self.task.task_id, error)
                self.lose()
                return
            except ServerError as error:
                log.debug("task=%s progress not delivered: %s", self.task.task_id, error)
                failures += 1
                continue
            last, sent_at, failures, pause = report, time.monotonic(), 0, self._report_s

    def _send(self, report: ProgressReport) -> None:
        asked_at = time.monotonic()
        timeout_s = max(1.0, min(READ_S, self._ttl_s / 3))
        reply = self._desk.client.progress(self.task.task_id, report, timeout_s=timeout_s)
        self.lines.acknowledged(report.log)
        self._take(reply, asked_at)

    def _take(self, reply: ProgressReply, asked_at: float) -> None:
        self._renewed = asked_at  # the lease counts from the server's answer, which was later than this
        self._ttl_s = reply.ttl_s
        self._report_s = min(max(0.1, reply.report_s), reply.ttl_s / 3)
        if reply.cancel:
            self.cancel()

    def _now_report(self) -> ProgressReport:
        counters = self.progress.counters
        return progress_report(self.task.token, counters, self._rate.of(counters), self.lines)

    def _log(self, level: str, message: str) -> None:
        self.lines.add(level, message)
        number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
        log.log(number, "task=%s %s", self.task.task_id, message)


class RunOutlet:
    """The outlet of one run: its calls carry the lease's token and wait for a server that is away."""

    def __init__(self, run: Run, client: ServerClient) -> None:
        self._run = run
        self._client = client
        self._id, self._token = run.task.task_id, run.task.token

    def directories_wanted(self, tree_ids: list[str]) -> list[str]:
        wanted = DirectoriesWanted(token=self._token, tree_ids=tree_ids)
        return self._run.persist(lambda: self._client.directories_wanted(self._id, wanted)).tree_ids

    def send_directories(self, directories: list[Directory]) -> None:
        report = DirectoriesReport(token=self._token, directories=directories)
        self._run.persist(lambda: self._client.directories(self._id, report))

    def found(self, machines: list[MachineFacts]) -> None:
        report = FoundReport(token=self._token, machines=machines)
        self._run.persist(lambda: self._client.found(self._id, report))

    def upload(self, offset: int, piece: bytes) -> None:
        self._run.persist(lambda: self._client.upload(self._id, self._token, offset, piece))


class _Rate:
    """Bytes a second of what is settled, smoothed over some seconds."""

    def __init__(self) -> None:
        self._at, self._bytes, self._rate = time.monotonic(), 0, 0.0

    def of(self, counters: Counters) -> float:
        now = time.monotonic()
        if now - self._at >= 0.5:
            fresh = max(0, counters.settled_bytes - self._bytes) / (now - self._at)
            self._rate = fresh if self._rate == 0 else 0.7 * self._rate + 0.3 * fresh
            self._at, self._bytes = now, counters.settled_bytes
        return self._rate


def margin_s(ttl_s: float) -> float:
    """How long before the end of a lease an exclusive task stops: time to notice and to close files."""
    return min(15.0, ttl_s / 4)


def _trace(error: BrsError) -> bool:
    """Tracebacks help with what came from below; a refusal or a cancel explains itself."""
    return error.__cause__ is not None
