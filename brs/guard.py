"""One standalone server per database.

Two would plan every backup twice and each believe that the other's leases were its own. On SQLite the guard is a
lock on a file beside the database; on PostgreSQL an advisory lock, held by a connection of its own. There a
standalone server holds it alone, while the processes of a large installation (``manage.py serve``) share it.
Both kinds of lock end with the process that held them, however it ended.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import IO, Any

import psycopg
from django.conf import settings
from django.db import connection

ADVISORY_KEY = 0x425253  # "BRS"
PATIENCE_S = 3.0  # PostgreSQL notices a moment late that the holder's process has ended


class AnotherServer(SystemExit):
    def __init__(self, where: str) -> None:
        super().__init__(
            f"Another server runs on this database ({where}). Stop it first, "
            "or give this one a database of its own (BRS_DATA_DIR, BRS_DATABASE_URL)."
        )


class ServerGuard:
    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._file: IO[str] | None = None
        self._session: psycopg.Connection[Any] | None = None

    def take(self) -> None:
        """Raises AnotherServer, whose message says what to do."""
        if connection.vendor == "sqlite":
            self._take_file()
        else:
            self._take_session()

    def keep(self) -> None:
        """Looks whether it is still held (a database that was restarted forgets it) and takes it again if not."""
        if self._session is None:
            return
        try:
            self._session.execute("SELECT 1")
        except psycopg.Error:
            self._session.close()
            self._take_session()

    def release(self) -> None:
        if self._file:
            self._file.close()
        if self._session:
            self._session.close()
        self._file = self._session = None

    def _take_file(self) -> None:
        path = settings.DATA_DIR / "server.lock"
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(20).strip() or "?"
            file.close()
            raise AnotherServer(f"process {holder}, {settings.DATABASES['default']['NAME']}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def _take_session(self) -> None:
        values = connection.get_connection_params()
        values = {name: values[name] for name in ("dbname", "user", "password", "host", "port") if values.get(name)}
        session = psycopg.connect(**values, autocommit=True, application_name="brs guard")
        function = "pg_try_advisory_lock_shared" if self._shared else "pg_try_advisory_lock"
        deadline = time.monotonic() + PATIENCE_S
        while session.execute(f"SELECT {function}(%s)", [ADVISORY_KEY]).fetchone() != (True,):
            if time.monotonic() > deadline:
                session.close()
                raise AnotherServer(f"{values.get('host', 'local')}, {values['dbname']}")
            time.sleep(0.2)
        self._session = session
