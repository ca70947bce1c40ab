"""Calls to the server can be ended from another thread, and nothing else is touched by that."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from node_agent.client import ServerClient, trust
from node_agent.errors import ServerUnreachable
from node_agent.protocol import LeaseRequest
from tests.node_agent.server_double import ServerDouble


@pytest.fixture
def client(server: ServerDouble) -> Iterator[ServerClient]:
    server.node_tokens.append("token")
    yield ServerClient(server.url, trust(server.authority.pem), token="token")


def poll() -> bytes:
    request = LeaseRequest(
        request_id=uuid4(), incarnation=uuid4(), node_time=datetime.now(UTC), free_slots=1, holding=[], wait_s=60
    )
    return request.model_dump_json(exclude_none=True).encode()


def test_a_call_that_waits_is_over_before_its_socket_is_closed(
    server: ServerDouble, client: ServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the number of its descriptor goes to another file, and TLS records are written into that."""
    said: list[Exception] = []
    waiting: list[int] = []

    def call() -> None:
        try:
            client.lease(poll(), 60)
        except ServerUnreachable as error:
            said.append(error)

    close = client._http.close
    calls = [threading.Thread(target=call, daemon=True) for _ in range(3)]
    monkeypatch.setattr(client._http, "close", lambda: (waiting.append(client._under_way), close()))
    for thread in calls:
        thread.start()
    server.until(lambda: len(server.lease_requests) == 3)
    began = time.monotonic()
    client.close()
    for thread in calls:
        thread.join(5)
    assert time.monotonic() - began < 30, "the poll ended by itself"
    assert len(said) == 3
    assert waiting == [0]


def test_after_closing_no_call_begins(client: ServerClient) -> None:
    client.close()
    with pytest.raises(ServerUnreachable, match="stopping"):
        client.lease(poll(), 0)
