"""The live stream: who hears of what, as it happens, and what a stranger is told."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import asynccontextmanager

import pytest
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from django.conf import settings
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.iam.models import Membership, Role, User
from apps.jobs import consumers, lease, publish
from apps.jobs.consumers import LiveConsumer
from apps.jobs.models import Job
from node_agent.protocol import LogEntry
from tests.apps.leasing import add_backup, done, take, working
from tests.apps.websocket import WebsocketCommunicator
from tests.world import PASSWORD

pytestmark = pytest.mark.django_db(transaction=True)


@asynccontextmanager
async def stream(user: User | None):
    """A stream of this user's, connected."""
    app = URLRouter(consumers.urlpatterns)

    async def signed_in(scope, receive, send):
        await app({**scope, "user": user}, receive, send)

    talk = WebsocketCommunicator(signed_in, "/ws/live/")
    accepted, code = await talk.connect()
    assert accepted, code
    try:
        yield talk
    finally:
        await talk.disconnect()


async def until(talk: WebsocketCommunicator, wanted, timeout: float = 5) -> dict:
    """The next message that ``wanted`` accepts; others are passed over."""
    async with asyncio.timeout(timeout):
        while True:
            message = await talk.receive_json(timeout)
            if wanted(message):
                return message


def of_type(kind: str):
    return lambda message: message["type"] == kind


async def in_thread(work, *args):
    return await database_sync_to_async(work, thread_sensitive=False)(*args)


async def silent(talk: WebsocketCommunicator) -> bool:
    """Nothing comes for longer than changes are gathered."""
    return await talk.receive_nothing(timeout=consumers.GATHER_S + 0.5, interval=0.05)


async def test_a_watched_job_is_told_at_once_and_then_as_it_moves(world):
    task = await in_thread(add_backup, world.alpha)
    async with stream(world.viewer) as talk:
        await talk.send_json({"watch": [f"job:{task.job_id}"]})
        first = await until(talk, of_type("job"))
        assert (first["job"]["state"], first["job"]["id"]) == ("queued", str(task.job_id))

        handed = await in_thread(take, world.alpha.node)
        await until(talk, lambda m: m["type"] == "job" and m["job"]["state"] == "leased")

        report = working(
            handed.token, total_bytes=200, done_bytes=50, rate_bytes_s=10, log=[LogEntry(seq=1, message="begun")]
        )
        await in_thread(lease.progress, world.alpha.node, task.pk, report, timezone.now())
        told = await until(talk, lambda m: m["type"] == "job" and m["log"])
        assert told["log"][0]["message"] == "begun"
        assert (told["tasks"][0]["percent"], told["tasks"][0]["eta_s"]) == (25.0, 15)

        await in_thread(lease.complete, world.alpha.node, task.pk, done(handed.token), timezone.now())
        last = await until(talk, lambda m: m["type"] == "job" and m["job"]["state"] == "succeeded")
        assert last["job"]["restore_point"] == task.spec["point"]
        assert last["log"] == []


async def test_progress_that_is_not_stored_is_told_nevertheless(world):
    task = await in_thread(add_backup, world.alpha)
    handed = await in_thread(take, world.alpha.node)
    now = timezone.now()
    await in_thread(lease.progress, world.alpha.node, task.pk, working(handed.token, done_bytes=1), now)
    async with stream(world.viewer) as talk:
        await talk.send_json({"watch": [f"job:{task.job_id}"]})
        await until(talk, of_type("job"))
        await in_thread(lease.progress, world.alpha.node, task.pk, working(handed.token, done_bytes=2), now)
        told = await until(talk, of_type("job"))
        assert told["tasks"][0]["progress"]["done_bytes"] == 2


async def test_a_strangers_watch_of_a_foreign_job_gets_the_answer_of_one_that_does_not_exist(world):
    absent = uuid.uuid4()
    async with stream(world.stranger) as talk:
        answers = []
        for job_id in (world.alpha.job.pk, absent):
            await talk.send_json({"watch": [f"job:{job_id}"]})
            answer = await talk.receive_json(5)
            answers.append({**answer, "what": answer["what"].replace(str(job_id), "")})
        assert answers[0] == answers[1] == {"type": "denied", "what": "job:"}
        await in_thread(publish.job_changed, world.alpha.job.pk, world.alpha.tenant.pk)
        assert await silent(talk)


