"""Runs one command as a whole process and says what it took, its children included."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LOOK_S = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Took:
    wall_s: float
    cpu_s: float
    peak_bytes: int  # resident, of the process and all below it together


def run(
    command: Sequence[str], env: dict[str, str], expect: Sequence[int] = (0,), *, says_seconds: bool = False
) -> Took:
    """One run. Fails loudly, with the output.

    ``says_seconds``: the program measures the part of it that counts, and prints how long that took.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, env=os.environ | env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        with _Watch(process.pid) as watch:
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
    return Took(wall, usage.ru_utime + usage.ru_stime, watch.peak_bytes)


def median(runs: Sequence[Took]) -> Took:
    """Medians of each figure."""
    return Took(
        statistics.median(r.wall_s for r in runs),
        statistics.median(r.cpu_s for r in runs),
        int(statistics.median(r.peak_bytes for r in runs)),
    )


class _Watch:
    """Looks twenty times a second how much memory a process and its descendants have.

    The kernel's own peak (ru_maxrss) is of one process only, and counts what that was before it became the program.
    """

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident, _family(self._pid))))
            if self._done.wait(_LOOK_S):
                return


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                found += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
        except OSError:
            continue  # it ended
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def stored(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
