"""Real servers to store at, one of each kind, started by the test that first needs one, on free ports.

What is not installed makes the tests fail in CI, and is skipped loudly elsewhere.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import botocore.session
import httpx
import pytest
from botocore.config import Config

from node_agent.repository.backend import Backend, open_backend
from tests.lab import ceph
from tests.ports import port_of_its_own

ROOT = Path(__file__).resolve().parents[2]
_START_S = 60


@dataclass(frozen=True)
class Place:
    """An address with what opening it needs."""

    url: str
    options: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)

    def open(self, **more: str) -> Backend:
        return open_backend(self.url, {**self.options, **{k.replace("_", "-"): v for k, v in more.items()}}, self.env)


class Peer(ABC):
    """A server. ``place`` gives a new, empty place at it; ``nowhere`` one whose bucket or folder is not there."""

    visible_while_written = False
    creates_once = True  # of two who make a config at the same instant one is refused

    @abstractmethod
    def place(self) -> Place: ...

    @abstractmethod
    def nowhere(self) -> Place | None: ...

    port: int = 0

    def stop(self) -> None:
        return None


def needed(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None and not Path(program).exists():
            missing(f"{program} is not installed")


def missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"CI must have it: {what}")
    pytest.skip(f"NOT TESTED: {what}")


class Process:
    """A server process that is waited for until its port answers."""

    def __init__(self, command: Sequence[str], port: int, log: Path, env: dict[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=os.environ | (env or {}), cwd=ROOT
            )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise AssertionError(f"{command[0]} did not start:\n{log.read_text()[-2000:]}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class LocalFolder(Peer):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self) -> Place:
        return Place(str(self._folder / uuid.uuid4().hex))

    def nowhere(self) -> Place:
        return Place(f"local:{self._folder / 'nowhere' / 'store'}")


class Moto(Peer):
    """moto's S3 server."""

    env = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a-secret-that-no-message-holds", "HOME": "/nowhere"}

    def __init__(self, folder: Path) -> None:
        self.port = port_of_its_own()
        script = str(Path(sys.executable).with_name("moto_server"))
        needed(script)
        self._process = Process([script, "-H", "127.0.0.1", "-p", str(self.port)], self.port, folder / "moto.log")
        httpx.put(f"http://127.0.0.1:{self.port}/buck", headers=_s3_dummy_auth()).raise_for_status()

    def place(self) -> Place:
        return Place(f"s3:http://127.0.0.1:{self.port}/buck/some/{uuid.uuid4().hex}", {}, self.env)

    def nowhere(self) -> Place:
        return Place(f"s3:http://127.0.0.1:{self.port}/nowhere/x", {}, self.env)

    def stop(self) -> None:
        self._process.stop()


def _s3_dummy_auth() -> dict[str, str]:
    return {"Authorization": "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, Signature=x"}


class Radosgw(Peer):
    """Ceph's own gateway, over a whole Ceph of this machine (``make test-lab``)."""

    def __init__(self, folder: Path) -> None:
        if absent := [program for program in (*ceph.PROGRAMS, *ceph.GATEWAY_PROGRAMS) if ceph.which(program) is None]:
            missing(f"{', '.join(absent)} not installed (make test-lab)")
        self._folder = Path(tempfile.mkdtemp(prefix="brs-lab-"))
        self.lab = ceph.Ceph(self._folder)
        self.state = self.lab.up()
        self.port = self.state.s3_port
        self.s3(self.state.user).create_bucket(Bucket="buck")

    def s3(self, user: ceph.S3User) -> Any:
        """Amazon's own client, with somebody's rights."""
        session = botocore.session.get_session()
        config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
        return session.create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.state.endpoint,
            aws_access_key_id=user.access_key,
            aws_secret_access_key=user.secret_key,
            config=config,
        )

    def place_in(self, bucket: str, user: ceph.S3User | None = None, **options: str) -> Place:
        who = user or self.state.user
        env = {"AWS_ACCESS_KEY_ID": who.access_key, "AWS_SECRET_ACCESS_KEY": who.secret_key, "HOME": "/nowhere"}
        given = {name.replace("_", "-"): value for name, value in options.items()}
        return Place(f"s3:{self.state.endpoint}/{bucket}/{uuid.uuid4().hex}", given, env)

    def place(self) -> Place:
        return self.place_in("buck")

    def nowhere(self) -> Place:
        return self.place_in("nowhere")

    def stop(self) -> None:
        self.lab.down()


class RadosgwLocked(Radosgw):
    """The same, in a bucket whose objects are locked (see test_object_lock.py for what that means)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.s3(self.state.user).create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)

    def place(self) -> Place:
        return self.place_in("locked", object_lock="compliance", object_lock_days="1")

    def nowhere(self) -> Place:
        return self.place_in("nowhere", object_lock="compliance", object_lock_days="1")


class GcsStandIn(Peer):
    """moto behind Google's XML protocol; see gcs_stand_in.py for what that proves and what not."""

    def __init__(self, folder: Path) -> None:
        self.port = port_of_its_own()
        command = [sys.executable, "-m", "tests.contracts.gcs_stand_in", str(self.port)]
        self._process = Process(command, self.port, folder / "gcs.log")
        httpx.put(f"http://127.0.0.1:{self.port}/buck", headers=_s3_dummy_auth()).raise_for_status()
        self._options = {"endpoint": f"http://127.0.0.1:{self.port}", "access-token": "a-secret-that-no-message-holds"}

    def place(self) -> Place:
        return Place(f"gs:buck:/some/{uuid.uuid4().hex}", self._options)

    def nowhere(self) -> Place:
        return Place("gs:nowhere:/x", self._options)

    def stop(self) -> None:
        self._process.stop()


