"""A host of machines is read, and written, no faster than its platform allows, whichever tasks share it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from node_agent.drivers.base import Disk
from node_agent.errors import Cancelled
from node_agent.tasks import throttle
from node_agent.tasks.dispatch import perform
from node_agent.tasks.throttle import pace_of, paced_disk, paced_reader
from tests.node_agent.machine_double import Content, access
from tests.node_agent.test_machines import Bench, bench  # noqa: F401 - a fixture

MIB = 1 << 20


@dataclass
class Clock:
    """Stands still but for those who sleep."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(throttle, "time", made)
    monkeypatch.setattr(throttle, "_PACES", {})
    return made


def never() -> None:
    pass


def test_disks_of_one_host_share_its_pace_and_other_hosts_have_their_own(clock: Clock) -> None:
    told = access(addresses=["a", "b"], bandwidth_bytes_s=MIB)
    first, second = (paced_disk(Disk("/x", Content(bytes(8 * MIB)), "raw"), pace_of(told, "a"), never) for _ in "12")
    other = paced_disk(Disk("/x", Content(bytes(8 * MIB)), "raw"), pace_of(told, "b"), never)
    began = clock.now
    for disk in (first, second, first):
        assert len(disk.content.read(0, 4 * MIB)) == 4 * MIB
    assert clock.now - began == pytest.approx(8)  # the third waits for the two before it
    other.content.read(0, MIB)
    assert clock.now - began == pytest.approx(8)


def test_the_rate_that_was_told_last_counts_and_none_is_none(clock: Clock) -> None:
    slow, quick = pace_of(access(bandwidth_bytes_s=MIB), ""), pace_of(access(bandwidth_bytes_s=4 * MIB), "kvm1.example")
    assert slow is quick is not None
    assert quick.bytes_s == 4 * MIB
    disk = Disk("/x", Content(b""), "raw")
    assert pace_of(access(), "") is None
    assert paced_disk(disk, None, never) is disk


def test_zeros_that_are_not_sent_cost_no_time(clock: Clock) -> None:
    reader = paced_reader(Content(bytes(8 * MIB) + b"1" * MIB), pace_of(access(bandwidth_bytes_s=MIB), ""), never)
    began = clock.now
    for offset in range(0, 9 * MIB, MIB):
        reader.read(offset, MIB)
    reader.read(8 * MIB, MIB)
    assert clock.now - began == pytest.approx(1)


def test_who_waits_for_his_turn_can_be_stopped(clock: Clock) -> None:
    def stop() -> None:
        raise Cancelled

    disk = paced_disk(Disk("/x", Content(bytes(MIB)), "raw"), pace_of(access(bandwidth_bytes_s=1), ""), stop)
    disk.content.read(0, 1 << 10)
    with pytest.raises(Cancelled):
        disk.content.read(0, 1)


def test_a_backup_and_a_restore_keep_to_it(bench: Bench, clock: Clock) -> None:  # noqa: F811
    slow = access(bandwidth_bytes_s=MIB)
    began = clock.now
    point = perform(bench.context(), bench.backup_spec().model_copy(update={"platform": slow}))
    assert clock.now - began > 14  # of 16 MiB; the first one passes without waiting
    began = clock.now
    bench.restore(point, "again", platform=slow)  # type: ignore[arg-type]
    assert 7 < clock.now - began < 16  # half of it is zeros
