"""The channel layer of a large installation: how it is set up beside Redis, and that it can be cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import RedisError

from brs.channel_layer import RedisChannelLayer
from brs.settings import _channel_layer


def test_a_quiet_stream_is_not_cut_off_by_the_redis_clients_own_limit():
    """Waiting for a message takes up to ``brpop_timeout``; a shorter or equal limit of the client broke every stream
    and every long poll that heard nothing for five seconds."""
    config = _channel_layer("redis://127.0.0.1:6379/0")["CONFIG"]
    layer = RedisChannelLayer(**config)
    limit = layer.create_pool(0).connection_kwargs["socket_timeout"]
    assert limit >= 2 * layer.brpop_timeout


@contextlib.asynccontextmanager
async def mute_redis() -> AsyncIterator[str]:
    """The address of a Redis that takes every command and never answers."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if data.startswith((b"*3\r\n$6\r\nCLIENT", b"*2\r\n$5\r\nHELLO", b"*4\r\n$6\r\nCLIENT")):
                writer.write(b"+OK\r\n" * data.count(b"CLIENT"))
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()


def layer_at(address: str) -> RedisChannelLayer:
    config = _channel_layer(address)["CONFIG"]
    (host,) = config["hosts"]
    return RedisChannelLayer(hosts=[host | {"protocol": 2, "driver_info": None}])


@pytest.mark.parametrize("steps", range(14))
async def test_a_cancellation_is_never_swallowed_wherever_a_command_is(steps):
    """``asyncio.wait_for`` inside redis-py lost one that came right after the command was written."""
    async with mute_redis() as address:
        layer = layer_at(address)
        first = asyncio.ensure_future(layer.group_add("work", "work.1"))
        await asyncio.wait({first}, timeout=0.05)  # the connection is made
        first.cancel()
        await asyncio.wait({first}, timeout=1)

        adding = asyncio.ensure_future(layer.group_add("work", "work.1"))
        for _ in range(steps):
            await asyncio.sleep(0)
        adding.cancel()
        await asyncio.wait({adding}, timeout=1)
        assert adding.cancelled()
        await layer.close_pools()


async def test_a_redis_that_takes_nothing_more_is_an_error_of_redis_and_not_for_ever():
    async with mute_redis() as address:
        layer = layer_at(address)
        connection = layer.create_pool(0).make_connection()
        await connection.connect()

        connection.socket_timeout = 0.05
        connection._writer.drain = lambda: asyncio.Event().wait()
        with pytest.raises(RedisError, match="writing"):
            await connection.send_command("PING")
        assert not connection.is_connected
