"""Where the dots of a timeline lie: restore points over time, oldest left, gaps visible. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from apps.catalog.models import RestorePoint

WIDTH = 1000
MARGIN = 14
SHOWN = 300


@dataclass(frozen=True)
class Dot:
    point: RestorePoint
    x: float
    tone: str
    hurt: bool


@dataclass(frozen=True)
class Tick:
    x: float
    at: datetime


@dataclass(frozen=True)
class Timeline:
    dots: list[Dot]
    ticks: list[Tick]
    begins: datetime
    ends: datetime
    by_day: bool  # whether ticks are days (else hours)


def build(points: Sequence[RestorePoint], now: datetime) -> Timeline:
    """``points`` with their copies prefetched. The line ends now, so that a gap since the last backup shows."""
    shown = sorted(points, key=lambda point: point.taken_at)[-SHOWN:]
    first = shown[0].taken_at if shown else now - timedelta(days=1)
    begins = min(first, now - timedelta(hours=1))
    span = max((now - begins).total_seconds(), 1.0)

    def place(at: datetime) -> float:
        share = (at - begins).total_seconds() / span
        return round(MARGIN + max(0.0, min(1.0, share)) * (WIDTH - 2 * MARGIN), 1)

    dots = [Dot(point, place(point.taken_at), tone(point), is_hurt(point)) for point in shown]
    ticks = [Tick(place(begins + (now - begins) * step / 5), begins + (now - begins) * step / 5) for step in range(6)]
    return Timeline(dots, ticks, begins, now, by_day=span > 3 * 86400)


def is_hurt(point: RestorePoint) -> bool:
    """No copy of it is whole."""
    states = {copy.state for copy in point.copies.all()}
    return bool(states) and "present" not in states


def tone(point: RestorePoint) -> str:
    if is_hurt(point):
        return "bad"
    return "ok" if point.outcome == "complete" else "warn"


def newest_good(points: Sequence[RestorePoint]) -> RestorePoint | None:
    """The one to preselect: the newest complete one that can be read; else the newest that can be read."""
    usable = [point for point in sorted(points, key=lambda one: one.taken_at, reverse=True) if not is_hurt(point)]
    return next((point for point in usable if point.outcome == "complete"), usable[0] if usable else None)
