from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from node_agent.errors import ConfigError, RepositoryError, SnapshotNotFound
from node_agent.repository.maintenance import Duration, KeepPolicy, forget, forget_ids
from node_agent.repository.snapshot import list_snapshots
from tests.repository.core_world import NOON, make_snapshot, new_repo, restic


@pytest.fixture
def repo(tmp_path: Path):
    """Ten days of two workloads, every five hours."""
    repo = new_repo(tmp_path / "repo")
    with repo.lock() as lock:
        for number in range(24):
            time = NOON + timedelta(hours=5 * number)
            make_snapshot(repo, lock, {b"f": [b"x"]}, time=time, host="ab"[number % 2], tags=["t"] * (number % 3 == 0))
    return repo


def test_a_policy_is_applied_to_each_workload_on_its_own(repo) -> None:
    with repo.lock(exclusive=True):
        result = forget(repo, KeepPolicy(last=2))
    assert [(group.host, group.paths, len(group.keep), len(group.remove)) for group in result.groups] == [
        ("a", ["/data"], 2, 10),
        ("b", ["/data"], 2, 10),
    ]
    assert len(result.removed) == 20
    assert {s.id for s in list_snapshots(repo)} == {s.id for group in result.groups for s in group.keep}


def test_a_dry_run_says_the_same_and_removes_nothing(repo) -> None:
    result = forget(repo, KeepPolicy(last=2), dry_run=True)
    assert result.removed == [] and len(list_snapshots(repo)) == 24
    assert [len(group.remove) for group in result.groups] == [10, 10]


def test_groups_and_filters_are_the_callers_choice(repo) -> None:
    assert len(forget(repo, KeepPolicy(last=1), group_by=(), dry_run=True).groups) == 1
    assert len(forget(repo, KeepPolicy(last=1), group_by=("host", "tags"), dry_run=True).groups) == 4
    assert len(forget(repo, KeepPolicy(last=1), hosts=["a"], dry_run=True).groups) == 1
    with pytest.raises(ConfigError, match="colour"):
        forget(repo, KeepPolicy(last=1), group_by=("colour",), dry_run=True)


def test_no_policy_and_a_policy_that_would_leave_nothing_are_refused(repo) -> None:
    with repo.lock(exclusive=True):
        with pytest.raises(ConfigError, match="No policy"):
            forget(repo, KeepPolicy())
        with pytest.raises(RepositoryError, match="last snapshot"):
            forget(repo, KeepPolicy(tags=[["no such tag"]]))
    assert len(list_snapshots(repo)) == 24


def test_without_a_lock_nothing_is_forgotten(repo) -> None:
    with pytest.raises(RepositoryError, match="lock"):
        forget(repo, KeepPolicy(last=1))
    assert len(list_snapshots(repo)) == 24


def test_named_snapshots_go_all_or_none(repo) -> None:
    first, second = list_snapshots(repo)[:2]
    with repo.lock(exclusive=True):
        with pytest.raises(SnapshotNotFound):
            forget_ids(repo, [first.id, "no such"])
        assert len(list_snapshots(repo)) == 24
        assert forget_ids(repo, [first.id, first.id[:20], second.id], dry_run=True).removed == []
        assert forget_ids(repo, [first.id, first.id[:20], second.id]).removed == [first.id, second.id]
    assert len(list_snapshots(repo)) == 22


POLICIES = [
    (["--keep-last", "3"], KeepPolicy(last=3)),
    (["--keep-hourly", "5", "--keep-daily", "2"], KeepPolicy(hourly=5, daily=2)),
    (["--keep-within", "2d3h", "--keep-tag", "t"], KeepPolicy(within=Duration.parse("2d3h"), tags=[["t"]])),
    (["--keep-within-daily", "3d", "--keep-last", "1"], KeepPolicy(last=1, within_daily=Duration.parse("3d"))),
]


@pytest.mark.parametrize(("options", "policy"), POLICIES)
def test_stock_restic_decides_and_says_the_same(repo, options: list[str], policy: KeepPolicy) -> None:
    folder = Path(repo.backend.url.removeprefix("local:"))
    theirs = json.loads(restic(folder, "forget", "--dry-run", "--json", *options).stdout)
    ours = forget(repo, policy, dry_run=True).to_json()
    assert len(theirs) == len(ours) == 2
    for their, our in zip(sorted(theirs, key=lambda group: group["host"]), ours, strict=True):
        assert their.keys() == our.keys()
        assert (their["host"], their["paths"], their["tags"]) == (our["host"], our["paths"], our["tags"])
        for list_name in ("keep", "remove"):
            assert [s["id"] for s in their[list_name]] == [s["id"] for s in our[list_name]]
            for theirs_shown, ours_shown in zip(their[list_name], our[list_name], strict=True):
                assert theirs_shown.items() <= ours_shown.items()  # 0.14 does not know program_version
        assert [(r["matches"], r["counters"]) for r in their["reasons"]] == [
            (r["matches"], r["counters"]) for r in our["reasons"]
        ]
