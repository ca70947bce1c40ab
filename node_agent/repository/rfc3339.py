"""Times as restic's JSON has them: RFC 3339 with nanoseconds, which datetime cannot hold.

A time is an int: nanoseconds since the epoch, negative before 1970. The calendar functions are those of
H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", valid for every year.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache

_SECOND = 1_000_000_000
_FORMAT = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))\Z", re.ASCII)
_MINUTES = {f"T{minute // 60:02d}:{minute % 60:02d}:": minute * 60 for minute in range(24 * 60)}
_SECONDS = {f"{second:02d}": second for second in range(60)}
_SCALES = [10 ** (9 - digits) for digits in range(10)]
_MIN = -62167219200  # 0000-01-01T00:00:00Z
_MAX = 253402300799  # 9999-12-31T23:59:59Z


def format_ns(time_ns: int) -> str:
    """In UTC, trailing zeros of the fraction dropped as Go does; years are kept within 0000 to 9999."""
    seconds, fraction = divmod(time_ns, _SECOND)
    if not _MIN <= seconds <= _MAX:
        seconds, fraction = (_MIN if seconds < _MIN else _MAX), 0
    base = _format_seconds(seconds)
    if not fraction:
        return base + "Z"
    return f"{base}.{fraction:09d}".rstrip("0") + "Z"


def parse_ns(text: str) -> int:
    """Raises ValueError."""
    minutes, seconds, tail = _MINUTES.get(text[10:17]), _SECONDS.get(text[17:19]), text[19:]
    if minutes is None or seconds is None:
        return _parse_any(text)
    fraction = 0
    if tail != "Z":  # in UTC, as nearly all are
        digits = tail[1:-1]
        if tail[:1] != "." or tail[-1:] != "Z" or len(digits) > 9 or not digits.isdigit() or not digits.isascii():
            return _parse_any(text)
        fraction = int(digits) * _SCALES[len(digits)]
    return (_midnight(text[:10]) + minutes + seconds) * _SECOND + fraction


@lru_cache(maxsize=8192)
def _midnight(date: str) -> int:
    return _parse_any(date + "T00:00:00Z") // _SECOND


def _parse_any(text: str) -> int:
    match = _FORMAT.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, sign, off_hours, off_minutes = match.groups()[6:]
    seconds = _days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second
    if sign:
        offset = int(off_hours) * 3600 + int(off_minutes) * 60
        seconds += offset if sign == "-" else -offset
    return seconds * _SECOND + int((fraction or "").ljust(9, "0"))


def parse_datetime(text: str) -> datetime:
    """In the zone it was written in, to the microsecond; within datetime's years. Raises ValueError."""
    time_ns = parse_ns(text)
    match = _FORMAT.match(text)
    assert match is not None
    sign, hours, minutes = match.groups()[7:]
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
    try:
        return to_datetime(time_ns).astimezone(timezone(offset) if offset else UTC)
    except OverflowError:
        return (datetime.min if time_ns < 0 else datetime.max).replace(tzinfo=UTC)


def format_datetime(time: datetime) -> str:
    """As Go writes it: in its own zone. ``time`` must be aware."""
    offset = time.utcoffset() or timedelta()
    local = format_ns(from_datetime(time.replace(tzinfo=UTC)))
    if not offset:
        return local
    minutes = offset // timedelta(minutes=1)
    return f"{local[:-1]}{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"


def from_datetime(time: datetime) -> int:
    """Exact to the microsecond; ``time`` must be aware."""
    if time.tzinfo is None:
        raise ValueError("a time without zone")
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def to_datetime(time_ns: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_ns // 1000)


@lru_cache(maxsize=8192)
def _format_seconds(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    year, month, day = _civil(days)
    return f"{year:04d}-{month:02d}-{day:02d}T{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"


def _civil(days: int) -> tuple[int, int, int]:
    era, day_of_era = divmod(days + 719468, 146097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year_of_era + era * 400 + (month <= 2), month, day_of_year - (153 * shifted + 2) // 5 + 1


def _days(year: int, month: int, day: int) -> int:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        raise ValueError(f"{year}-{month}-{day} is not a day")
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468
