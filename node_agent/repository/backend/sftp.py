"""A repository on a server that speaks SFTP, in the same layout as in a local folder.

Crash model: atomic by writing ``<name>-tmp-<random>`` and then ``posix-rename@openssh.com``. The content is
synced before (``fsync@openssh.com``); the rename cannot be, so after a power cut of the *server* the last
objects whose puts returned may be missing, and the last that were deleted be there again; never is one torn:
files are synced before they are renamed. What is lost is lost in order, since the server's file system
journals names (ext4, XFS, btrfs, ZFS): an index never outlives a pack that was put before it. Servers
without the sync extension promise less, and the log says so. Order and list-after-write hold. ``config`` is
renamed by the plain SFTP rename, which refuses to replace. A kill leaves at most a file that no listing shows.
"""

from __future__ import annotations

import contextlib
import posixpath
import secrets
import stat as modes
from collections.abc import Iterator, Sequence
from typing import NoReturn

import paramiko

from node_agent.errors import (
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    ObjectMissing,
    RepositoryExists,
    RepositoryMissing,
)
from node_agent.repository.backend.base import (
    CONFIG_NAME,
    Backend,
    Buffer,
    Kind,
    ObjectInfo,
    is_object_name,
    object_path,
)
from node_agent.repository.backend.settings import Settings
from node_agent.repository.backend.sftp_client import Broken, Found
from node_agent.repository.backend.sftp_login import login_of
from node_agent.repository.backend.sftp_session import Session, SessionPool

_FOLDERS = (Kind.KEY, Kind.LOCK, Kind.SNAPSHOT, Kind.INDEX, Kind.PACK)
_PACK_FOLDERS = [f"{byte:02x}" for byte in range(256)]
_TEMPORARY = "-tmp-"
_LOST = (Broken, EOFError, paramiko.SSHException, paramiko.SFTPError)
_FOREIGN = (*_LOST, OSError)


def open_sftp(address: str, settings: Settings) -> SftpBackend:
    """``address`` is what follows ``sftp:``."""
    login = login_of(address, settings)
    return SftpBackend(SessionPool(login.connect), url=login.url, root=login.path)


