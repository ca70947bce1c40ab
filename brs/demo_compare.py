"""What a folder holds, as values that can be compared: the demo's judge, independent of the engine it judges."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Fact:
    """One name of a tree. ``content`` is the SHA-256 of a file, the target of a link, "" for the rest."""

    kind: str
    mode: int
    owner: tuple[int, int]
    size: int
    mtime_ns: int
    content: str


Facts = dict[bytes, Fact]
UNREADABLE = "(cannot be read)"


def facts(root: Path) -> Facts:
    """Every name below ``root``, and ``root`` itself as ``.``; links are not followed, sockets are not listed."""
    found: Facts = {}
    top = os.fsencode(root)
    if not os.path.isdir(top):
        found[b"."] = _fact(top)
        return found
    for folder, names, files in os.walk(top):
        found[os.path.relpath(folder, top)] = _fact(folder)
        for name in [*files, *(n for n in names if os.path.islink(os.path.join(folder, n)))]:
            path = os.path.join(folder, name)
            fact = _fact(path)
            if fact.kind != "socket":
                found[os.path.relpath(path, top)] = fact
    return found


def _fact(path: bytes) -> Fact:
    info = os.lstat(path)
    content, size = "", 0
    if stat.S_ISREG(info.st_mode):
        kind, size = "file", info.st_size
        content = digest(path)
    elif stat.S_ISLNK(info.st_mode):
        kind, content = "link", os.readlink(path).decode("utf-8", "backslashreplace")
    elif stat.S_ISSOCK(info.st_mode):
        kind = "socket"
    else:
        kind = "folder" if stat.S_ISDIR(info.st_mode) else f"special {stat.S_IFMT(info.st_mode):o}"
    owner = (info.st_uid, info.st_gid) if os.geteuid() == 0 else (-1, -1)  # only root can restore owners
    return Fact(kind, stat.S_IMODE(info.st_mode), owner, size, info.st_mtime_ns, content)


def digest(path: bytes | Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        return UNREADABLE


def differences(expected: Facts, restored: Facts) -> list[str]:
    """One sentence for each name that is missing, unexpected or not the same in kind, rights, time or content."""
    said = []
    for name in sorted(expected.keys() | restored.keys()):
        shown = name.decode("utf-8", "backslashreplace")
        here, there = expected.get(name), restored.get(name)
        if here is None:
            said.append(f"{shown}: was not there before")
        elif there is None:
            said.append(f"{shown}: is missing")
        elif here != there:
            fields = [field for field in Fact.__slots__ if getattr(here, field) != getattr(there, field)]
            said.append(f"{shown}: {', '.join(fields)} differ")
    return said