@pytest.mark.parametrize("what", ["job:not-an-id", "job:", "nonsense", "job:%00", "node:1"])
async def test_what_cannot_be_watched_is_denied(world, what):
    async with stream(world.owner) as talk:
        await talk.send_json({"watch": [what]})
        assert await talk.receive_json(5) == {"type": "denied", "what": what}


async def test_lists_are_nudged_for_members_and_not_for_strangers(world):
    async with stream(world.viewer) as colleague, stream(world.stranger) as stranger, stream(world.root) as root:
        for talk in (colleague, stranger, root):
            await talk.send_json({"watch": ["jobs", "overview"]})
            await talk.send_json({"watch": ["jobs", "overview", "job:?"]})  # its answer proves that it was heard
            await until(talk, of_type("denied"))
        await in_thread(add_backup, world.alpha)
        for talk in (colleague, root):
            assert (await until(talk, of_type("nudge")))["what"] == "jobs"
        assert await silent(stranger)


async def test_a_page_is_told_from_when_on_nothing_is_missed(world):
    """Between a page's making and its stream things move: so it looks once more when it hears this."""
    async with stream(world.viewer) as talk:
        await talk.send_json({"watch": ["overview", f"job:{uuid.uuid4()}"], "answer": True})
        assert (await talk.receive_json(5))["type"] == "denied"
        assert await talk.receive_json(5) == {"type": "watching"}
        await in_thread(add_backup, world.alpha)
        assert await until(talk, of_type("nudge"))


async def test_when_rights_are_withdrawn_the_stream_stops(world):
    task = await in_thread(add_backup, world.alpha)
    what = f"job:{task.job_id}"
    async with stream(world.viewer) as talk:
        await talk.send_json({"watch": [what, "jobs"]})
        await until(talk, of_type("job"))
        membership = await in_thread(lambda: Membership.objects.get(user=world.viewer))
        await in_thread(membership.delete)
        assert await until(talk, of_type("denied")) == {"type": "denied", "what": what}
        await in_thread(take, world.alpha.node)
        assert await silent(talk)


async def test_rights_that_were_withdrawn_behind_our_back_are_noticed_by_the_regular_check(world, monkeypatch):
    monkeypatch.setattr(LiveConsumer, "check_every_s", 0.3)
    task = await in_thread(add_backup, world.alpha)
    async with stream(world.viewer) as talk:
        await talk.send_json({"watch": [f"job:{task.job_id}"]})
        await until(talk, of_type("job"))
        await in_thread(lambda: Membership.objects.filter(user=world.viewer).update(role="gone"))
        await until(talk, of_type("denied"))


async def test_a_stream_whose_rights_cannot_be_looked_up_is_closed(world, monkeypatch):
    """Before, one failed look ended all later ones, and the stream went on for as long as the page stayed open."""
    monkeypatch.setattr(LiveConsumer, "check_every_s", 0.2)
    async with stream(world.viewer) as talk:
        monkeypatch.setattr(consumers, "_still_signed_in", lambda _scope: 1 / 0)
        message = await talk.receive_output(5)
        assert (message["type"], message["code"]) == ("websocket.close", consumers.CHECK_FAILED)


async def test_a_page_that_stays_open_for_days_goes_on_hearing(world, monkeypatch):
    """The channel layer forgets members of a group after a day; here after the blink of an eye."""
    monkeypatch.setattr(LiveConsumer, "check_every_s", 0.2)
    task = await in_thread(add_backup, world.alpha)
    async with stream(world.viewer) as talk:
        await talk.send_json({"watch": [f"job:{task.job_id}", "jobs"]})
        await until(talk, of_type("job"))
        layer = get_channel_layer()
        joined = {publish.job_group(task.job_id), publish.tenant_group(world.alpha.tenant.pk)}
        added: set[str] = set()
        real = layer.group_add

        async def seen(group, channel):
            added.add(group)
            await real(group, channel)

        monkeypatch.setattr(layer, "group_add", seen)
        async with asyncio.timeout(5):
            while not joined <= added:
                await asyncio.sleep(0.05)


async def test_a_deactivated_user_is_cut_off(world):
    async with stream(world.viewer) as talk:
        world.viewer.is_active = False
        await in_thread(world.viewer.save)
        closed = await talk.receive_output(5)
        assert closed["type"] == "websocket.close" and closed["code"] == consumers.SESSION_ENDED


