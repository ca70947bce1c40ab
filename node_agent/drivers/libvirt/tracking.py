"""Changed-block tracking by libvirt's checkpoints, whose data are persistent bitmaps inside qcow2 images.

Between two runs only the bitmap stays: libvirt's record of the checkpoint would keep the machine from being undefined,
and break what clouds do to it. The next run tells libvirt of it again, from the name and the disks that lie with the
restore point. Checkpoints are named ``brs-MARK-NUMBER``; those of others are never touched.

A bitmap travels with its image: whatever becomes of the image, changes since the checkpoint are either right or not to
be had (qemu marks a bitmap that it could not save, and libvirt refuses it). Then everything is read. Images travel,
too: over another machine's, or two of one machine change places. So the number is a random one, which no other
checkpoint of any machine has; and of each disk the point says which file it was, since those of one machine share it.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from node_agent.drivers.libvirt.access import BackupRequest
from node_agent.drivers.libvirt.errors import HypervisorError
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.inventory import Vm, VmDisk
from node_agent.drivers.libvirt.xml import parse, text_of

FILE = "tracking.json"


@dataclass(frozen=True, slots=True)
class Tracking:
    """A checkpoint that the disks' changes are relative to, as it lies with a restore point.

    ``places``: of each disk, which file its image was (see :func:`places`).
    """

    machine: str
    checkpoint: str
    disks: Sequence[str]
    places: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        return json.dumps({"format": 1, **asdict(self)}, indent=1).encode()

    @classmethod
    def of(cls, metadata: Mapping[str, bytes], request: BackupRequest) -> Tracking | None:
        """What the point before says, if it is for this machine and mark; None if it says nothing of use."""
        try:
            value = json.loads(metadata[FILE])
            found = cls(value["machine"], value["checkpoint"], tuple(value["disks"]), dict(value.get("places", {})))
        except (KeyError, ValueError, TypeError):
            return None
        is_name = isinstance(found.checkpoint, str) and _number(found.checkpoint, request.prefix) is not None
        return found if is_name and found.machine == request.machine and all(map(_is_target, found.disks)) else None


def _is_target(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9]{1,30}", name) is not None


def _number(name: str, prefix: str) -> int | None:
    found = re.fullmatch(re.escape(prefix) + r"([0-9]{1,9})", name)
    return int(found[1]) if found else None


def listed(host: Host, machine: str) -> list[str]:
    """Names of all checkpoints that libvirt knows of the machine."""
    return host.virsh("checkpoint-list", machine, "--name").split("\n")[:-1]


def bitmaps(host: Host, disk: VmDisk) -> dict[str, bool]:
    """Bitmaps saved in the image, by name, and whether each is whole and records what is written.

    Of a running machine those are missing that were made since it started, and none is whole.
    """
    if not disk.is_qcow2_file:
        return {}
    specific = host.image_info(disk.source, "qcow2")[0].get("format-specific") or {}
    found = (specific.get("data") or {}).get("bitmaps") or []
    return {str(one.get("name", "")): list(one.get("flags", [])) == ["auto"] for one in found}


def next_name(request: BackupRequest, taken: Iterable[str]) -> str:
    taken = set(taken)
    while (name := f"{request.prefix}{secrets.randbelow(10**9)}") in taken:
        pass
    return name


def places(host: Host, disks: Sequence[VmDisk]) -> dict[str, str]:
    """Which file each image is: its path and, of a plain file, the number that it has in its file system."""
    found = {disk.target: disk.source for disk in disks}
    files = {disk.target: disk.source for disk in disks if disk.kind == "file"}
    if files:
        told = host.shell(shlex.join(["stat", "-L", "-c", "%i", "--", *files.values()])).split()
        found |= {target: f"{files[target]} {number}" for target, number in zip(files, told, strict=True)}
    return found


def checkpoint_xml(name: str, disks: Sequence[VmDisk], tracked: Iterable[str]) -> str:
    """A checkpoint to make together with a backup job."""
    return text_of(_element(name, [disk.target for disk in disks], set(tracked)))


def _element(name: str, targets: Iterable[str], tracked: set[str]) -> Element:
    checkpoint = Element("domaincheckpoint")
    SubElement(checkpoint, "name").text = name
    SubElement(checkpoint, "description").text = "BRS: what changed since the last backup"
    disks = SubElement(checkpoint, "disks")
    for target in targets:
        attributes = {"checkpoint": "bitmap", "bitmap": name} if target in tracked else {"checkpoint": "no"}
        SubElement(disks, "disk", {"name": target, **attributes})
    return checkpoint


def adopt(host: Host, vm: Vm, checkpoint: str, disks: Iterable[str], *, validate: bool = True) -> str:
    """Tell libvirt of a checkpoint again. Why not, if it refuses: its bitmap is lost or broken."""
    element = _element(checkpoint, [disk.target for disk in vm.disks], set(disks))
    SubElement(element, "creationTime").text = "1"
    element.append(parse(host.virsh("dumpxml", "--inactive", vm.uuid) if vm.persistent else vm.xml, "domain"))
    words = ["checkpoint-create", vm.uuid, "/dev/stdin", "--redefine", *(["--redefine-validate"] if validate else [])]
    result = host.try_virsh(*words, given=text_of(element))
    if result.code == 0 or checkpoint in listed(host, vm.uuid):
        return ""
    return " ".join(result.errors.split())[-300:] or "no reason given"


def forget(host: Host, machine: str, checkpoint: str) -> None:
    """libvirt's record alone; the bitmap goes on."""
    host.virsh("checkpoint-delete", machine, checkpoint, "--metadata")


