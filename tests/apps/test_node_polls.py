"""Long polls of nodes, under a real server: who is woken, who is not, and what waiting costs."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import uvicorn
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from apps.inventory.models import Node
from apps.jobs import lease, node_api
from apps.jobs.models import JobKind, State
from node_agent.protocol import (
    PREFIX,
    LeaseReply,
    TaskKind,
)
from tests.apps.leasing import (
    add_backup,
    done,
    make_job,
    make_task,
    request_for,
    state_of,
    take,
    wire,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def open_polls(monkeypatch):
    """A poll server that another test has stopped would answer at once."""
    monkeypatch.setattr(node_api._wakeups, "closed", False)


def signed(token: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **headers}


# --- long polls ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(world) -> Iterator[str]:
    """The node API under uvicorn, on a port of its own; its address."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(node_api.application, log_level="warning", lifespan="off", backlog=1024)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]})
    thread.start()
    deadline = time.monotonic() + 10
    while not running.started:
        assert time.monotonic() < deadline and thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}{PREFIX}"
    node_api.release_polls()
    running.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def poll(server: str, node: Node, token: str, **facts) -> LeaseReply:
    body = wire(request_for(Node.objects.get(pk=node.pk), **facts))
    answer = httpx.post(f"{server}/lease", content=body, headers=signed(token), timeout=40, trust_env=False)
    assert answer.status_code == 200, answer.text
    return LeaseReply.model_validate_json(answer.content)


def in_background(work, *args, **facts):
    pool = ThreadPoolExecutor(1)

    def run():
        try:
            return work(*args, **facts)
        finally:
            connections.close_all()

    future = pool.submit(run)
    pool.shutdown(wait=False)
    return future


def wait_until_polling(count: int = 1) -> None:
    deadline = time.monotonic() + 20
    while len(node_api._wakeups._waiters) < count:
        assert time.monotonic() < deadline, f"{len(node_api._wakeups._waiters)} of {count} polls are waiting"
        time.sleep(0.02)


def test_an_idle_poll_waits_as_long_as_it_was_asked_to(server, world):
    begun = time.monotonic()
    assert poll(server, world.alpha.node, world.alpha.node_token, wait_s=1).tasks == []
    assert 0.9 < time.monotonic() - begun < 5


def test_new_work_wakes_the_poll_that_waits_for_it(server, world):
    waiting = in_background(poll, server, world.alpha.node, world.alpha.node_token, wait_s=30)
    wait_until_polling()
    begun = time.monotonic()
    task = add_backup(world.alpha)
    (handed,) = waiting.result(20).tasks
    assert handed.task_id == task.pk
    assert time.monotonic() - begun < 5


def test_a_finished_task_wakes_the_poll_that_waits_for_its_gate(server, world):
    running = make_task(world.alpha)
    assert lease.add(make_job(world.alpha), [running])
    handed = take(world.alpha.node)
    forget = make_task(world.alpha, TaskKind.FORGET)
    assert lease.add(make_job(world.alpha, JobKind.EXPIRE), [forget])
    waiting = in_background(poll, server, world.alpha.node, world.alpha.node_token, wait_s=30)
    wait_until_polling()
    lease.complete(world.alpha.node, running.pk, done(handed.token), timezone.now())
    assert [task.task_id for task in waiting.result(10).tasks] == [forget.pk]


def test_a_node_that_hung_up_is_given_nothing(server, world):
    body = wire(request_for(world.alpha.node, wait_s=30))
    head = (
        f"POST {PREFIX}/lease HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.alpha.node_token}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    host, port = server.removeprefix("http://").removesuffix(PREFIX).split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(head.encode() + body)
        wait_until_polling()
    deadline = time.monotonic() + 10
    while node_api._wakeups._waiters:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    task = add_backup(world.alpha)
    assert state_of(task) == (State.QUEUED, State.QUEUED)
    assert take(world.alpha.node).attempt == 1


def test_a_cancel_is_told_soon_to_a_poll_that_waits(server, world):
    task = add_backup(world.alpha)
    take(world.alpha.node)
    waiting = in_background(
        poll, server, world.alpha.node, world.alpha.node_token, wait_s=30, holding=[task.pk], free_slots=0
    )
    wait_until_polling()
    lease.cancel(task.job, "Ann", timezone.now())
    assert waiting.result(10).cancel == [task.pk]


def test_stopping_the_server_answers_every_poll_at_once(server, world):
    waiting = in_background(poll, server, world.alpha.node, world.alpha.node_token, wait_s=60)
    wait_until_polling()
    node_api.release_polls()
    assert waiting.result(5).tasks == []


def test_two_hundred_idle_polls_hold_no_database_connection_and_few_threads(server, world):
    polls = 200

    async def all_of_them() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=polls + 10)
        async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:
            bodies = [wire(request_for(world.alpha.node, wait_s=20)) for _ in range(polls)]
            headers = signed(world.alpha.node_token)
            waiting = [asyncio.create_task(client.post(f"{server}/lease", content=b, headers=headers)) for b in bodies]
            await asyncio.to_thread(wait_until_polling, polls)
            await asyncio.to_thread(wait_until_quiet)
            seen.append((threading.active_count(), await asyncio.to_thread(open_connections)))
            node_api.release_polls()
            return await asyncio.gather(*waiting)

    def wait_until_quiet() -> None:
        deadline = time.monotonic() + 20
        while node_api._pool._work_queue.qsize() or open_connections() > 1:
            if time.monotonic() > deadline:
                return
            time.sleep(0.05)

    seen: list[tuple[int, int]] = []
    others = threading.active_count()  # of this process: earlier tests' servers, too
    answers = asyncio.run(all_of_them())
    assert [answer.status_code for answer in answers] == [200] * polls
    threads, used = seen[0]
    assert threads - others < node_api.THREADS + 30
    assert used <= 1  # this test's own


def open_connections() -> int:
    """In use: those that PostgreSQL sees at work, or those that threads of this process have open."""
    if connection.vendor == "postgresql":
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND (state <> 'idle' OR xact_start IS NOT NULL)"
                )
                return cursor.fetchone()[0]
        finally:
            connection.close()
    wrappers = [
        found for found in gc.get_objects() if issubclass(type(found), BaseDatabaseWrapper)
    ]  # no look into proxies
    return sum(wrapper.connection is not None for wrapper in wrappers)
