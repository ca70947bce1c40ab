"""A whole BRS on this machine: the standalone server and one node, each a process of its own that talks HTTPS.

``python -m brs.local`` (``make run``) keeps both running until Ctrl-C; the demo and the browser tests start it from
Python. Everything lies in one folder (BRS_DATA_DIR, default ``var/``): database, keys, backups, the node's state.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
READY_S = 90
STOP_S = 30
DEFAULT_PORT = 8443
TENANT = "My organisation"
TENANT_SLUG = "my-organisation"


class LocalError(Exception):
    """A sentence for the person at the terminal."""


def free_port(wanted: int | None) -> int:
    """``wanted`` if nobody listens there; without a wish 8443, or any free one when that is taken."""
    for port in (wanted,) if wanted else (DEFAULT_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise LocalError(f"Port {wanted} is in use. Choose another one: PORT=8444")


@dataclass(slots=True)
class Local:
    """Server and node below ``data``. ``read`` are the folders that the node may protect."""

    data: Path
    port: int
    read: list[str]
    write: list[str] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    server: subprocess.Popen[bytes] | None = None
    node: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For people. Programs use :attr:`address`, which needs no name to be resolved."""
        return f"https://localhost:{self.port}"

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        return self.data / "pki" / "ca.pem"

    @property
    def backups(self) -> Path:
        return self.data / "backups"

    @property
    def restored(self) -> Path:
        return self.data / "restored"

    @property
    def node_state(self) -> Path:
        return self.data / "node"

    def log(self, name: str) -> Path:
        return self.data / "log" / f"{name}.log"

    def env(self) -> dict[str, str]:
        ours = {"BRS_DATA_DIR": str(self.data), "BRS_PUBLIC_URL": self.url, "PYTHONUNBUFFERED": "1"}
        return os.environ | ours | self.environ

    def client(self, **options: object) -> httpx.Client:
        """HTTPS to the server, trusting its own CA and nothing of the environment."""
        context = ssl.create_default_context(cafile=str(self.ca))
        return httpx.Client(base_url=self.address, verify=context, trust_env=False, timeout=30, **options)  # type: ignore[arg-type]

    def manage(self, *args: str) -> str:
        done = subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *args], cwd=ROOT, env=self.env(), capture_output=True, text=True
        )
        if done.returncode:
            raise LocalError(f"manage.py {args[0]} failed:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def start_server(self) -> None:
        self.server = self._spawn(
            "server", [str(ROOT / "manage.py"), "standalone", "--host", "127.0.0.1", "--port", str(self.port)]
        )
        deadline = time.monotonic() + READY_S
        while not self._healthy():
            if self.server.poll() is not None or time.monotonic() > deadline:
                raise LocalError(f"The server did not start:\n{_tail(self.log('server'))}")
            time.sleep(0.2)

    def _healthy(self) -> bool:
        if not self.ca.exists():
            return False
        try:
            with self.client() as client:
                return client.get("/healthz").status_code == 200
        except (httpx.HTTPError, ssl.SSLError):
            return False

    def ensure_people(self) -> str | None:
        """The first administrator and a tenant of his. Returns a password if one was made."""
        password = secrets.token_urlsafe(12)
        file = self.data / "first-password"
        file.touch(mode=0o600)
        file.write_text(password)
        try:
            made = "created" in self.manage("ensure_admin", "--username", "admin", "--password-file", str(file)).lower()
        finally:
            file.unlink()
        self.manage("create_tenant", TENANT, "--slug", TENANT_SLUG, "--owner", "admin")
        return password if made else None

    def start_node(self) -> None:
        """Enrol the node if it is new, then run it."""
        for folder in (self.backups, self.restored, self.node_state):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self.node_state / "node.toml"
        if not config.exists():
            config.write_text(self._node_toml())
        if not (self.node_state / "token").exists():
            code = self.manage("enrolment_code", "--tenant", TENANT_SLUG, "--node-name", "local").splitlines()[-1]
            self._enrol(code, config)
        self.node = self._spawn("node", ["-m", "node_agent", "run", "--state", str(self.node_state)])

    def _enrol(self, code: str, config: Path) -> None:
        command = [sys.executable, "-m", "node_agent", "enroll", "--server", self.address, "--code", code]
        command += ["--name", "local", "--state", str(self.node_state), "--config", str(config)]
        done = subprocess.run(command, cwd=ROOT, env=self.env(), capture_output=True, text=True)
        if done.returncode:
            raise LocalError(f"The node could not enrol:\n{done.stdout}{done.stderr}")

    def _node_toml(self) -> str:
        def folders(paths: Sequence[str]) -> str:
            return "[" + ", ".join(f'"{_toml(path)}"' for path in dict.fromkeys(paths)) + "]"

        return (
            "# What this node may touch, whatever the server asks. docs/node.md lists every entry.\n"
            'name = "local"\ndrain_grace_s = 5\n\n[roots]\n'
            f"read = {folders([*self.read, str(self.data)])}\n"
            f"write = {folders([str(self.restored), *self.write])}\n"
            f"repositories = {folders([str(self.backups)])}\n"
            # server and node are one machine here
            'stores = ["sftp:", "s3:", "azure:", "gs:", "rest:"]\nplatforms = ["kvm:", "rbd:"]\n'
        )

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=self.env(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone; we stop them in order
            )

    def stop(self) -> None:
        """The node first, so that it can give its tasks back."""
        for process in (self.node, self.server):
            if process is None or process.poll() is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _tail(path: Path, lines: int = 25) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"


def _toml(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does, so that the processes are stopped on both."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wait_until_interrupted(local: Local) -> None:
    """Returns on Ctrl-C; a process that ends by itself is an error, with the end of its log."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            for name, process in (("server", local.server), ("node", local.node)):
                if process is not None and process.poll() is not None:
                    raise LocalError(f"The {name} ended by itself:\n{_tail(local.log(name))}")
            time.sleep(0.5)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make run", description="Standalone server and a local node.")
    parser.add_argument("--port", type=int)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("BRS_DATA_DIR", ROOT / "var")))
    args = parser.parse_args(argv)
    read = [path for path in ("/etc", "/home", "/opt", "/srv", "/usr", "/var/lib") if Path(path).is_dir()]
    local = Local(data=args.data.resolve(), port=0, read=read)
    try:
        with stopping_on_signals():
            local.port = free_port(args.port)
            print("Starting the server …", flush=True)
            local.start_server()
            password = local.ensure_people()
            local.start_node()
            print(f"\n  BRS runs at  {local.url}/\n  user         admin")
            print(f"  password     {password or 'as set before (new one: manage.py changepassword admin)'}")
            print(f"  its CA       {local.ca}\n  backups in   {local.backups}")
            print(f"  the node may read {', '.join(read)} (change it in {local.node_state / 'node.toml'})")
            print("\nCtrl-C stops it.", flush=True)
            wait_until_interrupted(local)
    except KeyboardInterrupt:
        print()
    except LocalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        local.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
