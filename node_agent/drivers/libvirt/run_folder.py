"""A run's folder on the hypervisor, with the watchdog that ends the run when this node dies.

``SCRATCH/brs-MARK-MACHINE/RANDOM/``: the outer one cannot be listed by others, and the inner one's name cannot be
guessed, since qemu, which is another user, makes its socket there.
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
import secrets
import shlex
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources

from node_agent.drivers.libvirt.access import BackupRequest, Limits
from node_agent.drivers.libvirt.errors import JobAborted, MachineBusy, MachineMoved
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.ssh import Connection
from node_agent.errors import BrsError

MAX_SCRATCH = 50  # bytes of its path
logger = logging.getLogger(__name__)
_ENDED = {
    "space": (
        "The scratch folder ran out of free space, so the hypervisor's watchdog ended the backup.",
        "Free space there or choose a larger scratch folder: what the machine writes meanwhile is kept in it.",
    ),
    "long": ("The backup took longer than is allowed.", "Raise the limit, or find out what makes it slow."),
    "gone": ("The hypervisor's watchdog ended the run.", "It heard nothing of this node for too long; run it again."),
}


@dataclass(slots=True)
class RunFolder:
    host: Host
    path: str
    machine: str
    state: str  # of the machine, when the run began
    left: bool = False  # its job could not be ended: the watchdog does it, so it must not be taken away

    def write(self, files: Mapping[str, str]) -> list[str]:
        """Their paths there."""
        paths = [posixpath.join(self.path, name) for name in files]
        texts = zip(paths, files.values(), strict=True)
        self.host.shell(
            "\n".join(f"printf %s {shlex.quote(text)} >{shlex.quote(path)} || exit" for path, text in texts)
        )
        return paths

    def why_ended(self) -> JobAborted | None:
        """What the watchdog says, if it ended this run."""
        folder = shlex.quote(self.path)
        said = self.host.shell(f"if [ -d {folder} ]; then cat {folder}/ended 2>/dev/null || :; else echo gone; fi")
        if said.strip() not in _ENDED:
            return None
        message, hint = _ENDED[said.strip()]
        return JobAborted(message, hint=hint)

    def why_broken(self, error: BrsError) -> BrsError:
        """What is behind a connection that broke off: the watchdog, the machine itself, or else just ``error``."""
        try:
            if (ended := self.why_ended()) is not None:
                return ended
            state = self.host.state(self.machine)
        except BrsError as unreachable:
            return unreachable
        if state != self.state:
            return MachineMoved(f"The virtual machine is “{state}” now, and was “{self.state}” when reading began.")
        return error


def outer(host: Host, request: BackupRequest) -> str:
    machine = hashlib.sha256(request.machine.encode()).hexdigest()[:16]  # a socket's path has 107 bytes at most
    return f"{host.access.scratch.rstrip('/')}/{request.prefix}{machine}"


def new_path(host: Host, request: BackupRequest) -> str:
    return f"{outer(host, request)}/{secrets.token_hex(6)}"


@contextmanager
def run_folder(host: Host, request: BackupRequest, path: str, state: str) -> Iterator[RunFolder]:
    """Made and watched, and signs of life given; removed at the end, with which the watchdog ends."""
    _make(host, request, path)
    folder = RunFolder(host, path, request.machine, state)
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(folder, request.limits, done), name="libvirt-lease", daemon=True)
    beat.start()
    try:
        yield folder
    finally:
        done.set()
        beat.join()
        if not folder.left:
            _try_to_remove(folder)


def _make(host: Host, request: BackupRequest, path: str) -> None:
    limits, above = request.limits, shlex.quote(posixpath.dirname(path))
    script = resources.files(__package__).joinpath("watch.sh").read_text()
    watch = shlex.join(
        ["sh", f"{path}/watch.sh", path, host.access.uri, request.machine, str(limits.silent_s), str(limits.job_s)]
    )
    # Of the two floors the lower: a tenth of a large disk would keep every backup away.
    host.shell(
        f"""set -e
