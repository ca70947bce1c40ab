"""A double of the server's node API: the protocol's types over real TLS, in memory, and able to misbehave.

It keeps the promises that nodes rely on: requests are idempotent by request_id, words about a task need the
lease's token, a new incarnation frees the leases of the old, an expired lease goes to the next who asks.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

from pydantic import BaseModel

from node_agent.protocol import (
    LEASE_CLASS,
    LEASE_TOKEN_HEADER,
    PIECE_BYTES,
    PREFIX,
    Ack,
    CompleteReport,
    DirectoriesMissing,
    DirectoriesReport,
    DirectoriesWanted,
    Directory,
    EnrolReply,
    EnrolRequest,
    ErrorBody,
    FailReport,
    FoundReport,
    LeasedTask,
    LeaseReply,
    LeaseRequest,
    LogEntry,
    MachineFacts,
    ProgressReply,
    ProgressReport,
    ReleaseReport,
    Spec,
    TokenReply,
    TokenRequest,
)
from tests.node_agent.certificates import Authority


@dataclass
class Task:
    spec: Spec
    id: UUID = field(default_factory=uuid4)
    state: str = "queued"
    token: str = ""
    attempt: int = 0
    incarnation: UUID | None = None
    deadline: float = 0.0
    cancel: bool = False
    elsewhere: bool = False  # another node has it
    reports: list[ProgressReport] = field(default_factory=list)
    log: dict[int, LogEntry] = field(default_factory=dict)
    result: CompleteReport | None = None
    failure: FailReport | None = None
    released: list[str] = field(default_factory=list)
    completions: int = 0
    directories: dict[str, list[Directory]] = field(default_factory=dict)
    machines: list[MachineFacts] = field(default_factory=list)
    uploaded: dict[int, bytes] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.state in ("succeeded", "partial", "failed")

    @property
    def download(self) -> bytes:
        return b"".join(piece for _, piece in sorted(self.uploaded.items()))


@dataclass
class Fault:
    """What happens to the next ``times`` requests whose path contains ``where``."""

    where: str
    how: str  # 500, drop (nothing done, no answer), lost (done, no answer), torn, garbage, 409, slow
    times: int = 1


class Problem(Exception):
    def __init__(self, status: int, code: str, message: str = "No.") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class ServerDouble:
    def __init__(self, authority: Authority, certificate: str = "server") -> None:
        self.authority = authority
        self.ttl_s = 30.0
        self.report_s = 0.1
        self.clock_offset = timedelta()
        self.raw_tasks: list[dict[str, Any]] = []  # handed out as they are, once
        self.tasks: dict[UUID, Task] = {}
        self.faults: list[Fault] = []
        self.away = False
        self.codes = {"good-code"}
        self.node_tokens: list[str] = []
        self.alarms: list[str] = []
        self.enrolments: list[EnrolRequest] = []
        self.lease_requests: list[LeaseRequest] = []
        self.known_trees: set[str] = set()
        self.seen: deque[tuple[str, bytes]] = deque(maxlen=5000)
        self._answers: dict[UUID, tuple[float, LeaseReply]] = {}
        self._tokens_by_request: dict[UUID, str] = {}
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._http = _Server(self, authority, certificate)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def code(self) -> str:
        return f"good-code.{self.authority.fingerprint}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    # --- for tests

    def add(self, spec: Spec) -> Task:
        task = Task(spec)
        with self._news:
            self.tasks[task.id] = task
            self._news.notify_all()
        return task

    def fault(self, where: str, how: str, times: int = 1) -> None:
        self.faults.append(Fault(where, how, times))

    def revoke(self, task: Task) -> None:
        """As if the lease had ended and another node had the task now."""
        with self._lock:
            task.token, task.state, task.incarnation, task.elsewhere = uuid4().hex, "leased", uuid4(), True
            task.deadline = time.monotonic() + 3600

    def wait(self, task: Task, timeout_s: float = 60) -> Task:
        self.until(lambda: task.over, timeout_s)
        return task

    def until(self, true: Any, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > deadline:
                raise AssertionError("it did not happen in time")
            time.sleep(0.02)

    # --- the API

    def answer(self, method: str, path: str, query: dict[str, list[str]], headers: Any, body: bytes) -> Any:
        if (method, path) == ("GET", "/ca"):
            return self.authority.pem.encode()
        if path == "/enrol":
            return self._enrol(EnrolRequest.model_validate_json(body))
        self._authenticate(headers.get("Authorization", ""))
        if path == "/token":
            return self._rotate(TokenRequest.model_validate_json(body))
        if path == "/lease":
            return self._lease(LeaseRequest.model_validate_json(body))
        _, _, task_id, *verb = path.split("/")
        task = self.tasks.get(UUID(task_id))
        if task is None:
            raise Problem(404, "not-found")
        return self._about(task, "/".join(verb), query, headers, body)

    def _enrol(self, request: EnrolRequest) -> EnrolReply:
        code = request.code.partition(".")[0]
        if code not in self.codes:
            raise Problem(403, "code-expired", "The code is unknown, used or expired.")
        self.codes.discard(code)
        self.enrolments.append(request)
        self.node_tokens.append(uuid4().hex)
        return EnrolReply(node_id=uuid4(), name=request.name, token=self.node_tokens[-1], server_time=self._now())

    def _authenticate(self, header: str) -> None:
        token = header.removeprefix("Bearer ")
        with self._lock:
            if token not in self.node_tokens:
                if token in self.alarms:
                    self.alarms.append(token)
                raise Problem(401, "unauthorized", "The token is not known.")
            for old in self.node_tokens[: self.node_tokens.index(token)]:
                self.alarms.append(old)
                self.node_tokens.remove(old)

    def _rotate(self, request: TokenRequest) -> TokenReply:
        with self._lock:
            token = self._tokens_by_request.setdefault(request.request_id, uuid4().hex)
            if token not in self.node_tokens:
                self.node_tokens.append(token)
            return TokenReply(token=token)

    def _lease(self, request: LeaseRequest) -> LeaseReply:
        until = time.monotonic() + request.wait_s
        with self._news:
            self.lease_requests.append(request)
            if request.request_id in self._answers:
                return self._answers[request.request_id][1]
            for task in self.tasks.values():
                if task.state == "leased" and not task.elsewhere and task.incarnation != request.incarnation:
                    task.state = "queued"
            while True:
                self._renew_held(request)
                leased = self._take(request)
                raw, self.raw_tasks = self.raw_tasks, []
                left = until - time.monotonic()
                if leased or raw or left <= 0 or self.away:
                    break
                self._news.wait(min(left, 0.5))
            held = [self.tasks[i] for i in request.holding if i in self.tasks]
            reply = LeaseReply(
                tasks=leased,
                cancel=[t.id for t in held if t.cancel],
                lost=[t.id for t in held if t.incarnation != request.incarnation and not t.over],
                server_time=self._now(),
                report_s=self.report_s,
            )
            self._answers[request.request_id] = (time.monotonic(), reply)
            if raw:
                known = json.loads(reply.model_dump_json())
                return known | {"tasks": raw + known["tasks"]}  # type: ignore[return-value]
            return reply

    def _renew_held(self, request: LeaseRequest) -> None:
        """As the server does at each look of a poll: what its asker holds is not handed out, to him neither."""
        for task in self.tasks.values():
            mine = task.id in request.holding and task.incarnation == request.incarnation
            if mine and task.state == "leased" and not task.elsewhere and not self.away:
                task.deadline = time.monotonic() + self.ttl_s

    def _take(self, request: LeaseRequest) -> list[LeasedTask]:
        now = time.monotonic()
        leased: list[LeasedTask] = []
        for task in self.tasks.values():
            if task.state == "leased" and task.deadline < now:
                task.state = "queued"
            if self.away or task.state != "queued" or len(leased) >= request.free_slots or request.draining:
                continue
            task.state, task.token, task.incarnation = "leased", uuid4().hex, request.incarnation
            task.attempt += 1
            task.deadline = now + self.ttl_s
            leased.append(
                LeasedTask(
                    task_id=task.id,
                    job_id=uuid4(),
                    token=task.token,
                    attempt=task.attempt,
                    ttl_s=self.ttl_s,
                    lease_class=LEASE_CLASS[task.spec.kind],
                    spec=task.spec,
                )
            )
        return leased

    def _about(self, task: Task, verb: str, query: dict[str, list[str]], headers: Any, body: bytes) -> BaseModel:
        if verb == "upload":
            self._fence(task, headers.get(LEASE_TOKEN_HEADER, ""))
            assert len(body) <= PIECE_BYTES
            task.uploaded[int(query["offset"][0])] = body
            return Ack()
        kinds: dict[str, type[BaseModel]] = {
            "progress": ProgressReport,
            "complete": CompleteReport,
            "fail": FailReport,
            "release": ReleaseReport,
            "directories/wanted": DirectoriesWanted,
            "directories": DirectoriesReport,
            "found": FoundReport,
        }
        told: Any = kinds[verb].model_validate_json(body)
        with self._news:
            if verb == "complete" and task.over and told.token == task.token:
                task.completions += 1
                return Ack()
            self._fence(task, told.token)
            reply = getattr(self, "_" + verb.replace("/", "_"))(task, told)
            self._news.notify_all()
            return reply  # type: ignore[no-any-return]

    def _fence(self, task: Task, token: str) -> None:
        if token != task.token or task.state != "leased":
            raise Problem(409, "lease-lost", "The lease is not yours.")

    def _progress(self, task: Task, told: ProgressReport) -> ProgressReply:
        task.reports.append(told)
        task.log.update({entry.seq: entry for entry in told.log})
        task.deadline = time.monotonic() + self.ttl_s
        return ProgressReply(cancel=task.cancel, ttl_s=self.ttl_s, report_s=self.report_s, server_time=self._now())

    def _complete(self, task: Task, told: CompleteReport) -> Ack:
        task.result, task.state, task.completions = told, told.outcome.value, task.completions + 1
        if told.last:
            task.log.update({entry.seq: entry for entry in told.last.log})
        return Ack()

    def _fail(self, task: Task, told: FailReport) -> Ack:
        task.failure, task.state = told, "failed"
        task.log.update({entry.seq: entry for entry in told.log})
        return Ack()

    def _release(self, task: Task, told: ReleaseReport) -> Ack:
        task.released.append(told.reason)
        task.state = "queued"
        return Ack()

    def _directories_wanted(self, task: Task, told: DirectoriesWanted) -> DirectoriesMissing:
        return DirectoriesMissing(tree_ids=[i for i in told.tree_ids if i not in self.known_trees])

    def _directories(self, task: Task, told: DirectoriesReport) -> Ack:
        for directory in told.directories:
            subtrees = {entry.tree for entry in directory.entries if entry.tree}
            assert subtrees <= self.known_trees, "a parent came before its children"
            task.directories.setdefault(directory.tree_id, []).append(directory)
            if directory.last:
                self.known_trees.add(directory.tree_id)
        return Ack()

    def _found(self, task: Task, told: FoundReport) -> Ack:
        task.machines += told.machines
        return Ack()

    def _now(self) -> datetime:
        return datetime.now(UTC) + self.clock_offset


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, double: ServerDouble, authority: Authority, certificate: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.double = double
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(authority.folder / f"{certificate}.pem")

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            wrapped = self._tls.wrap_socket(request, server_side=True)
            super().finish_request(wrapped, client_address)
        except OSError:
            pass  # a client that does not trust us, or hung up

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._do()

    def do_POST(self) -> None:
        self._do()

    def do_PUT(self) -> None:
        self._do()

    def _do(self) -> None:
        double = self.server.double
        url = urlsplit(self.path)
        path = url.path.removeprefix(PREFIX)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        double.seen.append((path, body))
        if double.away:
            self.close_connection = True
            return
        fault = next((f for f in double.faults if f.times > 0 and f.where in path), None)
        how = fault.how if fault else ""
        if fault:
            fault.times -= 1
        if how == "drop":
            self.close_connection = True
            return
        if how in ("500", "409"):
            self._send(int(how), ErrorBody(code="lease-lost" if how == "409" else "error", message="A fault."))
            return
        if how == "slow":
            time.sleep(1.5)
        try:
            reply = double.answer(self.command, path, parse_qs(url.query), self.headers, body)
        except Problem as problem:
            self._send(problem.status, ErrorBody(code=problem.code, message=str(problem)))
            return
        if how == "lost" or double.away:
            self.close_connection = True
            return
        self._send(200, reply, how)

    def _send(self, status: int, reply: Any, how: str = "") -> None:
        if isinstance(reply, BaseModel):
            raw = reply.model_dump_json().encode()
        else:
            raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        if how == "garbage":
            raw = b'{"tasks": "what?'
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if how == "torn":
            self.wfile.write(raw[: len(raw) // 2])
            self.close_connection = True
            self.wfile.flush()
            return
        self.wfile.write(raw)
