"""How long objects are locked. Pure; apart from :mod:`.object_lock`, so that reading options loads no library."""

from __future__ import annotations

import math
from dataclasses import dataclass

LOCK_MODES = {"compliance": "COMPLIANCE", "governance": "GOVERNANCE"}
_WEEK_S = 7 * 86400


@dataclass(frozen=True, slots=True)
class LockRule:
    mode: str  # COMPLIANCE: nobody can undo it; GOVERNANCE: those with the right to bypass can
    period_s: float
    grid_s: float = _WEEK_S

    def until(self, now: float) -> float:
        """For what is locked now: a quarter longer than asked for, rounded up to a whole week."""
        return math.ceil((now + 1.25 * self.period_s) / self.grid_s) * self.grid_s
