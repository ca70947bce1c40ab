"""``make bench``: BRS, restic and two physical yardsticks over one image and one tree, in turn, in one run.

Data is built from real files of this machine: BENCH_IMAGE_MIB (default 1024), BENCH_TREE (default /usr/share).
Writes docs/benchmarks.md.
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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measure import Took, median, run, stored

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
IMAGE_MIB = int(os.environ.get("BENCH_IMAGE_MIB", "1024"))
TREE = Path(os.environ.get("BENCH_TREE", "/usr/share"))
PASSWORD = {"RESTIC_PASSWORD": "benchmark", "BRS_REPOSITORY_PASSWORD": "benchmark"}


@dataclass(frozen=True, slots=True)
class Row:
    work: str
    program: str
    took: Took
    stored_bytes: int
    peer: str = ""  # the program that this one is compared with


class Bench:
    def __init__(self, work: Path) -> None:
        self.work = work
        self.env = PASSWORD | {"RESTIC_CACHE_DIR": str(work / "rc"), "BRS_CACHE_DIR": str(work / "bc")}
        self.rows: list[Row] = []
        self.image = work / "disk.raw"

    def brs(self, repo: Path, *args: str) -> list[str]:
        return [sys.executable, "-m", "node_agent", "repo", *args, "--repo", str(repo), "--quiet"]

    def restic(self, repo: Path, *args: str) -> list[str]:
        return ["restic", "-q", "-r", str(repo), *args]

    def fresh(self, program: str) -> Path:
        repo = self.work / f"repo-{program}"
        shutil.rmtree(repo, ignore_errors=True)
        make = self.brs(repo, "init") if program == "brs" else self.restic(repo, "init")
        run(make, self.env)
        return repo

    def add(self, work: str, program: str, once: Callable[[int], Took], repo: Path | None, peer: str = "") -> None:
        took = median(ROUNDS, once)
        self.rows.append(Row(work, program, took, stored(repo) if repo else 0, peer))
        print(f"{work:32} {program:8} {took.wall_s:7.2f} s  {took.cpu_s:7.2f} s CPU", flush=True)

    def build(self) -> None:
        """An ext4 image with files of the tree in two thirds of it, some random data, the rest empty."""
        files = self.work / "files"
        files.mkdir()
        budget = IMAGE_MIB * 2**20 * 6 // 10
        for path in sorted(TREE.rglob("*")):
            if path.is_file() and not path.is_symlink() and (size := path.stat().st_size) < budget:
                target = files / path.relative_to(TREE)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                budget -= size
        (files / "random.bin").write_bytes(random.Random(1).randbytes(IMAGE_MIB * 2**20 // 16))
        with self.image.open("wb") as image:
            image.truncate(IMAGE_MIB * 2**20)
        env = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(files), str(self.image)], env)
        run(["sha256sum", str(self.image)], {})  # warm for everybody

    def first_image(self) -> None:
        def brs(_n: int) -> Took:
            return run(self.brs(self.fresh("brs"), "backup-image", str(self.image)), self.env)

        def restic(_n: int) -> Took:
            return run(self.restic(self.fresh("restic"), "backup", str(self.image)), self.env)

        self.add("first backup of the image", "restic", restic, self.work / "repo-restic")
        self.add("first backup of the image", "brs", brs, self.work / "repo-brs", "restic")
        zstd = ["sh", "-c", f"zstd -1 -T0 -q -c {self.image} > /dev/null"]
        self.add("first backup of the image", "zstd -1", lambda _n: run(zstd, {}), None)
        self.add("first backup of the image", "sha256", lambda _n: run(["sha256sum", str(self.image)], {}), None)

    def changed_image(self) -> None:
        """16 MiB of scattered change, extents known to BRS and not known."""
        rng = random.Random(2)
        extents = [{"offset": rng.randrange(IMAGE_MIB * 16) * 65536, "length": 65536} for _ in range(256)]
        with self.image.open("r+b") as image:
            for extent in extents:
                image.seek(extent["offset"])
                image.write(rng.randbytes(extent["length"]))
        listing = self.work / "extents.json"
        listing.write_text(json.dumps(extents))
        brs, restic = self.work / "repo-brs", self.work / "repo-restic"
        keep = {repo: repo.with_suffix(".first") for repo in (brs, restic)}
        for repo, copy in keep.items():
            shutil.copytree(repo, copy)

        def again(repo: Path, command: list[str]) -> Callable[[int], Took]:
            def once(_n: int) -> Took:
                shutil.rmtree(repo)
                shutil.copytree(keep[repo], repo)
                return run(command, self.env)

            return once

        known = self.brs(brs, "backup-image", str(self.image), "--parent", "latest", "--changed-extents", str(listing))
        unknown = self.brs(brs, "backup-image", str(self.image), "--parent", "latest")
        restic_run = again(restic, self.restic(restic, "backup", str(self.image)))
        self.add("incremental, 16 MiB changed", "restic", restic_run, restic)
        self.add("incremental, extents known", "brs", again(brs, known), brs, "restic")
        self.add("incremental, extents unknown", "brs", again(brs, unknown), brs, "restic")

    def restore_image(self) -> None:
        def once(command: Callable[[Path], list[str]]) -> Callable[[int], Took]:
            def timed(_n: int) -> Took:
                target = self.work / "restored"
                shutil.rmtree(target, ignore_errors=True)
                return run(command(target), self.env)

            return timed

        brs, restic = self.work / "repo-brs", self.work / "repo-restic"
        self.add(
            "restore of the image",
            "restic",
            once(lambda target: self.restic(restic, "restore", "latest", "--target", str(target))),
            None,
        )
        self.add(
            "restore of the image",
            "brs",
            once(lambda target: self.brs(brs, "restore", "latest", "--target", str(target))),
            None,
            "restic",
        )

    def tree(self) -> None:
        for work, fresh in (("first backup of the tree", True), ("unchanged tree", False)):
            for program in ("restic", "brs"):
                repo = self.work / f"repo-{program}"

                def once(_n: int, program: str = program, fresh: bool = fresh, repo: Path = repo) -> Took:
                    if fresh:
                        self.fresh(program)
                    make = self.brs if program == "brs" else self.restic
                    return run(make(repo, "backup", str(TREE)), self.env)

                self.add(work, program, once, repo, "restic" if program == "brs" else "")

    def table(self) -> str:
        lines = [
            "| work | program | wall | CPU | peak memory | stored | times as fast as restic |",
            "|---|---|---|---|---|---|---|",
        ]
        peers: dict[str, float] = {}
        last = 0.0
        for row in self.rows:
            if row.program == "restic":
                peers[row.work] = last = row.took.wall_s
            ratio = f"{peers.get(row.work, last) / row.took.wall_s:.2f}" if row.peer else ""
            kept = f"{row.stored_bytes / 2**20:.0f} MiB" if row.stored_bytes else ""
            lines.append(
                f"| {row.work} | {row.program} | {row.took.wall_s:.2f} s | {row.took.cpu_s:.2f} s "
                f"| {row.took.peak_bytes / 2**20:.0f} MiB | {kept} | {ratio} |"
            )
        return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="brs-bench-") as folder:
        bench = Bench(Path(folder))
        bench.build()
        bench.first_image()
        bench.changed_image()
        bench.restore_image()
        bench.tree()
        table = bench.table()
    version = subprocess.run(["restic", "version"], capture_output=True, text=True).stdout.split(" compiled")[0]
    text = (
        "# Benchmarks\n\nMade by `make bench`: every program in turn, in one run, on the same data, page cache warm; "
        f"medians of {ROUNDS} runs.\n\n"
        f"{datetime.now(UTC):%Y-%m-%d} · {os.cpu_count()} cores · Python {platform.python_version()} · {version} · "
        f"image of {IMAGE_MIB} MiB (ext4, six tenths filled with files, one sixteenth random) · tree: {TREE}\n\n"
        f"{table}\n\n"
        "Ratios are meaningful, seconds are not: they depend on the machine. Larger data: "
        "`BENCH_IMAGE_MIB=6144 BENCH_TREE=/usr BENCH_ROUNDS=5 make bench`.\n"
    )
    (ROOT / "docs" / "benchmarks.md").write_text(text)
    print(f"\n{table}\n\nwritten to docs/benchmarks.md")


if __name__ == "__main__":
    main()
