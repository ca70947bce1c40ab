"""See the package. Ends 1 at the first finding, after it was printed with what repeats it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from tests.fuzz.mutate import mutate

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

MEMORY = 3 << 30  # of addresses, which is more than what is used
HANG_S = 20


class Hang(BaseException):
    """No Exception, so that nobody on the way catches it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--executions", type=int, default=0, help="stop after so many instead")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", metavar="TARGET", action="append", default=[])
    parser.add_argument("--atheris", metavar="TARGET", help="guided by coverage, if it is installed")
    parser.add_argument("--all", action="store_true", help="go on after a finding")
    args = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory(prefix="brs-fuzz-") as folder:
        if args.atheris:
            _run_guided(args.atheris, args.seconds, Path(folder))
        from tests.fuzz.targets import make_targets

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.signal(signal.SIGALRM, _hang)
        targets = make_targets(Path(folder))
        return _run({name: targets[name] for name in args.only or targets}, args)


def _run_guided(name: str, seconds: float, folder: Path) -> NoReturn:
    """libFuzzer has its own limits of memory and time, and ends the process itself."""
    import atheris  # optional: pip install atheris

    with atheris.instrument_imports(include=["node_agent"]):
        from tests.fuzz.targets import make_targets
    target = make_targets(folder)[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(content)

    def once(data: bytes) -> None:
        with contextlib.suppress(*target.allowed):
            target.run(data)

    limits = [f"-max_total_time={seconds:.0f}", "-timeout=20", "-max_len=20000", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={tempfile.gettempdir()}/", str(corpus)], once)
    atheris.Fuzz()
    raise SystemExit(0)


def _run(targets: dict[str, Target], args: argparse.Namespace) -> int:
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    rng = random.Random(seed)
    counts = dict.fromkeys(targets, 0)
    findings = 0
    began = time.monotonic()
    try:
        for name, target in targets.items():
            for content in target.seeds:  # as they are, first
                findings += _one(name, target, content, seed)
        while not findings or args.all:
            total = sum(counts.values())
            if args.executions and total >= args.executions:
                break
            if not args.executions and time.monotonic() - began >= args.seconds:
                break
            name = rng.choices(list(targets), [target.weight for target in targets.values()])[0]
            counts[name] += 1
            findings += _one(name, targets[name], mutate(rng, rng.choice(targets[name].seeds)), seed)
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(f"seed {seed}: {sum(counts.values())} executions of {len(targets)} targets", end="")
        print(f" in {time.monotonic() - began:.0f} s, {findings} findings, peak {peak} MiB")
        print("  " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return 1 if findings else 0


def _one(name: str, target: Target, content: bytes, seed: int) -> int:
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        target.run(content)
    except target.allowed:
        return 0
    except (Exception, Hang):  # noqa: BLE001 - whatever it is, it is a finding
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(f"FINDING in {name} (seed {seed}), {len(content)} bytes: {content[:2000]!r}", file=sys.stderr)
        traceback.print_exc()
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


def _hang(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Hang(f"no answer within {HANG_S} s")


if __name__ == "__main__":
    raise SystemExit(main())
