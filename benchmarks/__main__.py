"""``make bench``: BRS, its peers and two physical yardsticks over one image and its changes, a tree, and many blobs.

Writes docs/benchmarks.md, the table between its two marks. Sizes: :mod:`benchmarks.settings`.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import settings
from benchmarks.settings import PAGE
from benchmarks.table import render
from benchmarks.works import Bench

BEGIN, END = "<!-- table -->", "<!-- end of the table -->"


def write_page(bench: Bench, began: datetime, load: Sequence[float], minutes: float) -> str:
    """The table and how it was made; what stands around the two marks in the page is kept."""
    programs = " · ".join(program.version() for program in bench.programs)
    made = (
        f"`{settings.words()}`\n\n"
        f"{began:%Y-%m-%d %H:%M} UTC, {minutes:.0f} minutes · "
        f"{os.cpu_count()} cores · Python {platform.python_version()} · "
        f"{programs} · load of the machine before {load[0]:.1f}, after {os.getloadavg()[0]:.1f}\n\n"
        f"Data: {'; '.join(bench.told)}. Medians of the rounds that each row names."
    )
    before, _, rest = (PAGE.read_text() if PAGE.exists() else "").partition(BEGIN)
    after = rest.partition(END)[2]
    below = f"\n\n{bench.below}" if bench.below else ""
    table = render(bench.rows) + below
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{table}\n\n{END}{after}")
    return f"{made}\n\n{table}"


def main() -> None:
    began, load, start = datetime.now(UTC), os.getloadavg(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="brs-bench-", dir=settings.WORK) as folder:
        bench = Bench(Path(folder))
        bench.build_image()
        for work in (
            bench.first_image,
            bench.restore_image,
            bench.changed_image,
            bench.random_access,
            bench.larger_image,
            bench.tree,
            bench.mailbox,
            bench.small_files,
            bench.index,
            bench.prune,
        ):
            work()
    print(write_page(bench, began, load, (time.monotonic() - start) / 60))


if __name__ == "__main__":
    main()
