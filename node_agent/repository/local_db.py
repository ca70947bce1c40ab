"""A SQLite database on this machine, for what may be made again: its troubles are told as ours, with what to do."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from node_agent.errors import ConfigError


class LocalDatabase(sqlite3.Connection):
    """Raises ConfigError for a full disk, rights and locks. A damaged database stays a sqlite3.DatabaseError."""

    path: str = ""

    def execute(self, *args: Any) -> sqlite3.Cursor:
        try:
            return super().execute(*args)
        except sqlite3.OperationalError as error:
            raise unusable(self.path, error) from error

    def executemany(self, statement: str, rows: Iterable[Any]) -> sqlite3.Cursor:
        try:
            return super().executemany(statement, rows)
        except sqlite3.OperationalError as error:
            raise unusable(self.path, error) from error


def open_database(path: str, *, wait_s: float) -> LocalDatabase:
    """One connection for all threads; ``""`` is a temporary file without a name. Raises ConfigError."""
    try:
        db = sqlite3.connect(path, timeout=wait_s, isolation_level=None, check_same_thread=False, factory=LocalDatabase)
    except sqlite3.OperationalError as error:
        raise unusable(path, error) from error
    assert isinstance(db, LocalDatabase)
    db.path = path
    return db


def unusable(path: str, error: sqlite3.OperationalError) -> ConfigError:
    if path:
        what = f"The cache database {path} cannot be used: {error}."
        where = f"the file system of {Path(path).parent}"
        instead = "choose another folder with --cache-dir, or do without by --no-cache"
    else:
        where = f"the file system of {temporary_folder()}"
        what = f"The temporary database in {temporary_folder()} cannot be used: {error}."
        instead = "name another folder in SQLITE_TMPDIR"
    if error.sqlite_errorcode == sqlite3.SQLITE_FULL or _is_full(path or temporary_folder()):
        return ConfigError(what, hint=f"Free space on {where}, or {instead}.")
    return ConfigError(what, hint=f"Look at the rights and the state of {where}, or {instead}.")


def temporary_folder() -> str:
    """Where SQLite puts files without a name: the first of its list that can be written."""
    named = [os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR")]
    folders = [*filter(None, named), "/var/tmp", "/usr/tmp", "/tmp", "."]
    return next((folder for folder in folders if os.access(folder, os.W_OK | os.X_OK)), ".")


def _is_full(path: str) -> bool:
    """SQLite tells some full disks as I/O errors."""
    try:
        found = os.statvfs(path if os.path.exists(path) else os.path.dirname(path) or ".")
    except OSError as error:
        return error.errno == errno.ENOSPC
    return found.f_bavail * found.f_frsize < 1 << 16
