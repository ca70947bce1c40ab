"""Patterns of paths that a backup of files leaves out on purpose.

The usual glob signs: ``*`` and ``?`` match within one name, ``[abc]`` one character of a set, ``**``
any number of folders. A pattern without a slash matches a name at any depth (``*.tmp``). One that
begins with a slash is anchored: at the file system's root or at the root that is protected
(``/cache`` of the protected tree). Any other pattern with a slash matches wherever its parts follow
each other (``node_modules/.cache``). A slash at the end restricts it to folders. What lies below an
excluded folder is excluded with it. Taking back by ``!`` is not offered.

Besides patterns: files above a size, and folders that hold a marker, of which only that stays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

from node_agent.errors import ConfigError
from node_agent.items import printable
from node_agent.repository.files_open import is_regular, open_regular
from node_agent.repository.patterns import decoded, lowered


@dataclass(frozen=True, slots=True)
class Marker:
    """A file whose presence leaves out everything else in its folder; ``header``: only if it begins so."""

    name: bytes
    header: bytes = b""

    @classmethod
    def of(cls, text: str) -> Marker:
        """From NAME or NAME:HEADER."""
        name, _, header = text.partition(":")
        if not name or "/" in name:
            raise ConfigError(f"{text!r} is no name of a file.", hint="Give NAME or NAME:HEADER, without folders.")
        return cls(os.fsencode(name), os.fsencode(header))


class Excludes:
    """Compiled once for a run; paths are raw bytes. ``larger_than``: in bytes. Case is ignored as restic ignores it."""

    def __init__(
        self,
        patterns: Sequence[str],
        *,
        ignoring_case: Sequence[str] = (),
        markers: Sequence[Marker] = (),
        larger_than: int | None = None,
    ) -> None:
        self.markers = tuple(markers)
        self._larger_than = larger_than
        self.patterns = (*patterns, *ignoring_case)
        self._exact = [found for pattern in patterns if (found := _Pattern.parse(pattern))]
        self._lowered = [found for pattern in ignoring_case if (found := _Pattern.parse(lowered(pattern)))]

    def __bool__(self) -> bool:
        return bool(self._exact or self._lowered or self._larger_than is not None)

    def marker(self, folder: int | bytes, names: Container[bytes]) -> bytes | None:
        """The file because of which the rest of this folder (a path or an open one) is left out."""
        for marker in self.markers:
            if marker.name in names and (not marker.header or _begins(folder, marker)):
                return marker.name
        return None

    def match(self, path: bytes, root: bytes, is_dir: bool, size: int = 0) -> bool:
        """Whether the absolute ``path``, found below the absolute ``root``, is to be left out."""
        if self._larger_than is not None and not is_dir and size > self._larger_than:
            return True
        text, start = decoded(path), len(decoded(root.rstrip(b"/")))
        if any(pattern.match(text, start, is_dir) for pattern in self._exact):
            return True
        if not self._lowered:
            return False
        text = lowered(text)
        return any(pattern.match(text, start, is_dir) for pattern in self._lowered)


@dataclass(frozen=True, slots=True)
class _Pattern:
    expression: re.Pattern[str]
    anchored: bool
    only_dirs: bool

    @classmethod
    def parse(cls, pattern: str) -> _Pattern | None:
        """None for an empty one and a comment. Raises ConfigError."""
        text = pattern.strip()
        if not text or text.startswith("#"):
            return None
        if text.startswith("!"):
            raise ConfigError(
                f"The exclude pattern {pattern!r} begins with '!', which is not offered.",
                hint="Name what is to be left out; everything else is protected.",
            )
        body = text.rstrip("/")
        if not body:
            raise ConfigError(f"The exclude pattern {pattern!r} would leave out everything.", hint="Remove it.")
        anchored = body.startswith("/")
        before = "/" if anchored else "(?:.*/)?"
        return cls(re.compile(before + _translate(body.lstrip("/")), re.DOTALL), anchored, text.endswith("/"))

    def match(self, path: str, start: int, is_dir: bool) -> bool:
        """``start``: where in the absolute path what lies below the root begins."""
        if self.only_dirs and not is_dir:
            return False
        found = self.expression.fullmatch
        return bool(found(path) or (self.anchored and found(path, start)))


def _begins(folder: int | bytes, marker: Marker) -> bool:
    """Read without following a link or waiting for a pipe; what cannot be read marks nothing."""
    path, at = (marker.name, folder) if isinstance(folder, int) else (os.path.join(folder, marker.name), None)
    try:
        fd = open_regular(path, at)
    except OSError:
        return False
    try:
        return is_regular(os.fstat(fd)) and os.read(fd, len(marker.header)) == marker.header
    except OSError:
        return False
    finally:
        os.close(fd)


def _translate(glob: str) -> str:
    out, i = "", 0
    while i < len(glob):
        char = glob[i]
        if glob.startswith("**/", i):
            out, i = out + "(?:[^/]+/)*", i + 3
        elif glob.startswith("**", i):
            out, i = out + ".*", i + 2
        elif char == "*":
            out, i = out + "[^/]*", i + 1
        elif char == "?":
            out, i = out + "[^/]", i + 1
        elif char == "[":
            piece, i = _translate_set(glob, i)
            out += piece
        else:
            out, i = out + re.escape(char), i + 1
    return out


def _translate_set(glob: str, start: int) -> tuple[str, int]:
    """The expression of a ``[set]`` and where the pattern goes on; a lone bracket stands for itself."""
    first = start + 1
    negated = glob[first : first + 1] in ("!", "^")
    first += negated
    end = glob.find("]", first + 1)
    if end < 0:
        return r"\[", start + 1
    members = glob[first:end].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]").replace("^", r"\^")
    # Within a set neither a slash nor, for sets such as [z-a], an error of the pattern may escape.
    expression = "(?!/)[" + ("^" if negated else "") + members + "]"
    try:
        re.compile(expression)
    except re.error as error:
        raise ConfigError(
            f"The exclude pattern {printable(glob)} has an unusable set: {error}.",
            hint="Correct what stands between the brackets.",
        ) from error
    return expression, end + 1
