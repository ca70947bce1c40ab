"""Random lives of a repository; hypothesis chooses the steps and finds the shortest life that goes wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.model.life import STEPS, Life
from tests.repository.core_world import quick_locks

PROJECT = Path(__file__).resolve().parents[2]
MEMORY = Path("/dev/shm")
BY_RESTIC = {name for name in STEPS if name.endswith("_by_restic")}


class RepositoryLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="brs-life-", dir=MEMORY if MEMORY.is_dir() else None))
        with quick_locks():
            self.life = Life(self.folder / "life", Random(0))

    def teardown(self) -> None:
        try:
            with quick_locks():
                self.life.judge()
        finally:
            shutil.rmtree(self.folder)


def _step(name: str) -> Callable[[RepositoryLife, int], None]:
    def step(self: RepositoryLife, chance: int) -> None:
        if name in BY_RESTIC and chance % 4:
            return  # a process of a second, for a step of hundredths
        self.life.rng.seed(chance)
        with quick_locks():
            getattr(self.life, name)()

    step.__name__ = name
    return step


for _name in STEPS:
    setattr(RepositoryLife, _name, rule(chance=st.integers(0, 1 << 32))(_step(_name)))

TestRepositoryLife = RepositoryLife.TestCase
TestRepositoryLife.settings = settings(
    max_examples=40, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_lives_of_fixed_seeds_repeat_themselves_and_end_well() -> None:
    command = [sys.executable, "-m", "tests.model", "--seed", "100", "--lives", "10"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "10 lives from seed 100, 600 steps" in done.stdout
