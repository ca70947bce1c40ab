"""A real hypervisor on this machine: libvirt, qemu and sshd in namespaces of their own, and guests that boot:

    python -m tests.lab.libvirt up [--folder DIR]
    python -m tests.lab.libvirt guest NAME [--kind qcow2|raw|mixed|backing]
    python -m tests.lab.libvirt status
    python -m tests.lab.libvirt down

The hypervisor is a process tree with its own mounts (its /run, /etc/libvirt, /var/lib/libvirt and user database are
copies in one folder) and its own process numbers, so a libvirt of this machine is neither seen nor touched. It listens
on a free port of 127.0.0.1: root logs in with a key, ``operator`` (group libvirt) with a password. ``up`` may be
repeated; ``down`` ends the first process, with which all others end, and removes the folder. Needs root. Guests are
emulated (TCG), so nothing is asked of the processor.
"""

from __future__ import annotations

import argparse
import base64
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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab import libvirt_guests
from tests.lab.libvirt_domain import UEFI, domain_xml
from tests.ports import port_of_its_own

PROGRAMS = (
    "libvirtd", "virtlogd", "virsh", "qemu-system-x86_64", "qemu-img", "qemu-nbd", "sshd", "ssh", "unshare",
    "nsenter", "busybox", "cpio", "syslinux", "mcopy", "mke2fs", "sfdisk", "setfacl", "/usr/lib/syslinux/mbr/mbr.bin",
    "swtpm", "swtpm_setup", UEFI,
)  # fmt: skip
DEFAULT_FOLDER = Path(f"/tmp/brs-lab-libvirt-{os.getuid()}")
KINDS = ("qcow2", "raw", "mixed", "backing")
MARKER = "GUEST-IS-UP"
_READY_S = 90.0
_SSHD = """Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/ssh/host
PidFile /run/sshd.pid
AuthorizedKeysFile {folder}/ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication yes
UsePAM no
StrictModes no
MaxStartups 100
Subsystem sftp internal-sftp
"""
_LIBVIRTD = 'unix_sock_group = "libvirt"\nunix_sock_rw_perms = "0770"\nauth_unix_ro = "none"\nauth_unix_rw = "none"\n'
_QEMU = 'security_driver = "none"\ncgroup_controllers = []\nnamespaces = []\nstdio_handler = "file"\n'


class LabError(SystemExit):
    pass


@dataclass(frozen=True)
class State:
    """What ``up`` wrote down: where it runs and how to get in."""

    folder: str
    port: int
    host_key: str
    private_key: str
    password: str
    pid: int  # of the namespaces' first process, as this machine counts


