"""A file on its way to a user: to him alone, for an hour, under a name that harms nobody."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from django.core.asgi import get_asgi_application
from django.test import Client
from django.utils import timezone

from apps.iam.models import Membership
from apps.jobs import spool
from apps.jobs.models import Download, Job, JobKind, State
from tests.api_client import ids, person
from tests.world import make_world

pytestmark = pytest.mark.django_db
CONTENT = b"the file's bytes\x00\xff" * 1000


def make_download(world, name="report.txt", **extra):
    now = timezone.now()
    job = Job.objects.create(
        tenant=world.alpha.tenant,
        kind=JobKind.DOWNLOAD,
        state=State.SUCCEEDED,
        title="Download",
        due_at=now,
        workload=world.alpha.workload,
        restore_point=world.alpha.point,
    )
    facts = {"ready_at": now, "expires_at": now + timedelta(hours=1), "size_bytes": len(CONTENT), **extra}
    download = Download.objects.create(
        tenant=world.alpha.tenant, user=world.operator, job=job, file_name=name, received_bytes=len(CONTENT), **facts
    )
    file = spool.path_of(download.pk)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(CONTENT)
    return download


def test_the_one_who_asked_gets_the_file(world):
    download = make_download(world)
    operator = person(world.operator)
    shown = operator.get(f"downloads/{download.pk}/").json()
    answer = operator.client.get(shown["content"], headers={"Authorization": f"Bearer {operator.clear}"})
    assert b"".join(answer.streaming_content) == CONTENT
    assert answer.headers["Content-Length"] == str(len(CONTENT))
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="report.txt"'
    assert "no-store" in answer.headers["Cache-Control"]
    assert operator.get(f"jobs/{download.job_id}/").json()["download"] == str(download.pk)


@pytest.mark.parametrize("who", ["stranger", "viewer", "admin", "owner", "root", "nobody"])
def test_nobody_else_does(world, who):
    download = make_download(world)
    other = person(getattr(world, who))
    assert ids(other.get("downloads/")) == set()
    for path in (f"downloads/{download.pk}/", f"downloads/{download.pk}/content/"):
        for method in ("get", "head", "options"):
            assert other.call(method, path).status_code == 404, (method, path)
    assert str(download.pk) not in other.get("jobs/").content.decode()
    browser = Client()
    browser.force_login(getattr(world, who))
    for method in ("get", "head"):
        assert getattr(browser, method)(f"/downloads/{download.pk}/").status_code == 404


def test_a_browser_gets_it_with_its_session_only(world, client):
    download = make_download(world)
    path = f"/downloads/{download.pk}/"
    assert client.get(path).status_code == 302
    client.force_login(world.operator)
    assert b"".join(client.get(path).streaming_content) == CONTENT
    assert client.post(path).status_code == 405


def test_one_who_lost_the_right_meanwhile_gets_nothing(world):
    download = make_download(world)
    operator = person(world.operator)
    Membership.objects.filter(user=world.operator).update(role="viewer")
    assert operator.get(f"downloads/{download.pk}/content/").status_code == 404
    Membership.objects.filter(user=world.operator).delete()
    assert operator.get(f"downloads/{download.pk}/content/").status_code == 404


def test_it_is_gone_after_its_hour_and_not_there_before_it_arrived(world):
    operator = person(world.operator)
    late = make_download(world, expires_at=timezone.now() - timedelta(seconds=1))
    assert operator.get(f"downloads/{late.pk}/content/").status_code == 404
    early = make_download(world, ready_at=None)
    assert operator.get(f"downloads/{early.pk}/").json()["content"] is None
    assert operator.get(f"downloads/{early.pk}/content/").status_code == 409


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ('a"b.txt', 'filename="a_b.txt"'),
        ("a\r\nSet-Cookie: x=1", 'filename="a__Set-Cookie: x=1"'),
        ("../../etc/passwd", 'filename="passwd"'),
        ("C:\\temp\\x.txt", 'filename="x.txt"'),
        ("Übung €.txt", "filename*=utf-8''%C3%9Cbung%20%E2%82%AC.txt"),
        ("a\u202etxt.exe", "filename*=utf-8''a%E2%80%AEtxt.exe"),
        ("", 'filename="file"'),
        ("/", 'filename="file"'),
    ],
)
def test_the_name_in_the_header_is_harmless(world, name, safe):
    download = make_download(world, name=name)
    answer = person(world.operator).get(f"downloads/{download.pk}/content/")
    assert answer.status_code == 200
    assert answer.headers["Content-Disposition"] == f"attachment; {safe}"
    assert "Set-Cookie" not in answer.headers


@pytest.mark.django_db(transaction=True)
def test_over_asgi_the_file_is_sent_in_pieces_and_head_sends_none():
    world = make_world()
    download = make_download(world)
    operator = person(world.operator)

    async def ask(method):
        sent = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": f"/api/v1/downloads/{download.pk}/content/",
            "raw_path": b"",
            "root_path": "",
            "scheme": "https",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {operator.clear}".encode())],
            "client": ("127.0.0.1", 1),
            "server": ("localhost", 443),
        }
        never = asyncio.Event()
        first = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive():
            if first:
                return first.pop()
            await never.wait()

        async def send(message):
            sent.append(message)

        await get_asgi_application()(scope, receive, send)
        return sent

    got = asyncio.run(ask("GET"))
    assert got[0]["status"] == 200
    assert b"".join(message.get("body", b"") for message in got[1:]) == CONTENT
    head = asyncio.run(ask("HEAD"))
    assert head[0]["status"] == 200
    assert b"".join(message.get("body", b"") for message in head[1:]) == b""
