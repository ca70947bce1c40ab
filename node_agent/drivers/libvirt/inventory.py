"""Which virtual machines a hypervisor has, and what of them can be protected."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from node_agent.drivers.libvirt.errors import HypervisorError
from node_agent.drivers.libvirt.host import Host, checked_uuid, is_uuid
from node_agent.drivers.libvirt.rbd import RbdSource, source_of
from node_agent.drivers.libvirt.xml import parse
from node_agent.items import Issue, printable

RUNNING = ("running", "paused", "idle", "in shutdown", "pmsuspended")
_DISKS = ("disk", "lun")  # what lies in a drive is not the machine's
_AGENT = "org.qemu.guest_agent.0"
_FACTS = "awk '/^Persistent: *yes/ { p = 1 } /^Managed save: *yes/ { s = 1 } END { print p + 0, s + 0 }'"


@dataclass(frozen=True, slots=True)
class VmDisk:
    """``kind`` is libvirt's type of its source (file, block, network …); ``source`` a path, or what stands for it.

    ``left_out``: why it is not protected; empty if it is. ``below``: backing files of a running machine, top first.
    """

    target: str
    bus: str
    kind: str
    source: str
    format: str
    serial: str = ""
    below: tuple[str, ...] = ()
    left_out: str = ""
    rbd: RbdSource | None = None

    @property
    def is_qcow2_file(self) -> bool:
        return self.format == "qcow2" and self.kind in ("file", "block")


@dataclass(frozen=True, slots=True)
class Nic:
    mac: str
    network: str
    model: str


@dataclass(frozen=True, slots=True)
class Vm:
    uuid: str
    name: str
    state: str
    persistent: bool
    disks: tuple[VmDisk, ...]
    nics: tuple[Nic, ...]
    firmware: str  # bios or the loader's path
    nvram: str  # path, or empty
    title: str
    agent: bool  # the guest agent is connected now
    xml: str  # as it runs, or inactive
    tpm: bool = False
    memory_bytes: int = 0
    vcpus: int = 0
    saved: bool = False  # stopped, with its memory in a file (managed save)
    tags: tuple[str, ...] = ()  # namespaces and names of its metadata elements

    @property
    def running(self) -> bool:
        return self.state in RUNNING

    @property
    def protected(self) -> list[VmDisk]:
        return [disk for disk in self.disks if not disk.left_out]

    def issues(self) -> Iterator[Issue]:
        for disk in self.disks:
            if disk.left_out:
                yield Issue(disk.target, "disk-left-out", f"The disk {disk.target} is not protected: {disk.left_out}")


def machines(host: Host) -> list[Vm]:
    """All of the hypervisor, in one conversation."""
    mark = secrets.token_hex(16)  # a machine's own texts cannot forge it
    virsh = host.virsh_words
    script = f"""uuids=$({virsh("list", "--all", "--uuid")}) || exit $?
for uuid in $uuids; do
  state=$({virsh("domstate")} $uuid 2>/dev/null | tr ' ' _)
  echo {mark} $uuid $state $({virsh("dominfo")} $uuid | {_FACTS})
  {virsh("dumpxml")} $uuid || :
done"""
    found = []
    for part in host.shell(script).split(mark + " ")[1:]:
        head, _, xml = part.partition("\n")
        words = head.split()
        if len(words) == 4 and is_uuid(words[0]) and xml.strip():  # otherwise it went away meanwhile
            state, persistent, saved = words[1].replace("_", " "), words[2] == "1", words[3] == "1"
            found.append(describe(xml, state, persistent=persistent, saved=saved))
    return found


def machine(host: Host, uuid: str) -> Vm:
    """One machine as it is now. Raises MachineMissing."""
    virsh = host.virsh_words
    said = host.shell(
        f"""state=$({virsh("domstate", checked_uuid(uuid))}) || exit $?
