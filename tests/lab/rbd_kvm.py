"""Machines of the lab's hypervisor whose disks are RBD images of the lab's cluster."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from node_agent.drivers.libvirt import ImportRequest
from node_agent.errors import Cancelled
from tests.lab import libvirt
from tests.lab.kvm_world import Point, Protected
from tests.lab.libvirt import Guest, Lab
from tests.lab.libvirt_domain import domain_xml
from tests.lab.rbd_world import World


@dataclass(frozen=True)
class RbdGuest(Guest):
    """``images`` in the pool rbd, by target; ``disks`` are the others, which lie in files."""

    images: dict[str, str]
    world: World

    def remove(self) -> None:
        Guest.remove(self)
        for image in self.images.values():
            if image in self.world.lab.rbd("ls", "rbd").split():
                self.world.lab.rbd("snap", "purge", "--no-progress", f"rbd/{image}")
                self.world.lab.rbd("rm", "--no-progress", f"rbd/{image}")


def secret(lab: Lab, world: World) -> str:
    """libvirt's secret with the key of client.brs: UUID."""
    made = str(uuid.uuid5(uuid.NAMESPACE_DNS, world.state.fsid))
    description = lab.folder / "secret.xml"
    if not description.exists():
        usage = f"<usage type='ceph'><name>client.brs {made}</name></usage>"
        description.write_text(f"<secret ephemeral='no' private='no'><uuid>{made}</uuid>{usage}</secret>")
        lab.virsh("secret-define", str(description))
        lab.virsh("secret-set-value", made, world.state.keys["brs"])
    return made


def rbd_guest(lab: Lab, world: World, name: str, *, mixed: bool = False, by: str = "uuid") -> RbdGuest:
    """Its first disk an image in the cluster; ``mixed``: and a second in a qcow2 file. ``by``: how the description
    names the secret (uuid or usage), or "conf": by Ceph's own files on the hypervisor."""
    plain = lab.guest(name, "qcow2")
    image = f"{name}-{uuid.uuid4().hex[:6]}"
    world.lab.rbd("import", "--no-progress", lab.folder / "images" / "base.raw", f"rbd/{image}")
    second = lab.folder / "images" / f"{name}.vdb"
    if mixed:
        libvirt._run("qemu-img", "create", "-q", "-f", "qcow2", str(second), "64M")
    plain.disks["vda"].unlink()
    guest = RbdGuest(lab, plain.name, plain.uuid, {"vdb": second} if mixed else {}, {"vda": image}, world)
    described = domain_xml(guest.name, guest.uuid, guest.disks, {"vdb": "qcow2"}, guest.log, uefi=False)
    domain = ElementTree.fromstring(described)
    devices = domain.find("devices")
    assert devices is not None
    devices.insert(1, ElementTree.fromstring(_disk(lab, world, image, by)))
    description = lab.folder / f"{name}.xml"
    description.write_text(ElementTree.tostring(domain, encoding="unicode"))
    lab.virsh("define", str(description))
    return guest


def _disk(lab: Lab, world: World, image: str, by: str) -> str:
    named = secret(lab, world)
    auth = {
        "uuid": f"<auth username='brs'><secret type='ceph' uuid='{named}'/></auth>",
        "usage": f"<auth username='brs'><secret type='ceph' usage='client.brs {named}'/></auth>",
        "conf": "",
    }[by]
    where = f"<host name='127.0.0.1' port='{world.state.mon_port}'/>"
    if by == "conf":
        where = f"<config file='{_conf(lab, world)}'/>"
    # writeback: what the guest writes lies in qemu's cache first, and in the cluster later
    return (
        "<disk type='network' device='disk'><driver name='qemu' type='raw' discard='unmap' cache='writeback'/>"
        f"{auth}<source protocol='rbd' name='rbd/{image}'>{where}</source><target dev='vda' bus='virtio'/></disk>"
    )


def _conf(lab: Lab, world: World) -> Path:
    """As /etc/ceph holds it on a real hypervisor, readable for qemu."""
    folder = lab.folder / "ceph"
    folder.mkdir(exist_ok=True)
    conf, keyring = folder / "ceph.conf", folder / "keyring"
    conf.write_text(f"[global]\nmon host = 127.0.0.1:{world.state.mon_port}\nkeyring = {keyring}\n")
    keyring.write_text(f"[client.admin]\n\tkey = {world.lab.admin_key()}\n")
    for path in (conf, keyring):
        os.chmod(path, 0o644)
    return conf


class ProtectedRbd(Protected):
    guest: RbdGuest

    def track_by_cluster(self, wanted: bool) -> None:
        self.driver.access = replace(self.driver.access, ceph_snapshots=wanted)

    def back_up_with_copies(self, name: str, *, beside: Callable[[], object] = lambda: None, **options: Any) -> Point:
        """Suspended for all: the beginning of the backup, then what is ``beside`` it, then independent copies, by
        ``rbd export`` of a snapshot. In this order, since a snapshot makes qemu write out what its cache holds: the
        backup's own must have done."""
        self.lab.virsh("suspend", self.guest.uuid)
        copies: dict[str, Path] = {}

        def meanwhile() -> None:
            beside()
            for target in [*self.guest.images, *self.guest.disks]:
                copies[target] = self._copy(target, f"{name}-{target}")
            self.lab.virsh("resume", self.guest.uuid)

        point = self.back_up(meanwhile=meanwhile, **options)
        point.instant_copies = copies
        return point

    def bring_in_until(self, point: Point, enough: int, request: ImportRequest) -> None:
        """An import that is told to stop when so many bytes are written."""
        written = 0

        def tick(_disk: str, length: int) -> None:
            nonlocal written
            written += length
            if written > enough:
                raise Cancelled

        with self.readers(point) as readers:
            self.driver.import_machine(point.metadata, readers, request, tick)

    def _copy(self, target: str, name: str) -> Path:
        if target not in self.guest.images:
            return super()._copy(target, name)
        copy, rbd = self.folder / f"{name}.copy", self.guest.world.lab.rbd
        snapshot = f"rbd/{self.guest.images[target]}@truth-{name}"
        rbd("snap", "create", "--no-progress", snapshot)
        rbd("export", "--no-progress", snapshot, copy)
        return copy
