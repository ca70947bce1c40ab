from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.repository.rfc3339 import (
    format_datetime,
    format_ns,
    from_datetime,
    parse_datetime,
    parse_ns,
)

FIRST, LAST = -62167219200 * 10**9, 253402300799 * 10**9


@given(st.integers(FIRST, LAST))
def test_every_nanosecond_survives(time_ns: int) -> None:
    assert parse_ns(format_ns(time_ns)) == time_ns


@given(st.datetimes(timezones=st.just(UTC)))
def test_the_calendar_agrees_with_pythons(time: datetime) -> None:
    assert format_ns(from_datetime(time))[:19] == time.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (1_500_000_000, "1970-01-01T00:00:01.5Z"),
        (FIRST - 5, "0000-01-01T00:00:00Z"),
        (LAST + 10**12, "9999-12-31T23:59:59Z"),
    ],
)
def test_times_look_as_go_writes_them(time_ns: int, text: str) -> None:
    assert format_ns(time_ns) == text


def test_an_offset_is_the_same_instant() -> None:
    assert parse_ns("2026-05-17T14:00:00.25+02:00") == parse_ns("2026-05-17T12:00:00.25Z")
    assert parse_ns("2026-05-17T06:30:00-05:30") == parse_ns("2026-05-17T12:00:00Z")


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=2)), timezone(-timedelta(hours=5, minutes=30))])
def test_a_datetime_keeps_its_zone(zone: timezone) -> None:
    time = datetime(2026, 5, 17, 1, 2, 3, 450000, tzinfo=zone)
    again = parse_datetime(format_datetime(time))
    assert (again, again.utcoffset()) == (time, time.utcoffset())


@pytest.mark.parametrize("text", ["", "now", "2026-05-17", "2026-13-01T00:00:00Z", "2026-05-17T12:00:00"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_ns(text)
