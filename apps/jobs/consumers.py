"""The live stream of the admin: a WebSocket at ``/ws/live/``.

    client   {"watch": ["job:<id>", "overview", "jobs"]}     what it wants to hear of, instead of what it named before;
                                                             with "answer": true it is told when that has begun
    server   {"type": "job", "job": {…}, "tasks": […], "log": [new lines]}   at once, and whenever it moves
             {"type": "nudge", "what": "jobs"}               lists of the user's tenants moved: fetch them again
             {"type": "watching"}                            from now on nothing is missed: fetch what was made before
             {"type": "denied", "what": "job:<id>"}          no such thing for this user, or no longer
             {"type": "error", "code", "message"}            the message was not understood

What a user may not see does not exist: both get the same answer. Rights are checked when something is watched,
when they change, and every minute; so is whether the session still stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from types import SimpleNamespace
from typing import Any, TypeVar
from uuid import UUID

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.conf import settings
from django.contrib.auth import get_user
from django.urls import path

from apps.errors import DomainError, NotFound
from apps.iam import access
from apps.iam.models import User
from apps.inventory.models import Workload
from apps.jobs import publish, watching
from apps.jobs.models import Job

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

CHECK_EVERY_S = 60.0
GATHER_S = 0.25  # several changes of one job within this time are told as one
WATCH_AT_MOST = 50
LISTS = ("overview", "jobs")
NOT_SIGNED_IN, SESSION_ENDED, CHECK_FAILED = 4401, 4403, 4503


@dataclass
class Watched:
    """One job that this stream follows."""

    id: UUID
    picture: dict[str, Any] | None = None
    known_log: int | None = None
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)  # newest of the node, by task
    telling: bool = False


class LiveConsumer(AsyncJsonWebsocketConsumer):
    check_every_s = CHECK_EVERY_S

    async def connect(self) -> None:
        publish.attach()
        self.jobs: dict[str, Watched] = {}
        self.lists: set[str] = set()
        self.list_groups: set[str] = set()
        self.gathered: set[str] = set()
        self.running: set[asyncio.Task[None]] = set()
        user = self.scope.get("user")
        if user is None or not user.is_authenticated:
            await self.close(code=NOT_SIGNED_IN)
            return
        self.user: User = user
        self.own_group = publish.user_group(user.pk)
        await self.channel_layer.group_add(self.own_group, self.channel_name)
        await self.accept()
        self._start(self._check_now_and_then())

    async def disconnect(self, code: int) -> None:  # noqa: ARG002
        for task in self.running:
            task.cancel()
        if hasattr(self, "own_group"):
            groups = {self.own_group, *self.list_groups, *(publish.job_group(w.id) for w in self.jobs.values())}
            for group in groups:
                await self.channel_layer.group_discard(group, self.channel_name)

    # --- what the client asks for

    async def receive(self, text_data: str | None = None, **_bytes: Any) -> None:
        try:
            told = json.loads(text_data or "")
            wanted = told["watch"]
            if not isinstance(wanted, list) or not all(isinstance(item, str) for item in wanted):
                raise TypeError("watch is not a list of words")
        except (ValueError, KeyError, TypeError):
            await self._refuse("malformed", 'Send {"watch": ["jobs", "job:<id>"]}.')
            return
        if len(wanted) > WATCH_AT_MOST:
            await self._refuse("too-many", f"At most {WATCH_AT_MOST} things can be watched at once.")
            return
        await self._watch(list(dict.fromkeys(wanted)))
        if told.get("answer"):
            await self.send_json({"type": "watching"})

    async def _refuse(self, code: str, message: str) -> None:
        await self.send_json({"type": "error", "code": code, "message": message})

    async def _watch(self, wanted: list[str]) -> None:
        for gone in [what for what in self.jobs if what not in wanted]:
            await self._forget(gone)
        self.lists = {what for what in wanted if what in LISTS}
        await self._join_lists()
        for what in wanted:
            if what not in LISTS and what not in self.jobs:
                await self._watch_job(what)

    async def _watch_job(self, what: str) -> None:
        job_id = await self._in_thread(lambda: _visible_job(self.user, what))
        if job_id is None:
            await self.send_json({"type": "denied", "what": what})
            return
        self.jobs[what] = Watched(job_id)
        await self.channel_layer.group_add(publish.job_group(job_id), self.channel_name)
        await self._tell(what)

    async def _forget(self, what: str) -> None:
        watched = self.jobs.pop(what)
        if all(other.id != watched.id for other in self.jobs.values()):
            await self.channel_layer.group_discard(publish.job_group(watched.id), self.channel_name)

    async def _join_lists(self) -> None:
        groups = await self._in_thread(lambda: _list_groups(self.user)) if self.lists else set()
        for group in groups - self.list_groups:
            await self.channel_layer.group_add(group, self.channel_name)
        for group in self.list_groups - groups:
            await self.channel_layer.group_discard(group, self.channel_name)
        self.list_groups = groups

    # --- what the server says

    async def job_changed(self, message: dict[str, Any]) -> None:
        for what, watched in self.jobs.items():
            if str(watched.id) == message["job"] and not watched.telling:
                watched.telling = True
                self._start(self._tell_soon(what))

    async def job_progress(self, message: dict[str, Any]) -> None:
        """Figures that may not be stored yet: told over the picture that is known, without a query."""
        for watched in self.jobs.values():
            if str(watched.id) == message["job"]:
                watched.figures[message["task"]] = message["progress"]
                if watched.picture is not None and not watched.telling:
                    await self.send_json({"type": "job", **_with_figures(watched), "log": []})

    async def nudge(self, message: dict[str, Any]) -> None:
        if message["what"] not in self.gathered:
            self.gathered.add(message["what"])
            self._start(self._nudge_soon(message["what"]))

    async def rights_changed(self, _message: dict[str, Any]) -> None:
        await self._check()

    async def _nudge_soon(self, what: str) -> None:
        await asyncio.sleep(GATHER_S)
        self.gathered.discard(what)
        if self.list_groups:
            await self.send_json({"type": "nudge", "what": what})

    async def _tell_soon(self, what: str) -> None:
        await asyncio.sleep(GATHER_S)
        if (watched := self.jobs.get(what)) is not None:
            watched.telling = False
            await self._tell(what)

    async def _tell(self, what: str) -> None:
        watched = self.jobs[what]
        picture, lines = await self._in_thread(lambda: _look(watched))
        if self.jobs.get(what) is not watched:
            return  # no longer watched, or no longer allowed
        if picture is None:
            await self._forget(what)
            await self.send_json({"type": "denied", "what": what})
            return
        watched.picture = picture
        if lines:
            watched.known_log = lines[-1]["id"]
        await self.send_json({"type": "job", **_with_figures(watched), "log": lines})
        if len(lines) == watching.LOG_AT_ONCE and not watched.telling:
            watched.telling = True
            self._start(self._tell_soon(what))  # there are more lines

    # --- whether the user still may

    async def _check_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self.check_every_s)
            try:
                await self._check()
                await self._rejoin()
            except Exception:
                # Whose rights cannot be looked up hears nothing more; the browser comes again by itself.
                log.exception("a live stream could not be checked; it is closed")
                await self._end(CHECK_FAILED)
                return

    async def _end(self, code: int) -> None:
        with contextlib.suppress(OSError):  # the browser has hung up in the same moment
            await self.close(code=code)

    async def _rejoin(self) -> None:
        """The channel layer forgets members of a group after a day; a page may stay open for longer."""
        for group in (self.own_group, *self.list_groups, *(publish.job_group(one.id) for one in self.jobs.values())):
            await self.channel_layer.group_add(group, self.channel_name)

    async def _check(self) -> None:
        user = await self._in_thread(lambda: _still_signed_in(self.scope))
        if user is None:
            await self._end(SESSION_ENDED)
            return
        self.user = user
        await self._join_lists()
        for what in list(self.jobs):
            if await self._in_thread(lambda what=what: _visible_job(self.user, what)) is None and what in self.jobs:
                await self._forget(what)
                await self.send_json({"type": "denied", "what": what})

    # --- underneath

    async def _in_thread(self, work: Callable[[], Answer]) -> Answer:
        answer: Answer = await database_sync_to_async(work, thread_sensitive=False)()
        return answer

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.running.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a live stream failed", exc_info=error)


def _visible_job(user: User, what: str) -> UUID | None:
    kind, _colon, key = what.partition(":")
    if kind != "job":
        return None
    try:
        return access.fetch(user, Job, key).pk
    except NotFound:
        return None
    except DomainError:
        log.exception("a watch was refused for another reason than rights")
        return None


def _list_groups(user: User) -> set[str]:
    if not user.is_active:
        return set()
    if user.is_superuser:
        return {publish.EVERYTHING}
    tenants = set(access.tenants(user).values_list("pk", flat=True))
    tenants |= set(access.visible(user, Workload).values_list("tenant_id", flat=True).distinct())
    return {publish.tenant_group(tenant) for tenant in tenants}


def _still_signed_in(scope: dict[str, Any]) -> User | None:
    """The user as the database has him now; None when he was deactivated, or his session ended."""
    session = scope.get("session")
    if session is None or not session.session_key:
        return User.objects.filter(pk=scope["user"].pk, is_active=True).first()
    store = import_module(settings.SESSION_ENGINE).SessionStore(session.session_key)
    user = get_user(SimpleNamespace(session=store))
    return user if isinstance(user, User) and user.is_active else None


def _look(watched: Watched) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    return watching.picture(watched.id), watching.log_after(watched.id, watched.known_log)


def _with_figures(watched: Watched) -> dict[str, Any]:
    """The picture, with newer figures for the tasks that run."""
    picture = watched.picture or {}
    tasks = [
        watching.with_figures(task, watched.figures[task["id"]])
        if task["state"] in ("leased", "running") and task["id"] in watched.figures
        else task
        for task in picture["tasks"]
    ]
    return {**picture, "tasks": tasks}


urlpatterns = [path("ws/live/", LiveConsumer.as_asgi())]
