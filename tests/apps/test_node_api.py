"""The nodes' API: the door, a task over the wire, and downloads. (Long polls: test_node_polls.)"""

from __future__ import annotations

import hashlib
import re
import uuid
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from channels.db import database_sync_to_async
from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from apps.catalog.models import Directory, RestorePoint
from apps.inventory.models import Node
from apps.jobs import lease, node_api, spool
from apps.jobs.models import Download, JobKind, State, Task
from node_agent.protocol import (
    BODY_BYTES,
    LEASE_TOKEN_HEADER,
    PIECE_BYTES,
    PREFIX,
    CompleteReport,
    DirectoriesReport,
    DownloadResult,
    Entry,
    LeaseReply,
    LogEntry,
    ReleaseReport,
    TaskKind,
)
from node_agent.protocol import Directory as ListOf
from tests.apps.leasing import (
    add_backup,
    capabilities,
    done,
    failing,
    make_job,
    make_task,
    request_for,
    state_of,
    take,
    wire,
    working,
)

pytestmark = pytest.mark.django_db(transaction=True)


def signed(token: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **headers}


async def call(method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> httpx.Response:
    transport = httpx.ASGITransport(app=node_api.application, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="https://server") as client:
        return await client.request(method, PREFIX + path, content=body, headers=headers)


async def in_thread(work, *args):
    return await database_sync_to_async(work, thread_sensitive=False)(*args)


# --- the door -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "nonsense", "Bearer"])
@pytest.mark.parametrize("path", ["/lease", "/tasks/{task}/progress", "/tasks/{task}/complete", "/token"])
async def test_a_token_that_is_not_known_is_401(world, token, path):
    bodies = {
        "/lease": wire(request_for(world.alpha.node)),
        "/token": b'{"request_id": "%s"}' % str(uuid.uuid4()).encode(),
        "/tasks/{task}/progress": wire(working("x")),
        "/tasks/{task}/complete": wire(done("x")),
    }
    answer = await call("POST", path.format(task=world.alpha.task.pk), bodies[path], signed(token) if token else {})
    assert answer.status_code == 401
    assert set(answer.json()) == {"code", "message", "hint"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"{}",
        b'{"request_id": 7}',
        b'{"request_id": "x", "incarnation": "y", "node_time": "z", "free_slots": -1}',
        b"[" * 100_000,
    ],
)
async def test_a_malformed_body_is_400_and_names_the_field(world, body):
    answer = await call("POST", "/lease", body, signed(world.alpha.node_token))
    assert answer.status_code == 400
    assert answer.json()["code"] == "malformed" and answer.json()["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1", "1" + "0" * 30])
@pytest.mark.parametrize("field", ["staging_bytes", "node_time"])
async def test_a_number_that_no_database_keeps_is_400(world, field, number):
    told = wire(request_for(world.alpha.node, capabilities=capabilities(staging_bytes=4711)))
    broken = told.replace(b"4711", number.encode()) if field == "staging_bytes" else told
    if field == "node_time":
        broken = re.sub(rb'"node_time":"[^"]*"', b'"node_time":' + number.encode(), told)
    answer = await call("POST", "/lease", broken, signed(world.alpha.node_token))
    assert answer.status_code == 400 or (field, number) == ("node_time", "-1")  # a moment before 1970


@pytest.mark.parametrize(
    ("field", "number"),
    [("rate_bytes_s", "NaN"), ("rate_bytes_s", "1e999"), ("age_s", "NaN"), ("left_out_count", "-1")],
)
async def test_reports_with_such_numbers_are_400_and_change_nothing(world, field, number):
    task = await in_thread(add_backup, world.alpha)
    handed = await in_thread(take, world.alpha.node)
    verb = "complete" if field == "left_out_count" else "progress"
    report = done(handed.token) if verb == "complete" else working(handed.token, log=[LogEntry(seq=1, message="x")])
    body = re.sub(rf'"{field}":[-0-9.]+'.encode(), f'"{field}":{number}'.encode(), wire(report))
    assert number.encode() in body
    answer = await call("POST", f"/tasks/{task.pk}/{verb}", body, signed(world.alpha.node_token))
    assert answer.status_code == 400
    assert await in_thread(state_of, task) == (State.LEASED, State.LEASED)


async def test_a_nul_in_a_text_is_kept_as_its_picture_and_a_written_one_as_it_is(world):
    """PostgreSQL keeps no NUL. A backslash before it that is text itself stays."""
    told = wire(request_for(world.alpha.node, capabilities=capabilities(hostname="a?b", system="c?d", version="e?f")))
    told = told.replace(b"a?b", rb"a\u0000b").replace(b"c?d", rb"c\\u0000d").replace(b"e?f", rb"\\\u0000f")
    answer = await call("POST", "/lease", told, signed(world.alpha.node_token))
    assert answer.status_code == 200
    node = await in_thread(Node.objects.get, Q(pk=world.alpha.node.pk))
    assert (node.hostname, node.system, node.version) == ("a\u2400b", "c\\u0000d", "\\\u2400f")


