"""See the package: lives until the time is over; ends 1 at the first that goes wrong, with its seed and steps."""

from __future__ import annotations

import argparse
import collections
import logging
import random
import shutil
import tempfile
import time
import traceback
from pathlib import Path

from tests.model.life import STEPS, Life
from tests.repository.core_world import quick_locks

STEPS_OF_A_LIFE = 60
_MEMORY = Path("/dev/shm")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None, help="of the first life; the next has the next number")
    parser.add_argument("--lives", type=int, default=0, help="stop after so many")
    args = parser.parse_args()
    logging.disable()
    first = random.randrange(1 << 32) if args.seed is None else args.seed
    began, lives, steps = time.monotonic(), 0, 0
    taken: collections.Counter[str] = collections.Counter()
    while time.monotonic() - began < args.seconds and (not args.lives or lives < args.lives):
        done = live(first + lives, taken, deadline=began + args.seconds)
        lives, steps = lives + 1, steps + abs(done)
        if done < 0:
            return 1
    print(f"{lives} lives from seed {first}, {steps} steps in {time.monotonic() - began:.0f} s, all as they should be")
    print("  " + ", ".join(f"{name} {count}" for name, count in taken.most_common()))
    return 0


def live(seed: int, taken: collections.Counter[str], *, deadline: float = float("inf")) -> int:
    """One life. Returns the number of steps; negative if it went wrong, after telling how."""
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="brs-life-", dir=_MEMORY if _MEMORY.is_dir() else None))
    log: list[str] = []
    try:
        with quick_locks():
            life = Life(folder / "life", rng)
            while len(log) < STEPS_OF_A_LIFE and time.monotonic() < deadline:
                name = rng.choices(list(STEPS), list(STEPS.values()))[0]
                log.append(name)
                taken[name] += 1
                getattr(life, name)()
            life.judge()
    except Exception:  # noqa: BLE001 - whatever it is, it is a finding
        print(f"seed {seed} went wrong at step {len(log)}: {' '.join(log)}")
        traceback.print_exc()
        return -len(log)
    finally:
        shutil.rmtree(folder)
    return len(log)


if __name__ == "__main__":
    raise SystemExit(main())
