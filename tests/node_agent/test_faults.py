"""The server, the network and the node itself fail in the middle; every task still ends in a good state, once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from node_agent.cli import main
from node_agent.items import Issues
from node_agent.protocol import DoneResult, ForgetSpec, ProbeSpec, Result
from node_agent.state import State
from node_agent.task_run import Run, margin_s
from node_agent.worker import Worker
from tests.node_agent.nodes import PASSWORD, Place, done_well, ready, restic
from tests.node_agent.server_double import ServerDouble

Start = Callable[..., Worker]
Process = Callable[[], "subprocess.Popen[bytes]"]
SLOW = 5_000  # bytes a second: a backup of some hundred KB takes a minute


class Watched:
    """Work that goes on until it is told to stop; it notes what happened."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended_at = 0.0
        self.finish = threading.Event()
        self.runs = 0

    def __call__(self, run: Run) -> tuple[Result, Issues]:
        self.runs += 1
        self.begun.set()
        try:
            while not self.finish.wait(0.02):
                run.progress.check()
        finally:
            self.ended_at = time.monotonic()
        return DoneResult(), Issues()


# --- the network and the server ---


@pytest.mark.parametrize("how", ["500", "drop", "lost", "torn", "garbage", "slow"])
def test_each_call_may_fail_twice_and_the_work_is_done_once(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random, how: str
) -> None:
    enrolled.fill(dice, files=5, size=1000)
    for where in ("/lease", "/progress", "/directories/wanted", "/directories", "/complete"):
        server.fault(where, how, 1 if how == "slow" else 2)
    start()
    ready(server, enrolled)
    task = done_well(server, server.add(enrolled.backup()))
    assert task.attempt == 1
    assert len(json.loads(restic(enrolled, "snapshots", "--json").stdout)) == 1
    server.until(lambda: not any((enrolled.state / "outbox").iterdir()), 15)  # an answer may be lost twice