async def test_what_a_malformed_body_held_is_not_told_back(world):
    answer = await call("POST", "/lease", b'{"request_id": "hunter2-secret"}', signed(world.alpha.node_token))
    assert "hunter2" not in answer.text


async def test_an_announced_oversize_body_is_413(world):
    answer = await call("POST", "/lease", b"x" * (BODY_BYTES + 1))
    assert answer.status_code == 413 and answer.json()["code"] == "too-large"


async def test_a_chunked_oversize_body_is_413_before_it_has_all_arrived(world):
    sent = 0

    async def endless():
        nonlocal sent
        while sent < 10 * BODY_BYTES:
            sent += 1024 * 1024
            yield b"x" * 1024 * 1024

    messages: list[dict] = []
    source = endless()

    async def receive():
        return {"type": "http.request", "body": await anext(source), "more_body": True}

    async def send(message):
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": PREFIX + "/lease", "headers": [], "query_string": b""}
    await node_api.application(scope, receive, send)
    assert messages[0]["status"] == 413
    assert sent <= BODY_BYTES + 2 * 1024 * 1024


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/tasks/not-a-uuid/progress", 404),
        ("POST", "/tasks/" + "0" * 36 + "/progress", 404),
        ("GET", "/lease", 405),
        ("DELETE", "/ca", 405),
    ],
)
async def test_unknown_addresses_and_methods_are_told_apart(world, method, path, status):
    answer = await call(method, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"code", "message", "hint"}


async def test_the_certificate_of_the_authority_can_be_fetched_without_a_token(world):
    assert (await call("GET", "/ca")).status_code == 404
    Path(settings.PKI_DIR).mkdir(parents=True, exist_ok=True)
    (Path(settings.PKI_DIR) / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    answer = await call("GET", "/ca")
    assert (answer.status_code, answer.content) == (200, b"-----BEGIN CERTIFICATE-----\n")


async def test_a_bug_is_500_with_a_plain_answer(world, monkeypatch):
    def broken(*_args, **_facts):
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr(lease, "acquire", broken)
    answer = await call("POST", "/lease", wire(request_for(world.alpha.node)), signed(world.alpha.node_token))
    assert answer.status_code == 500 and "hunter2" not in answer.text
    assert set(answer.json()) == {"code", "message", "hint"}


# --- a task over the wire -----------------------------------------------------------------------------------


async def test_a_backup_goes_over_the_wire_from_the_lease_to_its_end(world):
    alpha, headers = world.alpha, signed(world.alpha.node_token)
    task = await in_thread(add_backup, alpha)

    told = await call("POST", "/lease", wire(request_for(alpha.node, capabilities=capabilities())), headers)
    (handed,) = LeaseReply.model_validate_json(told.content).tasks
    assert handed.spec.repository.password == alpha.repository_password

    progress = await call("POST", f"/tasks/{task.pk}/progress", wire(working(handed.token)), headers)
    assert progress.status_code == 200 and progress.json()["cancel"] is False
    finish = wire(done(handed.token))
    answers = [await call("POST", f"/tasks/{task.pk}/complete", finish, headers) for _ in range(2)]
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"ok": True})] * 2
    assert await in_thread(state_of, task) == (State.SUCCEEDED, State.SUCCEEDED)
    assert await in_thread(RestorePoint.objects.filter(task=task.pk).count) == 1


@pytest.mark.parametrize("verb", ["progress", "complete", "fail", "release", "directories/wanted"])
async def test_a_stale_token_is_409_lease_lost_and_a_foreign_task_404(world, verb):
    task = await in_thread(add_backup, world.alpha)
    handed = await in_thread(take, world.alpha.node)

    def body(token: str) -> bytes:
        if verb == "directories/wanted":
            return b'{"token": "%s", "tree_ids": []}' % token.encode()
        makers = {"progress": working, "complete": done, "fail": failing, "release": lambda t: ReleaseReport(token=t)}
        return wire(makers[verb](token))

    path = f"/tasks/{task.pk}/{verb}"
    stale = await call("POST", path, body("stale-é"), signed(world.alpha.node_token))
    assert (stale.status_code, stale.json()["code"]) == (409, "lease-lost")
    foreign = await call("POST", path, body(handed.token), signed(world.beta.node_token))
    absent = await call("POST", f"/tasks/{uuid.uuid4()}/{verb}", body("x"), signed(world.beta.node_token))
    assert foreign.status_code == absent.status_code == 404
    assert foreign.json() == absent.json()


async def test_directories_that_are_known_are_not_asked_for_again(world):
    task = await in_thread(add_backup, world.alpha)
    handed = await in_thread(take, world.alpha.node)
    headers, tree = signed(world.alpha.node_token), "ab" * 32
    path = f"/tasks/{task.pk}/directories"
    wanted = b'{"token": "%s", "tree_ids": ["%s"]}' % (handed.token.encode(), tree.encode())

    assert (await call("POST", path + "/wanted", wanted, headers)).json() == {"tree_ids": [tree]}
    entries = [Entry(name="a", type="file")]
    piece = wire(DirectoriesReport(token=handed.token, directories=[ListOf(tree_id=tree, entries=entries)]))
    for _ in range(2):
        assert (await call("POST", path, piece, headers)).status_code == 200
    assert (await call("POST", path + "/wanted", wanted, headers)).json() == {"tree_ids": []}
    assert await in_thread(Directory.objects.filter(tree_id=tree).count) == 1


