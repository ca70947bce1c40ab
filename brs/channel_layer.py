"""The channel layer of a larger installation: channels_redis', on connections that can be cancelled.

redis-py writes each command under ``asyncio.wait_for``, and before Python 3.12 that swallows a cancellation which
comes when the command has just been written. Whoever waited for messages then waited for ever: an event loop that
wanted to end hung, and a browser that had gone left its stream behind.
"""

from __future__ import annotations

import asyncio
from typing import Any

from channels_redis.core import ChannelLock
from channels_redis.core import RedisChannelLayer as Layer
from redis.exceptions import TimeoutError as RedisTimeoutError


class Cancellable:
    """Goes before one of redis-py's connections: the same limit on writing, by ``asyncio.timeout``."""

    async def send_packed_command(self: Any, command: Any, check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        limit, self.socket_timeout = self.socket_timeout, None  # without one, redis-py writes plainly
        try:
            async with asyncio.timeout(limit):
                await super().send_packed_command(command, check_health)  # type: ignore[misc]
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise RedisTimeoutError("Timeout writing to socket") from None
        finally:
            self.socket_timeout = limit


class RedisChannelLayer(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._received_on: asyncio.AbstractEventLoop | None = None

    def create_pool(self, index: int) -> Any:
        pool = super().create_pool(index)
        kind = pool.connection_class  # plain or TLS, by the address
        pool.connection_class = type(f"Cancellable{kind.__name__}", (Cancellable, kind), {})
        return pool

    async def receive(self, channel: str) -> Any:
        """On a new event loop without the old one's lock, which a cancelled receive may have left behind."""
        loop = asyncio.get_running_loop()
        if loop is not self._received_on and self.receive_count == 0:
            self.receive_clean_locks, self._received_on = ChannelLock(), loop
        return await super().receive(channel)
