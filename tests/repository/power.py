"""What a program does to the files of a folder, step by step, and what a kill or a power cut after any step may leave.

:func:`recording` notes every call that changes something below a folder, as the system carried it out. :func:`remains`
replays each beginning of such a record by three crash models:

* LOCAL, a local disk, as POSIX promises no more: the name of a new or renamed file, and its removal, survive only once
  its folder was synced, whatever came later; what was written into a file survives only once the file was synced, else
  all of it, half or nothing is there. A kill loses nothing but the rest of a write.
* SFTP, a server's disk: nobody syncs its folders, but its file system keeps the order of names (a journal): it may lose
  the last of them. Files as above.
* ATOMIC, an object store: a put or delete has happened or not; there are no other names.

Many cuts leave the same: a state is given once, with the models and the first step after which it may be met.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Flag, auto
from pathlib import Path
from typing import Any

import pytest

TEMPORARY = "-tmp-"
_MAX_PENDING = 6  # names whose every subset is tried; of more only each first so many, and each without one


class Model(Flag):
    LOCAL = auto()
    SFTP = auto()
    ATOMIC = auto()


@dataclass(frozen=True)
class Step:
    """``path`` is relative to the folder; ``other`` is the new name of a rename or link."""

    call: str  # mkdir create write sync sync-folder rename link unlink
    path: str
    other: str = ""
    data: bytes = b""

    def __str__(self) -> str:
        more = f" -> {self.other}" if self.other else f" {len(self.data)} bytes" if self.data else ""
        return f"{self.call} {self.path}{more}"


# --- recording ---


class _Recorder:
    def __init__(self, root: Path, before: Callable[[Step], None]) -> None:
        self.steps: list[Step] = []
        self._root = f"{root}/"
        self._before = before
        self._open: dict[int, str] = {}  # descriptors of files and folders below the root
        self._lock = threading.RLock()

    def below(self, path: Any) -> str | None:
        try:
            text = os.path.abspath(os.fsdecode(path))
        except TypeError:
            return None  # a descriptor
        return f"{text}/".removeprefix(self._root).rstrip("/") if f"{text}/".startswith(self._root) else None

    def patched(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("mkdir", "unlink", "remove"):
            patch.setattr(os, name, self._naming("mkdir" if name == "mkdir" else "unlink", getattr(os, name)))
        for name in ("rename", "replace", "link"):
            patch.setattr(os, name, self._renaming("link" if name == "link" else "rename", getattr(os, name)))
        patch.setattr(os, "open", self._opening(os.open))
        patch.setattr(os, "close", self._closing(os.close))
        patch.setattr(os, "write", self._writing(os.write))
        patch.setattr(os, "fsync", self._syncing(os.fsync))
        patch.setattr(io, "open", self._opening_python(io.open))

    def _do(self, step: Step, action: Callable[[], Any]) -> Any:
        with self._lock:
            self._before(step)
            result = action()
            self.steps.append(step)
            return result

    def _naming(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def patched(path: Any, *args: Any, **options: Any) -> Any:
            where = self.below(path)
            action = lambda: real(path, *args, **options)  # noqa: E731
            return action() if where is None else self._do(Step(call, where), action)

        return patched

    def _renaming(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def patched(old: Any, new: Any, **options: Any) -> Any:
            where, to = self.below(old), self.below(new)
            action = lambda: real(old, new, **options)  # noqa: E731
            if where is None or to is None:
                return action()
            return self._do(Step(call, where, to), action)

        return patched

    def _opening(self, real: Callable[..., int]) -> Callable[..., int]:
        def patched(path: Any, flags: int, *args: Any, **options: Any) -> int:
            where = self.below(path)
            action = lambda: real(path, flags, *args, **options)  # noqa: E731
            if where is None:
                return action()
            assert not flags & os.O_TRUNC and not (flags & (os.O_WRONLY | os.O_RDWR) and not flags & os.O_EXCL), (
                f"{where} is changed in place, which this record cannot tell"
            )
            with self._lock:
                descriptor: int = self._do(Step("create", where), action) if flags & os.O_CREAT else action()
                self._open[descriptor] = where
                return descriptor

        return patched

    def _opening_python(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def patched(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            where = self.below(path)
            action = lambda: real(path, mode, *args, **options)  # noqa: E731
            if where is None or not set(mode) & set("wxa+"):
                return action()
            assert "x" in mode, f"{where} is opened as {mode}, which this record cannot tell"
            return self._do(Step("create", where), action)  # only ever for empty files: see the end of recording

        return patched

    def _closing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def patched(descriptor: int) -> None:
            with self._lock:
                self._open.pop(descriptor, None)
                real(descriptor)

        return patched

    def _writing(self, real: Callable[..., int]) -> Callable[..., int]:
        def patched(descriptor: int, data: Any) -> int:
            with self._lock:
                where = self._open.get(descriptor)
                if where is None:
                    return real(descriptor, data)
                self._before(Step("write", where, data=bytes(data)))
                count = real(descriptor, data)
                self.steps.append(Step("write", where, data=bytes(memoryview(data)[:count])))
                return count

        return patched

    def _syncing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def patched(descriptor: int) -> None:
            with self._lock:
                where = self._open.get(descriptor)
                if where is None:
                    return real(descriptor)
                call = "sync-folder" if os.path.isdir(f"{self._root}{where}") else "sync"
                return self._do(Step(call, where), lambda: real(descriptor))  # type: ignore[no-any-return]

        return patched


@contextlib.contextmanager
def recording(root: Path, before: Callable[[Step], None] = lambda step: None) -> Iterator[list[Step]]:
    """The steps done below ``root``, of all threads, in the order the system did them. Files are synced, not forced.

    ``before`` each step may raise, say that the disk is full. At the end the record is proven to be complete: replayed,
    it gives exactly what is on the disk.
    """
    recorder = _Recorder(root, before)
    disk = Disk(contents(root))
    with pytest.MonkeyPatch.context() as patch:
        recorder.patched(patch)
        yield recorder.steps
    for step in recorder.steps:
        disk.do(step)
    assert disk.now() == contents(root), "something changed the folder that was not recorded"


def contents(root: Path) -> dict[str, bytes]:
    """Every file, by its path below ``root``."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            with builtins.open(path, "rb") as file:
                found[os.path.relpath(path, root)] = file.read()
    return found


