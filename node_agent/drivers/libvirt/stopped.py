"""A machine that does not run, read from its images by ``qemu-nbd`` on the hypervisor.

Without the images' lock: with it, the machine could not be started until we are done. So it may be started meanwhile,
and what was read is then of no instant: whether that has happened is asked while it is read and at the end, and
MachineMoved makes the caller begin anew.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from node_agent.drivers.libvirt import rbd
from node_agent.drivers.libvirt.content import NbdContent, dirty_context
from node_agent.drivers.libvirt.errors import HypervisorError, MachineMoved
from node_agent.drivers.libvirt.host import GENTLY, Host
from node_agent.drivers.libvirt.inventory import Vm, VmDisk
from node_agent.drivers.libvirt.pull import connect
from node_agent.drivers.libvirt.run_folder import RunFolder
from node_agent.drivers.libvirt.tunnel import tunnel
from node_agent.drivers.nbd import ALLOCATION, NbdClient

_LOOK_EVERY_S = 5.0


@dataclass(slots=True)
class _Still:
    """Whether the machine has stayed as it was; asks the hypervisor now and then."""

    host: Host
    vm: Vm
    files: Sequence[str]
    before: str = ""
    asked: float = 0.0

    def begin(self) -> None:
        self.before, self.asked = self._look(), time.monotonic()

    def check(self) -> None:
        if time.monotonic() - self.asked > _LOOK_EVERY_S:
            self.check_now()

    def check_now(self) -> None:
        self.asked = time.monotonic()
        if self._look() != self.before:
            raise MachineMoved(f"{self.vm.name} was started, or its images were written, while they were read.")

    def _look(self) -> str:
        # The state last: who starts the machine and stops it again has written its images, and libvirt its log.
        lines = [f"stat -L -c '%d %i %s %y' {shlex.join(self.files)} || exit $?"] if self.files else []
        if any(disk.rbd for disk in self.vm.protected):  # an image in a cluster has no time of its last write
            lines.append(f"stat -c '%i %s %y' /var/log/libvirt/qemu/{shlex.quote(self.vm.name)}.log 2>/dev/null")
        return self.host.shell("\n".join([*lines, self.host.virsh_words("domstate", self.vm.uuid)]))


class _Content(NbdContent):
    """As long as the machine does not move."""

    still: _Still

    def read(self, offset: int, length: int) -> bytes:
        self.still.check()
        return super().read(offset, length)


@contextmanager
def contents(host: Host, vm: Vm, folder: RunFolder, since: Mapping[str, str]) -> Iterator[dict[str, NbdContent]]:
    """Each disk, open for reading; with its bitmap where ``since`` names one."""
    chains = {disk.target: _chain(host, disk) for disk in vm.protected}
    still = _Still(host, vm, [file for chain in chains.values() for file, _ in chain])
    still.begin()
    with ExitStack() as stack:
        opened: dict[str, NbdContent] = {}
        for disk in vm.protected:
            socket = _serve(host, folder, disk, chains[disk.target], since.get(disk.target, ""))
            through = stack.enter_context(tunnel(host.connection, socket))
            bitmap = since.get(disk.target)
            contexts = [ALLOCATION, *([dirty_context(bitmap)] if bitmap else [])]
            client = NbdClient(through.path, disk.target, contexts)
            connect(host, folder, socket, client, through)
            content = _Content(client, disk.format, folder.why_broken, still.check_now)
            content.still = still
            stack.callback(content.close)
            opened[disk.target] = content
        yield opened


def _chain(host: Host, disk: VmDisk) -> list[tuple[str, str]]:
    """(file, format) of the image and those below it, top first. Empty for an image in a Ceph cluster."""
    if disk.rbd is not None and disk.format == "raw":
        return []
    if disk.kind not in ("file", "block"):
        raise HypervisorError(
            f"The disk {disk.target} of a stopped machine cannot be read: its source is of type {disk.kind}.",
            hint="Start the machine: a running one is read through qemu; or leave the disk out.",
        )
    chain: list[tuple[str, str]] = []
    layers = host.image_info(disk.source, disk.format)
    for number, layer in enumerate(layers):
        if number and "backing-filename-format" not in layers[number - 1]:
            raise HypervisorError(
                f"The image {layers[number - 1].get('filename')} does not say of which format the one below it is.",
                hint="Write it into the image: qemu-img rebase -u -F FORMAT -b BACKING IMAGE (machine stopped).",
            )
        chain.append((str(layer["filename"]), str(layer["format"])))
    return chain


def _address(disk: VmDisk, chain: Sequence[tuple[str, str]]) -> str:
    """The image as qemu is to open it: each file explicitly, none of them locked."""
    address: dict[str, Any] | None = None
    for number, (file, format) in reversed(list(enumerate(chain))):
        protocol = "host_device" if disk.kind == "block" and number == 0 else "file"
        layer: dict[str, Any] = {
            "driver": format,
            "file": {"driver": protocol, "filename": file, "locking": "off"},
        }
        if format != "raw":
            layer["backing"] = address
        address = layer
    return "json:" + json.dumps(address)


def _rbd_address(host: Host, folder: RunFolder, source: rbd.RbdSource, target: str, words: list[str]) -> str:
    """Nobody's lock is taken by reading an image. What gives qemu the key is added to ``words``."""
    if why := rbd.opens_rbd(host):
        raise HypervisorError(
            f"The disk {target} of a stopped machine cannot be read: {why}",
            hint="Install it, start the machine (a running one is read through its own qemu), or leave the disk out.",
        )
    key = f"{folder.path}/{target}.key"
    with_key = rbd.lay_down_key(host, source, key)
    if with_key:
        words += rbd.qemu_words(key)
    return "json:" + json.dumps(rbd.address(source, with_key=with_key))


def _serve(host: Host, folder: RunFolder, disk: VmDisk, chain: Sequence[tuple[str, str]], bitmap: str) -> str:
    """Start the program; the path of its socket. It ends when we hang up."""
    socket = f"{folder.path}/{disk.target}.nbd"
    words = [
        "qemu-nbd", "--fork", "--read-only", "--shared=2", f"--socket={socket}", f"--export-name={disk.target}",
        f"--pid-file={folder.path}/{disk.target}.pid",
    ]  # fmt: skip
    if bitmap:
        words.append(f"--bitmap={bitmap}")
    if disk.rbd is not None:
        words.append(_rbd_address(host, folder, disk.rbd, disk.target, words))
    else:
        words.append(_address(disk, chain))
    key = shlex.quote(f"{folder.path}/{disk.target}.key")
    host.shell(f"{GENTLY} {shlex.join(words)} </dev/null >/dev/null; code=$?; rm -f {key}; exit $code")
    return socket
