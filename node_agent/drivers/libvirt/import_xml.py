"""The description of a machine that is restored: as it was, but for what was asked and what must not exist twice."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from node_agent.drivers.libvirt.access import ImportRequest
from node_agent.drivers.libvirt.rbd import RbdSource
from node_agent.drivers.libvirt.xml import parse, text_of

NVRAM_FOLDER = "/var/lib/libvirt/qemu/nvram"


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a disk of the restored machine lies. ``path`` is ``rbd:POOL/IMAGE`` if it is an image in a Ceph cluster."""

    target: str
    path: str
    format: str
    rbd: RbdSource | None = None


def rewritten(xml: str, request: ImportRequest, name: str, disks: Mapping[str, Placed]) -> tuple[str, str, list[str]]:
    """Description, UUID, and what of the original is not taken over (sentences).

    Devices whose path or port only one machine can have become ones that libvirt chooses, if the identity is new.
    """
    domain = parse(xml, "domain")
    notes: list[str] = []
    _set(domain, "name", name)
    if request.new_identity:
        _set(domain, "uuid", str(uuid.uuid4()))
        if domain.find("genid") is not None:
            _set(domain, "genid", str(uuid.uuid4()))
    devices = domain.find("devices")
    if devices is None:
        devices = SubElement(domain, "devices")
    _disks(devices, disks, notes)
    for nic in devices.iterfind("interface"):
        _nic(nic, request)
    nvram = domain.find("os/nvram")
    if request.new_identity:
        _devices_of_its_own(devices, notes)
        if nvram is not None and nvram.text:
            nvram.text = f"{NVRAM_FOLDER}/{name}_VARS.fd"
    return text_of(domain), domain.findtext("uuid", ""), notes


def _set(element: Element, tag: str, text: str) -> None:
    child = element.find(tag)
    if child is None:
        child = SubElement(element, tag)
    child.text = text


def _disks(devices: Element, disks: Mapping[str, Placed], notes: list[str]) -> None:
    for disk in list(devices.iterfind("disk")):
        target = disk.find("target")
        name = target.get("dev", "") if target is not None else ""
        if disk.get("device", "disk") in ("cdrom", "floppy"):
            _remove(disk, "source", "backingStore")  # what lay in the drive may not be here
        elif name not in disks:
            devices.remove(disk)
            notes.append(f"The disk {name} is not restored, and no longer part of the machine.")
        else:
            _place(disk, disks[name])


def _place(disk: Element, placed: Placed) -> None:
    if placed.rbd is not None:
        _place_in_cluster(disk, placed.rbd)
        return
    _remove(disk, "source", "backingStore", "mirror", "auth", "encryption")
    disk.set("type", "file")
    disk.attrib.pop("snapshot", None)
    driver = disk.find("driver")
    if driver is None:
        driver = SubElement(disk, "driver", name="qemu")
    driver.set("type", placed.format)
    SubElement(disk, "source", file=placed.path)


def _place_in_cluster(disk: Element, image: RbdSource) -> None:
    """Another image by the same monitors and login: they are as the description had them."""
    _remove(disk, "backingStore", "mirror")
    disk.attrib.pop("snapshot", None)
    source = disk.find("source")
    assert source is not None  # or it would be no such disk
    source.set("name", image.name)
    source.attrib.pop("index", None)


def _nic(nic: Element, request: ImportRequest) -> None:
    source = nic.find("source")
    if source is not None:
        source.attrib.pop("portid", None)
        for kind in ("network", "bridge", "dev"):
            if (known := source.get(kind, "")) in request.networks:
                source.set(kind, request.networks[known])
    if request.new_identity:
        _remove(nic, "mac", "target")
        SubElement(nic, "mac", address="52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3)))


def _devices_of_its_own(devices: Element, notes: list[str]) -> None:
    for tag in ("serial", "console", "channel", "parallel"):
        for device in devices.iterfind(tag):
            _character_device(device)
    for graphics in devices.iterfind("graphics"):
        if graphics.get("port", "-1") != "-1":
            graphics.set("port", "-1")
            graphics.set("autoport", "yes")
        graphics.attrib.pop("tlsPort", None)
        graphics.attrib.pop("websocket", None)
    for hostdev in list(devices.iterfind("hostdev")):
        devices.remove(hostdev)
        notes.append("A device of the host that was passed through is no longer part of the machine.")


def _character_device(device: Element) -> None:
    _remove(device, "log")
    source = device.find("source")
    if device.get("type") not in ("unix", "file", "pipe") or source is None or not source.get("path"):
        return
    _remove(device, "source")
    if device.tag != "channel":
        device.set("type", "pty")


def _remove(element: Element, *tags: str) -> None:
    for tag in tags:
        for child in element.findall(tag):
            element.remove(child)
