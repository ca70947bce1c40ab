"""Runs one command as a whole process and says what it took."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Took:
    wall_s: float
    cpu_s: float
    peak_bytes: int


def run(
    command: Sequence[str], env: dict[str, str], expect: Sequence[int] = (0,), *, says_seconds: bool = False
) -> Took:
    """One run; its own children's CPU and the peak memory of the process. Fails loudly, with the output.

    ``says_seconds``: the program measures the part of it that counts, and prints how long that took.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, env=os.environ | env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in expect:
            output.seek(0)
            words = output.read(10_000).decode(errors="replace")
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{words}")
        if says_seconds:
            output.seek(0)
            wall = float(output.read().split()[-1])
    return Took(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def median(rounds: int, once: Callable[[int], Took]) -> Took:
    """Medians of each figure over ``rounds`` runs."""
    runs = [once(number) for number in range(rounds)]
    return Took(
        statistics.median(r.wall_s for r in runs),
        statistics.median(r.cpu_s for r in runs),
        int(statistics.median(r.peak_bytes for r in runs)),
    )


def stored(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
