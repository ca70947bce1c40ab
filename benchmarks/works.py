"""The works that are measured. Within each round every program does the same work once, in turn."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import data, settings
from benchmarks.measure import Took, median, run, stored
from benchmarks.programs import Brs, Program, installed
from benchmarks.table import Asked, Row

FIRST = "first backup of the image"
KNOWN = "… extents known, cold start"
KNOWN_MIB = "… extents known, cold start, blocks of 1 MiB"
_MIB = ["--block-size", "1M"]  # as a disk of 1 TiB has them


@dataclass(slots=True)
class Case:
    """One program's share of a work. ``prepare`` runs before each round and is not measured."""

    work: str
    program: str
    command: Sequence[str]
    env: dict[str, str]
    prepare: Callable[[], object] = lambda: None
    repo: Path | None = None  # whose size is told
    peers_of: str = ""
    asked: Asked | None = None
    says_seconds: bool = False


class Bench:
    def __init__(self, work: Path) -> None:
        self.work = work
        self.programs = installed(work, settings.OTHER_RESTIC)
        self.brs = next(program for program in self.programs if isinstance(program, Brs))
        self.rows: list[Row] = []
        self.told: list[str] = []  # what the data took
        self.below = ""  # what stands below the table
        self.image = work / "disk.raw"
        self.larger = work / "larger" / "disk.raw"
        self.listing = work / "extents.json"

    def measure(self, cases: Sequence[Case], rounds: int) -> None:
        runs: dict[int, list[Took]] = {number: [] for number in range(len(cases))}
        for _ in range(rounds):
            for number, case in enumerate(cases):
                case.prepare()
                runs[number].append(run(case.command, case.env, says_seconds=case.says_seconds))
        for number, case in enumerate(cases):
            took, size = median(runs[number]), stored(case.repo) if case.repo else 0
            self.rows.append(Row(case.work, case.program, took, rounds, size, case.peers_of, case.asked))
            print(
                f"{case.work:44} {case.program:13} {took.wall_s:7.2f} s {took.cpu_s:7.2f} s CPU "
                f"{took.peak_bytes >> 20:5} MiB",
                flush=True,
            )

    def repo(self, program: Program, topic: str = "repo") -> Path:
        return self.work / f"{topic}-{program.name.replace(' ', '-')}"

    def fresh(self, program: Program) -> None:
        self.clear("repo", program)
        run(program.init(self.repo(program)), program.env)

    def clear(self, topic: str, *programs: Program) -> None:
        for program in programs or self.programs:
            shutil.rmtree(self.repo(program, topic), ignore_errors=True)

    def each(
        self,
        work: str,
        command: Callable[[Program], Sequence[str]],
        prepare: Callable[[Program], object],
        asked: Asked,
        *,
        sized: bool = True,
        programs: Sequence[Program] = (),
    ) -> list[Case]:
        return [
            Case(
                work,
                program.name,
                command(program),
                program.env,
                lambda program=program: prepare(program),  # type: ignore[misc]
                self.repo(program) if sized else None,
                work if program is self.brs else "",
                asked if program is self.brs else None,
            )
            for program in programs or self.programs
        ]

    # --- the image ---

    def build_image(self) -> None:
        self.told.append(data.build_image(self.work, self.image))
        self.larger.parent.mkdir()

    def first_image(self) -> None:
        def prepare(program: Program) -> None:
            self.fresh(program)
            _warm(self.image)

        asked = Asked({"restic": 2.4, "borg": 2}, {(FIRST, "zstd -1"): 1.3}, stored=1.05)
        cases = self.each(FIRST, lambda p: p.backup_image(self.repo(p), self.image), prepare, asked)
        zstd = ["sh", "-c", f"zstd -1 -T0 -q -c {self.image} > /dev/null"]
        for name, command in (("zstd -1", zstd), ("sha256", ["sha256sum", str(self.image)])):
            cases.append(Case(FIRST, name, command, {}, lambda: _warm(self.image)))
        self.measure(cases, settings.ROUNDS)
        for program in self.programs:
            shutil.copytree(self.repo(program), self.repo(program, "first"))
            shutil.copytree(program.memory, self._memory(program))

    def restore_image(self) -> None:
        asked = Asked({"restic": 3, "borg": 4, "restic (new)": 2})
        self._restore("restore of the image", asked, settings.ROUNDS)

    def changed_image(self) -> None:
        large = self._in_large_blocks()
        data.change(self.image, self.listing)
        work = f"incremental, {settings.CHANGED} scattered changes of 64 KiB"
        cases = self.each(
            work,
            lambda p: p.backup_image(self.repo(p), self.image),
            self._as_it_was,
            Asked(),
            programs=self.programs[:-1],
        )
        repo, brs = self.repo(self.brs), self.brs
        unknown = [*brs.backup_image(repo, self.image), "--parent", "latest"]
        known = [*unknown, "--changed-extents", str(self.listing)]
        in_node = [sys.executable, "-m", "benchmarks.in_node", str(repo), str(self.image), str(self.listing)]
        for name, command, asked in (
            ("… extents unknown", unknown, Asked({"restic": 2.5, "borg": 1.7})),
            (KNOWN, known, Asked({"restic": 10})),
            ("… extents known, running node", in_node, Asked({"restic": 25})),
        ):
            says = command is in_node
            cases.append(
                Case(name, "brs", command, brs.env, lambda: self._as_it_was(brs), repo, work, asked, says_seconds=says)
            )
        self.measure([*cases, large], settings.ROUNDS)
        self.clear("first")
        self.clear("large")
        self.clear("large-first")

    def _in_large_blocks(self) -> Case:
        """The increment that is to be compared with that of a disk of 1 TiB; to be called before the change."""
        brs, repo, first = self.brs, self.repo(self.brs, "large"), self.repo(self.brs, "large-first")
        run(brs.init(repo), brs.env)
        run([*brs.backup_image(repo, self.image), *_MIB], brs.env)
        shutil.copytree(repo, first)

        def prepare() -> None:
            self.clear("large", brs)
            shutil.copytree(first, repo)
            _warm(self.image)

        known = [*brs.backup_image(repo, self.image), "--parent", "latest", "--changed-extents", str(self.listing)]
        return Case(KNOWN_MIB, brs.name, [*known, *_MIB], brs.env, prepare, repo)

    def _memory(self, program: Program) -> Path:
        return self.repo(program, "memory")

    def _as_it_was(self, program: Program) -> None:
        """Repository and memory alike: borg refuses a repository that is older than what it remembers."""
        self.clear("repo", program)
        shutil.copytree(self.repo(program, "first"), self.repo(program))
        shutil.rmtree(program.memory)
        shutil.copytree(self._memory(program), program.memory)
        _warm(self.image)

    def larger_image(self) -> None:
        """The same data and the same change in sparse images of other sizes."""
        brs, repo = self.brs, self.repo(self.brs)
        data.enlarge(self.image, self.larger, settings.LARGE_GIB << 30)

        def prepare() -> None:
            self.fresh(brs)
            _warm(self.image)

        asked = Asked(peak_like=(FIRST, "brs", 0.1))
        name = f"first backup, the same data in {settings.LARGE_GIB} GiB"
        command = brs.backup_image(repo, self.larger)
        self.measure([Case(name, "brs", command, brs.env, prepare, repo, "", asked)], 1)
        with self.larger.open("r+b") as file:
            file.truncate(1 << 40)
        self.fresh(brs)
        run(brs.backup_image(repo, self.larger), brs.env)
        shutil.copytree(repo, self.repo(brs, "first"))
        data.change(self.larger, self.listing, seed=5)

        def again() -> None:
            self.clear("repo", brs)
            shutil.copytree(self.repo(brs, "first"), repo)

        known = [*brs.backup_image(repo, self.larger), "--parent", "latest", "--changed-extents", str(self.listing)]
        asked = Asked(within={(KNOWN_MIB, "brs"): 2})
        self.measure(
            [Case("… the same in a sparse image of 1 TiB", "brs", known, brs.env, again, repo, "", asked)],
            settings.ROUNDS,
        )
        self.clear("first")
        self.clear("repo")
        shutil.rmtree(self.larger.parent)

    # --- trees ---

    def tree(self) -> None:
        self.told.append(data.count_tree(settings.TREE))
        self._trees("the tree", settings.TREE, Asked({"restic": 1.2, "borg": 1.2}), settings.TREE_ROUNDS)

        def ready(_: Program) -> None:
            return

        asked = Asked({"restic": 1.3, "borg": 1.5})
        command = self._back_up(settings.TREE)
        self.measure(self.each("unchanged tree", command, ready, asked), settings.ROUNDS)
        self._restore("restore of the tree", Asked({"restic": 1.2, "borg": 3}), settings.TREE_ROUNDS)
        self.clear("repo")

    def mailbox(self) -> None:
        folder = self.work / "mailbox"
        data.build_mailbox(folder)
        self._trees(f"a mailbox of {settings.MESSAGES:,} messages", folder, Asked({"restic": 1.2, "borg": 1.2}), 1)
        shutil.rmtree(folder)

    def small_files(self) -> None:
        folder = self.work / "small"
        data.build_small_files(folder)
        self._trees(f"{settings.SMALL_FILES:,} small files", folder, Asked({"restic": 1.2, "borg": 1.2}), 1)
        shutil.rmtree(folder)
        self.clear("repo")

    def _trees(self, what: str, folder: Path, asked: Asked, rounds: int) -> None:
        def prepare(program: Program) -> None:
            self.fresh(program)
            # GNU tar does not read what goes to /dev/null, but cat does.
            run(["sh", "-c", f"tar cf - {folder} 2>/dev/null | cat > /dev/null"], {})

        self.measure(self.each(f"first backup of {what}", self._back_up(folder), prepare, asked), rounds)

    def _back_up(self, folder: Path) -> Callable[[Program], Sequence[str]]:
        return lambda program: program.backup_tree(self.repo(program), folder)

    def _restore(self, work: str, asked: Asked, rounds: int) -> None:
        """Of whatever is in the repositories, each time into a new folder; all are deleted at the end.

        For minutes after many files were deleted, making one can cost several times as much (see docs/engine.md):
        else each program would pay for what the one before it had restored.
        """
        target, done = self.work / "restored", self.work / "restored-before"
        done.mkdir()

        def prepare(_: Program) -> None:
            if target.exists():
                target.rename(done / str(len(os.listdir(done))))
            os.sync()

        self.measure(self.each(work, lambda p: p.restore(self.repo(p), target), prepare, asked, sized=False), rounds)
        shutil.rmtree(target)
        shutil.rmtree(done)

    # --- many blobs, random access ---

    def index(self) -> None:
        repo, command = self.repo(self.brs), [sys.executable, "-m", "benchmarks.many_blobs"]
        self.fresh(self.brs)
        run([*command, "build", str(repo), str(settings.BLOBS)], self.brs.env)
        cache = Path(self.brs.env["BRS_CACHE_DIR"])

        def forget() -> None:
            shutil.rmtree(cache, ignore_errors=True)

        load, ask = ([*command, work, str(repo), str(settings.BLOBS)] for work in ("load", "ask"))
        name = f"index of {settings.BLOBS:,} blobs, first load"
        asked = Asked(seconds=120, peak_mib=200)
        self.measure([Case(name, "brs", load, self.brs.env, forget, asked=asked)], 1)
        case = Case("… then 131,072 random ids, cold start", "brs", ask, self.brs.env, asked=replace(asked, seconds=2))
        self.measure([case], settings.ROUNDS)
        self.clear("repo")
        forget()

    def prune(self) -> None:
        first = self.repo(self.brs, "first")
        run(self.brs.init(first), self.brs.env)
        run([sys.executable, "-m", "benchmarks.many_blobs", "waste", str(first), str(settings.PRUNED)], self.brs.env)
        programs = [program for program in self.programs if program.name != "borg"]

        def prepare(program: Program) -> None:
            self.clear("repo")  # one at a time: they are large
            shutil.copytree(first, self.repo(program))
            os.sync()

        name = f"prune of {settings.PRUNED:,} blobs of 4 KiB, a tenth unused"
        asked = Asked({"restic": 1}, peak_mib=500)
        command: Callable[[Program], Sequence[str]] = lambda program: program.prune(self.repo(program))  # noqa: E731
        self.measure(self.each(name, command, prepare, asked, sized=False, programs=programs), 1)
        self.clear("repo")
        self.clear("first")

    def random_access(self) -> None:
        """Of the image, while it is in the repository. Rates, so a table of its own below the other."""
        command = [sys.executable, "-m", "benchmarks.random_access", str(self.repo(self.brs))]
        said = subprocess.run(command, env=os.environ | self.brs.env, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(said.stdout)
        lines = ["| random-access reader | figure | at least | holds |", "|---|---:|---:|---|"]
        for name, key, least in (
            ("sequential, MB/s", "sequential_mb_s", 600),
            ("4 KiB from the cache, reads/s", "warm_reads_s", 20_000),
            ("4 KiB of another block each, reads/s", "cold_reads_s", 50),
        ):
            lines.append(f"| {name} | {found[key]:,} | {least:,} | {'yes' if found[key] >= least else 'no'} |")
        self.below = "\n".join(lines)


def _warm(path: Path) -> None:
    """Nobody is to be measured by the disk: the system may drop pages between two programs."""
    run(["sh", "-c", f"cat {path} > /dev/null"], {})
