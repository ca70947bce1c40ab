"""Which snapshots a policy keeps, and why. Pure: snapshots and policy in, decision out; restic's rules and words.

One rule is ours: a partial snapshot never displaces a complete one. The policy is applied to all and once more to the
complete ones alone; what either keeps is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from node_agent.repository.snapshot import Snapshot

_DURATION = re.compile(r"(\d+)([ymdh])", re.ASCII)
_BEGINNING = datetime.min.replace(tzinfo=UTC)  # a span that reaches further reaches to here


@dataclass(frozen=True, slots=True)
class Duration:
    """A span in calendar units, written like ``1y5m7d2h``."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Raises ValueError."""
        parts = _DURATION.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError(f"{text!r} is not a duration; write for example 1y5m7d2h")
        amounts = dict.fromkeys("ymdh", 0)
        for number, unit in parts:
            amounts[unit] += int(number)
        return cls(amounts["y"], amounts["m"], amounts["d"], amounts["h"])

    def before(self, time: datetime) -> datetime:
        month = time.month - 1 - self.months
        year = time.year - self.years + month // 12
        if year < 1:
            return _BEGINNING
        first = time.replace(year=year, month=month % 12 + 1, day=1)
        try:
            # Days beyond the month's end run over into the next one, as in Go's AddDate.
            return first + timedelta(days=time.day - 1 - self.days, hours=-self.hours)
        except OverflowError:
            return _BEGINNING

    def __bool__(self) -> bool:
        return any((self.years, self.months, self.days, self.hours))

    def __str__(self) -> str:
        units = ((self.years, "y"), (self.months, "m"), (self.days, "d"), (self.hours, "h"))
        return "".join(f"{amount}{unit}" for amount, unit in units if amount)


@dataclass(frozen=True, slots=True)
class KeepPolicy:
    """Counts: 0 = not used, -1 = all. ``tags``: keep what carries all tags of one of the lists."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: Duration = Duration()
    within_hourly: Duration = Duration()
    within_daily: Duration = Duration()
    within_weekly: Duration = Duration()
    within_monthly: Duration = Duration()
    within_yearly: Duration = Duration()
    tags: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        if min(self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly) < -1:
            raise ValueError("the number of snapshots to keep is -1 (all), or not negative")

    @property
    def empty(self) -> bool:
        return not any(getattr(self, entry.name) for entry in fields(self))


@dataclass(frozen=True, slots=True)
class Reason:
    snapshot: Snapshot
    matches: list[str]
    counters: dict[str, int]  # what is left of the counts after this snapshot

    def to_json(self) -> dict[str, Any]:
        return {"snapshot": self.snapshot.describe_json(), "matches": self.matches, "counters": self.counters}


@dataclass(frozen=True, slots=True)
class Decision:
    """``keep`` and ``remove`` are newest first; ``reasons`` go with ``keep``."""

    keep: list[Snapshot] = field(default_factory=list)
    remove: list[Snapshot] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)


def apply_policy(snapshots: Iterable[Snapshot], policy: KeepPolicy, now: datetime) -> Decision:
    """``now`` only serves to ignore snapshots from the future as the newest that ``within`` counts from."""
    ordered = sorted(snapshots, key=lambda snapshot: snapshot.time, reverse=True)
    reasons = _reasons(ordered, policy, now)
    complete = [snapshot for snapshot in ordered if not snapshot.partial]
    if len(complete) < len(ordered):
        for name, reason in _reasons(complete, policy, now).items():
            reasons.setdefault(
                name, Reason(reason.snapshot, [f"{m} (complete)" for m in reason.matches], reason.counters)
            )
    return Decision(
        keep=[snapshot for snapshot in ordered if snapshot.id in reasons],
        remove=[snapshot for snapshot in ordered if snapshot.id not in reasons],
        reasons=[reasons[snapshot.id] for snapshot in ordered if snapshot.id in reasons],
    )


@dataclass(slots=True)
class _Bucket:
    name: str
    key: Callable[[datetime, int], int]
    count: int = 0
    within: Duration = Duration()
    last: int = -1

    def match(self, time: datetime, number: int, oldest: bool) -> str | None:
        """The reason to keep this snapshot by this bucket, if there is one; counts it."""
        if not (self.count or self.within):
            return None
        value = self.key(time, number)
        if value == self.last and not oldest:
            return None
        # While counts are left the oldest snapshot is kept too: the history shall reach as far back as it can.
        reason = f"oldest {self.name}" if value == self.last else self.name
        self.last = value
        if self.count > 0:
            self.count -= 1
        return f"{reason} {self.within}" if self.within else reason


_KEYS: tuple[tuple[str, Callable[[datetime, int], int]], ...] = (
    ("hourly", lambda t, _: t.year * 1000000 + t.month * 10000 + t.day * 100 + t.hour),
    ("daily", lambda t, _: t.year * 10000 + t.month * 100 + t.day),
    ("weekly", lambda t, _: t.isocalendar().year * 100 + t.isocalendar().week),
    ("monthly", lambda t, _: t.year * 100 + t.month),
    ("yearly", lambda t, _: t.year),
)


def _reasons(ordered: Sequence[Snapshot], policy: KeepPolicy, now: datetime) -> dict[str, Reason]:
    counted = [_Bucket("last snapshot", lambda _, number: number, policy.last)]
    counted += [_Bucket(f"{name} snapshot", key, getattr(policy, name)) for name, key in _KEYS]
    spans = [_Bucket(f"{name} within", key, within=getattr(policy, f"within_{name}")) for name, key in _KEYS]
    newest = max((s.time for s in ordered if s.time < now), default=_BEGINNING)
    found: dict[str, Reason] = {}
    for number, snapshot in enumerate(ordered):
        oldest = number == len(ordered) - 1
        matches = [f"has tags {_go_list(tags)}" for tags in policy.tags if set(tags) <= set(snapshot.tags)]
        if policy.within and snapshot.time > policy.within.before(newest):
            matches.append(f"within {policy.within}")
        matches += filter(None, [bucket.match(snapshot.time, number, oldest) for bucket in counted])
        live = [bucket for bucket in spans if bucket.within and snapshot.time > bucket.within.before(newest)]
        matches += filter(None, [bucket.match(snapshot.time, number, oldest) for bucket in live])
        if matches:
            names = ("last", *(name for name, _ in _KEYS))
            left = {name: bucket.count for name, bucket in zip(names, counted, strict=True) if bucket.count}
            found[snapshot.id] = Reason(snapshot, matches, left)
    return found


def _go_list(values: Sequence[str]) -> str:
    return "[" + ", ".join(values) + "]"
