"""A repository in a folder: a local disk, or anything mounted (NFS, CIFS).

Layout as restic's: ``config``, ``keys/ locks/ snapshots/ index/`` and ``data/00 … data/ff``.

Crash model: atomic by rename within one folder; durable by fsync of the file, then of the folder, before
``put`` returns; so packs are on the disk before the index that names them is written. A kill leaves at most
a file named ``<name>-tmp-<random>``, which no listing shows. A power cut with a disk that lies about
fsync is not covered.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from node_agent.errors import (
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    ObjectMissing,
    RepositoryExists,
    RepositoryMissing,
)
from node_agent.repository.backend.base import CONFIG_NAME, Backend, Buffer, Kind, ObjectInfo, is_object_name

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_AWAY = {errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.ECONNRESET}
_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # some file systems cannot sync a folder
_NO_LINK = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
_FOLDERS = (Kind.KEY, Kind.LOCK, Kind.SNAPSHOT, Kind.INDEX, Kind.PACK)
_TEMPORARY = "-tmp-"


class LocalBackend(Backend):
    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.url = f"local:{self.root}"
        self._modes: tuple[int, int] | None = None

    def create(self) -> None:
        try:
            self.root.mkdir(mode=0o700, exist_ok=True)  # the parent must be there: a missing one is a missing mount
            for kind in _FOLDERS:
                (self.root / kind.value).mkdir(mode=0o700, exist_ok=True)
            for byte in range(256):
                (self.root / Kind.PACK.value / f"{byte:02x}").mkdir(mode=0o700, exist_ok=True)
            _sync_folder(self.root / Kind.PACK.value)
            _sync_folder(self.root)
            _sync_folder(self.root.parent)
        except FileNotFoundError as error:
            raise RepositoryMissing(
                f"The folder {self.root.parent} does not exist.",
                hint="Mount the destination, or make the folder that is to hold the repository.",
            ) from error
        except OSError as error:
            self._raise_write(error, self.root)

    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        path = self._path(kind, name)
        folder_mode, file_mode = self._derived_modes()
        try:
            if kind is Kind.PACK:
                self._make_pack_folder(path.parent, folder_mode)
            self._write(path, parts, file_mode, exclusive=kind is Kind.CONFIG)
        except FileExistsError as error:
            raise RepositoryExists(f"There is already a repository at {self.root}.") from error
        except FileNotFoundError as error:
            raise self._missing_layout() from error
        except OSError as error:
            self._raise_write(error, path)

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = self._path(kind, name)
        try:
            with path.open("rb", buffering=0) as file:
                return _read(file.fileno(), offset, length)
        except OSError as error:
            self._raise_read(error, path, kind, name)

    def list(self, kind: Kind) -> Iterator[ObjectInfo]:
        if kind is Kind.CONFIG:
            if self.exists(kind, CONFIG_NAME):
                yield self.stat(kind, CONFIG_NAME)
            return
        folder = self.root / kind.value
        try:
            yield from _list_folder(folder, depth=1 if kind is Kind.PACK else 0)
        except FileNotFoundError as error:
            raise self._missing_layout() from error
        except OSError as error:
            self._raise_read(error, folder, kind, "")

    def stat(self, kind: Kind, name: str) -> ObjectInfo:
        path = self._path(kind, name)
        try:
            found = path.stat()
        except OSError as error:
            self._raise_read(error, path, kind, name)
        return ObjectInfo(name, found.st_size, found.st_mtime)

    def delete(self, kind: Kind, name: str) -> None:
        path = self._path(kind, name)
        try:
            path.unlink(missing_ok=True)
            _sync_folder(path.parent)
        except FileNotFoundError as error:
            if not path.parent.parent.exists():
                raise self._missing_layout() from error
        except OSError as error:
            self._raise_write(error, path)

    def now(self) -> float:
        """Taken from a file made for it, since on a mount the time stamps are the server's."""
        path = self.root / Kind.LOCK.value / f"clock{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            with path.open("xb") as file:
                return os.fstat(file.fileno()).st_mtime
        except FileNotFoundError as error:
            raise self._missing_layout() from error
        except OSError as error:
            self._raise_write(error, path)
        finally:
            with contextlib.suppress(OSError):
                path.unlink()

    def remove_leftovers(self) -> int:
        removed = 0
        try:
            for folder, _, names in os.walk(self.root):
                for name in names:
                    if _TEMPORARY in name:
                        (Path(folder) / name).unlink(missing_ok=True)
                        removed += 1
        except OSError as error:
            self._raise_write(error, self.root)
        return removed

    def _path(self, kind: Kind, name: str) -> Path:
        if kind is Kind.CONFIG:
            return self.root / CONFIG_NAME
        if not is_object_name(name):
            raise ValueError(f"{name!r} is not the name of an object")
        if kind is Kind.PACK:
            return self.root / kind.value / name[:2] / name
        return self.root / kind.value / name

    def _derived_modes(self) -> tuple[int, int]:
        """Modes of folders and files: a config that its group may read makes a repository shared by the group."""
        if self._modes is None:
            try:
                shared = bool((self.root / CONFIG_NAME).stat().st_mode & stat.S_IRGRP)
            except OSError:
                return 0o700, 0o400  # no config yet: init is at work
            self._modes = (0o770, 0o440) if shared else (0o700, 0o400)
        return self._modes

    def _make_pack_folder(self, folder: Path, mode: int) -> None:
        if not folder.is_dir():
            # Never parents=True: if data/ itself is gone, the destination is not mounted, and a
            # repository grown on the empty mount point would be worse than an error.
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=mode)
            _sync_folder(folder.parent)

    def _write(self, path: Path, parts: Sequence[Buffer], mode: int, *, exclusive: bool) -> None:
        temporary = path.with_name(f"{path.name}{_TEMPORARY}{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            try:
                for part in parts:
                    _write_all(descriptor, part)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if exclusive:
                _publish_once(temporary, path)
            else:
                temporary.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def _missing_layout(self) -> RepositoryMissing:
        if not self.root.is_dir():
            return RepositoryMissing(f"The folder {self.root} does not exist; is the destination mounted?")
        return RepositoryMissing(
            f"The folder {self.root} holds no repository (its folders are missing); is the destination mounted?"
        )

    def _raise_write(self, error: OSError, path: Path) -> NoReturn:
        if error.errno in _FULL:
            raise BackendFull(f"The destination {self.root} has no space left.") from error
        if error.errno in _FORBIDDEN:
            why = "is mounted read-only" if error.errno == errno.EROFS else "may not be written by this user"
            raise BackendReadOnly(f"The destination {self.root} {why} ({path}).") from error
        self._raise_other(error, path)

    def _raise_read(self, error: OSError, path: Path, kind: Kind, name: str) -> NoReturn:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            if not (self.root / Kind.PACK.value).is_dir():
                raise self._missing_layout() from error
            raise ObjectMissing(f"{kind.name.lower()} {name} is missing from {self.root}.") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise BackendError(
                f"The file {path} may not be read by this user.",
                hint="Give the node's user the right to read the repository's folder.",
            ) from error
        self._raise_other(error, path)

    def _raise_other(self, error: OSError, path: Path) -> NoReturn:
        message = f"{error.strerror or error} ({path})"
        if error.errno in _AWAY:
            raise BackendUnavailable(f"The destination does not answer: {message}.") from error
        raise BackendError(f"The destination reported: {message}.") from error


def _list_folder(folder: Path, depth: int) -> Iterator[ObjectInfo]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if depth:
                if len(entry.name) == 2 and entry.is_dir():
                    yield from _list_folder(Path(entry.path), depth - 1)
            elif is_object_name(entry.name):
                try:
                    found = entry.stat()
                except FileNotFoundError:
                    continue  # deleted between listing and looking: it is simply gone
                yield ObjectInfo(entry.name, found.st_size, found.st_mtime)


def _read(descriptor: int, offset: int, length: int | None) -> bytes:
    if length is None:
        length = max(0, os.fstat(descriptor).st_size - offset)
    data = os.pread(descriptor, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]  # a short read is allowed by the system; only nothing means the end
    have = len(data)
    while have < length and (more := os.pread(descriptor, length - have, offset + have)):
        parts.append(more)
        have += len(more)
    return b"".join(parts)


def _write_all(descriptor: int, part: Buffer) -> None:
    view = memoryview(part).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]


def _publish_once(temporary: Path, path: Path) -> None:
    """Give the file its name unless the name is taken; a link fails then, a rename would replace."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(path)) from error
        temporary.rename(path)
    else:
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(descriptor)