async def test_oversize_and_malformed_reports_change_nothing(world):
    task = await in_thread(add_backup, world.alpha)
    handed = await in_thread(take, world.alpha.node)
    path, headers = f"/tasks/{task.pk}/complete", signed(world.alpha.node_token)
    broken = await call("POST", path, wire(done(handed.token)).replace(b'"files":3', b'"files":"many"'), headers)
    assert broken.status_code == 400 and "files" in broken.json()["message"]
    assert await in_thread(state_of, task) == (State.LEASED, State.LEASED)


# --- downloads --------------------------------------------------------------------------------------------------


def download_task(world, max_bytes: int = 100) -> tuple[Task, Download]:
    job = make_job(world.alpha, JobKind.DOWNLOAD)
    spec = {"snapshot_id": "a" * 64, "path": "/srv/a", "max_bytes": max_bytes}
    task = make_task(world.alpha, TaskKind.DOWNLOAD, spec=spec)
    assert lease.add(job, [task])
    download = Download.objects.create(
        tenant=world.alpha.tenant,
        user=world.viewer,
        job=job,
        file_name="a",
        expires_at=timezone.now() + timedelta(hours=1),
    )
    return task, download


async def test_a_file_arrives_in_pieces_and_is_open_for_its_owner_only(world):
    task, download = await in_thread(download_task, world)
    handed = await in_thread(take, world.alpha.node)
    headers = signed(world.alpha.node_token, **{LEASE_TOKEN_HEADER: handed.token})
    path = f"/tasks/{task.pk}/upload?offset="

    assert (await call("PUT", path + "0", b"hello ", headers)).status_code == 200
    gap = await call("PUT", path + "9", b"world", headers)
    assert (gap.status_code, gap.json()["code"]) == (409, "wrong-offset")
    for _ in range(2):
        assert (await call("PUT", path + "6", b"world", headers)).status_code == 200
    with pytest.raises(Exception, match="on its way"):
        await in_thread(spool.open_for, world.viewer, download.pk, timezone.now())

    digest = hashlib.sha256(b"hello world").hexdigest()
    finish = CompleteReport(token=handed.token, result=DownloadResult(size_bytes=11, sha256=digest))
    answer = await call("POST", f"/tasks/{task.pk}/complete", wire(finish), headers)
    assert answer.status_code == 200, answer.text

    found, file = await in_thread(spool.open_for, world.viewer, download.pk, timezone.now())
    assert (found.pk, file.read()) == (download.pk, b"hello world")
    file.close()
    for other in (world.owner, world.stranger, world.root):
        with pytest.raises(Exception, match="no such object"):
            await in_thread(spool.open_for, other, download.pk, timezone.now())
    later = timezone.now() + timedelta(hours=2)
    with pytest.raises(Exception, match="no such object"):
        await in_thread(spool.open_for, world.viewer, download.pk, later)
    assert await in_thread(spool.purge, later) == 1
    assert not spool.path_of(download.pk).exists()


async def test_a_damaged_upload_does_not_count(world):
    task, _download = await in_thread(download_task, world)
    handed = await in_thread(take, world.alpha.node)
    headers = signed(world.alpha.node_token, **{LEASE_TOKEN_HEADER: handed.token})
    await call("PUT", f"/tasks/{task.pk}/upload?offset=0", b"hellO", headers)
    digest = hashlib.sha256(b"hello").hexdigest()
    finish = CompleteReport(token=handed.token, result=DownloadResult(size_bytes=5, sha256=digest))
    answer = await call("POST", f"/tasks/{task.pk}/complete", wire(finish), headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "upload-damaged")
    assert (await in_thread(Download.objects.get)).ready_at is None


async def test_uploads_have_limits(world, settings):
    task, download = await in_thread(download_task, world)
    handed = await in_thread(take, world.alpha.node)
    headers = signed(world.alpha.node_token, **{LEASE_TOKEN_HEADER: handed.token})
    path = f"/tasks/{task.pk}/upload?offset="
    too_long = await call("PUT", path + "0", b"x" * 101, headers)
    too_big = await call("PUT", path + "0", b"x" * (PIECE_BYTES + 1), headers)
    settings.BRS_SPOOL_QUOTA_BYTES = 10
    too_full = await call("PUT", path + "0", b"x" * 11, headers)
    assert [answer.status_code for answer in (too_long, too_big, too_full)] == [413, 413, 413]
    for offset in ("", "-1", "1e3", "x", "9" * 30):
        assert (await call("PUT", path + offset, b"x", headers)).status_code == 400
    stale = signed(world.alpha.node_token, **{LEASE_TOKEN_HEADER: "stale"})
    assert (await call("PUT", path + "0", b"x", stale)).status_code == 409
    assert not spool.path_of(download.pk).exists()