@dataclass(frozen=True)
class Guest:
    lab: Lab
    name: str
    uuid: str
    disks: dict[str, Path]  # by target

    def start(self) -> None:
        """Started, and its marker seen on the console."""
        self.log.unlink(missing_ok=True)
        self.lab.virsh("start", self.uuid)
        self.wait_until_up()

    def wait_until_up(self) -> None:
        def is_up() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return MARKER in self.log.read_text(errors="replace")
            return False

        wait(is_up, f"{self.name} to boot")
        self.wait_for_agent()

    def wait_for_agent(self) -> None:
        wait(self._agent_answers, f"the agent of {self.name}")

    def run(self, command: str) -> str:
        """A shell command in the guest, through its agent; raises if it fails."""
        started = self.agent(
            {"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True}}
        )
        while True:
            status = self.agent({"execute": "guest-exec-status", "arguments": {"pid": started["pid"]}})
            if status["exited"]:
                break
            time.sleep(0.1)
        out, errors = (base64.b64decode(status.get(key, "")).decode() for key in ("out-data", "err-data"))
        assert status.get("exitcode") == 0, f"{self.name}: {command!r} ended {status}:\n{out}{errors}"
        return out

    def agent(self, command: dict) -> dict:  # type: ignore[type-arg]
        return json.loads(self.lab.virsh("qemu-agent-command", "--timeout", "20", self.uuid, json.dumps(command)))[
            "return"
        ]

    def _agent_answers(self) -> bool:
        try:
            self.agent({"execute": "guest-ping"})
        except subprocess.CalledProcessError:
            return False
        return True

    @property
    def state(self) -> str:
        return self.lab.virsh("domstate", self.uuid).strip()

    @property
    def log(self) -> Path:
        return self.lab.folder / "images" / f"{self.name}.console.log"

    def destroy(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.lab.virsh("destroy", self.uuid)

    def kill(self) -> None:
        """qemu is killed, as by the kernel when memory runs out."""
        self.lab.shell(f"kill -9 $(cat /run/libvirt/qemu/{self.name}.pid)")
        wait(lambda: self.state == "shut off", f"libvirt to notice that {self.name} is gone")

    def remove(self) -> None:
        self.destroy()
        with contextlib.suppress(subprocess.CalledProcessError):
            self.lab.virsh("undefine", self.uuid, "--nvram", "--checkpoints-metadata", "--snapshots-metadata")
        for path in self.disks.values():
            path.unlink(missing_ok=True)


class Lab:
    def __init__(self, folder: Path = DEFAULT_FOLDER) -> None:
        self.folder = folder

    # --- what a user of the lab calls ---

    def up(self) -> State:
        """Start it, or find it running. What an ``up`` that was killed left behind is removed first."""
        state = self.state()
        if state is not None and self.answers(state):
            return state
        if absent := missing_programs():
            raise LabError(f"Not installed: {', '.join(absent)} (make test-lab installs them).")
        if os.geteuid() != 0:
            raise LabError("The lab makes namespaces: run it as root.")
        self.down()
        for name in ("root", "ssh", "images"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        (self.folder / "mine").touch()
        self._copy_places()
        port, password = port_of_its_own(), secrets.token_urlsafe(12)
        self._write_accounts(password)
        self._write_ssh(port)
        libvirt_guests.build(self.folder / "images").rename(self.folder / "images" / "base.raw")
        pid = self._start()
        state = State(
            str(self.folder), port, " ".join((self.folder / "ssh/host.pub").read_text().split()[:2]),
            (self.folder / "ssh/key").read_text(), password, pid,
        )  # fmt: skip
        wait(lambda: self.answers(state), "libvirt and sshd")
        (self.folder / "state.json").write_text(json.dumps(asdict(state)))
        return state

    def down(self) -> int:
        """End this folder's hypervisor with all its guests, and remove the folder. How many were ended."""
        if not self.folder.exists():
            return 0
        if not (self.folder / "mine").exists() and any(self.folder.iterdir()):
            raise LabError(f"{self.folder} is no folder of this lab; choose another one.")
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # the first process of its namespace: the kernel ends the others
        wait(lambda: not self.pids(), "the end of the processes")
        shutil.rmtree(self.folder, ignore_errors=True)
        return len(pids)

    def state(self) -> State | None:
        try:
            return State(**json.loads((self.folder / "state.json").read_text()))
        except FileNotFoundError:
            return None

    def pids(self) -> list[int]:
        """First processes that were started for this folder (one, or none)."""
        wanted, found = [b"/bin/sh", str(_SCRIPT).encode(), str(self.folder).encode()], []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "cmdline").read_bytes().split(b"\0")[:3] == wanted:
                    found.append(int(entry.name))
        return found

    def answers(self, state: State) -> bool:
        if state.pid not in self.pids():
            return False
        try:
            socket.create_connection(("127.0.0.1", state.port), 1).close()
            self._enter(state.pid, "virsh -q list >/dev/null")
        except (OSError, subprocess.CalledProcessError):
            return False
        return True

    def shell(self, script: str) -> str:
        """Run on the hypervisor as root. CalledProcessError if it fails."""
        state = self.state()
        assert state is not None, "the lab is not up"
        return self._enter(state.pid, script)

    def virsh(self, *args: str) -> str:
        state = self.state()
        assert state is not None, "the lab is not up"
        return self._inside(state.pid, "virsh", "-q", *args)

    def start_again(self, daemon: str) -> None:
        """``sshd`` or ``libvirtd``, after it was killed."""
        commands = {
            "sshd": f"/usr/sbin/sshd -f {self.folder}/ssh/sshd_config -E {self.folder}/ssh/sshd.log",
            "libvirtd": "/usr/sbin/libvirtd -d -p /run/libvirtd.pid",
        }
        self.shell(commands[daemon])

    # --- guests ---

    def guest(self, name: str, kind: str = "qcow2", *, size: int | None = None, uefi: bool = False) -> Guest:
        """A new guest, defined and not started. ``size`` of its first disk: more than the disk that boots needs.
        ``uefi``: with variables of its own, and a TPM."""
        name, images = f"brs-lab-{name}", self.folder / "images"
        base, disks = images / "base.raw", {"vda": images / f"{name}.vda"}
        if kind == "raw":
            _run("cp", "--sparse=always", str(base), str(disks["vda"]))
            disks["vda"].chmod(0o644)
        elif kind == "backing":
            below = images / "base.qcow2"
            if not below.exists():
                _run("qemu-img", "convert", "-O", "qcow2", str(base), str(below))
            _run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(below), str(disks["vda"]))
        else:
            _run("qemu-img", "convert", "-O", "qcow2", str(base), str(disks["vda"]))
        if size is not None:
            _run("qemu-img", "resize", "-q", "-f", "raw" if kind == "raw" else "qcow2", str(disks["vda"]), str(size))
        if kind == "mixed":
            disks["vdb"] = images / f"{name}.vdb"
            _run("mke2fs", "-q", "-t", "ext4", str(disks["vdb"]), "64m")
        formats = {target: "raw" if kind == "raw" or target == "vdb" else "qcow2" for target in disks}
        made = Guest(self, name, str(uuid.uuid4()), disks)
        description = self.folder / f"{name}.xml"
        description.write_text(domain_xml(name, made.uuid, disks, formats, made.log, uefi=uefi))
        self.virsh("define", str(description))
        return made

    # --- parts ---

    def _copy_places(self) -> None:
        for place in ("etc/libvirt", "var/lib/libvirt", "var/cache/libvirt", "var/log/libvirt"):
            target = self.folder / "root" / place
            target.parent.mkdir(parents=True, exist_ok=True)
            _run("cp", "-a", f"/{place}", str(target))
        etc = self.folder / "root/etc/libvirt"
        shutil.rmtree(etc / "qemu", ignore_errors=True)  # domains and networks of this machine are not the lab's
        (etc / "libvirtd.conf").write_text(_LIBVIRTD)
        (etc / "qemu.conf").write_text(_QEMU)

    def _write_accounts(self, password: str) -> None:
        hashed = _run("openssl", "passwd", "-6", "-stdin", stdin=password).strip()
        etc, passwd = self.folder / "root/etc", Path("/etc/passwd").read_text()
        lines = [line for line in Path("/etc/group").read_text().splitlines() if line]
        members = [
            f"{line}{'' if line.endswith(':') else ','}operator" if line.startswith("libvirt:") else line
            for line in lines
        ]
        (etc / "passwd").write_text(f"{passwd.rstrip()}\noperator:x:59999:59999::/tmp:/bin/sh\n")
        (etc / "group").write_text("\n".join(members) + "\noperator:x:59999:\n")
        (etc / "shadow").write_text(f"root:*:1::::::\noperator:{hashed}:1::::::\n")
        (etc / "shadow").chmod(0o600)

    def _write_ssh(self, port: int) -> None:
        ssh = self.folder / "ssh"
        for name in ("host", "key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / name))
        shutil.copy(ssh / "key.pub", ssh / "authorized_keys")
        (ssh / "sshd_config").write_text(_SSHD.format(port=port, folder=self.folder))

    def _start(self) -> int:
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "/bin/sh"]
        with (self.folder / "hypervisor.log").open("wb") as log:
            subprocess.Popen(
                [*command, str(_SCRIPT), str(self.folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait(lambda: bool(self.pids()), "the namespaces")
        return self.pids()[0]

    def _enter(self, pid: int, script: str) -> str:
        return self._inside(pid, "sh", "-c", script)

    def _inside(self, pid: int, *command: str) -> str:
        inside = ["nsenter", "-t", str(pid), "--mount", "--pid", "--wd=/", *command]
        done = subprocess.run(inside, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        if done.returncode:
            error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
            error.add_note(done.stderr[-2000:])
            raise error
        return done.stdout


_SCRIPT = Path(__file__).with_name("hypervisor.sh")


def missing_programs() -> list[str]:
    return [program for program in PROGRAMS if which(program) is None]


def which(program: str) -> str | None:
    if program.startswith("/"):
        return program if Path(program).exists() else None
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin")


def _run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"{' '.join(command)} ended {done.returncode}:\n{done.stdout}{done.stderr[-2000:]}")
    return done.stdout


def wait(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _READY_S
    while not ready():
        if time.monotonic() > deadline:
            raise LabError(f"Waited {_READY_S:.0f} s in vain for {what}.")
        time.sleep(0.05)


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("up", "down", "status", "guest"))
    parser.add_argument("name", nargs="?", default="one")
    parser.add_argument("--kind", choices=KINDS, default="qcow2")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    given = parser.parse_args(args)
    lab = Lab(given.folder.absolute())
    if given.command == "down":
        print(f"ended {lab.down()} hypervisors")
        return 0
    if given.command in ("up", "guest"):
        lab.up()
    if given.command == "guest":
        lab.guest(given.name, given.kind).start()
    state = lab.state()
    if state is None or not lab.answers(state):
        print("down")
        return 1
    print(json.dumps({**asdict(state), "private_key": f"{state.folder}/ssh/key"}, indent=1))
    print(lab.virsh("list", "--all"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
