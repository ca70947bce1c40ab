"""Nothing that a store, a server or a damaged disk can send makes the program crash, hang or grow without bound."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node_agent.errors import BackendError
from node_agent.repository.backend.base import CONFIG_NAME, Kind
from node_agent.repository.backend.rest import RestBackend
from node_agent.repository.compression import NotCompressed, decompress
from node_agent.repository.strict_json import parse_json
from tests.fuzz.mutate import RAW_JSON, mutate
from tests.fuzz.targets import Target, bombs, make_targets

PROJECT = Path(__file__).resolve().parents[2]
TARGETS = (
    *("config", "key", "master-key", "frame", "zstd", "index", "snapshot", "tree", "references", "restore", "lock"),
    *("header", "pack", "name", "time", "subset", "duration", "extents", "index-cache", "folder-cache"),
    *("verified-cache", "lock-journal", "rest-server", "lease-reply"),
)
SLOW = {"restore", "key", "index-cache", "folder-cache", "verified-cache"}


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return make_targets(tmp_path_factory.mktemp("fuzz"))


def test_every_target_is_named_here(targets: dict[str, Target]) -> None:
    assert set(targets) == set(TARGETS)
    assert all(target.seeds for target in targets.values())


@pytest.mark.parametrize("name", TARGETS)
def test_damage_is_refused_by_an_error_of_ours(targets: dict[str, Target], name: str) -> None:
    target = targets[name]

    @settings(
        max_examples=20 if name in SLOW else 100,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        st.integers(0, len(target.seeds) - 1), st.integers(0, 1 << 32), st.one_of(st.none(), st.binary(max_size=200))
    )
    def judge(number: int, chance: int, raw: bytes | None) -> None:
        content = mutate(random.Random(chance), target.seeds[number]) if raw is None else raw
        with contextlib.suppress(*target.allowed):
            target.run(content)

    judge()


def test_thousands_of_mutations_stay_within_a_limit_of_memory_and_time() -> None:
    """A process of its own, with 3 GiB of addresses and an alarm for each execution."""
    command = [sys.executable, "-m", "tests.fuzz", "--executions", "4000", "--seed", "20260517"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "0 findings" in done.stdout


@pytest.mark.parametrize("text", [text for text in RAW_JSON if not text.startswith(('"', "{", "[[[[["))])
def test_what_json_does_not_know_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text.encode())


def test_json_is_read_as_go_reads_it() -> None:
    assert parse_json(b'{"id":1,"id":2}') == {"id": 2}
    for refused in ("{}".encode("utf-16"), b"\xef\xbb\xbf{}", b'"\xff"', b"[" * 100_000, b'{"a":' * 100_000):
        with pytest.raises(ValueError):
            parse_json(refused)


def test_a_bomb_is_not_unpacked() -> None:
    for bomb in bombs():
        assert len(bomb) < 10_000
        with pytest.raises(NotCompressed):
            decompress(bomb, limit=1 << 20)
        with pytest.raises(NotCompressed):
            decompress(bomb, length=5000)


class _Endless(httpx.SyncByteStream):
    """A body without end; counts what was taken of it."""

    taken = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.taken += 1 << 16
            yield bytes(1 << 16)


@pytest.mark.parametrize("status", [200, 206, 404, 500])
def test_a_rest_server_that_never_ends_its_answer_is_not_listened_to(status: int) -> None:
    bodies: list[_Endless] = []

    def answer(_: httpx.Request) -> httpx.Response:
        bodies.append(_Endless())
        return httpx.Response(status, stream=bodies[-1])

    store = RestBackend(httpx.Client(transport=httpx.MockTransport(answer)), "http://peer")
    for attempt in (
        lambda: store.get(Kind.PACK, "ab" * 32, 1 << 20, 100),
        lambda: store.get(Kind.CONFIG, CONFIG_NAME, length=1 << 20),
        lambda: store.put(Kind.PACK, "ab" * 32, [b"x"]),
        lambda: store.delete(Kind.PACK, "ab" * 32),
    ):
        with contextlib.suppress(BackendError):
            attempt()
    assert bodies and max(body.taken for body in bodies) < 2 << 20
