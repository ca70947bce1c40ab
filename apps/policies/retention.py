"""What to keep: a pure function with reasons, after restic's ``forget`` (internal/data/snapshot_policy.go).

Points are walked from the newest to the oldest. *Last* keeps that many points; *hourly … yearly* keep the newest
point of each hour … year, for that many hours … years that have one; while a rule still has counts left, the oldest
point is kept too. *Within* keeps everything that is at most that many days older than the newest point.
Hours, days, ISO weeks, months and years are those of the policy's time zone. A rule of zeros keeps everything.

Beyond restic:

* Complete points are judged by themselves, as if there were no partial ones, so a partial point never displaces a
  complete one. A partial point is kept where the rule would take it among all points and its hour … year has no
  complete one, and while it is newer than the newest complete point.
* The newest complete point is always kept, and the newest of all when none is complete.
* A held point is always kept; it counts like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop


@dataclass(frozen=True)
class Rule:
    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within_days: int = 0

    @property
    def keeps_all(self) -> bool:
        return not any((self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly, self.within_days))


@dataclass(frozen=True)
class Fact:
    """What retention must know of a point. ``id`` is handed back, nothing else is done with it."""

    id: Any
    taken_at: datetime
    complete: bool = True
    held: bool = False


@dataclass(frozen=True)
class Decision:
    id: Any
    keep: bool
    reasons: list[str]  # of keeping: at least one; of removing: one sentence


@dataclass(frozen=True)
class _Bucket:
    """One line of a rule: ``key`` names the hour, day … that a local time lies in; None: each point its own."""

    count: int
    key: Callable[[datetime], Hashable] | None
    reason: str
    oldest: str


def decide(facts: Iterable[Fact], rule: Rule, now: datetime, tz: ZoneInfo) -> list[Decision]:
    """One decision for each fact, newest first. Two points of one instant are told apart by their id."""
    points = sorted(facts, key=lambda fact: (fact.taken_at, str(fact.id)), reverse=True)
    if not points:
        return []
    if rule.keeps_all:
        return [Decision(fact.id, True, [_("the policy keeps everything")]) for fact in points]
    reasons: dict[Any, list[str]] = {fact.id: [] for fact in points}
    complete = [fact for fact in points if fact.complete]
    _guard(points, complete, reasons)
    _judge(complete, rule, now, tz, reasons, judged=complete)
    _judge(points, rule, now, tz, reasons, judged=[fact for fact in points if not fact.complete])
    outside = _("no rule of the policy keeps it")
    return [Decision(fact.id, bool(reasons[fact.id]), reasons[fact.id] or [outside]) for fact in points]


def simulate(facts: Iterable[Fact], rule: Rule, now: datetime, tz: ZoneInfo) -> tuple[list[Decision], list[Decision]]:
    """What would be kept and what removed, for the policy's editor."""
    decisions = decide(facts, rule, now, tz)
    return [one for one in decisions if one.keep], [one for one in decisions if not one.keep]


def _guard(points: Sequence[Fact], complete: Sequence[Fact], reasons: dict[Any, list[str]]) -> None:
    """The points that no rule may remove."""
    for fact in points:
        if fact.held:
            reasons[fact.id].append(_("held"))
    if complete:
        reasons[complete[0].id].append(_("newest complete point"))
    for fact in points:
        if fact.complete:
            break
        reasons[fact.id].append(_("newer than the newest complete point") if complete else _("no point is complete"))
        if not complete:  # the newest is enough then, the rule decides on the others
            break


def _judge(
    walked: Sequence[Fact],
    rule: Rule,
    now: datetime,
    tz: ZoneInfo,
    reasons: dict[Any, list[str]],
    judged: Sequence[Fact],
) -> None:
    """Walk ``walked`` through the rule; give reasons only to those of ``judged``."""
    if not judged:
        return
    may_gain = {fact.id for fact in judged}
    if rule.within_days:
        # From the newest point, not from today: when backups stop, what there is must not melt away.
        edge = min(walked[0].taken_at, now) - timedelta(days=rule.within_days)
        for fact in walked:
            if fact.id in may_gain and fact.taken_at > edge:
                reasons[fact.id].append(_("within %(days)s days") % {"days": rule.within_days})
    for bucket in _buckets(rule):
        for fact, reason in _fill(bucket, walked, tz):
            if fact.id in may_gain:
                reasons[fact.id].append(reason)


def _fill(bucket: _Bucket, walked: Sequence[Fact], tz: ZoneInfo) -> list[tuple[Fact, str]]:
    """What one line of the rule takes. In an hour, day … the newest complete point goes before the newest."""
    if bucket.key is None:
        return [(fact, _(bucket.reason)) for fact in walked[: bucket.count]]
    taken: dict[Hashable, Fact] = {}
    left = bucket.count
    for fact in walked:
        key = bucket.key(fact.taken_at.astimezone(tz))
        if key not in taken and left:
            taken[key] = fact
            left -= 1
        elif key in taken and fact.complete and not taken[key].complete:
            taken[key] = fact
    chosen = [(fact, _(bucket.reason)) for fact in taken.values()]
    oldest = walked[-1]
    if left and all(fact.id != oldest.id for fact, _reason in chosen):
        beaten_by_complete = not oldest.complete and taken[bucket.key(oldest.taken_at.astimezone(tz))].complete
        if not beaten_by_complete:
            chosen.append((oldest, _(bucket.oldest)))
    return chosen


def _hour(at: datetime) -> Hashable:
    return at.date(), at.hour, at.utcoffset()  # the offset tells the two hours apart that autumn gives one name


def _buckets(rule: Rule) -> list[_Bucket]:
    lines = [
        _Bucket(rule.last, None, gettext_noop("one of the last"), ""),
        _Bucket(rule.hourly, _hour, gettext_noop("hourly"), gettext_noop("oldest hourly")),
        _Bucket(rule.daily, lambda at: at.date(), gettext_noop("daily"), gettext_noop("oldest daily")),
        _Bucket(rule.weekly, lambda at: at.isocalendar()[:2], gettext_noop("weekly"), gettext_noop("oldest weekly")),
        _Bucket(rule.monthly, lambda at: (at.year, at.month), gettext_noop("monthly"), gettext_noop("oldest monthly")),
        _Bucket(rule.yearly, lambda at: at.year, gettext_noop("yearly"), gettext_noop("oldest yearly")),
    ]
    return [line for line in lines if line.count]
