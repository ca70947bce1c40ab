"""A real Ceph on this machine, as small as it gets, with its S3 gateway and a pool for RBD:

    python -m tests.lab.ceph up [--folder DIR] [--store bluestore] [--mgr] [--no-gateway]
    python -m tests.lab.ceph status
    python -m tests.lab.ceph down

One monitor, one OSD (in memory, or on a file with ``--store bluestore``), and radosgw, from Debian's packages
(ceph-mon, ceph-osd, ceph-common, radosgw; ceph-mgr with ``--mgr``), on free ports of 127.0.0.1, everything in one
folder. No systemd. ``up`` may be repeated, and goes on with what is there; ``down`` ends the processes that run with
this folder's configuration, nothing else, and removes the folder.

The pool ``rbd`` is for images. Two clients beside client.admin: ``client.brs`` with just the rights that
docs/platform-ceph.md asks for, and ``client.reader``, which may only read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.ports import port_of_its_own

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool")
GATEWAY_PROGRAMS = ("radosgw", "radosgw-admin")
RBD_POOL = "rbd"
CLIENTS = {
    "brs": ("profile rbd", f"profile rbd pool={RBD_POOL}"),
    "reader": ("profile rbd-read-only", f"profile rbd-read-only pool={RBD_POOL}"),
}
DEFAULT_FOLDER = Path(f"/tmp/brs-lab-ceph-{os.getuid()}")
_READY_S = 60.0
_CONF = """[global]
fsid = {fsid}
mon initial members = a
mon host = [v2:127.0.0.1:{mon_port}/0]
public network = 127.0.0.0/8
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = {folder}/$cluster.$name.keyring
log file = {folder}/log/$name.log
admin socket =
pid file = {folder}/run/$name.pid
run dir = {folder}/run
crash dir = {folder}/crash
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd client watch timeout = 5
mon allow pool size one = true
mon allow pool delete = true
mon max pg per osd = 500
mon data avail warn = 2
mon data avail crit = 1
ms bind ipv6 = false
setuser match path =
[mon]
keyring = {folder}/mon.keyring
paxos propose interval = 0.05
paxos min wait = 0.02
mon data = {folder}/mon/$id
mgr initial modules =
[mgr]
mgr data = {folder}/mgr/$id
[osd]
osd data = {folder}/osd$id
osd objectstore = {store}
bluestore block size = {gib}
bluestore block wal size = 0
bluestore block db size = 0
memstore device bytes = {gib}
osd memory target = 939524096
osd op num shards = 2
osd class update on start = true
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{s3_port}
rgw data = {folder}/rgw
rgw enable usage log = false
rgw dns name = localhost
rgw gc obj min wait = 10
rgw thread pool size = 32
"""


class LabError(SystemExit):
    pass


@dataclass(frozen=True)
class S3User:
    name: str
    access_key: str
    secret_key: str


@dataclass(frozen=True)
class State:
    """What ``up`` wrote down: where it runs and how to get in."""

    folder: str
    s3_port: int  # 0 without a gateway
    mon_port: int
    fsid: str
    keys: dict[str, str]  # of the clients for RBD, by name
    user: S3User

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.s3_port}"


class Ceph:
    def __init__(
        self,
        folder: Path = DEFAULT_FOLDER,
        *,
        store: str = "memstore",
        mgr: bool = False,
        gateway: bool = True,
        gib: int = 8,
    ):
        self.folder = folder
        self._store = store
        self._mgr = mgr
        self._gateway = gateway
        self._gib = gib
        self._conf = folder / "ceph.conf"
        self._admin = folder / "ceph.client.admin.keyring"

    # --- what a user of the lab calls ---

    def up(self) -> State:
        """Start it, or find it running. What an ``up`` that was killed left behind is removed first."""
        state = self.state()
        if state is not None and self.answers(state):
            return state
        wanted = (*PROGRAMS, *(GATEWAY_PROGRAMS if self._gateway else ()), *(("ceph-mgr",) if self._mgr else ()))
        if absent := [program for program in wanted if which(program) is None]:
            raise LabError(
                f"Not installed: {', '.join(absent)} (Debian: ceph-mon ceph-osd ceph-common radosgw ceph-mgr)."
            )
        self.down()
        for name in ("log", "run", "crash", "mon", "mgr", "rgw", "osd0"):
            (self.folder / name).mkdir(parents=True)
        mon_port, s3_port, fsid = port_of_its_own(), port_of_its_own(), str(uuid.uuid4())
        self._conf.write_text(
            _CONF.format(
                fsid=fsid,
                folder=self.folder,
                mon_port=mon_port,
                s3_port=s3_port,
                store=self._store,
                gib=self._gib << 30,
            )
        )
        self._start_mon(mon_port, fsid)
        if self._mgr:
            self._start_mgr()
        self._start_osd()
        keys = self._make_rbd()
        user = S3User("", "", "")
        if self._gateway:
            self._start_gateway(s3_port)
            user = self.make_user("lab")
        state = State(str(self.folder), s3_port if self._gateway else 0, mon_port, fsid, keys, user)
        (self.folder / "state.json").write_text(json.dumps(asdict(state)))
        return state

    def down(self) -> int:
        """End this folder's processes and remove it. Returns how many there were."""
        if not self.folder.exists():
            return 0
        if not self._conf.exists() and any(self.folder.iterdir()):
            raise LabError(f"{self.folder} is no folder of this lab; choose another one.")
        ended = 0
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # nothing of it is kept
                ended += 1
        _wait(lambda: not self.pids(), "the end of the processes")
        shutil.rmtree(self.folder, ignore_errors=True)
        return ended

    def state(self) -> State | None:
        try:
            value = json.loads((self.folder / "state.json").read_text())
        except FileNotFoundError:
            return None
        return State(**{**value, "user": S3User(**value["user"])})

    def pids(self) -> list[int]:
        """Processes that run with this folder's configuration."""
        wanted, found = str(self._conf).encode(), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and wanted in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def answers(self, state: State) -> bool:
        try:
            for port in filter(None, (state.mon_port, state.s3_port)):
                socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return bool(self.pids())

    def make_user(self, name: str) -> S3User:
        """An S3 user with full rights on buckets of its own, and none elsewhere."""
        user = S3User(name, f"AK{secrets.token_hex(9).upper()}", secrets.token_hex(20))
        keys = [f"--access-key={user.access_key}", f"--secret-key={user.secret_key}"]
        self._run(
            "radosgw-admin", *self._as_admin(), "user", "create", f"--uid={name}", f"--display-name={name}", *keys
        )
        return user

    def add_client(self, name: str, *caps: str) -> str:
        """A client with these rights (``mon``, ``profile rbd``, …). Returns its key."""
        self._ceph("auth", "get-or-create", f"client.{name}", *caps)
        return self._ceph("auth", "get-key", f"client.{name}").strip()

    def rbd(self, *args: str | Path) -> str:
        """The rbd program as client.admin: what an administrator does beside us."""
        return self._run("rbd", *self._as_admin(), *args)

    def admin_key(self) -> str:
        return next(line.split()[-1] for line in self._admin.read_text().splitlines() if "key =" in line)

    def ceph(self, *args: str | Path) -> str:
        return self._ceph(*args)

    # --- parts ---

    def _make_rbd(self) -> dict[str, str]:
        self._ceph("osd", "pool", "create", RBD_POOL, "8")
        self._ceph("osd", "pool", "application", "enable", RBD_POOL, "rbd")
        return {name: self.add_client(name, "mon", mon, "osd", osd) for name, (mon, osd) in CLIENTS.items()}

    def _start_mon(self, port: int, fsid: str) -> None:
        mon_keys, monmap = self.folder / "mon.keyring", self.folder / "monmap"
        caps = [part for who in ("mon", "osd", "mgr") for part in ("--cap", who, "allow *")]
        self._run("ceph-authtool", "--create-keyring", mon_keys, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self._run("ceph-authtool", "--create-keyring", self._admin, "--gen-key", "-n", "client.admin", *caps)
        self._run("ceph-authtool", mon_keys, "--import-keyring", self._admin)
        address = f"[v2:127.0.0.1:{port}]"
        self._run("monmaptool", "--create", "--clobber", "--addv", "a", address, "--fsid", fsid, monmap)
        self._run("ceph-mon", "-c", self._conf, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", mon_keys)
        shutil.copy(mon_keys, self.folder / "mon" / "keyring")
        self._run("ceph-mon", "-c", self._conf, "-i", "a", "--public-addr", "127.0.0.1")
        self._ceph("mon", "stat")

    def _start_mgr(self) -> None:
        (self.folder / "mgr" / "a").mkdir()
        caps = ["mon", "allow profile mgr", "osd", "allow *", "mds", "allow *"]
        self._ceph("auth", "get-or-create", "mgr.a", *caps, "-o", self.folder / "ceph.mgr.a.keyring")
        self._run("ceph-mgr", "-c", self._conf, "-i", "a")

    def _start_osd(self) -> None:
        number, keyring = str(uuid.uuid4()), self.folder / "ceph.osd.0.keyring"
        secret = self._run("ceph-authtool", "--gen-print-key").strip()
        self._ceph("osd", "new", number, "-i", "-", given=json.dumps({"cephx_secret": secret}))
        self._run("ceph-authtool", "--create-keyring", keyring, "-n", "osd.0", "--add-key", secret)
        osd = ["ceph-osd", "-c", self._conf, "-i", "0", "--keyring", keyring]
        self._run(*osd, "--mkfs", "--osd-uuid", number)
        self._run(*osd)
        _wait(lambda: '"num_up_osds":1' in self._ceph("osd", "stat", "--format", "json").replace(" ", ""), "the OSD")

    def _start_gateway(self, port: int) -> None:
        keyring = self.folder / "ceph.client.rgw.a.keyring"
        caps = ["mon", "allow rw", "osd", "allow rwx", "mgr", "allow rw"]
        self._ceph("auth", "get-or-create", "client.rgw.a", *caps, "-o", keyring)
        self._run("radosgw", "-c", self._conf, "-n", "client.rgw.a", "-k", keyring)

        def listens() -> bool:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return True
            return False

        _wait(listens, "radosgw")

    def _as_admin(self) -> list[str | Path]:
        return ["-c", self._conf, "-k", self._admin]

    def _ceph(self, *args: str | Path, given: str | None = None) -> str:
        return self._run("ceph", *self._as_admin(), "--connect-timeout", "30", *args, given=given)

    def _run(self, *command: str | Path, given: str | None = None) -> str:
        program = which(str(command[0]))
        # Files, not pipes: a daemon keeps what it inherits, and reading its pipe would never end.
        log = self.folder / "log" / f"run-{secrets.token_hex(4)}"
        with log.open("w+") as out, (log.with_suffix(".err")).open("w+") as errors:
            done = subprocess.run(
                [str(program), *map(str, command[1:])],
                input=given,
                stdin=None if given is not None else subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                text=True,
                timeout=120,
                check=False,
            )
            out.seek(0)
            errors.seek(0)
            output = out.read()
            if done.returncode:
                raise LabError(
                    f"{' '.join(map(str, command))} ended {done.returncode}:\n{output}{errors.read()[-2000:]}"
                )
            return output


def which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin")


def _wait(ready, what: str) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + _READY_S
    while not ready():
        if time.monotonic() > deadline:
            raise LabError(f"Waited {_READY_S:.0f} s in vain for {what}.")
        time.sleep(0.1)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("up", "down", "status"))
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--store", choices=("memstore", "bluestore"), default="memstore")
    parser.add_argument("--mgr", action="store_true", help="also a manager (for Cinder and for capacity figures)")
    parser.add_argument("--no-gateway", action="store_true", help="without radosgw, for RBD alone")
    given = parser.parse_args(args)
    ceph = Ceph(given.folder.absolute(), store=given.store, mgr=given.mgr, gateway=not given.no_gateway)
    if given.command == "down":
        print(f"ended {ceph.down()} processes")
        return 0
    if given.command == "up":
        ceph.up()
    state = ceph.state()
    if state is None or not ceph.answers(state):
        print("down")
        return 1
    print(json.dumps({"endpoint": state.endpoint, "processes": len(ceph.pids()), **asdict(state)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
