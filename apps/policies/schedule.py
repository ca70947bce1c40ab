"""When a cron line is due: pure functions; time and zone come in as arguments.

A line has five fields (minute hour day month weekday) and is read in a time zone. Around the changes of daylight
saving time it behaves like Debian's cron: a run at a fixed time that falls into the gap happens right after it, one
that falls into the hour that comes twice happens once, the first time; ``*`` hours and minutes follow real time.

Moments that come in may be in any zone; those that go out are aware UTC.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from django.utils.formats import date_format
from django.utils.translation import gettext as _

from apps.errors import Invalid

_REFERENCE = datetime(2024, 1, 1, tzinfo=UTC)


def due(cron: str, tz: str, after: datetime, until: datetime, *, limit: int | None = None) -> list[datetime]:
    """Every moment in (after, until], ascending; at most ``limit`` of them."""
    return list(islice(_upwards(cron, tz, after, until), limit))


def latest_due(cron: str, tz: str, after: datetime, until: datetime) -> datetime | None:
    """The newest moment in (after, until]: what missed runs coalesce to. Its cost does not grow with the interval."""
    return next(iter(_newest(cron, tz, after, until, 1)), None)


def newest_due(cron: str, tz: str, after: datetime, until: datetime, limit: int) -> list[datetime]:
    """The last ``limit`` moments in (after, until], newest first; the cost follows ``limit``, not the interval."""
    return _newest(cron, tz, after, until, limit)


def next_run(cron: str, tz: str, after: datetime) -> datetime | None:
    """The first moment after ``after``; None when the line never matches."""
    return next(_upwards(cron, tz, after), None)


def validate(cron: str, tz: str = "UTC") -> None:
    """Raise ``Invalid`` unless the line can be read, comes true some day, and the zone exists."""
    if next_run(cron, tz, _REFERENCE) is None:
        raise Invalid(
            _("The schedule “%(cron)s” never comes true.") % {"cron": cron},
            hint=_("Choose a day that exists in the chosen months."),
            code="invalid-schedule",
        )


def zone(tz: str) -> ZoneInfo:
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a name that is a folder of the zone database
        raise Invalid(
            _("There is no time zone “%(zone)s”.") % {"zone": tz},
            hint=_("Use a name such as Europe/Berlin or Asia/Ho_Chi_Minh."),
            code="invalid-time-zone",
        ) from None


def _upwards(cron: str, tz: str, after: datetime, until: datetime | None = None) -> Iterator[datetime]:
    previous = after
    for moment in _walk(cron, tz, after):
        if until is not None and moment > until:
            return
        # Two moments of the gap meet at its end, and one of the doubled hour can come out before ``after``.
        if moment > previous:
            previous = moment
            yield moment


def _newest(cron: str, tz: str, after: datetime, until: datetime, limit: int) -> list[datetime]:
    """Walks up from ever earlier moments until enough are found: where a zone's clock shifts by half an hour, the
    library's own backward search disagrees with its forward one."""
    span = timedelta(hours=1)
    while True:
        start = max(after, until - span)
        found = deque(_upwards(cron, tz, start, until), maxlen=limit)
        if len(found) == limit or start <= after:
            return list(found)[::-1]
        span *= 2


def _walk(cron: str, tz: str, start: datetime) -> Iterator[datetime]:
    """What the library finds, in UTC. It counts whole hours over a change of clocks, so where the clock shifts by half
    an hour (Lord Howe Island) each minute up to the next full hour is tried, and its search begun anew there."""
    here, origin = zone(tz), start
    simulation = _parse(cron, start.astimezone(here))
    while (found := next(simulation, None)) is not None:
        moment = found.astimezone(UTC)
        change = _odd_change(here, origin, moment)
        if change is None:
            origin = moment
            yield moment
            continue
        origin = change
        while origin.astimezone(here).minute:
            if _matches(cron, origin.astimezone(here)):
                yield origin
            origin += timedelta(minutes=1)
        simulation = _parse(cron, (origin - timedelta(seconds=1)).astimezone(here))


def _matches(cron: str, moment: datetime) -> bool:
    before = (moment.astimezone(UTC) - timedelta(seconds=1)).astimezone(moment.tzinfo)
    found = next(_parse(cron, before), None)
    return found is not None and found.astimezone(UTC) == moment.astimezone(UTC)


def _odd_change(here: ZoneInfo, after: datetime, until: datetime) -> datetime | None:
    """The first moment in (after, until] from which the zone's clock differs by no whole hours from before."""

    def odd(moment: datetime) -> bool:
        shift = moment.astimezone(here).utcoffset() - offset  # type: ignore[operator]
        return bool(shift % timedelta(hours=1))

    offset = after.astimezone(here).utcoffset()
    low = after
    while low < until:
        high = min(low + timedelta(days=7), until)
        if odd(high):
            break
        low = high
    else:
        return None
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) / 2
        low, high = (low, middle) if odd(middle) else (middle, high)
    return high.replace(microsecond=0)


def _parse(cron: str, start: datetime) -> CronSim:
    hint = _("Five fields: minute hour day month weekday, for example “0 22 * * *”.")
    if len(cron.split()) != 5:
        raise Invalid(
            _("The schedule “%(cron)s” does not have five fields.") % {"cron": cron}, hint=hint, code="invalid-schedule"
        )
    try:
        return CronSim(cron, start)
    except CronSimError as error:
        raise Invalid(
            _("The schedule “%(cron)s” cannot be read: %(why)s.") % {"cron": cron, "why": str(error).lower()},
            hint=hint,
            code="invalid-schedule",
        ) from None


# --- in words -------------------------------------------------------------------------------------


def describe(cron: str) -> str:
    """The line in the words of the operator: “every day at 22:00”. Unusual lines come out in English."""
    simulation = _parse(cron, _REFERENCE)
    minute, hour, day, month, weekday = cron.split()
    every_day = day == month == weekday == "*"
    if minute.startswith("*/") and hour == "*" and every_day:
        return _("every %(minutes)s minutes") % {"minutes": minute[2:]}
    if minute == hour == "*" and every_day:
        return _("every minute")
    if minute.isdigit() and hour == "*" and every_day:
        return _("every hour at minute %(minute)s") % {"minute": minute}
    if minute.isdigit() and hour.startswith("*/") and every_day:
        return _("every %(hours)s hours at minute %(minute)s") % {"hours": hour[2:], "minute": minute}
    if minute.isdigit() and hour.isdigit() and month == "*":
        words = _at_a_time(f"{int(hour):02}:{int(minute):02}", day, weekday)
        if words:
            return words
    explained = simulation.explain()
    return explained[:1].lower() + explained[1:]


def _at_a_time(time: str, day: str, weekday: str) -> str:
    if day == weekday == "*":
        return _("every day at %(time)s") % {"time": time}
    if day == "*" and weekday == "1-5":
        return _("Monday to Friday at %(time)s") % {"time": time}
    if day == "*" and weekday.isdigit():
        # 2024-01-07 was a Sunday, which cron writes as 0 and as 7.
        name = date_format(datetime(2024, 1, 7, tzinfo=UTC) + timedelta(days=int(weekday) % 7), "l")
        return _("every %(weekday)s at %(time)s") % {"weekday": name, "time": time}
    if weekday == "*" and day.isdigit():
        return _("on day %(day)s of every month at %(time)s") % {"day": int(day), "time": time}
    return ""
