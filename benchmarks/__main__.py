"""``make bench``: BRS, its peers and two physical yardsticks over one image and one tree, in turn, in one run.

Data is built from real files of this machine. Sizes: BENCH_IMAGE_MIB (default 1024), BENCH_TREE (/usr/share),
BENCH_CHANGED (scattered changes of 64 KiB, 256), BENCH_BLOBS (an index of so many, 500000), BENCH_ROUNDS (3), and
BENCH_DIR for where all of it is put. Writes docs/benchmarks.md, the table between its two marks.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measure import Took, median, run, stored
from benchmarks.programs import Brs, Program, installed

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
IMAGE_MIB = int(os.environ.get("BENCH_IMAGE_MIB", "1024"))
CHANGED = int(os.environ.get("BENCH_CHANGED", "256"))
BLOBS = int(os.environ.get("BENCH_BLOBS", "500000"))
TREE = Path(os.environ.get("BENCH_TREE", "/usr/share"))
EXTENT = 64 << 10


@dataclass(frozen=True, slots=True)
class Row:
    work: str
    program: str
    took: Took
    stored_bytes: int
    peers_of: str = ""  # the work whose peers this is compared with; none if empty


class Bench:
    def __init__(self, work: Path) -> None:
        self.work = work
        self.programs = installed(work)
        self.brs = next(program for program in self.programs if isinstance(program, Brs))
        self.rows: list[Row] = []
        self.image = work / "disk.raw"

    def repo(self, program: Program) -> Path:
        return self.work / f"repo-{program.name}"

    def fresh(self, program: Program) -> Path:
        repo = self.repo(program)
        shutil.rmtree(repo, ignore_errors=True)
        run(program.init(repo), program.env)
        return repo

    def add(
        self, work: str, program: str, once: Callable[[int], Took], repo: Path | None = None, peers_of: str = ""
    ) -> None:
        took = median(ROUNDS, once)
        self.rows.append(Row(work, program, took, stored(repo) if repo else 0, peers_of))
        print(f"{work:32} {program:8} {took.wall_s:7.2f} s  {took.cpu_s:7.2f} s CPU", flush=True)

    def build(self) -> None:
        """An ext4 image with files of the tree in six tenths of it, some random data, the rest empty."""
        files = self.work / "files"
        files.mkdir()
        budget = IMAGE_MIB * 2**20 * 6 // 10
        for path in sorted(TREE.rglob("*")):
            if path.is_file() and not path.is_symlink() and (size := path.stat().st_size) < budget:
                target = files / path.relative_to(TREE)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                budget -= size
        rng = random.Random(1)
        with (files / "random.bin").open("wb") as file:
            for _ in range(IMAGE_MIB // 16):
                file.write(rng.randbytes(2**20))  # in pieces: the kernel counts this process's peak to its children's
        with self.image.open("wb") as image:
            image.truncate(IMAGE_MIB * 2**20)
        env = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(files), str(self.image)], env)
        shutil.rmtree(files)

    def warm(self) -> None:
        """Nobody is to be measured by the disk: the system may drop pages between two programs."""
        run(["sh", "-c", f"cat {self.image} > /dev/null"], {})

    def first_image(self) -> None:
        work = "first backup of the image"
        for program in self.programs:

            def once(_n: int, program: Program = program) -> Took:
                repo = self.fresh(program)
                self.warm()
                return run(program.backup_image(repo, self.image), program.env)

            self.add(work, program.name, once, self.repo(program), work if program is self.brs else "")
        zstd = ["sh", "-c", f"zstd -1 -T0 -q -c {self.image} > /dev/null"]
        for name, command in (("zstd -1", zstd), ("sha256", ["sha256sum", str(self.image)])):

            def yardstick(_n: int, command: Sequence[str] = command) -> Took:
                self.warm()
                return run(command, {})

            self.add(work, name, yardstick)

    def changed_image(self) -> None:
        """Scattered change, its extents known to BRS and not known; from a cold start and in a running node."""
        rng = random.Random(2)
        extents = [{"offset": rng.randrange(IMAGE_MIB * 16) * EXTENT, "length": EXTENT} for _ in range(CHANGED)]
        with self.image.open("r+b") as image:
            for extent in extents:
                image.seek(extent["offset"])
                image.write(rng.randbytes(extent["length"]))
        listing = self.work / "extents.json"
        listing.write_text(json.dumps(extents))
        keep = {program.name: self.work / f"first-{program.name}" for program in self.programs}
        for program in self.programs:
            shutil.copytree(self.repo(program), keep[program.name])

        def again(program: Program, command: Sequence[str], *, says_seconds: bool = False) -> Callable[[int], Took]:
            def once(_n: int) -> Took:
                shutil.rmtree(self.repo(program))
                shutil.copytree(keep[program.name], self.repo(program))
                self.warm()
                return run(command, program.env, says_seconds=says_seconds)

            return once

        work = f"incremental, {CHANGED * EXTENT >> 20} MiB changed"
        for program in self.programs[:-1]:
            command = program.backup_image(self.repo(program), self.image)
            self.add(work, program.name, again(program, command), self.repo(program))
        repo = self.repo(self.brs)
        unknown = [*self.brs.backup_image(repo, self.image), "--parent", "latest"]
        known = [*unknown, "--changed-extents", str(listing)]
        in_node = [sys.executable, "-m", "benchmarks.in_node", str(repo), str(self.image), str(listing)]
        self.add("… extents unknown", "brs", again(self.brs, unknown), repo, work)
        self.add("… extents known, cold start", "brs", again(self.brs, known), repo, work)
        self.add("… extents known, running node", "brs", again(self.brs, in_node, says_seconds=True), repo, work)

    def restore(self, work: str) -> None:
        """Of whatever is in the repositories."""
        for program in self.programs:

            def once(_n: int, program: Program = program) -> Took:
                target = self.work / "restored"
                shutil.rmtree(target, ignore_errors=True)
                os.sync()
                return run(program.restore(self.repo(program), target), program.env)

            self.add(work, program.name, once, None, work if program is self.brs else "")
        shutil.rmtree(self.work / "restored")

    def tree(self) -> None:
        for work, fresh in (("first backup of the tree", True), ("unchanged tree", False)):
            for program in self.programs:

                def once(_n: int, program: Program = program, fresh: bool = fresh) -> Took:
                    if fresh:
                        self.fresh(program)
                        # GNU tar does not read what goes to /dev/null, but cat does.
                        run(["sh", "-c", f"tar cf - {TREE} 2>/dev/null | cat > /dev/null"], {})
                    return run(program.backup_tree(self.repo(program), TREE), program.env)

                self.add(work, program.name, once, self.repo(program), work if program is self.brs else "")

    def many_blobs(self) -> None:
        repo = self.fresh(self.brs)
        command = [sys.executable, "-m", "benchmarks.many_blobs"]
        run([*command, "build", str(repo), str(BLOBS)], self.brs.env)
        cache = Path(self.brs.env["BRS_CACHE_DIR"])

        def load(_n: int) -> Took:
            shutil.rmtree(cache, ignore_errors=True)
            return run([*command, "load", str(repo), str(BLOBS)], self.brs.env)

        self.add(f"index of {BLOBS:,} blobs, first load", "brs", load)
        ask = [*command, "ask", str(repo), str(BLOBS)]
        self.add("… then 131,072 random ids", "brs", lambda _n: run(ask, self.brs.env))

    def table(self) -> str:
        lines = [
            "| work | program | wall | CPU | peak memory | stored | × restic | × borg |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
        ]
        walls = {(row.work, row.program): row.took.wall_s for row in self.rows}
        for row in self.rows:
            ratios = [
                f"{peer / row.took.wall_s:.2f}" if (peer := walls.get((row.peers_of, name))) else ""
                for name in ("restic", "borg")
            ]
            kept = f"{row.stored_bytes / 2**20:.0f} MiB" if row.stored_bytes else ""
            lines.append(
                f"| {row.work} | {row.program} | {row.took.wall_s:.2f} s | {row.took.cpu_s:.2f} s "
                f"| {row.took.peak_bytes / 2**20:.0f} MiB | {kept} | {' | '.join(ratios)} |"
            )
        return "\n".join(lines)


def write_page(bench: Bench, began: datetime, load: Sequence[float]) -> None:
    """The table and how it was made; what stands around the two marks in the page is kept."""
    sizes = f"BENCH_IMAGE_MIB={IMAGE_MIB} BENCH_TREE={TREE} BENCH_CHANGED={CHANGED} BENCH_BLOBS={BLOBS}"
    made = (
        f"`{sizes} BENCH_ROUNDS={ROUNDS} make bench`\n\n"
        f"{began:%Y-%m-%d %H:%M} UTC · {os.cpu_count()} cores · Python {platform.python_version()} · "
        + " · ".join(program.version() for program in bench.programs)
        + f" · medians of {ROUNDS} · load of the machine before {load[0]:.1f}, after {os.getloadavg()[0]:.1f}"
    )
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{bench.table()}\n\n{END}{after}")


def main() -> None:
    began, load = datetime.now(UTC), os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="brs-bench-", dir=os.environ.get("BENCH_DIR")) as folder:
        bench = Bench(Path(folder))
        bench.build()
        bench.first_image()
        bench.changed_image()
        bench.restore("restore of the image")
        bench.tree()
        bench.restore("restore of the tree")
        bench.many_blobs()
    write_page(bench, began, load)
    subprocess.run(["cat", str(PAGE)], check=True)


if __name__ == "__main__":
    main()
