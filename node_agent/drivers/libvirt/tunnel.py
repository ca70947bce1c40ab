"""A unix socket of the hypervisor, here: forwarded by the OpenSSH client, which is several times as fast as paramiko.

The client runs ``cat`` over there for as long as we hold its input open: when this process dies, however it dies, the
client ends, and with it the connection. A peer that is silent is given up after 45 seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node_agent.drivers.libvirt.access import HostAccess
from node_agent.drivers.libvirt.errors import HypervisorError, HypervisorUnreachable
from node_agent.drivers.libvirt.ssh import Connection
from node_agent.ssh_trust import QUICK_CIPHERS

_PREFIX, _HELD = "brs-ssh-", "held"
_READY_S = 30.0
_ACCEPTS_CONNECTIONS = 0x10000  # the kernel's __SO_ACCEPTCON
_POLL_S = 0.01
# What decrypts over there works after the machines, too: the parent is sshd's process for this connection alone.
_FAR_END = "renice -n 10 -p $PPID >/dev/null 2>&1; exec cat >/dev/null"
_ASKPASS = '#!/bin/sh\nprintf "%s\\n" "$BRS_SECRET"\n'


@dataclass(frozen=True, slots=True)
class Tunnel:
    """``path``: the socket on this side. Each connection to it is one to the other side."""

    path: Path
    messages: Path
    process: subprocess.Popen[bytes]

    def complaint(self) -> str:
        """What the client has said so far: why a connection was refused."""
        return " ".join(self.messages.read_text(errors="replace").split())[-500:]


@contextmanager
def tunnel(connection: Connection, remote: str) -> Iterator[Tunnel]:
    """Raises HypervisorUnreachable when it does not come up. That the other side's socket is there is not proven."""
    connection.connect()
    with _own_folder() as folder:
        command, env = _command(connection, folder, remote)
        with (folder / "messages").open("wb") as messages:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages, env=env
                )
            except FileNotFoundError as error:
                raise HypervisorError(
                    "Reading from a hypervisor needs the program ssh on this node.",
                    hint="Install it (Debian: apt install openssh-client).",
                ) from error
        try:
            opened = Tunnel(folder / "nbd", folder / "messages", process)
            _wait(opened, connection.access)
            for secret in ("key", "askpass"):  # used: a process that is killed leaves its folder behind
                (folder / secret).unlink(missing_ok=True)
            yield opened
        finally:
            _end(process)


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A temporary folder. Those that killed processes left are removed: nobody holds the lock of their file."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_HELD}"):
        with contextlib.suppress(OSError):  # held, or gone meanwhile
            if left.is_file() and left.stat().st_uid == os.geteuid():
                with left.open() as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, Path(name, "new").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Path(name, "new").rename(Path(name, _HELD))  # locked when it is seen
        yield Path(name)


def _command(connection: Connection, folder: Path, remote: str) -> tuple[list[str], dict[str, str]]:
    access = connection.access
    known = folder / "known_hosts"
    assert connection.host_key is not None
    host = access.host if access.port == 22 else f"[{access.host}]:{access.port}"
    known.write_text(f"{host} {connection.host_key.get_name()} {connection.host_key.get_base64()}\n")
    options = {
        "UserKnownHostsFile": str(known),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "Ciphers": ",".join(QUICK_CIPHERS),
        "Compression": "no",
        "ConnectTimeout": "15",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "3",
        "ExitOnForwardFailure": "yes",
        "ControlPath": "none",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "IdentityAgent": "none",
        "NumberOfPasswordPrompts": "1",
        "LogLevel": "INFO",
    }
    env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(folder), "LC_ALL": "C"}
    secret = access.password
    if access.private_key is not None:
        options |= {"IdentitiesOnly": "yes", "IdentityFile": str(_secret_file(folder / "key", access.private_key))}
        options["PreferredAuthentications"] = "publickey"
        secret = access.passphrase
    if secret is None:
        options["BatchMode"] = "yes"
    else:
        env |= {"SSH_ASKPASS": str(_askpass(folder)), "SSH_ASKPASS_REQUIRE": "force", "BRS_SECRET": secret}
    given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    forward = f"{folder / 'nbd'}:{remote}"
    return [
        "ssh", "-F", "/dev/null", "-T", *given, "-p", str(access.port), "-l", access.user, "-L", forward,
        "--", access.host, f"exec /bin/sh -c {shlex.quote(_FAR_END)}",
    ], env  # fmt: skip


def _secret_file(path: Path, text: str) -> Path:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text.strip() + "\n")
    return path


def _askpass(folder: Path) -> Path:
    """Tells the secret from the environment, which no other user of this machine can see."""
    path = folder / "askpass"
    path.write_text(_ASKPASS)
    path.chmod(0o700)
    return path


def _wait(opened: Tunnel, access: HostAccess) -> None:
    deadline = time.monotonic() + _READY_S
    while not _listens(opened.path):
        if opened.process.poll() is not None or time.monotonic() > deadline:
            why = opened.complaint() or "no reason given"
            raise HypervisorUnreachable(f"No tunnel to {access.shown} came up: {why}")
        time.sleep(_POLL_S)


def _listens(path: Path) -> bool:
    """The file is there before the client listens on it. To connect would be a connection on the other side too, so the
    kernel's table is asked: Num RefCount Protocol Flags Type State Inode Path."""
    lines = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text(errors="replace").splitlines())
    return any(
        len(line) == 8 and line[7] == str(path) and int(line[3], 16) & _ACCEPTS_CONNECTIONS
        for line in lines
        if line[0] != "Num"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
