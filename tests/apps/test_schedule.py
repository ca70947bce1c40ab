"""Schedules: when a cron line is due, around daylight saving time too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.errors import Invalid
from apps.policies import schedule

BERLIN = ZoneInfo("Europe/Berlin")
SPRING = datetime(2026, 3, 28, 20, tzinfo=UTC)  # clocks jump from 02:00 to 03:00 on 29 March, 01:00 UTC
AUTUMN = datetime(2026, 10, 24, 20, tzinfo=UTC)  # 03:00 becomes 02:00 on 25 October, 01:00 UTC


def local(*parts: int, fold: int = 0) -> datetime:
    return datetime(*parts, tzinfo=BERLIN, fold=fold).astimezone(UTC)


def test_a_daily_line_is_due_once_a_day_in_the_zone_of_the_policy():
    after = datetime(2026, 1, 10, tzinfo=UTC)
    moments = schedule.due("0 22 * * *", "Europe/Berlin", after, after + timedelta(days=3))
    assert moments == [datetime(2026, 1, day, 21, tzinfo=UTC) for day in (10, 11, 12)]
    assert all(moment.tzinfo is UTC for moment in moments)


def test_the_interval_is_open_at_its_beginning_and_closed_at_its_end():
    first, second = datetime(2026, 1, 1, 22, tzinfo=UTC), datetime(2026, 1, 2, 22, tzinfo=UTC)
    assert schedule.due("0 22 * * *", "UTC", first, second) == [second]
    assert schedule.due("0 22 * * *", "UTC", first, second - timedelta(microseconds=1)) == []
    assert schedule.due("0 22 * * *", "UTC", first - timedelta(microseconds=1), first) == [first]


def test_a_run_in_the_gap_of_spring_happens_once_right_after_it():
    moments = schedule.due("30 2 * * *", "Europe/Berlin", SPRING, SPRING + timedelta(days=2))
    assert moments == [local(2026, 3, 29, 3, 0), local(2026, 3, 30, 2, 30)]


def test_several_runs_in_the_gap_of_spring_become_one():
    moments = schedule.due("0,30 2,3 * * *", "Europe/Berlin", SPRING, SPRING + timedelta(hours=12))
    assert moments == [local(2026, 3, 29, 3, 0), local(2026, 3, 29, 3, 30)]


def test_a_run_in_the_doubled_hour_of_autumn_happens_once():
    moments = schedule.due("30 2 * * *", "Europe/Berlin", AUTUMN, AUTUMN + timedelta(days=1))
    assert moments == [local(2026, 10, 25, 2, 30)]


def test_hourly_runs_follow_real_time_through_both_changes():
    for day in (SPRING, AUTUMN):
        moments = schedule.due("0 * * * *", "Europe/Berlin", day, day + timedelta(hours=12))
        assert [moment - day for moment in moments] == [timedelta(hours=hour) for hour in range(1, 13)]


@pytest.mark.parametrize("minutes_between_ticks", [1, 7, 30, 50])
@pytest.mark.parametrize("start", [SPRING, AUTUMN])
@pytest.mark.parametrize("cron", ["30 2 * * *", "0,30 2,3 * * *", "15 1-4 * * *", "*/20 * * * *"])
def test_ticking_through_a_change_of_clocks_finds_each_run_exactly_once(cron, start, minutes_between_ticks):
    end = start + timedelta(hours=14)
    whole = schedule.due(cron, "Europe/Berlin", start, end)
    pieces, cursor = [], start
    while cursor < end:
        tick = min(cursor + timedelta(minutes=minutes_between_ticks), end)
        pieces += schedule.due(cron, "Europe/Berlin", cursor, tick)
        cursor = tick
    assert pieces == whole


@settings(max_examples=150, deadline=None)
@given(
    cron=st.sampled_from(["30 2 * * *", "*/15 * * * *", "0 3 * * 0", "5 1,2,3 * * *", "0 */6 * * *", "45 23 1 * *"]),
    start=st.datetimes(datetime(2026, 3, 25), datetime(2026, 11, 2), timezones=st.just(UTC)),
    hours=st.integers(1, 24 * 9),
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Ho_Chi_Minh", "Australia/Lord_Howe", "UTC"]),
)
def test_missed_runs_coalesce_to_the_last_of_those_that_were_due(cron, start, hours, zone):
    until = start + timedelta(hours=hours)
    moments = schedule.due(cron, zone, start, until)
    assert schedule.latest_due(cron, zone, start, until) == (moments[-1] if moments else None)
    assert moments == sorted(set(moments))
    assert schedule.newest_due(cron, zone, start, until, 5) == moments[::-1][:5]


def test_a_year_of_missed_minutes_is_coalesced_without_walking_through_them():
    now = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
    assert schedule.latest_due("* * * * *", "UTC", now - timedelta(days=3650), now) == now.replace(second=0)


def test_next_run_is_after_the_given_moment():
    at = datetime(2026, 5, 4, 22, tzinfo=UTC)
    assert schedule.next_run("0 22 * * *", "UTC", at) == at + timedelta(days=1)
    assert schedule.next_run("0 22 29 2 *", "UTC", at) == datetime(2028, 2, 29, 22, tzinfo=UTC)


def test_as_many_moments_as_asked_for():
    moments = schedule.due("0 * * * *", "UTC", AUTUMN, AUTUMN + timedelta(days=300), limit=3)
    assert len(moments) == 3


@pytest.mark.parametrize(
    ("cron", "says"),
    [
        ("", "five fields"),
        ("0 22 * *", "five fields"),
        ("0 0 22 * * *", "five fields"),
        ("61 22 * * *", "cannot be read"),
        ("a b c d e", "cannot be read"),
        ("0 22 31 2 *", "cannot be read"),
        ("0 0 * 2 MON#5,TUE#5 x", "five fields"),
        ("@daily", "five fields"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_with_words(cron, says):
    with pytest.raises(Invalid, match=says) as refused:
        schedule.validate(cron)
    assert refused.value.error_code == "invalid-schedule"
    assert refused.value.hint


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "Europe", "x" * 300])
def test_an_unknown_time_zone_is_refused(name):
    with pytest.raises(Invalid) as refused:
        schedule.validate("0 22 * * *", name)
    assert refused.value.error_code == "invalid-time-zone"


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("0 22 * * *", "every day at 22:00"),
        ("5 6 * * *", "every day at 06:05"),
        ("*/15 * * * *", "every 15 minutes"),
        ("* * * * *", "every minute"),
        ("10 * * * *", "every hour at minute 10"),
        ("0 */6 * * *", "every 6 hours at minute 0"),
        ("0 3 * * 0", "every Sunday at 03:00"),
        ("0 3 * * 7", "every Sunday at 03:00"),
        ("0 3 * * 3", "every Wednesday at 03:00"),
        ("30 2 * * 1-5", "Monday to Friday at 02:30"),
        ("0 1 15 * *", "on day 15 of every month at 01:00"),
        ("0 1 1 1 *", "at 01:00 on January 1"),
    ],
)
def test_a_line_in_words(cron, words):
    assert schedule.describe(cron) == words
