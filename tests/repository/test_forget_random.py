"""Random histories and policies: what stock restic keeps, we keep, for the same reasons, said in the same JSON.

A policy is judged by one run of restic over a repository that holds many histories, since starting it is what costs.
restic 0.14 does not keep the oldest snapshot while a rule has counts left, as restic does since 0.16 and as we do: for
that one, reasons that begin with "oldest" are taken out of our answer. Of a reason's snapshot 0.14 does not tell the
id, and later ones tell no counters; we tell both.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from node_agent.errors import RepositoryError
from node_agent.repository.backend.base import Kind
from node_agent.repository.maintenance import Duration, KeepPolicy, plan_forget
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import Snapshot, list_snapshots, matches, save_snapshot
from tests.repository.core_world import JUDGES, NOON, make_snapshot, new_repo, restic

HISTORIES = 60
COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
SPANS = ("", "-hourly", "-daily", "-weekly", "-monthly", "-yearly")
DURATIONS = ("1h", "5h", "1d", "3d2h", "1m", "1m5d", "1y", "2y3m", "40d", "1y5m7d2h")
GROUPINGS = ("host,paths", "host,paths", "host", "paths", "tags", "host,tags", "host,paths,tags", "")
ZONES = (
    UTC,
    UTC,
    timezone(timedelta(hours=2)),
    timezone(timedelta(hours=-11)),
    timezone(timedelta(hours=5, minutes=45)),
)
TAGS: tuple[tuple[str, ...], ...] = ((), (), ("t",), ("t", "u"), ("u",), ("v w",))
PATHS = (("/data",), ("/data", "/etc"), ("/etc",))  # in order: restic shows them sorted, whatever the file says
Group = tuple[str, tuple[str, ...], tuple[str, ...]]


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Snapshot]]:
    """One repository, each host a history of its own; times dense and sparse, equal, in several zones."""
    folder = tmp_path_factory.mktemp("forget") / "repo"
    rng = random.Random(17)
    repo = new_repo(folder)
    with repo.lock() as lock:
        # A field that 0.14 does not know, so it is left out.
        first = replace(make_snapshot(repo, lock, {b"f": [b"x"]}, host="elsewhere"), program_version="")
        taken: set[datetime] = set()  # equal times have their own test
        for number in range(HISTORIES):
            _write_history(repo, lock, first, f"host {number}", rng, taken)
        repo.backend.delete(Kind.SNAPSHOT, first.id)
    return folder, list_snapshots(repo)


def _write_history(
    repo: Repository, lock: Any, like: Snapshot, host: str, rng: random.Random, taken: set[datetime]
) -> None:
    span = timedelta(seconds=rng.choice((5 * 3600, 5 * 86400, 60 * 86400, 400 * 86400, 3000 * 86400)))
    newest = NOON - timedelta(seconds=rng.randrange(40 * 86400))
    zones = rng.choice((ZONES, (UTC,)))
    paths = rng.choice(PATHS)
    seconds = {round(span.total_seconds() * rng.random()) for _ in range(rng.choice((1, 2, 5, 15, 30)))}
    times = {newest - timedelta(seconds=number) for number in seconds} - taken
    taken |= times
    for time in sorted(times):
        where = time.replace(microsecond=rng.choice((0, 123456))).astimezone(rng.choice(zones))
        save_snapshot(repo, lock, replace(like, id="", time=where, hostname=host, tags=rng.choice(TAGS), paths=paths))


def _policy(rng: random.Random) -> tuple[list[str], KeepPolicy]:
    """Any mixture of rules, at least one of them."""
    options: dict[str, Any] = {}
    args: list[str] = []
    while not args:
        for name in COUNTS:
            if rng.random() < 0.3:
                options[name] = rng.choice((1, 2, 3, 5, 10, 100))
                args += [f"--keep-{name}", str(options[name])]
        for span in SPANS:
            if rng.random() < 0.15:
                duration = rng.choice(DURATIONS)
                options[f"within{span.replace('-', '_')}"] = Duration.parse(duration)
                args += [f"--keep-within{span}", duration]
        if rng.random() < 0.25:
            options["tags"] = rng.choice(([["t", "u"]], [["t"]], [["u"], ["v w"]]))
            for wanted in options["tags"]:
                args += ["--keep-tag", ",".join(wanted)]
    return args, KeepPolicy(**options)


def _filters(rng: random.Random) -> tuple[list[str], dict[str, Any]]:
    match rng.randrange(5):
        case 0:
            hosts = [f"host {rng.randrange(HISTORIES)}" for _ in range(20)]
            return [word for host in hosts for word in ("--host", host)], {"hosts": hosts}
        case 1:
            return ["--tag", "t,u", "--tag", "u"], {"tags": [["t", "u"], ["u"]]}
        case 2:
            return ["--path", "/etc"], {"paths": ["/etc"]}
        case _:
            return [], {}


def _by_restic(program: str, folder: Path, args: Sequence[str]) -> dict[Group, dict[str, Any]]:
    groups = json.loads(restic(folder, "forget", "--dry-run", "--json", *args, program=program).stdout)
    return {_group_of(group): group for group in groups}


def _group_of(group: dict[str, Any]) -> Group:
    return group["host"] or "", tuple(group["paths"] or ()), tuple(group["tags"] or ())


def _by_us(
    snapshots: Sequence[Snapshot], policy: KeepPolicy, group_by: str
) -> tuple[dict[Group, dict[str, Any]], set[Group]]:
    """Group by group, since we refuse what would empty one; the second answer are those."""
    parts = [part for part in group_by.split(",") if part]
    everything = plan_forget(snapshots, KeepPolicy(last=-1), group_by=parts, now=datetime.now(UTC))
    found: dict[Group, dict[str, Any]] = {}
    refused: set[Group] = set()
    for whole in everything:
        key = whole.host, tuple(whole.paths), tuple(whole.tags)
        try:
            (group,) = plan_forget(whole.keep, policy, group_by=parts, now=datetime.now(UTC))
        except RepositoryError:
            refused.add(key)
        else:
            found[key] = group.to_json()
    return found, refused


def _without_oldest(group: dict[str, Any]) -> dict[str, Any]:
    """As if the oldest snapshot were not kept for being the oldest; its counters are then unknown."""
    reasons, dropped = [], []
    for reason in group["reasons"] or ():
        kept = [match for match in reason["matches"] if not match.startswith("oldest")]
        if kept == reason["matches"]:
            reasons.append(reason)
        elif kept:
            reasons.append(reason | {"matches": kept, "counters": None})
        else:
            dropped.append(reason["snapshot"])
    gone = {snapshot["id"] for snapshot in dropped}
    keep = [snapshot for snapshot in group["keep"] or () if snapshot["id"] not in gone]
    return group | {
        "keep": keep or None,
        "remove": (group["remove"] or []) + dropped or None,
        "reasons": reasons or None,
    }


def _comparable(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both, with only those facts in the reasons that both tell."""
    our_reasons, their_reasons = ours["reasons"] or [], theirs["reasons"] or []
    pairs = [_common(*pair) for pair in zip(our_reasons, their_reasons, strict=True)]
    return ours | {"reasons": [one for one, _ in pairs]}, theirs | {"reasons": [two for _, two in pairs]}


