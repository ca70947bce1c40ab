"""Each class of damage, held against the table that docs/format.md shows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.flips.__main__ import PAGE
from tests.flips.classes import BEGIN, CLASSES, END, HARMLESS, HARMS, Class, as_markdown
from tests.flips.judge import (
    EITHER,
    ERROR,
    LEFT_OUT,
    UNSEEN,
    Checked,
    Hurt,
    Restored,
    check_by_restic,
    check_by_us,
    restore_all,
)
from tests.flips.world import World, make_world
from tests.repository.core_world import JUDGES, quick_locks

MEMORY = Path("/dev/shm")


@dataclass
class Bench:
    pristine: World
    hurt: World
    target: Path


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    base = Path(tempfile.mkdtemp(prefix="brs-flips-", dir=MEMORY if MEMORY.is_dir() else None))
    (base / "pristine").mkdir()
    with quick_locks():
        pristine = make_world(base / "pristine")
        yield Bench(pristine, pristine.copy(base / "hurt"), base / "target")
    shutil.rmtree(base)


def test_the_table_in_the_documentation_is_this_one() -> None:
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == as_markdown().strip(), "run python -m tests.flips"


def test_only_what_no_program_reads_may_go_unseen() -> None:
    assert {row.name for row in CLASSES if row.full == UNSEEN} == HARMLESS
    assert len({row.name for row in CLASSES}) == len(CLASSES)


def test_every_class_of_bytes_of_this_repository_is_in_the_table(bench: Bench) -> None:
    named = {row.place for row in CLASSES}
    assert set(bench.pristine.places) <= named, "a place without a class"
    assert set(bench.pristine.replays) <= {row.place for row in CLASSES if row.harm == "put back"}


@pytest.mark.parametrize("row", CLASSES, ids=lambda row: row.name)
def test_it_is_judged_as_the_table_says(bench: Bench, row: Class) -> None:
    mutations = list(HARMS[row.harm](bench.hurt, row.place))
    assert mutations
    for number, mutation in enumerate(mutations):
        for full, expected in ((False, row.quick), (True, row.full)):
            with Hurt(bench.hurt, bench.pristine, mutation) as world:
                found = check_by_us(world, mutation, read_data=full)
                assert found.verdict == expected, f"check, read_data={full}, mutation {number}"
        with Hurt(bench.hurt, bench.pristine, mutation) as world:
            restored = restore_all(world, bench.target)
            assert restored.verdict == row.restored, f"restore, mutation {number}"
            _must_be_attributed(found, restored)
            if number == len(mutations) // 2 and len(JUDGES) == 1:
                assert check_by_restic(world, read_data=False) in _allowed(row.restic_quick)
                if row.restic_quick == ERROR:  # the longer check does the same first, and waits long for packs
                    assert row.restic_full == ERROR
                    continue
                assert check_by_restic(world, read_data=True) in _allowed(row.restic_full)


def _allowed(verdict: str) -> tuple[str, ...]:
    return (ERROR, UNSEEN) if verdict == EITHER else (verdict,)


def _must_be_attributed(found: Checked, restored: Restored) -> None:
    """Who lost what in a restore is who the full check says: the same snapshots, and of the first the same files."""
    if restored.verdict != LEFT_OUT or found.report is None:
        return
    assert found.verdict == ERROR
    hurt = {snapshot for problem in found.report.errors for snapshot in problem.snapshots}
    assert hurt == set(restored.hurt)
    for problem in found.report.errors:
        if problem.snapshots:
            assert problem.paths, problem.message
            lost = restored.hurt[problem.snapshots[0]]
            assert all(any(name == p or name.startswith(f"{p.rstrip('/')}/") for name in lost) for p in problem.paths)
