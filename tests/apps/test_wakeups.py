"""The listener behind the long polls: it ends when its event loop wants to end, whatever comes in that moment."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from apps.jobs import wakeups
from apps.jobs.wakeups import Wakeups


class Layer:
    """A channel layer with one message, which comes when the test says so."""

    def __init__(self) -> None:
        self.arriving: asyncio.Future[dict] = asyncio.get_running_loop().create_future()
        self.left = 0

    async def new_channel(self, _prefix: str) -> str:
        return "work.1"

    async def group_add(self, _group: str, _channel: str) -> None: ...

    async def group_discard(self, _group: str, _channel: str) -> None:
        self.left += 1

    async def receive(self, _channel: str) -> dict:
        message = await self.arriving
        self.arriving = asyncio.get_running_loop().create_future()
        return message


async def _listening(monkeypatch: pytest.MonkeyPatch, layer: Layer) -> Wakeups:
    monkeypatch.setattr(wakeups, "get_channel_layer", lambda: layer)
    found = Wakeups()
    with found.waiting(uuid.uuid4(), None):
        for _ in range(10):
            await asyncio.sleep(0)
    return found


@pytest.mark.parametrize("steps", range(6))
async def test_a_cancellation_that_comes_together_with_a_message_ends_the_listener(monkeypatch, steps):
    layer = Layer()
    found = await _listening(monkeypatch, layer)
    layer.arriving.set_result({"type": "work"})
    for _ in range(steps):  # the message is somewhere between the layer and the listener
        await asyncio.sleep(0)
    listener = found._listener
    listener.cancel()
    await asyncio.wait({listener}, timeout=2)
    assert listener.cancelled()
    assert layer.left == 1


async def test_a_layer_that_is_gone_does_not_keep_the_listener_from_ending(monkeypatch):
    class Gone(Layer):
        async def group_discard(self, _group: str, _channel: str) -> None:
            raise ConnectionError("the layer is gone")

    found = await _listening(monkeypatch, Gone())
    listener = found._listener
    listener.cancel()
    await asyncio.wait({listener}, timeout=2)
    assert listener.cancelled()