def _common(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    ours, theirs = dict(ours), dict(theirs)
    if "id" not in theirs["snapshot"]:
        ours["snapshot"] = {key: v for key, v in ours["snapshot"].items() if key not in ("id", "short_id")}
    if ours["counters"] is None or "counters" not in theirs:
        ours.pop("counters")
        theirs.pop("counters", None)
    return ours, theirs


@pytest.mark.parametrize("program", JUDGES)
def test_random_histories_are_kept_as_stock_restic_keeps_them(
    histories: tuple[Path, list[Snapshot]], program: str
) -> None:
    folder, snapshots = histories
    old = " 0.14" in restic(folder, "version", program=program).stdout
    judged = 0
    for seed in range(40):
        rng = random.Random(seed)
        args, policy = _policy(rng)
        filter_args, filters = _filters(rng)
        group_by = rng.choice(GROUPINGS)
        theirs = _by_restic(program, folder, [*args, *filter_args, "--group-by", group_by])
        ours, refused = _by_us([s for s in snapshots if matches(s, **filters)], policy, group_by)
        assert ours.keys() | refused == theirs.keys(), (seed, args)
        for key in refused:
            assert not theirs[key]["keep"], (seed, args, key)
        for key, group in ours.items():
            mine = _without_oldest(group) if old else group
            same, same_as = _comparable(mine, theirs[key])
            assert same == same_as, (seed, args, group_by, key)
            judged += 1
    assert judged > 1000


def test_snapshots_of_equal_times_are_counted_as_stock_restic_counts_them(tmp_path: Path) -> None:
    """Which of them stays is chance with restic; how many do is not."""
    repo = new_repo(tmp_path / "repo")
    with repo.lock() as lock:
        first = make_snapshot(repo, lock, {b"f": [b"x"]})
        for number in range(12):
            time = NOON - timedelta(hours=number // 4 * 30)
            save_snapshot(repo, lock, replace(first, id="", time=time, username=f"user {number}"))
    found = list_snapshots(repo)
    for args, policy in (
        (["--keep-last", "5"], KeepPolicy(last=5)),
        (["--keep-hourly", "2"], KeepPolicy(hourly=2)),
        (["--keep-last", "2", "--keep-daily", "2"], KeepPolicy(last=2, daily=2)),
        (["--keep-within", "1d"], KeepPolicy(within=Duration(days=1))),
    ):
        (theirs,) = _by_restic("restic", tmp_path / "repo", args).values()
        (ours,) = (g.to_json() for g in plan_forget(found, policy, group_by=["host", "paths"], now=datetime.now(UTC)))
        assert [s["time"] for s in _without_oldest(ours)["keep"]] == [s["time"] for s in theirs["keep"]], args
