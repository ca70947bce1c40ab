"""The server as one process: ASGI server, Celery worker and beat, each in its place and stopped in order.

``standalone`` is all of BRS in one process; ``serve`` is one web process of a large installation, where workers
and beat are Celery's own programs (docs/install.md). Both speak TLS only, take up a renewed certificate
while they run, and end within five seconds of SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress

import uvicorn
from celery.beat import Service
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.utils import timezone

from brs import pki
from brs.celery import app as celery
from brs.guard import AnotherServer, ServerGuard

log = logging.getLogger("brs.server")

UPKEEP_S = 2.0  # how often it looks for a renewed certificate
RENEWAL_LOOK_S = 3600.0  # … and whether one is due
GUARD_LOOK_S = 10.0
STOP_S = 1.5  # for answers that are under way
HEADER_BYTES = 64 * 1024
MESSAGE_BYTES = 64 * 1024  # largest message on a WebSocket


def prepare() -> None:
    """Tables, the beat's ticks, keys and certificates: everything before the first request. May be repeated."""
    call_command("migrate", interactive=False, verbosity=0)
    if any((folder / "beat.json").exists() for folder in settings.FIXTURE_DIRS):
        call_command("loaddata", "beat", verbosity=0)
    pki.ensure()
    for folder in (settings.SPOOL_DIR, settings.STATIC_ROOT):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def run(host: str, port: int, *, standalone: bool) -> None:
    """Serves until SIGTERM or Ctrl-C. Raises AnotherServer when the database is taken."""
    os.umask(0o077)  # the database holds password hashes and sessions: nobody else's business
    guard = ServerGuard(shared=not standalone)
    guard.take()
    try:
        if standalone:
            prepare()
        _after_a_pause()
        helpers = [Worker(), Beat()] if standalone else []
        _Server(host, port, guard, helpers).serve_until_stopped()
    finally:
        guard.release()


def _after_a_pause() -> None:
    """While no server ran nobody could renew a lease: those that were running go on for one lease time."""
    from apps.jobs import lease  # models are loaded by now

    lease.server_started(timezone.now())
    connections.close_all()


def _answer_waiting_nodes() -> None:
    from apps.jobs import node_api

    node_api.release_polls()


class Helper:
    """Something of Celery that runs in a thread of this process."""

    name = ""

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.work()
        except Exception:
            log.exception("The %s ended with an error.", self.name)
        finally:
            connections.close_all()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def work(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)


class Worker(Helper):
    name = "celery worker"

    def __init__(self) -> None:
        # WorkController, not app.Worker: that one takes the process's signals over.
        self._controller = celery.WorkController(
            pool="threads", concurrency=2, without_gossip=True, without_mingle=True, without_heartbeat=True
        )

    def work(self) -> None:
        self._controller.start()

    def stop(self) -> None:
        self._controller.stop()


class Beat(Helper):
    name = "celery beat"

    def __init__(self) -> None:
        # Without the class it would silently use a schedule in a file instead of the database's.
        self._service = Service(celery, max_interval=5, scheduler_cls=celery.conf.beat_scheduler)

    def work(self) -> None:
        self._service.start()

    def stop(self) -> None:
        self._service.stop(wait=False)


class _Server(uvicorn.Server):
    def __init__(self, host: str, port: int, guard: ServerGuard, helpers: list[Helper]) -> None:
        self._tls = pki.RunningContext()
        self._guard = guard
        self._helpers = helpers
        self._failure: BaseException | None = None
        super().__init__(
            uvicorn.Config(
                "brs.asgi:application",
                host=host,
                port=port,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                ssl_context_factory=lambda *_: self._tls.context,
                timeout_graceful_shutdown=STOP_S,  # type: ignore[arg-type]  # declared as int, only waited for
                timeout_keep_alive=75,
                ws_max_size=MESSAGE_BYTES,
                h11_max_incomplete_event_size=HEADER_BYTES,
                http="h11",  # limits the size of headers, which httptools does not
                proxy_headers=bool(settings.BRS_TRUSTED_PROXIES),
                forwarded_allow_ips=settings.BRS_TRUSTED_PROXIES or None,
            )
        )

    def serve_until_stopped(self) -> None:
        # uvicorn raises the signal again when it has ended; without these the process would die of it halfway.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self.run()
        if self._failure:
            raise self._failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.should_exit or not self.started:
            return
        for helper in self._helpers:
            helper.start()
        self._upkeep = asyncio.get_running_loop().create_task(self._keep_up())
        log.info("BRS serves %s on %s:%s", settings.BRS_PUBLIC_URL, self.config.host, self.config.port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Helpers first: their threads still publish through this loop."""
        self._upkeep.cancel()
        with suppress(asyncio.CancelledError):
            await self._upkeep
        _answer_waiting_nodes()
        stopping = asyncio.get_running_loop().run_in_executor(None, self._stop_helpers)
        await super().shutdown(sockets)
        await stopping

    def _stop_helpers(self) -> None:
        for helper in reversed(self._helpers):
            helper.stop()
        deadline = time.monotonic() + STOP_S
        for helper in self._helpers:
            helper.join(max(0.1, deadline - time.monotonic()))

    async def _keep_up(self) -> None:
        renewal = guard = 0.0
        while True:
            now = time.monotonic()
            try:
                if now >= renewal:
                    renewal = now + RENEWAL_LOOK_S
                    await asyncio.to_thread(pki.ensure)
                if self._tls.refresh():
                    log.info("New connections get the renewed certificate.")
                if now >= guard:
                    guard = now + GUARD_LOOK_S
                    await asyncio.to_thread(self._guard.keep)
                self._look_after_helpers()
            except AnotherServer as error:
                self._failure, self.should_exit = error, True
                return
            except Exception:
                log.exception("Looking after the server failed; it goes on.")
            await asyncio.sleep(UPKEEP_S)

    def _look_after_helpers(self) -> None:
        """Without its chores the server would plan nothing, and nobody would see it: better it ends loudly."""
        for helper in self._helpers:
            if not helper.is_alive() and not self.should_exit:
                self._failure = SystemExit(f"The {helper.name} has ended; see the log. The server stops.")
                self.should_exit = True
