"""Where the dots of a timeline lie: restore points over time, oldest left, gaps visible. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from apps.catalog.models import RestorePoint

WIDTH = 1000
MARGIN = 14
SHOWN = 300
DOT = 18  # how wide a dot is
LEAST = timedelta(minutes=10)  # a first backup does not lie at both ends of the line
ZOOMS = {"30d": timedelta(days=30), "7d": timedelta(days=7), "24h": timedelta(hours=24)}
TONES = ("ok", "warn", "bad")


@dataclass(frozen=True)
class Dot:
    """One point, or several that lie too close to be told apart: then the newest one, and how bad the worst is."""

    points: list[RestorePoint]  # newest first
    x: float
    tone: str
    hurt: bool  # none of them can be read

    @property
    def point(self) -> RestorePoint:
        return next((one for one in self.points if not is_hurt(one)), self.points[0])

    @property
    def held(self) -> bool:
        return any(one.hold for one in self.points)


@dataclass(frozen=True)
class Tick:
    x: float
    at: datetime


@dataclass(frozen=True)
class Zoom:
    key: str  # empty: all
    chosen: bool


@dataclass(frozen=True)
class Timeline:
    dots: list[Dot]
    ticks: list[Tick]
    begins: datetime
    ends: datetime
    by_day: bool  # whether ticks are days (else hours)
    zooms: list[Zoom]
    hidden: int  # points before its begin


def build(points: Sequence[RestorePoint], now: datetime, zoom: str = "") -> Timeline:
    """``points`` with their copies prefetched. The line ends now, so that a gap since the last backup shows."""
    known = sorted(points, key=lambda point: point.taken_at)[-SHOWN:]
    oldest = min(known[0].taken_at if known else now, now - LEAST)
    offered = [key for key, span in ZOOMS.items() if now - span > oldest]
    chosen = zoom if zoom in offered else ""
    begins = now - ZOOMS[chosen] if chosen else oldest
    shown = [point for point in known if point.taken_at >= begins]
    span = (now - begins).total_seconds()

    def place(at: datetime) -> float:
        share = (at - begins).total_seconds() / span
        return round(MARGIN + max(0.0, min(1.0, share)) * (WIDTH - 2 * MARGIN), 1)

    ticks = [Tick(place(begins + (now - begins) * step / 5), begins + (now - begins) * step / 5) for step in range(6)]
    zooms = [Zoom(key, key == chosen) for key in ("", *offered)] if offered else []
    dots = _dots([(place(point.taken_at), point) for point in shown])
    return Timeline(dots, ticks, begins, now, span > 3 * 86400, zooms, len(known) - len(shown))


def _dots(placed: Sequence[tuple[float, RestorePoint]]) -> list[Dot]:
    """Those nearer than a dot is wide become one."""
    groups: list[tuple[float, list[RestorePoint]]] = []
    for x, point in placed:
        if groups and x - groups[-1][0] < DOT:
            groups[-1][1].insert(0, point)
        else:
            groups.append((x, [point]))
    return [
        Dot(members, x, max(map(tone, members), key=TONES.index), all(map(is_hurt, members))) for x, members in groups
    ]


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
