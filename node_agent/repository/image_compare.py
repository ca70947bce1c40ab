"""Blocks that change tracking calls unchanged, and that are compared with the parent all the same.

A tracker that missed a write makes a restore point that is wrong and looks right. So at every increment are
compared: a random sample; all blocks in which the disk's metadata lie; and a part of the disk that rotates, so that
every block is compared at least once in a cycle, plus the time between two backups. The cycle needs no memory: each
group of blocks has its moment in it, fixed by its number, and is due when that moment lies between the parent's time
and now. The times of a chain of snapshots leave no gap, so neither do the compares; a chain whose clock was set back
compares twice rather than not at all. Whoever inherits from a parent older than the cycle compares everything.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from node_agent.repository.image_blocks import gaps

DAY_S = 86_400
CYCLE_DAYS = 28  # with the time between two backups at most a day or two, every block within 30 days
GROUP = 64  # neighbouring blocks that are due together, so that they are read in one go
_SCATTER = 0x9E3779B1  # odd: consecutive groups lie far apart in the cycle (Knuth, multiplicative hashing)
_MIN_SAMPLE = 64
_SHARE = 1000

Runs = Sequence[tuple[int, int]]  # of blocks: first, end; ordered and apart


@dataclass(frozen=True, slots=True)
class Comparison:
    """``sample``: so many blocks at random (None: 64, or one in a thousand); ``cycle_days``: 0 for no rotation."""

    sample: int | None = None
    cycle_days: float = CYCLE_DAYS
    metadata: bool = True

    @classmethod
    def none(cls) -> Comparison:
        """Blind trust, for those who test what is inherited."""
        return cls(0, 0, False)


def moment(group: int, cycle_s: int) -> int:
    """When in the cycle a group of blocks is due, in seconds."""
    return ((group * _SCATTER) & 0xFFFFFFFF) * cycle_s >> 32


def is_due(group: int, parent_s: float, now_s: float, cycle_s: int) -> bool:
    """Whether the group's moment lies after the parent's time, and not after now."""
    at = moment(group, cycle_s)
    return (now_s - at) // cycle_s > (parent_s - at) // cycle_s


def rotating(count: int, parent_s: float, now_s: float, cycle_s: int) -> list[tuple[int, int]]:
    """Runs of the blocks that are due, of ``count``."""
    if cycle_s <= 0 or now_s <= parent_s:
        return []
    if now_s - parent_s >= cycle_s:
        return [(0, count)]
    groups = range(-(-count // GROUP))
    return [(g * GROUP, min(count, (g + 1) * GROUP)) for g in groups if is_due(g, parent_s, now_s, cycle_s)]


def sampled(runs: Runs, count: int, wanted: int | None, choose: Callable[[range, int], list[int]]) -> Iterator[int]:
    """Numbers of blocks outside of ``runs``, at random."""
    free = list(gaps(runs, count))
    ends = list(accumulate(end - first for first, end in free))
    total = ends[-1] if ends else 0
    if wanted is None:
        wanted = max(_MIN_SAMPLE, total // _SHARE)
    for place in choose(range(total), min(wanted, total)):
        gap = bisect.bisect_right(ends, place)
        yield free[gap][1] - (ends[gap] - place)


def to_compare(
    comparison: Comparison,
    runs: Runs,
    count: int,
    parent_s: float,
    now_s: float,
    metadata: Callable[[], Iterable[tuple[int, int]]],
    choose: Callable[[range, int], list[int]] = random.sample,
) -> list[tuple[int, int]]:
    """Runs of blocks to compare, of ``count``. ``runs`` are read anyway; ``metadata`` gives runs of blocks."""
    chosen = rotating(count, parent_s, now_s, int(comparison.cycle_days * DAY_S))
    if comparison.metadata:
        chosen += metadata()
    chosen += [(number, number + 1) for number in sampled(runs, count, comparison.sample, choose)]
    return list(_without(_merged(chosen, count), runs))


def _merged(runs: Iterable[tuple[int, int]], count: int) -> Iterator[tuple[int, int]]:
    """In order and apart, within ``count``."""
    begin = stop = 0
    for first, end in sorted(runs):
        if first > stop:
            if begin < stop:
                yield begin, stop
            begin = first
        stop = max(stop, min(end, count))
    if begin < stop:
        yield begin, stop


def _without(runs: Iterable[tuple[int, int]], others: Runs) -> Iterator[tuple[int, int]]:
    place = 0
    for first, end in runs:
        while place < len(others) and others[place][1] <= first:
            place += 1
        at = place
        while at < len(others) and others[at][0] < end:
            if first < others[at][0]:
                yield first, others[at][0]
            first = max(first, others[at][1])
            at += 1
        if first < end:
            yield first, end
