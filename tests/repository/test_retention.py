from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.repository.retention import Decision, Duration, KeepPolicy, apply_policy
from node_agent.repository.snapshot import PARTIAL_TAG, Snapshot

NOW = datetime(2026, 6, 30, tzinfo=UTC)
START = datetime(2026, 1, 1, 10, 0, tzinfo=UTC)


def _snapshot(number: int, time: datetime, *tags: str) -> Snapshot:
    return Snapshot(time=time, tree="0" * 64, paths=["/x"], tags=tags, id=f"{number:064x}")


def _daily(count: int) -> list[Snapshot]:
    return [_snapshot(n, START + timedelta(days=n)) for n in range(count)]


def _times(snapshots: Iterable[Snapshot]) -> list[str]:
    return [snapshot.time.strftime("%m-%d") for snapshot in snapshots]


def test_the_last_ones_are_kept_newest_first_with_their_reason() -> None:
    decision = apply_policy(_daily(5), KeepPolicy(last=2), NOW)
    assert _times(decision.keep) == ["01-05", "01-04"]
    assert _times(decision.remove) == ["01-03", "01-02", "01-01"]
    assert [(reason.matches, reason.counters) for reason in decision.reasons] == [
        (["last snapshot"], {"last": 1}),
        (["last snapshot"], {}),
    ]


def test_of_one_day_the_newest_stands_for_it() -> None:
    morning_and_evening = [_snapshot(n, START + timedelta(hours=8 * n)) for n in range(6)]  # 10:00 18:00 02:00 …
    decision = apply_policy(morning_and_evening, KeepPolicy(daily=2), NOW)
    assert [snapshot.time.hour for snapshot in decision.keep] == [2, 18]
    assert _times(decision.keep) == ["01-03", "01-02"]


def test_while_counts_are_left_the_oldest_is_kept_too() -> None:
    decision = apply_policy(_daily(3), KeepPolicy(yearly=2), NOW)
    assert _times(decision.keep) == ["01-03", "01-01"]
    assert decision.reasons[1].matches == ["oldest yearly snapshot"]


def test_weeks_are_iso_weeks() -> None:
    around_new_year = [_snapshot(n, datetime(2025, 12, 27 + n, tzinfo=UTC)) for n in range(5)]  # Sat … Wed
    assert _times(apply_policy(around_new_year, KeepPolicy(weekly=2), NOW).keep)[:2] == ["12-31", "12-28"]


def test_within_counts_from_the_newest_that_is_not_in_the_future() -> None:
    snapshots = [*_daily(10), _snapshot(99, NOW + timedelta(days=300))]
    decision = apply_policy(snapshots, KeepPolicy(within=Duration.parse("3d")), NOW)
    assert _times(decision.keep)[1:] == ["01-10", "01-09", "01-08"]
    assert decision.reasons[1].matches == ["within 3d"]


def test_within_with_a_unit_keeps_one_of_each() -> None:
    twice_a_day = [_snapshot(n, START + timedelta(hours=12 * n)) for n in range(20)]
    decision = apply_policy(twice_a_day, KeepPolicy(within_daily=Duration.parse("4d")), NOW)
    assert len(decision.keep) == len(set(_times(decision.keep))) == 4


def test_tags_keep_whatever_carries_all_of_them() -> None:
    snapshots = [_snapshot(0, START, "a", "b"), _snapshot(1, START, "a"), _snapshot(2, START)]
    decision = apply_policy(snapshots, KeepPolicy(tags=[["a", "b"]]), NOW)
    assert [snapshot.tags for snapshot in decision.keep] == [("a", "b")]
    assert decision.reasons[0].matches == ["has tags [a, b]"]


def test_minus_one_keeps_all_of_a_kind() -> None:
    assert len(apply_policy(_daily(9), KeepPolicy(daily=-1), NOW).keep) == 9


def test_a_partial_snapshot_never_displaces_a_complete_one() -> None:
    complete, partial = _daily(3), [_snapshot(9, START + timedelta(days=9), PARTIAL_TAG)]
    decision = apply_policy(complete + partial, KeepPolicy(last=2), NOW)
    assert _times(decision.keep) == ["01-10", "01-03", "01-02"]
    assert decision.reasons[2].matches == ["last snapshot (complete)"]


@given(
    st.lists(st.tuples(st.integers(0, 200_000), st.booleans()), max_size=30),
    st.builds(KeepPolicy, *[st.integers(-1, 4)] * 6),
)
def test_every_snapshot_is_either_kept_for_a_reason_or_removed(
    entries: list[tuple[int, bool]], policy: KeepPolicy
) -> None:
    snapshots = [
        _snapshot(n, START + timedelta(minutes=minutes), *([PARTIAL_TAG] if partial else []))
        for n, (minutes, partial) in enumerate(entries)
    ]
    decision: Decision = apply_policy(snapshots, policy, NOW)
    assert sorted(s.id for s in decision.keep + decision.remove) == [s.id for s in snapshots]
    assert [reason.snapshot for reason in decision.reasons] == decision.keep
    assert all(reason.matches for reason in decision.reasons)
    without_partial = apply_policy([s for s in snapshots if not s.partial], policy, NOW)
    assert {s.id for s in without_partial.keep} <= {s.id for s in decision.keep}
    if policy.last:
        assert not snapshots or decision.keep


@pytest.mark.parametrize("text", ["1y5m7d2h", "3d", "2h", "10y"])
def test_a_duration_reads_as_it_is_written(text: str) -> None:
    assert str(Duration.parse(text)) == text


@pytest.mark.parametrize("text", ["", "d", "3", "3w", "-3d", "3d x", "1d 2h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Duration.parse(text)


def test_months_run_over_as_in_gos_calendar() -> None:
    assert Duration(months=1).before(datetime(2026, 3, 31)) == datetime(2026, 3, 3)
    assert Duration(years=1).before(datetime(2024, 2, 29)) == datetime(2023, 3, 1)


def test_a_count_below_minus_one_is_refused() -> None:
    with pytest.raises(ValueError):
        KeepPolicy(last=-2)
