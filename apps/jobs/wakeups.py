"""Long polls that wait, and what wakes them: messages to the group ``work`` of the channel layer.

One listener per event loop serves all polls of the process. It is an accelerator only: when it fails it is
started again, and every poll looks again by itself now and then.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from channels.layers import get_channel_layer

from apps.jobs import publish

log = logging.getLogger(__name__)
REJOIN_S = 3600.0  # the layer forgets members of a group after a day
SPREAD_S = 0.02  # per poll that is woken by one message, so that they do not all look at once


class Waiter:
    """One poll."""

    def __init__(self, node_id: UUID, tenant_id: UUID | None) -> None:
        self.node = str(node_id)
        self.tenant = str(tenant_id or "")
        self.woken = asyncio.Event()

    async def wait(self, other: asyncio.Future[Any], timeout_s: float) -> None:
        """Until it is woken, ``other`` is done, or the time is over."""
        waking = asyncio.ensure_future(self.woken.wait())
        try:
            await asyncio.wait({waking, other}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()
            self.woken.clear()

    def concerns(self, message: dict[str, Any]) -> bool:
        if node := message.get("node"):
            return bool(node == self.node)
        tenant = message.get("tenant")
        return not tenant or not self.tenant or tenant == self.tenant


class Wakeups:
    def __init__(self) -> None:
        self.closed = False
        self._lock = threading.Lock()
        self._waiters: set[Waiter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: asyncio.Task[None] | None = None

    @contextmanager
    def waiting(self, node_id: UUID, tenant_id: UUID | None) -> Iterator[Waiter]:
        self._listen()
        waiter = Waiter(node_id, tenant_id)
        with self._lock:
            self._waiters.add(waiter)
        try:
            yield waiter
        finally:
            with self._lock:
                self._waiters.discard(waiter)

    def close(self) -> None:
        """Wake everybody for the last time. Safe from any thread."""
        self.closed = True
        loop = self._loop
        if loop is not None and loop.is_running():
            loop.call_soon_threadsafe(self._wake, {})

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop and self._listener is not None and not self._listener.done():
            return
        self._loop = loop
        self._listener = loop.create_task(self._keep_listening())

    async def _keep_listening(self) -> None:
        while not self.closed:
            try:
                await self._relay()
            except Exception as error:  # noqa: BLE001  whatever the layer throws: polls look by themselves meanwhile
                log.warning("waiting nodes hear of new work late: %s", error)
                await asyncio.sleep(random.uniform(1, 3))

    async def _relay(self) -> None:
        """Passes messages on for an hour, then joins anew."""
        layer = get_channel_layer()
        channel = await layer.new_channel("work")
        await layer.group_add(publish.WORK, channel)
        self._wake({})  # what was said while nobody listened
        try:
            # No ``wait_for``: before Python 3.12 it swallows a cancellation that comes together with a message, and
            # the listener would outlive its event loop's wish to end.
            async with asyncio.timeout(REJOIN_S) as until:
                while True:
                    self._wake(await layer.receive(channel))
        except TimeoutError:
            if not until.expired():
                raise
        finally:
            await self._leave(layer, channel)

    async def _leave(self, layer: Any, channel: str) -> None:
        try:
            await layer.group_discard(publish.WORK, channel)
        except Exception as error:  # noqa: BLE001  it must not take the place of a cancellation
            log.info("the channel layer keeps a listener that is gone, for a day at most: %s", error)

    def _wake(self, message: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        with self._lock:
            concerned = [waiter for waiter in self._waiters if waiter.concerns(message)]
        random.shuffle(concerned)
        for place, waiter in enumerate(concerned):
            if place < 8:
                waiter.woken.set()
            else:
                loop.call_later(place * SPREAD_S, waiter.woken.set)