def test_a_backup_goes_on_while_the_server_is_away_for_longer_than_its_lease(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    server.ttl_s = 1.0
    work = Watched()
    start(_perform=work)
    task = server.add(enrolled.backup())
    assert work.begun.wait(10)
    server.away = True
    gone = time.monotonic()
    server.until(lambda: time.monotonic() - gone > 2.5)
    assert work.ended_at == 0
    server.away = False
    before = len(task.reports)
    server.until(lambda: len(task.reports) > before)  # the lease is renewed: nobody else took the task
    work.finish.set()
    done_well(server, task)
    assert work.runs == 1 and task.attempt == 1


def test_exclusive_work_stops_before_its_lease_ends_when_the_server_is_away(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    server.ttl_s = 3.0
    work = Watched()
    start(_perform=work)
    task = server.add(ForgetSpec(repository=enrolled.access(), snapshot_ids=[]))
    assert work.begun.wait(10)
    server.until(lambda: len(task.reports) > 0)
    server.away = True
    gone = time.monotonic()
    server.until(lambda: work.ended_at > 0, 10)
    assert work.ended_at - gone <= 3.0 - margin_s(3.0) + 0.6
    server.away = False
    server.until(lambda: bool(task.released))


def test_exclusive_work_does_not_begin_before_the_lease_was_confirmed(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    work = Watched()
    server.fault("/progress", "409", 1)
    start(_perform=work)
    server.add(ForgetSpec(repository=enrolled.access(), snapshot_ids=[]))
    server.until(lambda: server.faults[0].times == 0)
    server.until(lambda: not any(request.holding for request in server.lease_requests[-1:]))
    assert work.runs == 0


def test_append_work_ends_after_the_longest_absence_that_is_allowed(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    server.ttl_s = 1.0
    enrolled.configure("server_away_h = 0.0005")  # 1.8 s
    work = Watched()
    start(_perform=work)
    server.add(enrolled.backup())
    assert work.begun.wait(10)
    server.away = True
    server.until(lambda: work.ended_at > 0, 10)


def test_a_task_that_went_to_another_node_is_dropped_without_a_word(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    work = Watched()
    start(_perform=work)
    task = server.add(enrolled.backup())
    assert work.begun.wait(10)
    server.revoke(task)
    server.until(lambda: work.ended_at > 0)
    server.until(lambda: not server.lease_requests[-1].holding)
    assert task.state == "leased" and not task.result and not task.failure and not task.released
    assert list((enrolled.state / "outbox").iterdir()) == []


def test_cancelling_stops_the_task_and_says_so(server: ServerDouble, enrolled: Place, start: Start) -> None:
    work = Watched()
    start(_perform=work)
    task = server.add(enrolled.backup())
    assert work.begun.wait(10)
    task.cancel = True
    server.wait(task, 10)
    assert task.failure is not None and task.failure.code == "cancelled" and not task.failure.retryable


def test_one_task_that_makes_no_sense_does_not_spoil_the_others(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    good = server.add(ProbeSpec(driver="files", path=str(enrolled.source)))
    strange = server.add(ProbeSpec(path="/"))
    strange.state, strange.token = "leased", "its-token"
    strange.elsewhere, strange.deadline = True, time.monotonic() + 3600
    server.raw_tasks = [{"task_id": str(strange.id), "token": "its-token", "spec": {"kind": "teleport"}}]
    start()
    server.wait(strange)
    assert strange.failure is not None and strange.failure.code == "unsupported-task"
    done_well(server, good)


def test_an_unexpected_error_fails_the_task_without_its_text(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    def perform(run: Run) -> tuple[Result, Issues]:
        raise ValueError(f"secret {PASSWORD}")

    start(_perform=perform)
    task = server.wait(server.add(enrolled.backup()))
    assert task.failure is not None and "ValueError" in task.failure.message
    assert PASSWORD not in task.failure.model_dump_json()


def test_log_lines_arrive_once_each_and_in_order(server: ServerDouble, enrolled: Place, start: Start) -> None:
    def perform(run: Run) -> tuple[Result, Issues]:
        for number in range(450):
            run.progress.log("info", f"line {number}")
        return DoneResult(), Issues()

    server.fault("/progress", "lost", 3)
    start(_perform=perform)
    task = done_well(server, server.add(enrolled.backup()))
    texts = [task.log[seq].message for seq in sorted(task.log)]
    assert texts == [f"line {number}" for number in range(450)]


def test_tasks_run_side_by_side_up_to_the_slots(server: ServerDouble, enrolled: Place, start: Start) -> None:
    work = Watched()
    start(_perform=work)
    tasks = [server.add(enrolled.backup()) for _ in range(3)]
    server.until(lambda: work.runs == 2)
    assert [task.state for task in tasks] == ["leased", "leased", "queued"]
    work.finish.set()
    for task in tasks:
        done_well(server, task)


def test_a_task_that_comes_back_to_the_same_node_runs_once_at_a_time(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    """Its lease ended unnoticed; the server handed it to this node again under a new token."""
    running: list[int] = []
    most: list[int] = []
    finish = threading.Event()

    def perform(run: Run) -> tuple[Result, Issues]:
        running.append(1)
        most.append(len(running))
        try:
            while not finish.wait(0.02):
                run.progress.check()
        finally:
            running.pop()
        return DoneResult(), Issues()

    start(_perform=perform)
    task = server.add(enrolled.backup())
    server.until(lambda: bool(most))
    with server._news:
        task.state = "queued"
        server._news.notify_all()
    server.until(lambda: task.attempt == 2 and len(most) == 2)
    finish.set()
    done_well(server, task)
    assert max(most) == 1


# --- clocks, tokens, secrets ---


def test_snapshots_carry_the_servers_time_when_the_nodes_clock_is_an_hour_off(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    server.clock_offset = timedelta(hours=1)
    (enrolled.source / "a").touch()
    start()
    ready(server, enrolled)
    done_well(server, server.add(enrolled.backup()))
    taken = json.loads(restic(enrolled, "snapshots", "--json").stdout)[0]["time"]
    ahead = datetime.fromisoformat(taken[:19] + "+00:00") - datetime.now(UTC)
    assert timedelta(minutes=58) < ahead < timedelta(minutes=61)


def test_the_token_rotates_and_the_old_one_is_never_used_again(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    state = State(enrolled.state)
    first = state.token()
    state.keep_token(first, at=0.0)
    start()
    server.until(lambda: state.token() != first)
    for _ in range(3):
        done_well(server, server.add(ProbeSpec(driver="files", path=str(enrolled.source))))
    assert server.alarms == [first]  # retired by the first use of its successor, not used again
    assert server.node_tokens == [state.token()]
    assert (enrolled.state / "token").stat().st_mode & 0o777 == 0o600


def test_no_secret_reaches_the_disk_the_log_or_the_command_line(
    server: ServerDouble, enrolled: Place, process: Process, dice: random.Random
) -> None:
    enrolled.fill(dice, files=5)
    enrolled.configure('log_level = "debug"')
    node = process()
    ready(server, enrolled)
    task = server.add(enrolled.backup(bandwidth_bytes_s=SLOW))
    server.until(lambda: bool(task.reports))
    shown = Path(f"/proc/{node.pid}/cmdline").read_bytes() + Path(f"/proc/{node.pid}/environ").read_bytes()
    assert PASSWORD.encode() not in shown
    server.fault("/complete", "drop", 50)
    server.fault("/release", "drop", 50)
    node.send_signal(signal.SIGTERM)
    node.send_signal(signal.SIGINT)
    node.wait(60)
    wrong = [path for path in enrolled.state.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert wrong == []
    token = State(enrolled.state).token().encode()
    holding = [p.name for p in enrolled.base.rglob("*") if p.is_file() and token in p.read_bytes()]
    assert holding == ["token"]
    assert PASSWORD.encode() not in enrolled.log.read_bytes()


# --- the process ---


def test_sigterm_gives_running_tasks_back_and_the_next_start_finishes_them(
    server: ServerDouble, enrolled: Place, process: Process, dice: random.Random
) -> None:
    enrolled.fill(dice)
    enrolled.configure("drain_grace_s = 0.2")
    node = process()
    ready(server, enrolled)
    task = server.add(enrolled.backup(bandwidth_bytes_s=SLOW))
    server.until(lambda: bool(task.reports))
    node.send_signal(signal.SIGHUP)
    node.send_signal(signal.SIGTERM)
    assert node.wait(30) == 0
    assert task.released and task.state == "queued"
    assert list((enrolled.repository / "locks").iterdir()) == []
    task.spec = task.spec.model_copy(update={"bandwidth_bytes_s": 0})
    process()
    done_well(server, task)
    assert restic(enrolled, "check", "--read-data").returncode == 0


def test_a_killed_nodes_result_is_delivered_after_the_restart(
    server: ServerDouble, enrolled: Place, process: Process
) -> None:
    (enrolled.source / "a").write_bytes(b"a")
    server.fault("/complete", "drop", 10_000)
    node = process()
    task = server.add(ProbeSpec(driver="files", path=str(enrolled.source)))
    server.until(lambda: list((enrolled.state / "outbox").glob("*.json")) != [])
    node.kill()
    node.wait()
    server.faults.clear()
    process()
    done_well(server, task)
    assert task.attempt == 1
    server.until(lambda: list((enrolled.state / "outbox").iterdir()) == [])


@pytest.mark.slow
def test_kill_9_at_random_moments_leaves_a_good_repository_and_one_point_each(
    server: ServerDouble, enrolled: Place, process: Process, dice: random.Random
) -> None:
    enrolled.fill(dice, files=60, size=1_500_000)
    node = process()
    ready(server, enrolled)
    tasks = []
    for _ in range(6):
        (enrolled.source / "changing").write_bytes(dice.randbytes(5_000_000))
        task = server.add(enrolled.backup())
        tasks.append(task)
        server.until(lambda task=task: task.state == "leased" or task.over)
        deadline = time.monotonic() + dice.uniform(0, 1.5)
        server.until(lambda deadline=deadline: time.monotonic() > deadline)
        node.kill()
        node.wait()
        node = process()
        done_well(server, task)
        assert restic(enrolled, "check", "--read-data", "--no-lock").returncode == 0
    snapshots = json.loads(restic(enrolled, "snapshots", "--json").stdout)
    tagged = sorted(tag for snapshot in snapshots for tag in snapshot["tags"] if tag.startswith("brs.task="))
    assert tagged == sorted(f"brs.task={task.id}" for task in tasks)


def test_a_second_node_on_one_state_folder_is_refused(
    server: ServerDouble, enrolled: Place, process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    process()
    server.until(lambda: bool(server.lease_requests))
    assert main(["run", "--state", str(enrolled.state)]) == 1
    assert "Another node is running" in capsys.readouterr().err
    assert main(["status", "--state", str(enrolled.state)]) == 0
    assert "running" in capsys.readouterr().out


# --- what the node refuses ---


@pytest.mark.parametrize("path", ["/etc", "relative", "/etc/../etc/passwd", "/proc/self/root", "nul\0byte", "/a\0b"])
def test_a_path_outside_the_roots_is_refused_whatever_the_server_says(
    server: ServerDouble, enrolled: Place, start: Start, path: str
) -> None:
    start()
    ready(server, enrolled)
    task = server.wait(server.add(enrolled.backup(path=path)))
    assert task.failure is not None and task.failure.code == "refused"
    task = server.wait(server.add(enrolled.restore("ab" * 32, path=path)))
    assert task.failure is not None and task.failure.code == "refused"


def test_a_link_inside_a_root_does_not_lead_out(server: ServerDouble, enrolled: Place, start: Start) -> None:
    (enrolled.source / "door").symlink_to("/etc")
    (enrolled.target / "door").symlink_to("/tmp")
    (enrolled.repositories / "door").symlink_to(enrolled.base)
    start()
    ready(server, enrolled)
    for spec in (
        enrolled.backup(path=str(enrolled.source / "door")),
        enrolled.backup(path=str(enrolled.source / "door"), driver="image"),
        enrolled.restore("ab" * 32, path=str(enrolled.target / "door" / "x")),
    ):
        task = server.wait(server.add(spec))
        assert task.failure is not None and task.failure.code == "refused", spec
    outside = enrolled.access().model_copy(update={"url": str(enrolled.repositories / "door" / "r")})
    task = server.wait(server.add(enrolled.init().model_copy(update={"repository": outside})))
    assert task.failure is not None and task.failure.code == "refused"
    assert not (enrolled.base / "r").exists()


def test_the_nodes_own_token_is_never_part_of_a_backup(server: ServerDouble, enrolled: Place, start: Start) -> None:
    text = (enrolled.state / "node.toml").read_text()
    (enrolled.state / "node.toml").write_text(
        text.replace(f'read = ["{enrolled.source}"]', f'read = ["{enrolled.base}"]')
    )
    start()
    ready(server, enrolled)
    task = done_well(server, server.add(enrolled.backup(path=str(enrolled.state))))
    assert task.result is not None
    listed = restic(enrolled, "ls", task.result.result.snapshot_id).stdout  # type: ignore[union-attr]
    assert f"{enrolled.state}/node.toml" in listed
    assert f"{enrolled.state}/token" not in listed.splitlines()


def test_staging_without_space_is_refused_before_anything_is_copied(
    server: ServerDouble, enrolled: Place, start: Start
) -> None:
    from node_agent.protocol import ExportSpec

    (enrolled.source / "a").write_bytes(os.urandom(2_000_000))
    enrolled.configure("staging_max_bytes = 1000000")
    start()
    spec = enrolled.backup()
    export = ExportSpec(workload=spec.workload, workload_name="w", source=spec.source, staging="job")
    task = server.wait(server.add(export))
    assert task.failure is not None and task.failure.code == "target-full"
    assert list((enrolled.state / "staging").iterdir()) == []
    bad = server.wait(server.add(export.model_copy(update={"staging": "../../etc"})))
    assert bad.failure is not None and bad.failure.code == "refused"