class Azurite(Peer):
    """Microsoft's emulator, with its well-known account."""

    account = "devstoreaccount1"
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self, folder: Path) -> None:
        script = ROOT / ".venv" / "node" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
        node = shutil.which("node") or str(Path(sys.executable).with_name("node"))
        if not script.exists() or not Path(node).exists():
            missing("azurite is not installed (make .venv/.stamps/azurite)")
        self.port = port_of_its_own()
        options = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--skipApiVersionCheck", "--silent"]
        command = [node, str(script), *options, "--inMemoryPersistence", "--disableTelemetry"]
        self._process = Process(command, self.port, folder / "azurite.log")
        self._endpoint = f"http://127.0.0.1:{self.port}/{self.account}"
        self._make_container("buck")

    def place(self) -> Place:
        return self._place(f"azure:buck:/some/{uuid.uuid4().hex}")

    def nowhere(self) -> Place:
        return self._place("azure:nowhere:/x")

    def _place(self, url: str) -> Place:
        env = {"AZURE_ACCOUNT_NAME": self.account, "AZURE_ACCOUNT_KEY": self.key}
        return Place(url, {"azure.endpoint": self._endpoint}, env)

    def stop(self) -> None:
        self._process.stop()

    def _make_container(self, name: str) -> None:
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        signed = "PUT" + "\n" * 12 + "".join(f"{k}:{v}\n" for k, v in sorted(headers.items()))
        signed += f"/{self.account}/{self.account}/{name}\nrestype:container"
        mac = hmac.new(base64.b64decode(self.key), signed.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {self.account}:{base64.b64encode(mac).decode()}"
        answer = httpx.put(f"{self._endpoint}/{name}", params={"restype": "container"}, headers=headers)
        assert answer.status_code == 201, answer.text


class Sshd(Peer):
    """OpenSSH's server with keys of its own."""

    def __init__(self, folder: Path) -> None:
        needed("/usr/sbin/sshd", "ssh-keygen")
        self.folder = folder / "sshd"
        self.folder.mkdir()
        self.stores = self.folder / "stores"
        self.stores.mkdir()
        self.port = port_of_its_own()
        for name in ("host", "user", "stranger"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(command, check=True)
        self.host_key = " ".join((self.folder / "host.pub").read_text().split()[:2])
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {self.host_key}\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's own folder, which systemd would make
        config = self.folder / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder / 'host'}\n"
            f"AuthorizedKeysFile {self.folder / 'user.pub'}\nPidFile {self.folder / 'pid'}\nStrictModes no\nUsePAM no\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nSubsystem sftp internal-sftp\nMaxStartups 100\n"
        )
        self._command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
        self.start()

    def start(self) -> None:
        self._process = Process(self._command, self.port, self.folder / "log")

    def place(self, port: int | None = None) -> Place:
        return self.at(self.stores / uuid.uuid4().hex, port)

    def at(self, path: Path, port: int | None = None) -> Place:
        url = f"sftp://{getpass.getuser()}@127.0.0.1:{port or self.port}/{path}"
        return Place(url, {"host-key": self.host_key, "key-file": str(self.folder / "user")})

    def nowhere(self) -> Place:
        return self.at(self.stores / "nowhere" / "store")

    def stop(self) -> None:
        self._process.stop()


class RcloneRest(Peer):
    """restic's REST protocol, spoken by rclone over a local folder: there an object grows in full view."""

    visible_while_written = True
    creates_once = False
    password = "a-secret: that/no@message-holds"

    def __init__(self, folder: Path, *options: str, scheme: str = "http") -> None:
        needed("rclone")
        self.port = port_of_its_own()
        self.scheme = scheme
        self.stores = folder / f"rclone-{self.port}"
        self.stores.mkdir()
        command = ["rclone", "serve", "restic", "--addr", f"127.0.0.1:{self.port}", "--user", "joe"]
        command += ["--pass", self.password, *options, str(self.stores)]
        env = {"RCLONE_CONFIG": "/dev/null"}
        self._process = Process(command, self.port, folder / f"rclone-{self.port}.log", env)

    def place(self, port: int | None = None) -> Place:
        url = f"rest:{self.scheme}://127.0.0.1:{port or self.port}/{uuid.uuid4().hex}/"
        return Place(url, {}, {"RESTIC_REST_USERNAME": "joe", "RESTIC_REST_PASSWORD": self.password})

    def nowhere(self) -> None:
        return None  # a REST server makes what is asked for

    def stop(self) -> None:
        self._process.stop()


KINDS_OF_PEERS: dict[str, type[Peer]] = {
    "local": LocalFolder,
    "s3": Moto,
    "radosgw": Radosgw,
    "radosgw-locked": RadosgwLocked,
    "azure": Azurite,
    "gcs-stand-in": GcsStandIn,
    "sftp": Sshd,
    "rest": RcloneRest,
}


class Peers:
    """The servers of one test session, each started when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: dict[str, Peer] = {}

    def __getitem__(self, name: str) -> Peer:
        if name not in self._started:
            self._started[name] = KINDS_OF_PEERS[name](self._folder)  # type: ignore[call-arg]
        return self._started[name]

    def stop(self) -> None:
        for peer in self._started.values():
            peer.stop()