# --- replaying ---


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced: bool = False

    def torn(self, share: int) -> bytes:
        """``share`` of two halves of what was written, unless all of it is safe."""
        return bytes(self.data) if self.synced else bytes(self.data[: len(self.data) * share // 2])


@dataclass(frozen=True)
class _Name:
    """A change of names in one folder, not yet safe: ``new`` appears, ``old`` goes."""

    folder: str
    new: str
    file: _File | None
    old: str

    def apply(self, names: dict[str, _File]) -> None:
        if self.old:
            names.pop(self.old, None)
        if self.new and self.file is not None:
            names[self.new] = self.file


class Disk:
    """Files in the memory of the system and on the plate. Empty folders do not matter: who needs one makes it."""

    def __init__(self, start: dict[str, bytes]) -> None:
        self._names = {path: _File(bytearray(data), synced=True) for path, data in start.items()}
        self._safe = dict(self._names)
        self._pending: list[_Name] = []
        self._ever: list[_Name] = []  # all changes of names since the start

    def do(self, step: Step) -> None:
        if step.call == "write":
            file = self._names[step.path]
            file.data += step.data
            file.synced = False
        elif step.call == "sync":
            self._names[step.path].synced = True
        elif step.call == "sync-folder":
            self._sync_folder(step.path)
        elif step.call != "mkdir":
            self._rename(step)

    def _rename(self, step: Step) -> None:
        file = _File() if step.call == "create" else self._names.get(step.path)
        new = {"create": step.path, "rename": step.other, "link": step.other}.get(step.call, "")
        old = step.path if step.call in ("rename", "unlink") else ""
        change = _Name(os.path.dirname(step.path), new, file, old)
        assert not step.other or os.path.dirname(step.other) == change.folder, "renamed into another folder"
        change.apply(self._names)
        self._pending.append(change)
        self._ever.append(change)

    def _sync_folder(self, folder: str) -> None:
        for change in self._pending:
            if change.folder == folder:
                change.apply(self._safe)
        self._pending = [change for change in self._pending if change.folder != folder]

    def now(self) -> dict[str, bytes]:
        return {path: bytes(file.data) for path, file in self._names.items()}

    def after_cut(self, start: dict[str, _File]) -> Iterator[tuple[Model, dict[str, bytes]]]:
        """All that a cut at this instant may leave. ``start``: the names at the beginning of the record."""
        both = Model.LOCAL | Model.SFTP
        for share in range(3):  # of what was written and not synced
            yield both, self._content(self._names, share)
            for changes in _subsets(self._pending):
                yield Model.LOCAL, self._content(_applied(self._safe, changes), share)
        for count in range(len(self._ever)):
            yield Model.SFTP, self._content(_applied(start, self._ever[:count]), 0)
        yield Model.ATOMIC, {path: data for path, data in self.now().items() if TEMPORARY not in path}

    @staticmethod
    def _content(names: dict[str, _File], share: int) -> dict[str, bytes]:
        return {path: file.torn(share) for path, file in names.items()}

    @property
    def names(self) -> dict[str, _File]:
        return dict(self._names)


def _applied(names: dict[str, _File], changes: Iterable[_Name]) -> dict[str, _File]:
    found = dict(names)
    for change in changes:
        change.apply(found)
    return found


def _subsets(changes: list[_Name]) -> Iterator[tuple[_Name, ...]]:
    if len(changes) <= _MAX_PENDING:
        for count in range(len(changes) + 1):
            yield from itertools.combinations(changes, count)
        return
    for count in range(len(changes)):
        yield tuple(changes[:count])
        yield tuple(changes[:count] + changes[count + 1 :])


@dataclass
class Remains:
    """What a cut may leave; ``after`` is the first step after which it may be met."""

    files: dict[str, bytes]
    after: str
    models: Model


def remains(start: dict[str, bytes], steps: list[Step]) -> list[Remains]:
    """Every different state that a cut before the first, between any two or after the last step may leave."""
    found: dict[frozenset[tuple[str, bytes]], Remains] = {}
    once: dict[bytes, bytes] = {}  # the same content is held once, though thousands of states have it
    disk = Disk(start)
    names = disk.names
    for number in range(len(steps) + 1):
        after = f"step {number}: {steps[number - 1]}" if number else "nothing"
        for model, files in disk.after_cut(names):
            files = {path: once.setdefault(data, data) for path, data in files.items()}
            known = found.setdefault(frozenset(files.items()), Remains(files, after, model))
            known.models |= model
        if number < len(steps):
            disk.do(steps[number])
    return list(found.values())


def lay_out(files: dict[str, bytes], folder: Path, pool: Path) -> None:
    """Make these files in a new folder, as links to one copy of each content in ``pool``."""
    for path, data in files.items():
        kept = pool / hashlib.sha256(data).hexdigest()
        if not kept.exists():  # written aside: another thread may lay out the same content at the same time
            made = pool / f"{kept.name}-{threading.get_ident()}"
            made.write_bytes(data)
            made.chmod(0o400)
            made.replace(kept)
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(kept, place)