umask 077
mkdir -p {above}
chmod 711 {above}
mkdir {shlex.quote(path)}
cd {shlex.quote(path)}
cat >watch.sh
: >lease
[ "$(id -u)" = 0 ] || setfacl -d -m "u:$(id -u):rwx" .
chmod 1733 .
size=$(df -Pk . | awk 'NR == 2 {{ print $2 }}')
floor=$((size * {limits.floor_percent} / 100))
[ $floor -le {limits.floor_bytes >> 10} ] || floor={limits.floor_bytes >> 10}
setsid {watch} $floor {limits.frozen_s} </dev/null >/dev/null 2>&1 &
tries=0
while [ ! -s watch ] && [ $tries -lt 100 ]; do sleep 0.05; tries=$((tries + 1)); done
[ -s watch ]""",
        given=script.encode(),
    )


def _beat(folder: RunFolder, limits: Limits, done: threading.Event) -> None:
    """On a connection of its own: one that is busy or lost must not take the other along."""
    with_own = Connection(folder.host.access)
    try:
        while not done.wait(limits.silent_s / 6):
            try:
                with_own.run(f"cd {shlex.quote(folder.path)} && : >lease", timeout_s=20)
            except BrsError as error:  # tried again: the watchdog decides when it has been too long
                logger.warning("%s: no sign of life gets through: %s", folder.path, error)
                with_own.close()
    finally:
        with_own.close()


def _try_to_remove(folder: RunFolder) -> None:
    try:
        if may_be_frozen(folder.host, folder.path):
            folder.left = True
            logger.error("%s is left to its watchdog: the guest of %s does not thaw", folder.path, folder.machine)
            return
        remove(folder.host, folder.path)
    except BrsError as error:
        folder.left = True
        logger.warning("%s is left for the watchdog to remove: %s", folder.path, error)


def may_be_frozen(host: Host, path: str) -> bool:
    """Whether the guest was frozen for this run, and not thawed for sure."""
    return host.connection.run(f"[ -e {shlex.quote(path)}/frozen ]").code == 0


def as_begin(path: str, script: str) -> str:
    """A script that begins something which the next run has to wait for, if this node dies meanwhile."""
    return f"echo $$ >{shlex.quote(path)}/begin\n{script}"


def wait_for_begin(host: Host, path: str) -> None:
    """Until a script that outlived its connection is through: what it begins afterwards nobody would end."""
    file = shlex.quote(f"{path}/begin")
    host.shell(
        f"""pid=$(cat {file} 2>/dev/null) || exit 0
tries=0
while grep -qs {shlex.quote(path)} "/proc/$pid/cmdline" && [ $tries -lt 600 ]; do
  sleep 0.1
  tries=$((tries + 1))
done"""
    )


def remove(host: Host, path: str) -> None:
    """The folder, with which its watchdog and the programs it knows end; the outer one when it is the last."""
    inner, above = shlex.quote(path), shlex.quote(posixpath.dirname(path))
    host.shell(
        f"""{kill_line(path, "*.pid")}
{kill_line(path, "watch")}
rm -rf {inner}
rmdir {above} 2>/dev/null || :"""
    )


def kill_line(folder: str, files: str) -> str:
    """Of the shell: end the programs whose numbers are in these files of a folder of ours. A program that has a number
    since, perhaps after the host was started anew, does not name the folder in its words."""
    inside = shlex.quote(folder)
    return (
        f'for file in {inside}/{files}; do pid=$(cat "$file" 2>/dev/null) || continue; '
        f'grep -qsF {inside} "/proc/$pid/cmdline" && kill "$pid"; done'
    )


def leftovers(host: Host, request: BackupRequest, own: str) -> list[str]:
    """Folders of runs that died. MachineBusy when one of another node is still watched; ``own`` is of this one."""
    above = shlex.quote(outer(host, request))
    listed = host.shell(
        f"""cd {above} 2>/dev/null || exit 0
for name in *; do
  [ -d "$name" ] || continue
  pid=$(cat "$name/watch" 2>/dev/null)
  grep -qs "$name" "/proc/$pid/cmdline" && echo "$name watched" || echo "$name dead"
done"""
    )
    found = []
    for line in listed.splitlines():
        name, _, state = line.partition(" ")
        path = f"{outer(host, request)}/{name}"
        if state == "watched" and path != own:
            raise MachineBusy(
                "Another node backs this virtual machine up, or did so until a moment ago.",
                hint=f"If it has died, its watchdog ends the run within {request.limits.silent_s} s.",
            )
        found.append(path)
    return found
