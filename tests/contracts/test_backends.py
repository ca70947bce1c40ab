"""What every store must keep to, on every kind of store there is (KINDS_OF_PEERS)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from node_agent.errors import ObjectMissing, RepositoryExists, RepositoryMissing
from node_agent.repository.backend import Backend, Kind
from tests.contracts.backend_peers import KINDS_OF_PEERS, ROOT, Peer, Peers, Place

KINDS = [Kind.KEY, Kind.LOCK, Kind.SNAPSHOT, Kind.INDEX, Kind.PACK]


@pytest.fixture(params=list(KINDS_OF_PEERS))
def peer(request: pytest.FixtureRequest, peers: Peers) -> Peer:
    return peers[request.param]


@pytest.fixture
def place(peer: Peer) -> Place:
    return peer.place()


@pytest.fixture
def store(place: Place) -> Iterator[Backend]:
    backend = place.open()
    backend.create()
    yield backend
    backend.close()


def _put(store: Backend, kind: Kind, content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()
    store.put(kind, name, [content])
    return name


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_put_can_be_read_listed_and_looked_at(store: Backend, kind: Kind) -> None:
    name = _put(store, kind, b"content")
    assert store.get(kind, name) == b"content"
    assert store.stat(kind, name).size == 7
    assert [(info.name, info.size) for info in store.list(kind)] == [(name, 7)]
    assert store.exists(kind, name)


def test_the_parts_are_stored_as_one_object(store: Backend) -> None:
    parts = [b"one", bytearray(b"two"), memoryview(b"three"), b""]
    name = hashlib.sha256(b"onetwothree").hexdigest()
    store.put(Kind.PACK, name, parts)
    assert store.get(Kind.PACK, name) == b"onetwothree"


def test_an_empty_and_a_large_object_are_kept(store: Backend) -> None:
    large = os.urandom(5 << 20)
    assert store.get(Kind.PACK, _put(store, Kind.PACK, b"")) == b""
    assert store.get(Kind.PACK, _put(store, Kind.PACK, large)) == large


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (3, 4, b"3456"),
        (8, 10, b"89"),
        (10, 1, b""),
        (20, 5, b""),
        (4, None, b"456789"),
        (2, 0, b""),
    ],
)
def test_a_range_is_what_is_there_of_it(store: Backend, offset: int, length: int | None, expected: bytes) -> None:
    assert store.get(Kind.PACK, _put(store, Kind.PACK, b"0123456789"), offset, length) == expected


def test_what_is_not_there_is_missing(store: Backend) -> None:
    name = "0" * 64
    for look in (store.get, store.stat):
        with pytest.raises(ObjectMissing, match=name):
            look(Kind.PACK, name)
    assert not store.exists(Kind.SNAPSHOT, name)


def test_the_kinds_are_apart(store: Backend) -> None:
    name = _put(store, Kind.INDEX, b"x")
    assert not store.exists(Kind.SNAPSHOT, name)
    assert list(store.list(Kind.SNAPSHOT)) == []


def test_a_delete_can_be_repeated(store: Backend) -> None:
    name = _put(store, Kind.LOCK, b"x")
    store.delete(Kind.LOCK, name)
    store.delete(Kind.LOCK, name)
    assert list(store.list(Kind.LOCK)) == []


def test_the_config_is_written_once(store: Backend) -> None:
    assert list(store.list(Kind.CONFIG)) == []
    store.put(Kind.CONFIG, "config", [b"first"])
    with pytest.raises(RepositoryExists):
        store.put(Kind.CONFIG, "config", [b"second"])
    assert store.get(Kind.CONFIG, "config") == b"first"
    assert [info.name for info in store.list(Kind.CONFIG)] == ["config"]


def test_creating_again_keeps_everything(store: Backend) -> None:
    name = _put(store, Kind.PACK, b"x")
    store.create()
    assert store.exists(Kind.PACK, name)


def test_many_objects_from_many_threads_are_all_there(store: Backend) -> None:
    contents = [b"%d" % number for number in range(64)]
    threads = [threading.Thread(target=_put, args=(store, Kind.PACK, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {info.name for info in store.list(Kind.PACK)} == {hashlib.sha256(c).hexdigest() for c in contents}


@pytest.mark.parametrize("name", ["", "../config", "A" * 64, "0" * 63, "0" * 64 + "/x"])
def test_a_name_that_is_none_never_reaches_the_store(store: Backend, name: str) -> None:
    with pytest.raises(ValueError):
        store.put(Kind.PACK, name, [b"x"])


def test_the_stores_clock_is_the_one_of_its_time_stamps(store: Backend) -> None:
    before = store.now()
    name = _put(store, Kind.LOCK, b"x")
    assert before - 0.1 <= store.stat(Kind.LOCK, name).modified <= store.now() + 0.1
    assert len(list(store.list(Kind.LOCK))) == 1  # asking for the time leaves nothing behind


def test_a_store_that_was_never_made_says_so(peer: Peer) -> None:
    place = peer.nowhere()
    if place is None:
        place = peer.place()
        backend = place.open()
        with pytest.raises(ObjectMissing):
            backend.get(Kind.CONFIG, "config")
        assert list(backend.list(Kind.PACK)) == []
        return
    backend = place.open()
    for attempt in (
        lambda: backend.get(Kind.CONFIG, "config"),
        lambda: backend.stat(Kind.CONFIG, "config"),
        lambda: backend.put(Kind.PACK, "0" * 64, [b"x"]),
        lambda: backend.delete(Kind.LOCK, "0" * 64),
        lambda: list(backend.list(Kind.PACK)),
        backend.create,
        backend.now,
    ):
        with pytest.raises(RepositoryMissing, match="nowhere"):
            attempt()


def test_of_two_who_make_a_config_at_the_same_time_one_fails(peer: Peer, place: Place) -> None:
    stores = [place.open() for _ in range(4)]
    stores[0].create()
    made: list[bytes] = []

    def make(store: Backend, content: bytes) -> None:
        try:
            store.put(Kind.CONFIG, "config", [content])
            made.append(content)
        except RepositoryExists:
            pass

    threads = [threading.Thread(target=make, args=(s, b"%d" % i)) for i, s in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = stores[0].get(Kind.CONFIG, "config")
    assert made == [stored] if peer.creates_once else stored in made


def test_an_address_never_tells_what_opens_the_store(store: Backend, place: Place) -> None:
    for value in place.env.values():
        assert len(value) < 10 or value == place.env.get("AZURE_ACCOUNT_NAME") or value not in store.url


WRITER = """
import hashlib, json, sys
from node_agent.repository.backend import Kind, open_backend
store = open_backend(**json.loads(sys.argv[1]))
print("ready", flush=True)
for number in range(1 << 30):
    content = b"%d " % number * 200_000
    store.put(Kind.PACK, hashlib.sha256(content).hexdigest(), [content])
    print(number, flush=True)
"""


def test_killed_at_any_instant_every_listed_object_is_whole(store: Backend, peer: Peer, place: Place) -> None:
    given = asdict(place)
    command = [sys.executable, "-c", WRITER]
    command.append(json.dumps({"url_or_path": given["url"], "options": given["options"], "env": given["env"]}))
    for _ in range(3):
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        assert writer.stdout is not None
        for _ in range(4):  # ready, and three objects
            assert writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    if peer.visible_while_written:
        _wait_until_the_server_gave_up(store)
    found = list(store.list(Kind.PACK))
    assert found
    for info in found:
        assert hashlib.sha256(store.get(Kind.PACK, info.name)).hexdigest() == info.name
    store.remove_leftovers()
    assert {info.name for info in store.list(Kind.PACK)} == {info.name for info in found}


def _wait_until_the_server_gave_up(store: Backend) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        contents = [(i.name, store.get(Kind.PACK, i.name)) for i in store.list(Kind.PACK)]
        if all(hashlib.sha256(content).hexdigest() == name for name, content in contents):
            return
        time.sleep(0.05)
    pytest.fail("a torn object stayed")
