"""A small database of this machine about one repository: a memory, never the truth.

It is thrown away when it is damaged or of another version, and begun anew; losing it costs work or a question that
cannot be answered, never data.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from node_agent.errors import ConfigError
from node_agent.repository.local_db import LocalDatabase, open_database

Row = Sequence[Any]


class LocalMemory:
    """A context manager; without a path it remembers nothing beyond its own life. One thread."""

    version: ClassVar[int] = 1
    table: ClassVar[str]
    columns: ClassVar[str]

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._db = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @property
    def remembers(self) -> bool:
        return self._path is not None

    def _change(self, statement: str, rows: Iterable[Row]) -> None:
        try:
            self._db.executemany(statement, rows)
        except sqlite3.DatabaseError:
            self._begin_anew()

    def _rows(self, query: str, values: Row = ()) -> Iterator[Row]:
        try:
            yield from self._db.execute(query, values)
        except sqlite3.DatabaseError:
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._db.close()
        self._remove_files()
        self._db = self._open()

    def _open(self) -> LocalDatabase:
        if self._path is None:
            return self._connect(":memory:")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._connect(str(self._path))
        except OSError as error:
            raise ConfigError(f"The cache folder {self._path.parent} cannot be used: {error.strerror}.") from error
        except sqlite3.DatabaseError:
            self._remove_files()
            return self._connect(str(self._path))

    def _connect(self, path: str) -> LocalDatabase:
        db = open_database(path, wait_s=60)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = OFF")
            if db.execute("PRAGMA user_version").fetchone()[0] != self.version:
                db.execute(f"DROP TABLE IF EXISTS {self.table}")
                with contextlib.suppress(ConfigError):  # another process made it just now
                    db.execute(f"CREATE TABLE {self.table} ({self.columns}) WITHOUT ROWID")
                db.execute(f"PRAGMA user_version = {self.version}")
            db.execute(f"SELECT count(*) FROM {self.table}").fetchone()
        except BaseException:
            db.close()
            raise
        return db

    def _remove_files(self) -> None:
        for suffix in ("", "-wal", "-shm") if self._path is not None else ():
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)
