"""Which policy a machine belongs to by rules. Pure: what is known of it and the rules come in, a key comes out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from typing import Any
from uuid import UUID


@dataclass(frozen=True)
class Seen:
    """A machine, as far as rules look at it."""

    name: str
    tags: Sequence[str] = ()
    project: str = ""

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Seen:
        return cls(facts.get("name", ""), tuple(facts.get("tags", ())), facts.get("project", ""))


@dataclass(frozen=True)
class Rule:
    """``by``: tag, name or project. ``policy`` says whose it is, ``rank`` which of several policies comes first."""

    by: str
    pattern: str
    policy: UUID | None = None
    rank: tuple[Any, ...] = field(default=())  # least first


def matches(rule: Rule, machine: Seen) -> bool:
    """Whole names, with * and ?, whatever the case. An empty pattern matches nothing, and so does an empty project."""
    pattern = rule.pattern.strip()
    values = {"tag": machine.tags, "name": (machine.name,), "project": (machine.project,)}.get(rule.by, ())
    return bool(pattern) and any(value and _compiled(pattern.casefold()).match(value.casefold()) for value in values)


def choose(rules: Iterable[Rule], machine: Seen) -> UUID | None:
    """The policy of the first rule that matches, by rank; None when none does."""
    fitting = [rule for rule in rules if matches(rule, machine)]
    return min(fitting, key=lambda rule: rule.rank).policy if fitting else None


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    # translate() makes runs of * one, and its groups do not backtrack: no pattern takes long.
    return re.compile(translate(pattern))
