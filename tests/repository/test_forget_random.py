"""Random histories and policies: what stock restic keeps, we keep; beyond that only the oldest, as newer restics do."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from node_agent.repository.maintenance import Duration, KeepPolicy, forget
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import save_snapshot
from tests.repository.core_world import NOON, make_snapshot, new_repo, restic

COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
SPANS = ("", "-hourly", "-daily", "-weekly", "-monthly", "-yearly")
DURATIONS = ("1h", "5h", "1d", "3d2h", "1m", "1m5d", "1y", "2y3m")


def _history(folder: Path, rng: random.Random) -> Repository:
    repo = new_repo(folder)
    with repo.lock() as lock:
        newest = make_snapshot(repo, lock, {b"f": [b"x"]})
        for _ in range(rng.choice([2, 5, 15, 40])):
            age = timedelta(seconds=rng.randrange(rng.choice([5 * 3600, 5 * 86400, 60 * 86400, 1000 * 86400])))
            save_snapshot(
                repo, lock, replace(newest, id="", time=NOON - age, tags=rng.choice([(), ("t",), ("t", "u")]))
            )
    return repo


def _policy(rng: random.Random) -> tuple[list[str], KeepPolicy]:
    options: dict[str, Any] = {"last": rng.randint(1, 3)}  # so that something always stays
    for name in COUNTS[1:]:
        if rng.random() < 0.3:
            options[name] = rng.choice([1, 2, 3, 5, 10])
    args = [word for name, count in options.items() for word in (f"--keep-{name}", str(count))]
    for span in SPANS:
        if rng.random() < 0.2:
            duration = rng.choice(DURATIONS)
            options[f"within{span.replace('-', '_')}"] = Duration.parse(duration)
            args += [f"--keep-within{span}", duration]
    if rng.random() < 0.2:
        options["tags"] = [["t", "u"]]
        args += ["--keep-tag", "t,u"]
    return args, KeepPolicy(**options)


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_are_kept_as_stock_restic_keeps_them(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    repo = _history(tmp_path / "repo", rng)
    for _ in range(6):
        args, policy = _policy(rng)
        (their,) = json.loads(restic(tmp_path / "repo", "forget", "--dry-run", "--json", *args).stdout)
        (our,) = forget(repo, policy, dry_run=True).to_json()
        only_oldest = {
            reason["snapshot"]["id"]
            for reason in our["reasons"]
            if all(match.startswith("oldest") for match in reason["matches"])
        }
        theirs = [snapshot["id"] for snapshot in their["keep"]]
        assert [s["id"] for s in our["keep"] if s["id"] not in only_oldest or s["id"] in theirs] == theirs, args
        assert len(only_oldest) <= 1
