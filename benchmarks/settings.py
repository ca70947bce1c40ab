"""Sizes and numbers of a run, from the environment. The defaults are the full size; BENCH_SMALL=1 takes two minutes."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path(os.environ.get("BENCH_PAGE") or ROOT / "docs" / "benchmarks.md")
SMALL = os.environ.get("BENCH_SMALL", "") not in ("", "0")
EXTENT = 64 << 10
MIB = 1 << 20


def _number(name: str, full: int, small: int) -> int:
    return int(os.environ.get(f"BENCH_{name}") or (small if SMALL else full))


ROUNDS = _number("ROUNDS", 3, 1)
TREE_ROUNDS = _number("TREE_ROUNDS", min(ROUNDS, 2), 1)  # a round over a large tree takes minutes
IMAGE_MIB = _number("IMAGE_MIB", 6144, 512)
FILES_MIB = _number("FILES_MIB", IMAGE_MIB * 3200 // 6144, 200)  # of real files in the image
RANDOM_MIB = _number("RANDOM_MIB", IMAGE_MIB * 400 // 6144, 30)
CHANGED = _number("CHANGED", 960, 80)  # scattered changes of 64 KiB
LARGE_GIB = _number("LARGE_GIB", 60, 8)  # the same data in a larger image
BLOBS = _number("BLOBS", 5_000_000, 200_000)
PRUNED = _number("PRUNED", 1_000_000, 20_000)  # blobs of 4 KiB
MESSAGES = _number("MESSAGES", 50_000, 1_000)
SMALL_FILES = _number("SMALL_FILES", 200_000, 3_000)
TREE = Path(os.environ.get("BENCH_TREE") or ("/usr/share/doc" if SMALL else "/usr"))
OTHER_RESTIC = os.environ.get("BENCH_RESTIC", "")
WORK = os.environ.get("BENCH_DIR")


def words() -> str:
    """The command that makes a run of these sizes again."""
    chosen = {
        "ROUNDS": ROUNDS, "TREE_ROUNDS": TREE_ROUNDS, "IMAGE_MIB": IMAGE_MIB, "FILES_MIB": FILES_MIB,
        "RANDOM_MIB": RANDOM_MIB, "CHANGED": CHANGED, "LARGE_GIB": LARGE_GIB, "BLOBS": BLOBS, "PRUNED": PRUNED,
        "MESSAGES": MESSAGES, "SMALL_FILES": SMALL_FILES, "TREE": TREE,
    }  # fmt: skip
    return " ".join(f"BENCH_{name}={value}" for name, value in chosen.items()) + " make bench"
