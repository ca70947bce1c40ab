"""Disks that a real qemu-nbd serves, read ahead: the same bytes, each block once, and no harm by a wrong guess."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.drivers.libvirt import content
from node_agent.drivers.libvirt.ahead import HELD, Ahead, blocks_of
from node_agent.drivers.libvirt.content import NbdContent
from node_agent.drivers.nbd import NbdClient, NbdError
from node_agent.errors import BrsError
from node_agent.items import Extent
from tests.contracts.backend_peers import needed

MIB = 1 << 20
SIZE = 40 * MIB + 512 * 3
DATA = [(0, 3), (5, 1), (9, 20), (39, 1)]  # MiB from, how many; then holes


class Served:
    """``reads``: (offset, length) of what was asked for beside the reading ahead."""

    def __init__(self, raw: Path, socket: Path) -> None:
        self.bytes = raw.read_bytes()
        self.reads: list[tuple[int, int]] = []
        self.client = NbdClient(socket, timeout_s=30)
        self.client.connect()
        read = self.client.read
        self.client.read = lambda offset, length: self.reads.append((offset, length)) or read(offset, length)  # type: ignore[method-assign, func-returns-value]
        self.content = NbdContent(self.client, "raw", lambda error: error)

    def check(self, number: int) -> None:
        length = min(MIB, SIZE - number * MIB)
        assert self.content.read(number * MIB, length) == self.bytes[number * MIB :][:length]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    needed("qemu-nbd")
    raw, socket = tmp_path / "disk.raw", tmp_path / "nbd"
    rng = random.Random(7)
    with raw.open("wb") as file:
        file.truncate(SIZE)
        for start, count in DATA:
            file.seek(start * MIB)
            file.write(rng.randbytes(count * MIB))
    words = ["qemu-nbd", "--read-only", "--shared=2", "-f", "raw", f"--socket={socket}", f"--pid-file={tmp_path}/pid"]
    subprocess.run([*words, "--fork", str(raw)], check=True)
    made = Served(raw, socket)
    yield made
    made.content.close()


def test_a_whole_disk_is_read_ahead_over_its_holes(served: Served) -> None:
    for start, count in DATA:
        for number in range(start, start + count):
            served.check(number)
    assert served.reads == []


def test_blocks_that_were_not_foreseen_are_read_all_the_same(served: Served) -> None:
    for number in (0, 1, 4, 2, 20, 10, 9, 40, 28, 39):
        served.check(number)
    assert served.content.read(100, 5) == served.bytes[100:105]


def test_of_an_increment_what_has_changed_is_read_ahead_and_the_rest_when_it_is_asked_for(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.client, "status", lambda _context: [(9 * MIB, 4096, 1), (20 * MIB, MIB, 1)])
    assert served.content.dirty("of the test") == [Extent(9 * MIB, 4096), Extent(20 * MIB, MIB)]
    for number in (15, 9, 20, 27):
        served.check(number)
    assert served.reads == [(15 * MIB, MIB), (27 * MIB, MIB)]


def test_a_disk_that_is_read_in_full_after_all_is_read_ahead(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(served.client, "status", lambda _context: [(9 * MIB, 4096, 1)])
        served.content.dirty("of the test")
    monkeypatch.setattr(content, "_IN_A_ROW", 4)
    for number in range(9, 29):
        served.check(number)
    assert len(served.reads) < 6


def test_no_more_is_held_than_is_allowed(served: Served) -> None:
    ahead = Ahead(served.client.another(), None, 0, MIB)
    assert ahead.take(0, MIB) == served.bytes[:MIB]
    assert ahead.take(9 * MIB, MIB) == served.bytes[9 * MIB : 10 * MIB]
    assert sum(len(data) for _, data in ahead._ready) <= HELD
    ahead.stop()


def test_a_server_that_is_gone_is_met_by_whoever_reads(served: Served, tmp_path: Path) -> None:
    said = BrsError("The machine was stopped.")
    broken = NbdContent(served.client, "raw", lambda _error: said)
    assert broken.read(0, MIB) == served.bytes[:MIB]
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    with pytest.raises(BrsError, match="was stopped"):
        for number in range(1, 40):
            broken.read(number * MIB, MIB)
    broken.close()


def test_each_block_that_runs_touch_comes_once() -> None:
    runs = [Extent(5, 3), Extent(9, 30), Extent(41, 1), Extent(55, 3)]
    assert list(blocks_of(runs, 0, 10, 57)) == [(0, 10), (10, 10), (20, 10), (30, 10), (40, 10), (50, 7)]
    assert list(blocks_of(runs, 30, 10, 57)) == [(30, 10), (40, 10), (50, 7)]


def test_requests_that_are_on_their_way_together_come_back_in_their_order(served: Served) -> None:
    ranges = [(start * MIB, MIB // 2) for start in (9, 3, 20, 0, 38, 12, 11)]
    assert [(offset, bytes(data)) for offset, data in served.client.read_many(ranges)] == [
        (offset, served.bytes[offset : offset + length]) for offset, length in ranges
    ]
    with pytest.raises(NbdError, match="cannot be read"):
        list(served.client.read_many([(0, 512), (SIZE + MIB, 512)]))
