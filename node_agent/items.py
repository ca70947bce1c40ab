"""Small values that several parts of the node hand to each other.

``Issue`` is one thing that an operation could not do with one item; an item's failure is not the
run's failure. *Left out* issues make the outcome partial (amber); *notes* do not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    LEFT_OUT = "left-out"  # the item, or part of it, is not in the result: partial
    NOTE = "note"  # worth telling, nothing of the data is missing


@dataclass(frozen=True, slots=True)
class Issue:
    """One item of a run and what happened to it. ``path`` is printable (see :func:`printable`)."""

    path: str
    code: str
    message: str
    severity: Severity = Severity.LEFT_OUT


@dataclass(frozen=True, slots=True)
class Extent:
    """A byte range of an image. ``zero`` means it reads as zeros and need not be read."""

    offset: int
    length: int
    zero: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class TrackingBase:
    """What a list of changed extents is relative to: the stored state of one disk.

    ``disk`` is the driver's own word for which disk it is (such as a domain's UUID and the disk's serial number); empty
    if there is none. The ids are hex. Good for nothing else than exactly this state: extents since another instant
    make a restore point that no check can tell from a right one.
    """

    repository: str
    snapshot: str
    tree: str
    size: int
    block_size: int
    disk: str = ""


@dataclass(slots=True)
class Issues:
    """Collects issues with a bound: the first ``keep`` are kept, all are counted."""

    keep: int = 1000
    items: list[Issue] = field(default_factory=list)
    left_out: int = 0
    notes: int = 0

    def add_first(self, issue: Issue) -> None:
        """One about the whole run: never dropped, however many there are."""
        self.add(issue)
        self.items = [issue, *(one for one in self.items if one is not issue)][: self.keep]

    def add(self, issue: Issue) -> None:
        if issue.severity is Severity.LEFT_OUT:
            self.left_out += 1
        else:
            self.notes += 1
        if len(self.items) < self.keep:
            self.items.append(issue)


def printable(path: bytes | str) -> str:
    """A path for people, logs and JSON: bytes that are not UTF-8 become ``\\xNN``."""
    raw = os.fsencode(path) if isinstance(path, str) else path
    return raw.decode("utf-8", "backslashreplace")
