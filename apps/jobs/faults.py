"""Why something did not work, in the operator's words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    code: str
    message: str
    hint: str = ""