async def test_new_rights_show_without_a_new_connection(world):
    task = await in_thread(add_backup, world.alpha)
    async with stream(world.nobody) as talk:
        await talk.send_json({"watch": [f"job:{task.job_id}", "jobs"]})
        await until(talk, of_type("denied"))
        create = Membership.objects.create
        await in_thread(lambda: create(user=world.nobody, tenant=world.alpha.tenant, role=Role.VIEWER))
        await talk.send_json({"watch": [f"job:{task.job_id}", "jobs"]})
        await until(talk, of_type("job"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"watch": "jobs"}', '{"watch": [1]}', "null"])
async def test_a_message_that_makes_no_sense_is_answered_and_the_stream_goes_on(world, text):
    async with stream(world.viewer) as talk:
        await talk.send_text(text)
        assert (await talk.receive_json(5))["code"] == "malformed"
        await talk.send_json({"watch": [f"job:{world.alpha.job.pk}"]})
        await until(talk, of_type("job"))


async def test_watching_without_end_is_refused(world):
    async with stream(world.viewer) as talk:
        await talk.send_json({"watch": [f"job:{uuid.uuid4()}" for _ in range(consumers.WATCH_AT_MOST + 1)]})
        assert (await talk.receive_json(5))["code"] == "too-many"


async def test_what_is_no_longer_watched_is_no_longer_told(world):
    task = await in_thread(add_backup, world.alpha)
    async with stream(world.viewer) as talk:
        await talk.send_json({"watch": [f"job:{task.job_id}"]})
        await until(talk, of_type("job"))
        await talk.send_json({"watch": []})
        await talk.send_json({"watch": ["job:?"]})
        await until(talk, of_type("denied"))
        await in_thread(take, world.alpha.node)
        assert await silent(talk)


# --- through the server's door --------------------------------------------------------------------------


def cookies(user: User) -> str:
    client = Client()
    assert client.login(username=user.username, password=PASSWORD)
    return f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}"


async def knock(cookie: str, origin: str) -> WebsocketCommunicator:
    from brs.asgi import application

    headers = [(b"host", b"testserver"), (b"origin", origin.encode()), (b"cookie", cookie.encode())]
    return WebsocketCommunicator(application, "/ws/live/", headers=headers)


async def test_a_session_opens_the_stream_and_its_end_closes_it(world):
    cookie = await in_thread(cookies, world.viewer)
    talk = await knock(cookie, "https://testserver")
    assert (await talk.connect())[0]
    await talk.send_json({"watch": [f"job:{world.alpha.job.pk}"]})
    await until(talk, of_type("job"))

    from django.contrib.sessions.models import Session

    await in_thread(Session.objects.all().delete)
    await in_thread(publish.rights_changed, world.viewer.pk)
    closed = await talk.receive_output(5)
    assert closed["type"] == "websocket.close" and closed["code"] == consumers.SESSION_ENDED


async def test_logging_out_closes_the_stream_at_once(world):
    client = Client()

    def log_in() -> str:
        assert client.login(username=world.viewer.username, password=PASSWORD)
        return f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}"

    talk = await knock(await in_thread(log_in), "https://testserver")
    assert (await talk.connect())[0]
    await talk.send_json({"watch": [f"job:{world.alpha.job.pk}"]})
    await until(talk, of_type("job"))
    assert (await in_thread(client.post, reverse("admin:logout"))).status_code == 200
    closed = await talk.receive_output(5)
    assert (closed["type"], closed["code"]) == ("websocket.close", consumers.SESSION_ENDED)


async def test_without_a_session_the_door_stays_closed(world):
    assert not (await (await knock("", "https://testserver")).connect())[0]


async def test_another_sites_page_cannot_open_the_stream(world):
    cookie = await in_thread(cookies, world.viewer)
    assert not (await (await knock(cookie, "https://evil.example")).connect())[0]


# --- only what has happened is told ------------------------------------------------------------------------


async def test_what_was_rolled_back_is_never_told_and_what_is_told_can_be_read(world):
    class Undone(Exception):
        pass

    def add_and_undo():
        with transaction.atomic():
            add_backup(world.alpha)
            raise Undone

    async with stream(world.viewer) as talk:
        await talk.send_json({"watch": ["jobs", "job:?"]})
        await until(talk, of_type("denied"))
        with pytest.raises(Undone):
            await in_thread(add_and_undo)
        assert await silent(talk)
        await in_thread(add_backup, world.alpha)
        await until(talk, of_type("nudge"))
        assert await in_thread(Job.objects.filter(state="queued").count) == 1
