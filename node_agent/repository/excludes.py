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
    """Compiled once for a run; paths are raw bytes. ``larger_than``: in bytes."""

    def __init__(
        self,
        patterns: Sequence[str],
        *,
        ignoring_case: Sequence[str] = (),
        markers: Sequence[Marker] = (),
        larger_than: int | None = None,
    ) -> None:
        self._anywhere: list[tuple[re.Pattern[bytes], bool]] = []
        self._anchored: list[tuple[re.Pattern[bytes], bool]] = []
        self.markers = tuple(markers)
        self._larger_than = larger_than
        self.patterns = (*patterns, *ignoring_case)
        for pattern in patterns:
            self._add(pattern)
        for pattern in ignoring_case:
            self._add(pattern, re.IGNORECASE)

    def __bool__(self) -> bool:
        return bool(self._anywhere or self._anchored or self._larger_than is not None)

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
        if any(pattern.fullmatch(path) and (is_dir or not only_dirs) for pattern, only_dirs in self._anywhere):
            return True
        relative = path[len(root.rstrip(b"/")) :]
        return any(
            (pattern.fullmatch(path) or pattern.fullmatch(relative)) and (is_dir or not only_dirs)
            for pattern, only_dirs in self._anchored
        )

    def _add(self, pattern: str, flags: int = 0) -> None:
        text = pattern.strip()
        if not text or text.startswith("#"):
            return
        if text.startswith("!"):
            raise ConfigError(
                f"The exclude pattern {pattern!r} begins with '!', which is not offered.",
                hint="Name what is to be left out; everything else is protected.",
            )
        only_dirs = text.endswith("/")
        body = text.rstrip("/")
        if not body:
            raise ConfigError(f"The exclude pattern {pattern!r} would leave out everything.", hint="Remove it.")
        anchored = body.startswith("/")
        expression = _translate(body.encode("utf-8", "surrogateescape").lstrip(b"/"))
        if anchored:
            self._anchored.append((re.compile(b"/" + expression, re.DOTALL | flags), only_dirs))
        else:
            self._anywhere.append((re.compile(b"(?:.*/)?" + expression, re.DOTALL | flags), only_dirs))


def _begins(folder: int | bytes, marker: Marker) -> bool:
    """Read without following a link or waiting for a pipe; what cannot be read marks nothing."""
    path, at = (marker.name, folder) if isinstance(folder, int) else (os.path.join(folder, marker.name), None)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    except OSError:
        return False
    try:
        return os.read(fd, len(marker.header)) == marker.header
    except OSError:
        return False
    finally:
        os.close(fd)


def _translate(glob: bytes) -> bytes:
    out, i = b"", 0
    while i < len(glob):
        char = glob[i : i + 1]
        if glob.startswith(b"**/", i):
            out, i = out + b"(?:[^/]+/)*", i + 3
        elif glob.startswith(b"**", i):
            out, i = out + b".*", i + 2
        elif char == b"*":
            out, i = out + b"[^/]*", i + 1
        elif char == b"?":
            out, i = out + b"[^/]", i + 1
        elif char == b"[":
            piece, i = _translate_set(glob, i)
            out += piece
        else:
            out, i = out + re.escape(char), i + 1
    return out


def _translate_set(glob: bytes, start: int) -> tuple[bytes, int]:
    """The expression of a ``[set]`` and where the pattern goes on; a lone bracket stands for itself."""
    first = start + 1
    negated = glob[first : first + 1] in (b"!", b"^")
    first += negated
    end = glob.find(b"]", first + 1)
    if end < 0:
        return rb"\[", start + 1
    members = glob[first:end].replace(b"\\", rb"\\").replace(b"[", rb"\[").replace(b"]", rb"\]").replace(b"^", rb"\^")
    # Within a set neither a slash nor, for sets such as [z-a], an error of the pattern may escape.
    expression = b"(?!/)[" + (b"^" if negated else b"") + members + b"]"
    try:
        re.compile(expression)
    except re.error as error:
        raise ConfigError(
            f"The exclude pattern {glob.decode('utf-8', 'replace')!r} has an unusable set: {error}.",
            hint="Correct what stands between the brackets.",
        ) from error
    return expression, end + 1
