"""Rows, what is asked of them, and whether it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.measure import Took

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Asked:
    """Of a row of ours: at least so many times as fast as a program, at most so many times another row or amount."""

    faster: dict[str, float] = field(default_factory=dict)  # program → times
    within: dict[tuple[str, str], float] = field(default_factory=dict)  # (work, program) → times its wall clock
    stored: float = 0  # times what restic stores, at most
    seconds: float = 0
    peak_mib: float = 400
    peak_like: tuple[str, str, float] | None = None  # (work, program, share by which the memory may differ)


@dataclass(frozen=True, slots=True)
class Row:
    work: str
    program: str
    took: Took
    rounds: int
    stored_bytes: int = 0
    peers_of: str = ""  # the work whose peers this is compared with
    asked: Asked | None = None


def render(rows: Sequence[Row]) -> str:
    lines = [
        "| work | program | rounds | wall | CPU | peak memory | stored | × restic | × borg | at least | holds |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|---|",
    ]
    by_name = {(row.work, row.program): row for row in rows}
    for row in rows:
        took = row.took
        ratios = [_ratio(by_name.get((row.peers_of, peer)), row) if row.peers_of else "" for peer in ("restic", "borg")]
        said, failed = _judge(row, by_name)
        holds = "" if row.asked is None else f"no: {'; '.join(failed)}" if failed else "yes"
        lines.append(
            f"| {row.work} | {row.program} | {row.rounds} | {took.wall_s:.2f} s | {took.cpu_s:.2f} s "
            f"| {took.peak_bytes / MIB:.0f} MiB | {f'{row.stored_bytes / MIB:.0f} MiB' if row.stored_bytes else ''} "
            f"| {' | '.join(ratios)} | {', '.join(said)} | {holds} |"
        )
    return "\n".join(lines)


def _ratio(peer: Row | None, row: Row) -> str:
    return f"{peer.took.wall_s / row.took.wall_s:.2f}" if peer is not None else ""


def _judge(row: Row, rows: dict[tuple[str, str], Row]) -> tuple[list[str], list[str]]:
    """What is asked in words, and what of it does not hold."""
    asked = row.asked
    if asked is None:
        return [], []
    judged: list[tuple[str, float, bool]] = []
    for program, times in asked.faster.items():
        if (peer := rows.get((row.peers_of, program))) is not None:
            ratio = peer.took.wall_s / row.took.wall_s
            judged.append((f"{times:g}× {program}", ratio, ratio >= times))
    for (work, program), times in asked.within.items():
        if (peer := rows.get((work, program))) is not None:
            ratio = row.took.wall_s / peer.took.wall_s
            judged.append((f"within {times:g}× {program if program != 'brs' else work}", ratio, ratio <= times))
    restic = rows.get((row.peers_of, "restic"))
    if asked.stored and restic is not None:
        ratio = row.stored_bytes / restic.stored_bytes
        judged.append((f"stored ≤ {asked.stored:g}× restic", ratio, ratio <= asked.stored))
    if asked.seconds:
        judged.append((f"≤ {asked.seconds:g} s", row.took.wall_s, row.took.wall_s <= asked.seconds))
    peak = row.took.peak_bytes / MIB
    judged.append((f"≤ {asked.peak_mib:g} MiB", peak, peak <= asked.peak_mib))
    if asked.peak_like is not None and (like := rows.get(asked.peak_like[:2])) is not None:
        ratio, share = row.took.peak_bytes / like.took.peak_bytes, asked.peak_like[2]
        judged.append((f"memory ±{share:.0%} of that of {like.work}", ratio, abs(ratio - 1) <= share))
    return [words for words, _, _ in judged], [f"{words} is {value:.2f}" for words, value, good in judged if not good]
