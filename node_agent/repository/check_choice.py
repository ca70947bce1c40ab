"""Which packs a check reads, and in which order: those first whose last proof is the oldest, or that have none.

When a pack was last read and found whole is remembered in a local database beside the index cache. It is a memory of
this machine only: losing it costs reading again, nothing else.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from node_agent.repository.backend.settings import parse_size
from node_agent.repository.local_memory import LocalMemory

_PART = re.compile(r"(\d{1,3})/(\d{1,3})\Z", re.ASCII)
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%\Z", re.ASCII)
_SIZE = re.compile(r"\d{1,15}[KMGT]?\Z", re.IGNORECASE | re.ASCII)


class VerifiedPacks(LocalMemory):
    """When each pack was last read and found whole."""

    table = "verified"
    columns = "pack BLOB PRIMARY KEY, at REAL NOT NULL"

    def note(self, pack: str, at: float) -> None:
        self._change("INSERT OR REPLACE INTO verified VALUES (?, ?)", [(bytes.fromhex(pack), at)])

    def forget(self, pack: str) -> None:
        """It was found damaged: read it first the next time."""
        self._change("DELETE FROM verified WHERE pack = ?", [(bytes.fromhex(pack),)])

    def times(self) -> Iterator[tuple[str, float]]:
        for pack, at in self._rows("SELECT pack, at FROM verified"):
            if isinstance(pack, bytes) and isinstance(at, float):  # else the database is damaged
                yield pack.hex(), at

    def keep_only(self, packs: Mapping[str, int]) -> None:
        gone = [(bytes.fromhex(pack),) for pack, _ in self.times() if pack not in packs]
        self._change("DELETE FROM verified WHERE pack = ?", gone)


@dataclass(frozen=True, slots=True)
class ReadChoice:
    """What of the data to read: everything, unless limited."""

    part: tuple[int, int] | None = None  # the n-th of t parts, by the packs' names as stock restic divides them
    share: float | None = None  # of all bytes, 0 to 1
    size_bytes: int | None = None
    max_age_s: float | None = None  # only what was not proven for that long
    max_duration_s: float | None = None  # stop reading after that long

    @classmethod
    def parse_subset(cls, text: str) -> dict[str, object]:
        """``n/t``, ``x%`` or a size as arguments of this class. Raises ValueError."""
        if found := _PART.match(text):
            number, parts = int(found[1]), int(found[2])
            if 1 <= number <= parts <= 256:
                return {"part": (number, parts)}
        elif found := _SHARE.match(text):
            if 0 < float(found[1]) <= 100:
                return {"share": float(found[1]) / 100}
        elif _SIZE.match(text) and (size := parse_size(text)):
            return {"size_bytes": size}
        raise ValueError(f"{text!r} is not a part like 1/5 (at most 256), a share like 2.5%, or a size like 10G")

    @property
    def everything(self) -> bool:
        return self == ReadChoice()

    def order(self, packs: Mapping[str, int], verified: VerifiedPacks, now: float) -> list[str]:
        """The chosen of ``packs`` (name to size), least recently proven first; chance decides among equals."""
        times = {pack: at for pack, at in verified.times() if pack in packs}
        chosen = [pack for pack in packs if self._wants(pack, times.get(pack), now)]
        random.shuffle(chosen)
        chosen.sort(key=lambda pack: times.get(pack, 0.0))
        budget = self.size_bytes
        if self.share is not None:
            budget = round(sum(packs.values()) * self.share)
        return chosen if budget is None else list(_up_to(chosen, packs, budget))

    def deadline(self) -> float | None:
        """On the monotonic clock."""
        return None if self.max_duration_s is None else time.monotonic() + self.max_duration_s

    def _wants(self, pack: str, proven_at: float | None, now: float) -> bool:
        if self.part is not None and int(pack[:2], 16) % self.part[1] != self.part[0] - 1:
            return False
        return self.max_age_s is None or proven_at is None or proven_at <= now - self.max_age_s or proven_at > now


def _up_to(chosen: list[str], packs: Mapping[str, int], budget: int) -> Iterator[str]:
    """Packs until the budget is spent; one at least."""
    for pack in chosen:
        if budget <= 0:
            return
        yield pack
        budget -= packs[pack]
