"""A private PostgreSQL and Redis for one command, gone when it ends:

    python -m tests.lab.services -- <command …>

Both listen on free ports of 127.0.0.1 and keep everything in one temporary folder; the command gets their addresses
in BRS_DATABASE_URL and BRS_REDIS_URL, and its exit status is ours. Works without systemd and as root (PostgreSQL
refuses root, so it then runs as the user that Debian's package made, or as ``nobody``).
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import port_of_its_own

READY_S = 60.0
# Nothing of it outlives the tests, so nothing need reach the disk.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}


class ServiceError(SystemExit):
    pass


@contextmanager
def services() -> Iterator[dict[str, str]]:
    """Starts both; yields what belongs into the environment."""
    folder = Path(tempfile.mkdtemp(prefix="brs-services-"))
    folder.chmod(0o755)  # PostgreSQL's user must pass through
    started: list[subprocess.Popen[bytes]] = []
    try:
        environment = {}
        environment["BRS_DATABASE_URL"] = _postgresql(folder, started)
        environment["BRS_REDIS_URL"] = _redis(folder, started)
        yield environment
    finally:
        for process in reversed(started):
            _stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def _postgresql(folder: Path, started: list[subprocess.Popen[bytes]]) -> str:
    programs = _postgresql_programs()
    data, log = folder / "postgresql", folder / "postgresql.log"
    data.mkdir(mode=0o700)
    account = _other_user(data) if os.geteuid() == 0 else None
    made = subprocess.run(
        [programs / "initdb", "-D", data, "-U", "brs", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
        capture_output=True,
        text=True,
        cwd="/",
        **_as(account),
    )
    if made.returncode:
        raise ServiceError(f"initdb failed:\n{made.stdout}{made.stderr}")
    port = port_of_its_own()
    options = {"port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": str(data), **FAST}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [programs / "postgres", "-D", data, *(word for key in options for word in ("-c", f"{key}={options[key]}"))],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,  # Ctrl-C ends the command first, then us, then this
            **_as(account),
        )
    started.append(process)
    isready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "brs"]
    _wait("PostgreSQL", process, log, lambda: subprocess.run(isready).returncode == 0)
    subprocess.run([programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "brs", "brs"], check=True)
    return f"postgresql://brs@127.0.0.1:{port}/brs"


def _redis(folder: Path, started: list[subprocess.Popen[bytes]]) -> str:
    program = shutil.which("redis-server")
    if program is None:
        raise ServiceError("redis-server is not installed (Debian: apt-get install redis-server).")
    port, log = port_of_its_own(), folder / "redis.log"
    data = folder / "redis"
    data.mkdir()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(data)]
    with log.open("wb") as output:
        process = subprocess.Popen([program, *options], stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    started.append(process)
    _wait("Redis", process, log, lambda: _pong(port))
    return f"redis://127.0.0.1:{port}/0"


def _postgresql_programs() -> Path:
    """Debian keeps the server's programs out of PATH, in a folder for each version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    if initdb := shutil.which("initdb"):
        return Path(initdb).resolve().parent
    raise ServiceError("PostgreSQL is not installed (Debian: apt-get install postgresql).")


def _other_user(data: Path) -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(data, account.pw_uid, account.pw_gid)
        return account
    raise ServiceError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody.")


def _as(account: pwd.struct_passwd | None) -> dict[str, object]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _pong(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _wait(name: str, process: subprocess.Popen[bytes], log: Path, ready) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServiceError(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)  # PostgreSQL: fast shutdown; clients are cut off
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    # A terminal's Ctrl-C, or a runner's SIGTERM, must not end us before what we started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with services() as environment:
        command = subprocess.Popen(arguments, env={**os.environ, **environment})
        try:
            return command.wait()
        except BaseException:
            command.terminate()
            command.wait(30)
            raise


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