echo $state
{virsh("dominfo", uuid)} | {_FACTS}
{virsh("dumpxml", "--security-info", uuid)}"""
    )
    state, facts, xml = said.split("\n", 2)
    persistent, saved = (word == "1" for word in facts.split())
    return describe(xml, state, persistent=persistent, saved=saved)


def describe(xml: str, state: str, *, persistent: bool = True, saved: bool = False) -> Vm:
    domain = parse(xml, "domain")
    uuid = domain.findtext("uuid", "")
    if not is_uuid(uuid):
        raise HypervisorError("libvirt described a virtual machine without a UUID.")
    loader = domain.find("os/loader")
    return Vm(
        uuid=uuid,
        name=printable(domain.findtext("name", "")),
        state=state,
        persistent=persistent,
        disks=tuple(_disk(disk) for disk in domain.iterfind("devices/disk") if disk.get("device", "disk") in _DISKS),
        nics=tuple(_nic(nic) for nic in domain.iterfind("devices/interface")),
        firmware="bios" if loader is None or not loader.text else loader.text,
        nvram=domain.findtext("os/nvram", "") or "",
        title=domain.findtext("title", ""),
        agent=_has_agent(domain),
        xml=xml,
        tpm=domain.find("devices/tpm/backend[@type='emulator']") is not None,
        memory_bytes=_memory(domain),
        vcpus=int(domain.findtext("vcpu", "0").strip() or 0),
        saved=saved,
        tags=tuple(child.tag for child in domain.iterfind("metadata/*")),
    )


def _disk(disk: Element) -> VmDisk:
    target, source = disk.find("target"), disk.find("source")
    driver = disk.find("driver")
    kind = disk.get("type", "file")
    return VmDisk(
        target=_target(target),
        bus=target.get("bus", "") if target is not None else "",
        kind=kind,
        source=_source(source, kind),
        format=driver.get("type", "raw") if driver is not None else "raw",
        serial=disk.findtext("serial", ""),
        below=tuple(_below(disk)),
        left_out=_why_left_out(disk, source),
        rbd=source_of(disk),
    )


def _target(target: Element | None) -> str:
    name = target.get("dev", "") if target is not None else ""
    if not name or len(name) > 30 or not name.isascii() or not name.isalnum():
        raise HypervisorError(f"A disk of the virtual machine has no usable name: {name[:40]!r}.")
    return name


def _source(source: Element | None, kind: str) -> str:
    if source is None:
        return ""
    if kind == "network":
        return f"{source.get('protocol', '')}:{source.get('name', '')}"
    if kind == "volume":
        return f"{source.get('pool', '')}/{source.get('volume', '')}"
    return source.get("file") or source.get("dev") or source.get("dir") or ""


def _below(disk: Element) -> Iterator[str]:
    store = disk.find("backingStore")
    while store is not None:
        source = store.find("source")
        if source is not None:
            yield _source(source, store.get("type", "file"))
        store = store.find("backingStore")


def _why_left_out(disk: Element, source: Element | None) -> str:
    if disk.get("device") == "lun":
        return "it is passed through to the guest (lun)."
    if source is None:
        return "it has no source."
    for tag, text in (
        ("shareable", "other machines may write to it (shareable)."),
        ("readonly", "it is read-only to the guest."),
        ("transient", "it is thrown away when the machine stops (transient)."),
    ):
        if disk.find(tag) is not None:
            return text
    if disk.get("type") in ("dir", "nvme", "vhostuser"):
        return f"a source of type {disk.get('type')} cannot be read from outside of the guest."
    return ""


def _nic(nic: Element) -> Nic:
    mac, source, model = nic.find("mac"), nic.find("source"), nic.find("model")
    attributes = source.attrib if source is not None else {}
    return Nic(
        mac=mac.get("address", "") if mac is not None else "",
        network=attributes.get("network") or attributes.get("bridge") or attributes.get("dev") or nic.get("type") or "",
        model=model.get("type", "") if model is not None else "",
    )


def _has_agent(domain: Element) -> bool:
    return any(
        target.get("name") == _AGENT and target.get("state") == "connected"
        for target in domain.iterfind("devices/channel/target")
    )


def _memory(domain: Element) -> int:
    units = {
        "b": 1,
        "bytes": 1,
        "kib": 1 << 10,
        "k": 1 << 10,
        "mib": 1 << 20,
        "m": 1 << 20,
        "gib": 1 << 30,
        "g": 1 << 30,
    }
    memory = domain.find("memory")
    if memory is None or not (memory.text or "").strip().isdigit():
        return 0
    return int(memory.text or 0) * units.get(memory.get("unit", "KiB").lower(), 1 << 10)


def internal_snapshots(host: Host, disk: VmDisk) -> Sequence[str]:
    """Names of snapshots inside the image itself: beside a bitmap, qemu refuses to go back to them."""
    info = host.known_image(disk.source, "qcow2") if disk.is_qcow2_file else []
    return [str(snapshot.get("name", "")) for snapshot in (info[0].get("snapshots") or [])] if info else []