class SftpBackend(Backend):
    def __init__(self, pool: SessionPool, *, url: str, root: str) -> None:
        self.url = url
        self._pool = pool
        self._root = root
        self._modes: tuple[int, int] | None = None

    def create(self) -> None:
        with self._told("", writing=True), self._pool.session() as session:
            with contextlib.suppress(FileExistsError):
                self._make_root(session)
            there = session.sftp.folder(self._root)
            wanted = [kind.value for kind in _FOLDERS if kind.value not in there]
            session.make_folders([f"{self._root}/{name}" for name in wanted], 0o700)
            packs = f"{self._root}/{Kind.PACK.value}"
            there = session.sftp.folder(packs)
            session.make_folders([f"{packs}/{name}" for name in _PACK_FOLDERS if name not in there], 0o700)

    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        path = self._path(kind, name)
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        with self._told(name, writing=True, size=sum(map(len, views))), self._pool.session() as session:
            folder_mode, file_mode = self._derived_modes(session)
            temporary = f"{path}{_TEMPORARY}{secrets.token_hex(8)}"
            try:
                self._write(session, temporary, views, file_mode, folder_mode if kind is Kind.PACK else None)
                self._publish(session, temporary, path, exclusive=kind is Kind.CONFIG)
            except BaseException:
                if session.alive:
                    with contextlib.suppress(*_FOREIGN):
                        session.sftp.remove(temporary)
                raise

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = self._path(kind, name)
        with self._told(name, kind=kind), self._pool.session() as session:
            return session.read(path, offset, length)

    def list(self, kind: Kind) -> Iterator[ObjectInfo]:
        """A session is held for one folder's listing, not between two objects."""
        if kind is Kind.CONFIG:
            with contextlib.suppress(ObjectMissing):
                yield self.stat(kind, CONFIG_NAME)
            return
        folder = f"{self._root}/{kind.value}"
        if kind is not Kind.PACK:
            yield from self._objects(folder)
            return
        for name, found in self._entries(folder).items():
            if name in _PACK_FOLDERS and modes.S_ISDIR(found.mode):
                yield from (info for info in self._objects(f"{folder}/{name}") if info.name.startswith(name))

    def stat(self, kind: Kind, name: str) -> ObjectInfo:
        path = self._path(kind, name)
        with self._told(name, kind=kind), self._pool.session() as session:
            return _info(name, session.stat(path))

    def delete(self, kind: Kind, name: str) -> None:
        path = self._path(kind, name)
        with self._told(name, writing=True), self._pool.session() as session:
            try:
                session.sftp.remove(path)
            except FileNotFoundError:
                session.stat(f"{self._root}/{Kind.PACK.value}")  # raises when the layout itself is gone

    def now(self) -> float:
        """Taken from a file made for it: in SFTP no server tells its time. To the second."""
        path = f"{self._root}/{Kind.LOCK.value}/clock{_TEMPORARY}{secrets.token_hex(8)}"
        with self._told("clock", writing=True), self._pool.session() as session:
            try:
                return session.modified_of_new(path, 0o600)
            finally:
                if session.alive:
                    with contextlib.suppress(*_FOREIGN):
                        session.sftp.remove(path)

    def remove_leftovers(self) -> int:
        folders = ["", *(f"/{kind.value}" for kind in _FOLDERS)]
        packs = f"{self._root}/{Kind.PACK.value}"
        folders += [f"/{Kind.PACK.value}/{name}" for name in self._entries(packs) if name in _PACK_FOLDERS]
        removed = 0
        for folder in folders:
            for name in self._entries(self._root + folder):
                if _TEMPORARY in name:
                    with self._told("", writing=True), self._pool.session() as session:
                        with contextlib.suppress(FileNotFoundError):
                            session.sftp.remove(f"{self._root}{folder}/{name}")
                    removed += 1
        return removed

    def close(self) -> None:
        self._pool.close()

    def _path(self, kind: Kind, name: str) -> str:
        return f"{self._root}/{object_path(kind, name)}"

    def _make_root(self, session: Session) -> None:
        """Its parent must be there: a missing one is a missing mount at the server, or a mistake."""
        try:
            session.stat(self._root)
        except FileNotFoundError:
            parent = posixpath.dirname(self._root) or "."
            try:
                session.stat(parent)
            except FileNotFoundError as error:
                raise RepositoryMissing(
                    f"The folder above that of {self.url} does not exist.",
                    hint="Make it at the server, or correct the path.",
                ) from error
            session.make_folders([self._root], 0o700)

    def _derived_modes(self, session: Session) -> tuple[int, int]:
        """Of folders and files: a config that its group may read makes a repository shared by the group."""
        if self._modes is None:
            try:
                found = session.stat(f"{self._root}/{CONFIG_NAME}")
            except FileNotFoundError:
                return 0o700, 0o600  # no config yet: init is at work
            self._modes = (0o770, 0o660) if found.mode & modes.S_IRGRP else (0o700, 0o600)
        return self._modes

    def _write(
        self, session: Session, path: str, views: Sequence[memoryview], mode: int, folder_mode: int | None
    ) -> None:
        try:
            session.write_new(path, views, mode)
        except FileNotFoundError:
            if folder_mode is None:
                raise
            # Only this one folder: if data/ itself is gone the destination is not mounted, and this fails.
            session.make_folders([posixpath.dirname(path)], folder_mode)
            session.write_new(path, views, mode)

    def _publish(self, session: Session, temporary: str, path: str, *, exclusive: bool) -> None:
        if not exclusive:
            session.sftp.posix_rename(temporary, path)
            return
        try:
            session.sftp.rename(temporary, path)
        except OSError as error:
            if error.errno is None and session.alive and _is_there(session, path):
                raise RepositoryExists(f"There is already a repository at {self.url}.") from error
            raise

    def _entries(self, folder: str) -> dict[str, Found]:
        with self._told("", layout=True), self._pool.session() as session:
            return session.sftp.folder(folder)

    def _objects(self, folder: str) -> Iterator[ObjectInfo]:
        """Files; of a link what it leads to, as it is read, too."""
        for name, found in self._entries(folder).items():
            if not is_object_name(name):
                continue
            if modes.S_ISLNK(found.mode):
                with self._told("", layout=True), self._pool.session() as session:
                    try:
                        found = session.stat(f"{folder}/{name}")
                    except FileNotFoundError:
                        continue
            if modes.S_ISREG(found.mode) or not modes.S_IFMT(found.mode):
                yield _info(name, found)

    @contextlib.contextmanager
    def _told(
        self,
        name: str,
        *,
        kind: Kind | None = None,
        writing: bool = False,
        layout: bool = False,
        size: int = 0,
    ) -> Iterator[None]:
        """Translate what goes wrong inside."""
        try:
            yield
        except FileNotFoundError as error:
            if kind is not None and not writing and not layout and self._has_layout():
                raise ObjectMissing(f"{kind.name.lower()} {name} is missing from {self.url}.") from error
            raise RepositoryMissing(
                f"At {self.url} is no repository (its folders are missing); is the destination mounted there?"
            ) from error
        except PermissionError as error:
            message = f"{self.url}: the user there may not {'write' if writing else 'read'} {name[:10]}".rstrip() + "."
            raise (BackendReadOnly if writing else BackendError)(
                message, hint="Check the rights of that user in the repository's folder."
            ) from error
        except _LOST as error:
            raise self._away(error) from error
        except OSError as error:
            self._raise(error, writing, size)

    def _raise(self, error: OSError, writing: bool, size: int) -> NoReturn:
        if error.errno is not None or isinstance(error, TimeoutError) or "closed" in str(error).lower():
            raise self._away(error) from error
        if writing and self._is_full(size):
            raise BackendFull(f"The destination {self.url} has no space left.") from error
        if "read-only" in str(error).lower():
            raise BackendReadOnly(f"The destination {self.url} is mounted read-only at the server.") from error
        raise BackendError(
            f"The server of {self.url} reported: {error}.",
            hint="SFTP servers hardly say why; look at the space, the quota and the log of the server.",
        ) from error

    def _is_full(self, size: int) -> bool:
        """SFTP knows no error for a full disk, so the server is asked for what is left."""
        with contextlib.suppress(*_FOREIGN):
            with self._pool.session() as session:
                free = session.free_bytes(self._root)
                return free is not None and free < size + (1 << 16)
        return False

    def _has_layout(self) -> bool:
        try:
            with self._pool.session() as session:
                return _is_there(session, f"{self._root}/{Kind.PACK.value}")
        except _FOREIGN as error:
            raise self._away(error) from error

    def _away(self, error: Exception) -> BackendUnavailable:
        return BackendUnavailable(f"The destination {self.url} does not answer: {str(error) or type(error).__name__}.")


def _is_there(session: Session, path: str) -> bool:
    try:
        session.stat(path)
    except FileNotFoundError:
        return False
    return True


def _info(name: str, found: Found) -> ObjectInfo:
    return ObjectInfo(name, found.size, found.modified)
