"""What of a snapshot is restored: everything, certain paths, or what patterns say (see :mod:`.patterns`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from node_agent.errors import ConfigError
from node_agent.repository.patterns import Patterns
from node_agent.repository.restore_trees import Trees


class Look(NamedTuple):
    """``taken``: the entry itself; ``leads``: something below it may be; ``whole``: all below it is."""

    taken: bool
    leads: bool
    whole: bool = False


_WHOLE = Look(taken=True, leads=True, whole=True)


class Choice(Protocol):
    """``most``: most of the snapshot is likely to be taken."""

    @property
    def most(self) -> bool: ...
    def look(self, path: bytes) -> Look: ...


@dataclass(frozen=True, slots=True)
class Paths:
    """Certain paths, with what lies below them; none means everything."""

    paths: list[bytes]

    @property
    def most(self) -> bool:
        return not self.paths or b"/" in self.paths

    def look(self, path: bytes) -> Look:
        if self.most or any(path == wanted or path.startswith(wanted + b"/") for wanted in self.paths):
            return _WHOLE
        return Look(taken=False, leads=any(wanted.startswith(path + b"/") for wanted in self.paths))


@dataclass(frozen=True, slots=True)
class Included:
    """What matches, and the folders that lead to it."""

    patterns: Patterns
    most = False

    def look(self, path: bytes) -> Look:
        matches, leads = self.patterns.look(path)
        return Look(matches, leads, whole=matches and not self.patterns.take_back)


@dataclass(frozen=True, slots=True)
class Excluded:
    """What matches not. Below a folder that is left out nothing is looked at."""

    patterns: Patterns
    most = True

    def look(self, path: bytes) -> Look:
        matches, _ = self.patterns.look(path)
        return Look(taken=not matches, leads=not matches)


def chosen_by(include: Patterns, exclude: Patterns) -> Choice:
    if include and exclude:
        raise ConfigError(
            "What to include and what to exclude cannot both be said.",
            hint="Give patterns of one kind. Of includes, one that begins with ! takes back what another took.",
        )
    return Included(include) if include else Excluded(exclude) if exclude else Paths([])


def count_chosen(trees: Trees, tree: bytes | None, path: bytes, choice: Choice) -> Iterator[tuple[int, int]]:
    """(files, their bytes) of each folder from ``path`` down that holds, or leads to, what was chosen."""
    stack = [(tree, path, False)]
    while stack:
        tree, path, whole = stack.pop()
        size = files = 0
        below: list[tuple[bytes | None, bytes, bool]] = []
        for name, folder, length in trees.sizes(tree):
            child = path + b"/" + name
            seen = _WHOLE if whole else choice.look(child)
            if folder is not None and seen.leads:
                below.append((folder, child, seen.whole))
            elif length is not None and seen.taken:
                size += length
                files += 1
        yield files, size
        trees.expect([folder for folder, _, _ in below if folder is not None])
        stack += reversed(below)
