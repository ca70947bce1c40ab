"""What backups keep at the machines of a hypervisor, of whatever mark: checkpoints that libvirt knows, and bitmaps.

Images are looked into without asking the machine; a running machine's newest bitmaps are in no image yet. Only qemu
itself knows of those, and libvirt notes in its log that it was asked.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shlex
from collections.abc import Iterator, Sequence

from node_agent.drivers.libvirt import tracking
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.inventory import Vm
from node_agent.errors import BrsError

logger = logging.getLogger(__name__)
_NAME = re.compile(r"brs-([0-9a-f]{8})-[0-9]{1,9}")
_WAIT_S = 600.0  # for all images of a host

Found = dict[str, dict[str, list[str]]]  # by machine, by mark: names, with the disks that hold each


def traces(host: Host, found: Sequence[Vm], *, ask_qemu: bool) -> Found:
    held: dict[str, dict[str, set[str]]] = {vm.uuid: {} for vm in found}
    for uuid, target, name in _in_images(host, found):
        held[uuid].setdefault(name, set()).update({target} - {""})
    for vm in found if ask_qemu else ():
        try:
            for name, targets in tracking.holders(host, vm, ask_qemu=True).items():
                held[vm.uuid].setdefault(name, set()).update(targets)
        except BrsError as error:  # it went away or stopped meanwhile: what its images show is known
            logger.warning("%s could not be asked for its bitmaps: %s", vm.name, error)
    return {uuid: _by_mark(names) for uuid, names in held.items()}


def _by_mark(held: dict[str, set[str]]) -> dict[str, list[str]]:
    marks: dict[str, list[str]] = {}
    for name in sorted(held):
        if (match := _NAME.fullmatch(name)) is not None:
            disks = ", ".join(sorted(held[name]))
            marks.setdefault(match[1], []).append(f"{name} ({disks})" if disks else name)
    return marks


def _in_images(host: Host, found: Sequence[Vm]) -> Iterator[tuple[str, str, str]]:
    """Machine, disk (empty: libvirt's record), name; in one conversation. What cannot be looked into says nothing."""
    mark = secrets.token_hex(16)  # a machine's own texts cannot forge it
    script: list[str] = []
    for vm in found:
        script += [
            f"echo {mark} {vm.uuid}",
            f"{host.virsh_words('checkpoint-list', vm.uuid, '--name')} 2>/dev/null || :",
        ]
        for disk in vm.disks:
            if disk.is_qcow2_file:
                look = shlex.join(["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", disk.source])
                script += [f"echo {mark} {vm.uuid} {disk.target}", f"{look} 2>/dev/null || :"]
    for part in host.shell("\n".join(script), timeout_s=_WAIT_S).split(f"{mark} ")[1:] if script else ():
        head, _, told = part.partition("\n")
        uuid, _, target = head.partition(" ")
        for name in _bitmaps(told) if target else told.split():
            yield uuid, target, name


def _bitmaps(told: str) -> list[str]:
    try:
        bitmaps = json.loads(told)["format-specific"]["data"].get("bitmaps") or []
        return [str(one["name"]) for one in bitmaps]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # the image could not be opened
