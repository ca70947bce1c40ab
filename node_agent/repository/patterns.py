"""Patterns that choose paths of a snapshot, as stock restic's have them (its package ``filter``): what they say, which
signs they know, and which of two that seem to say the same does not.

A path and a pattern are names between slashes. Name by name ``*``, ``?``, ``[abc]``, ``[^a-c]`` and a backslash mean
what they mean to Go's ``filepath.Match``. A pattern matches where its names follow each other anywhere in the path,
with a slash in front from the top; so what lies below a match matches, too. ``**`` is any number of names, and ``!``
in front takes back what an earlier pattern matched. ``/`` alone means everything.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from node_agent.errors import ConfigError
from node_agent.items import printable

_TOP = "/"
_MANY = "**"


def decoded(path: bytes) -> str:
    """A sign is a sign, not a byte; bytes that are not UTF-8 stay as they are, each for itself."""
    return path.decode("utf-8", "surrogateescape")


def lowered(text: str) -> str:
    """Sign by sign as Go's strings.ToLower: as many signs as before, and none looks at its neighbours.

    But bytes that are not UTF-8 stay apart; there they become all the same.
    """
    return text.lower() if text.isascii() else "".join(sign.lower()[0] for sign in text)


class Patterns:
    """A list of them, and one that ignores case. Raises ConfigError for one that says nothing certain."""

    def __init__(self, exact: Sequence[str] = (), ignoring_case: Sequence[str] = ()) -> None:
        self._any = bool(exact or ignoring_case)
        self._exact = [Pattern.parse(text) for text in exact if text]
        self._lowered = [Pattern.parse(lowered(text)) for text in ignoring_case if text]

    def __bool__(self) -> bool:
        """Whether there are any, also if they say nothing: then nothing matches."""
        return self._any

    @cached_property
    def take_back(self) -> bool:
        """Whether what lies below a match may be none."""
        return any(pattern.negated for pattern in (*self._exact, *self._lowered))

    def look(self, path: bytes) -> tuple[bool, bool]:
        """Whether an absolute path matches, and whether something below it may."""
        text = decoded(path)
        matches, leads = _look(self._exact, text) if self._exact else (False, False)
        if self._lowered and not (matches and leads):
            more = _look(self._lowered, lowered(text))
            matches, leads = matches or more[0], leads or more[1]
        return matches, leads


def _look(patterns: Sequence[Pattern], path: str) -> tuple[bool, bool]:
    parts = _split(path)
    matches = leads = False
    for pattern in patterns:
        hit = pattern.matches(parts)
        if pattern.negated:
            matches, leads = matches and not hit, leads and not hit
        else:
            matches, leads = matches or hit, leads or hit or pattern.leads(parts)
    return matches, leads


@dataclass(frozen=True, slots=True)
class _Part:
    """What one name must be: ``text``, or if it has signs in it, the expression."""

    text: str
    expression: re.Pattern[str] | None = None

    def fits(self, name: str) -> bool:
        return self.text == name if self.expression is None else self.expression.fullmatch(name) is not None


_ANY_NAME = _Part("*", re.compile(r".*", re.DOTALL))
_ANY_NAMES = _Part(_MANY)


@dataclass(frozen=True, slots=True)
class Pattern:
    parts: Sequence[_Part]
    negated: bool = False

    @classmethod
    def parse(cls, text: str) -> Pattern:
        negated = text.startswith("!")
        body = text[1:] if negated else text
        try:
            return cls([_part(part) for part in _split(_clean(body))], negated)
        except ValueError as error:
            raise ConfigError(
                f"The pattern {printable(text)} cannot be understood: {error}.",
                hint="A [ begins a set and needs its ]; a backslash takes the meaning from the sign behind it.",
            ) from error

    def matches(self, names: Sequence[str]) -> bool:
        return _match(self.parts, names)

    def leads(self, names: Sequence[str]) -> bool:
        """Whether something below could match; of a relative pattern anything could."""
        if self.parts[0].text != _TOP:
            return True
        if _ANY_NAMES in self.parts:
            names = names[: self.parts.index(_ANY_NAMES)]
        return _match(self.parts[: len(names)], names)


def _clean(text: str) -> str:
    """As Go's filepath.Clean; Python's leaves two slashes in front."""
    return posixpath.normpath("/" + text.lstrip("/") if text.startswith("/") else text)


def _split(path: str) -> list[str]:
    """The names; of an absolute path the first is the slash."""
    first, *rest = path.split("/")
    return [first or _TOP, *rest]


def _part(text: str) -> _Part:
    if text in ("", _MANY):  # "" is what stands behind the slash of "/"
        return _ANY_NAMES
    return _Part(text, re.compile(_translate(text), re.DOTALL) if re.search(r"[\\\[\]*?]", text) else None)


def _match(parts: Sequence[_Part], names: Sequence[str]) -> bool:
    for at, part in enumerate(parts):
        if part is _ANY_NAMES:
            expanded = ([*parts[:at], *[_ANY_NAME] * n, *parts[at + 1 :]] for n in range(len(names) - len(parts) + 2))
            return any(_match(several, names) for several in expanded)
    if not parts:
        return not names
    from_top = parts[0].text == _TOP
    first = 0 if from_top or names[0] != _TOP else 1
    for offset in range(first, 1 if from_top else len(names) - len(parts) + 1):
        if len(parts) <= len(names) and _fit(parts, names, offset):
            return True
    return False


def _fit(parts: Sequence[_Part], names: Sequence[str], offset: int) -> bool:
    for part in parts:  # a loop, since this is asked for each pattern of each file
        if not part.fits(names[offset]):
            return False
        offset += 1
    return True


def _translate(glob: str) -> str:
    """The expression of one part. Raises ValueError as Go says ErrBadPattern."""
    out, at = "", 0
    while at < len(glob):
        sign = glob[at]
        at += 1
        if sign == "*":
            out += "" if out.endswith(".*") else ".*"
        elif sign == "?":
            out += "."
        elif sign == "[":
            piece, at = _translate_set(glob, at)
            out += piece
        elif sign == "\\":
            if at == len(glob):
                raise ValueError("a backslash ends it")
            out, at = out + re.escape(glob[at]), at + 1
        else:
            out += re.escape(sign)
    return out


def _translate_set(glob: str, at: int) -> tuple[str, int]:
    """The expression of a set whose bracket stands before ``at``, and where the pattern goes on."""
    negated = glob.startswith("^", at)
    at += negated
    ranges: list[tuple[str, str]] = []
    while not (ranges and glob.startswith("]", at)):
        low, at = _member(glob, at)
        high = low
        if glob.startswith("-", at):
            high, at = _member(glob, at + 1)
        ranges.append((low, high))
    # A range the wrong way round holds nothing.
    members = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in ranges if low <= high)
    if not members:
        return ("." if negated else r"(?!)"), at + 1
    return f"[{'^' if negated else ''}{members}]", at + 1


def _member(glob: str, at: int) -> tuple[str, int]:
    if glob.startswith("\\", at):
        at += 1
    elif glob.startswith(("-", "]"), at):
        raise ValueError(f"{glob[at]} stands where a set needs a sign")
    if at >= len(glob):
        raise ValueError("a set does not end")
    if "\udc80" <= glob[at] <= "\udcff":
        raise ValueError("a set holds a byte that is not UTF-8")
    return glob[at], at + 1