def drop(host: Host, vm: Vm, checkpoint: str) -> None:
    """Record and bitmap. One whose bitmap is broken or gone loses what is left of both."""
    if not host.try_virsh("checkpoint-delete", vm.uuid, checkpoint).code:
        return
    forget(host, vm.uuid, checkpoint)
    for disk in vm.disks:
        if checkpoint in bitmaps(host, disk):
            _remove_bitmap(host, vm, disk, checkpoint)


def _remove_bitmap(host: Host, vm: Vm, disk: VmDisk, name: str) -> None:
    """A bitmap that libvirt does not get rid of, since it is broken: by qemu's own means."""
    if not vm.running:
        host.shell(shlex.join(["qemu-img", "bitmap", "--remove", "-f", "qcow2", disk.source, name]))
        return
    command = {"execute": "block-dirty-bitmap-remove", "arguments": {"node": _node(host, vm, disk), "name": name}}
    answer = host.virsh("qemu-monitor-command", vm.uuid, json.dumps(command))
    if '"error"' in answer:
        raise HypervisorError(f"The broken bitmap {name} of {disk.target} cannot be removed: {answer.strip()[:300]}")


def _node(host: Host, vm: Vm, disk: VmDisk) -> str:
    """qemu's name of the block node of the disk's image."""
    for node in _nodes(host, vm):
        if node.get("file") == disk.source:
            return str(node["node-name"])
    raise HypervisorError(f"qemu does not show the image of {disk.target}.")


def _nodes(host: Host, vm: Vm) -> list[dict[str, Any]]:
    said = host.virsh("qemu-monitor-command", vm.uuid, '{"execute":"query-named-block-nodes"}')
    try:
        return [node for node in json.loads(said)["return"] if node.get("drv") == "qcow2"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HypervisorError(f"qemu does not tell its block devices: {said.strip()[:300]}") from error


def holders(host: Host, vm: Vm, *, ask_qemu: bool) -> dict[str, set[str]]:
    """Targets of the disks that hold a bitmap, by its name.

    ``ask_qemu``: also for those that a running machine has not saved yet. libvirt notes in its log that it was asked.
    """
    found: dict[str, set[str]] = {}
    for disk in vm.disks:
        for name in bitmaps(host, disk):
            found.setdefault(name, set()).add(disk.target)
    if ask_qemu and vm.running:
        targets = {disk.source: disk.target for disk in vm.disks}
        for node in _nodes(host, vm):
            for bitmap in node.get("dirty-bitmaps") or []:
                if (target := targets.get(str(node.get("file")))) is not None:
                    found.setdefault(str(bitmap.get("name", "")), set()).add(target)
    return found


def strays(host: Host, vm: Vm, request: BackupRequest, wanted: str, *, ask_qemu: bool = False) -> dict[str, set[str]]:
    """Checkpoints and bitmaps of ours that nothing needs any more, with the disks that hold them.

    ``wanted`` is the one to go on from.
    """
    held = holders(host, vm, ask_qemu=ask_qemu)
    names = {*held, *listed(host, vm.uuid)}
    return {
        name: held.get(name, set())
        for name in sorted(names)
        if _number(name, request.prefix) is not None and name != wanted
    }


def drop_strays(host: Host, vm: Vm, request: BackupRequest, wanted: str, *, ask_qemu: bool = False) -> set[str]:
    """The names of those that were there, which no new one is to have."""
    found = strays(host, vm, request, wanted, ask_qemu=ask_qemu)
    for name, targets in found.items():
        if vm.running and adopt(host, vm, name, targets, validate=False):
            continue  # libvirt has another opinion of it: it stays, and is found again
        drop_one(host, vm, name)
    return set(found)


def drop_one(host: Host, vm: Vm, name: str) -> None:
    """As :func:`drop`, of a machine that may not run: libvirt deletes checkpoints of running ones alone."""
    if vm.running:
        drop(host, vm, name)
    else:
        _drop_stopped(host, vm, name)


def _drop_stopped(host: Host, vm: Vm, name: str) -> None:
    if name in listed(host, vm.uuid):
        forget(host, vm.uuid, name)
    for disk in vm.disks:
        if name in bitmaps(host, disk):
            _remove_bitmap(host, vm, disk, name)
