"""The channel layer of a large installation: how it is set up beside Redis."""

from __future__ import annotations

from channels_redis.core import RedisChannelLayer

from brs.settings import _channel_layer


def test_a_quiet_stream_is_not_cut_off_by_the_redis_clients_own_limit():
    """Waiting for a message takes up to ``brpop_timeout``; a shorter or equal limit of the client broke every stream
    and every long poll that heard nothing for five seconds."""
    config = _channel_layer("redis://127.0.0.1:6379/0")["CONFIG"]
    layer = RedisChannelLayer(**config)
    limit = layer.create_pool(0).connection_kwargs["socket_timeout"]
    assert limit >= 2 * layer.brpop_timeout
