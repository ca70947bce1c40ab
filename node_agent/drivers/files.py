"""Driver *files*: directory trees (or single files) on this node."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from node_agent.drivers.base import Driver, FileTree, Finding
from node_agent.errors import BrsError, SourceError, SourceMissing
from node_agent.items import printable


class FilesDriver(Driver):
    name = "files"

    @contextmanager
    def open(self, paths: Sequence[str], *, format: str = "") -> Iterator[FileTree]:
        if format:
            raise SourceError("A tree of files has no disk format.", hint="Leave the format empty.")
        if not paths:
            raise SourceError("No path to protect was given.", hint="Give the workload at least one folder.")
        roots = [(self.guard.read(path), os.path.normpath(path)) for path in paths]
        for real, known_as in roots:
            _must_open(real, known_as)
        yield FileTree(roots)

    def probe(self, path: str) -> list[Finding]:
        try:
            real = self.guard.read(path)
        except BrsError as error:
            return [Finding.of("Inside the folders this node may read", error)]
        findings = [Finding("Inside the folders this node may read", ok=True, detail=printable(str(real)))]
        try:
            _must_open(real, path)
        except SourceError as error:
            return [*findings, Finding.of("Exists and can be read", error)]
        return [*findings, Finding("Exists and can be read", ok=True, detail=_described(real))]


def _must_open(real: Path, known_as: str) -> None:
    """A root that cannot be read at all fails the run; what lies below it only makes it partial."""
    try:
        mode = real.lstat().st_mode
        if stat.S_ISDIR(mode):
            with os.scandir(real) as entries:
                next(entries, None)
        elif stat.S_ISREG(mode):
            os.close(os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceMissing(f"There is nothing at {printable(known_as)} on this node.") from error
    except PermissionError as error:
        raise SourceError(
            f"The node's user may not read {printable(known_as)}.",
            hint=f"Give the user {_whoami()} the right to read it, for example with setfacl.",
        ) from error
    except OSError as error:
        raise SourceError(f"{printable(known_as)} cannot be read: {error.strerror}.") from error


def _described(real: Path) -> str:
    if not real.is_dir():
        return f"file of {real.lstat().st_size} bytes"
    with os.scandir(real) as entries:
        return f"folder with {sum(1 for _ in entries)} entries"


def _whoami() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
