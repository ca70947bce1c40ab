"""What a run of ``make bench-kvm`` measured, and whether what is asked holds."""

from __future__ import annotations

import statistics
from collections import defaultdict

MIB = 1 << 20
FIRST, RESTORE, NOISE, NOTHING = "first backup", "restore", "incompressible", "nothing has changed"
OURS, PEER, TUNNEL = "brs", "virtnbdbackup", "the tunnel alone"
CHANGED_MIB = 50
INCREMENT_S = 2.0  # beside the time that the data take
SHARE = 0.7


class Figures:
    def __init__(self) -> None:
        self._took: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._stored: dict[str, list[int]] = defaultdict(list)

    def took(self, work: str, program: str, seconds: float) -> None:
        self._took[work, program].append(seconds)
        print(f"{work}, {program}: {seconds:.2f} s", flush=True)

    def stored(self, program: str, size: int) -> None:
        self._stored[program].append(size)

    def render(self, random_mib: int) -> str:
        lines = ["| work | program | rounds | each round | median | asked | holds |", "|---|---|---:|---|---:|---|---|"]
        for (work, program), runs in self._took.items():
            asked, holds = self._judge(work, random_mib) if program == OURS else ("", "")
            each = ", ".join(f"{seconds:.2f}" for seconds in runs)
            middle = statistics.median(runs)
            rate = f" ({random_mib / middle:.0f} MiB/s)" if work == NOISE else ""
            lines.append(f"| {work} | {program} | {len(runs)} | {each} | {middle:.2f} s{rate} | {asked} | {holds} |")
        kept = ", ".join(f"{name} {statistics.median(sizes) / MIB:.0f} MiB" for name, sizes in self._stored.items())
        return "\n".join(lines) + f"\n\nStored for both points: {kept}."

    def _judge(self, work: str, random_mib: int) -> tuple[str, str]:
        """What is asked in words, and whether it holds: the figure."""
        ours = self._median(work, OURS)
        if work in (FIRST, RESTORE):
            ratio = ours / self._median(work, PEER)
            return f"not slower than {PEER}", _said(ratio <= 1, f"{ratio:.2f} of its time")
        if work == NOISE:
            tunnel = self._median(work, TUNNEL)
            share = tunnel / (ours - self._median(NOTHING, OURS))
            figure = f"{share:.0%} without what a run takes that reads nothing, {tunnel / ours:.0%} with it"
            return f"≥ {SHARE:.0%} of the tunnel's speed", _said(share >= SHARE, figure)
        if work == NOTHING:
            return f"within {INCREMENT_S:g} s", _said(ours <= INCREMENT_S, f"{ours:.2f} s")
        data_s = CHANGED_MIB / (random_mib / self._median(NOISE, TUNNEL))
        return f"within {INCREMENT_S:g} s and the data's {data_s:.2f} s", _said(
            ours <= INCREMENT_S + data_s, f"{ours:.2f} s"
        )

    def _median(self, work: str, program: str) -> float:
        return statistics.median(self._took[work, program])


def _said(holds: bool, figure: str) -> str:
    return f"{'yes' if holds else 'no'}: {figure}"
