"""The real server as its own process, in an empty folder, on the database that the suite runs on."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx

from tests.ports import port_of_its_own

ROOT = Path(__file__).resolve().parents[2]
READY_S = 60.0
STOP_S = 30.0


@dataclass
class Standalone:
    data: Path
    port: int
    database_url: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def log(self) -> str:
        return (self.data / "server.log").read_text(errors="replace")

    def environment(self) -> dict[str, str]:
        # Only what it needs: an installation's variables must not leak into a test, nor a test's into the server.
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "BRS_REDIS_URL") if name in os.environ}
        own = {"BRS_DATA_DIR": str(self.data), "BRS_PUBLIC_URL": self.url, "BRS_DATABASE_URL": self.database_url}
        return {**kept, **own}

    def manage(self, *words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", *words],
            cwd=ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def client(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.data / "pki" / "ca.pem"))
        return httpx.Client(base_url=self.url, verify=context, trust_env=False, timeout=20)

    def start(self) -> None:
        with (self.data / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "standalone", "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=ROOT,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + READY_S
        while not self.is_ready():
            assert self.process.poll() is None and time.monotonic() < deadline, f"it did not start:\n{self.log[-3000:]}"
            time.sleep(0.1)

    def is_ready(self) -> bool:
        if not (self.data / "pki" / "ca.pem").exists():
            return False
        try:
            with self.client() as client:
                return client.get("/healthz").status_code == 200
        except httpx.HTTPError:
            return False

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Sends the signal; exit status and seconds that it took."""
        assert self.process is not None
        started = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(STOP_S), time.monotonic() - started


@contextmanager
def standalone(data: Path) -> Iterator[Standalone]:
    """A server that is ready; killed at the end if the test did not end it."""
    with _database() as database_url:
        server = Standalone(data, port_of_its_own(), database_url)
        try:
            server.start()
            yield server
        finally:
            if server.process is not None and server.process.poll() is None:
                server.process.kill()
                server.process.wait()


@contextmanager
def _database() -> Iterator[str]:
    """A new database of its own beside the suite's; nothing for SQLite, which lies in the server's folder."""
    url = os.environ.get("BRS_DATABASE_URL", "")
    if not url:
        yield ""
        return
    import psycopg

    name = f"standalone_{os.getpid()}_{time.monotonic_ns()}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        try:
            yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
