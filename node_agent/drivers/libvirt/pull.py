"""A pull job of libvirt: all disks of a running machine as they were at one instant, served on a unix socket.

What the guest overwrites meanwhile is first saved to a scratch file for each disk. A job that is held keeps the machine
from migration, snapshots and other jobs, and a scratch folder without space gives the *guest* write errors: so the
watchdog ends it when space or time run out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from node_agent.drivers.libvirt.access import BackupRequest
from node_agent.drivers.libvirt.content import NbdContent, dirty_context
from node_agent.drivers.libvirt.errors import HypervisorError, MachineBusy
from node_agent.drivers.libvirt.freeze import Begun, begin
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.inventory import Vm
from node_agent.drivers.libvirt.run_folder import RunFolder
from node_agent.drivers.libvirt.tracking import checkpoint_xml
from node_agent.drivers.libvirt.tunnel import Tunnel, tunnel
from node_agent.drivers.libvirt.xml import text_of
from node_agent.drivers.nbd import ALLOCATION, NbdClient, NbdError


@dataclass(frozen=True, slots=True)
class Plan:
    """``tracked``: disks that a new ``checkpoint`` is made for; ``since``: the old one of each disk read by changes."""

    checkpoint: str
    tracked: frozenset[str]
    since: Mapping[str, str]


def begin_job(host: Host, vm: Vm, request: BackupRequest, folder: RunFolder, plan: Plan) -> Begun:
    _refuse_other_jobs(host, vm)
    files = {"backup.xml": _backup_xml(vm, folder, plan)}
    if plan.tracked:
        files["checkpoint.xml"] = checkpoint_xml(plan.checkpoint, vm.protected, plan.tracked)
    return begin(host, vm, request, folder, host.virsh_words("backup-begin", vm.uuid, *folder.write(files)))


def _refuse_other_jobs(host: Host, vm: Vm) -> None:
    """Before the guest is frozen: libvirt would wait for the other job's end for half a minute, and then refuse."""
    told = host.virsh("domjobinfo", vm.uuid)
    if not re.search(r"Job type: *None", told):
        raise MachineBusy(f"Another job runs on {vm.name}: {' '.join(told.split())[:200]}")


def _backup_xml(vm: Vm, folder: RunFolder, plan: Plan) -> str:
    backup = Element("domainbackup", mode="pull")
    SubElement(backup, "server", transport="unix", socket=f"{folder.path}/nbd")
    disks = SubElement(backup, "disks")
    protected = {disk.target for disk in vm.protected}
    for disk in vm.disks:
        if disk.target not in protected:
            SubElement(disks, "disk", name=disk.target, backup="no")
            continue
        attributes = {"name": disk.target, "backup": "yes", "type": "file", "exportname": disk.target}
        if disk.target in plan.since:
            since = plan.since[disk.target]
            attributes |= {"backupmode": "incremental", "incremental": since, "exportbitmap": disk.target}
        element = SubElement(disks, "disk", attributes)
        SubElement(element, "scratch", file=f"{folder.path}/scratch.{disk.target}")
    return text_of(backup)


def abort_job(host: Host, vm: Vm, folder: str) -> None:
    """End the job if it is the one of this folder; that there is none any more is fine."""
    is_ours = f"{host.virsh_words('backup-dumpxml', vm.uuid)} 2>/dev/null | grep -qF {shlex.quote(folder)}/"
    result = host.connection.run(f"! {is_ours} || LC_ALL=C {host.virsh_words('domjobabort', vm.uuid)}")
    if result.code and host.connection.run(is_ours).code == 0:
        raise HypervisorError(f"The backup job on {vm.name} cannot be ended: {result.errors.strip()[:300]}")


@contextmanager
def contents(host: Host, vm: Vm, folder: RunFolder, plan: Plan) -> Iterator[dict[str, NbdContent]]:
    """Each disk of the job, open for reading."""
    with ExitStack() as stack:
        through = stack.enter_context(tunnel(host.connection, f"{folder.path}/nbd"))
        opened = {}
        for disk in vm.protected:
            contexts = [ALLOCATION, *([dirty_context(disk.target)] if disk.target in plan.since else [])]
            client = NbdClient(through.path, disk.target, contexts)
            connect(host, folder, f"{folder.path}/nbd", client, through)
            opened[disk.target] = NbdContent(client, disk.format, folder.why_broken)
            stack.callback(opened[disk.target].close)
        yield opened


def connect(host: Host, folder: RunFolder, socket: str, client: NbdClient, through: Tunnel) -> None:
    """Raises what is behind it if there is nobody at the socket any more: the watchdog, the machine, the host."""
    try:
        client.connect()
    except NbdError as error:
        raise folder.why_broken(no_way(host, socket, error, through.complaint())) from error


def no_way(host: Host, socket: str, error: NbdError, complaint: str) -> HypervisorError:
    """Why the hypervisor's socket cannot be reached through the tunnel, in words that say what to do.

    sshd says the same of a socket that may not be reached and of forwarding that is forbidden: so the socket is asked.
    """
    if "open failed" in complaint and host.connection.run(f"test -w {shlex.quote(socket)}").code == 0:
        return HypervisorError(
            "sshd on the hypervisor forbids forwarding of unix sockets.",
            hint="Set AllowStreamLocalForwarding yes (and DisableForwarding no) in its sshd_config, and reload it.",
        )
    return HypervisorError(
        f"The hypervisor's NBD socket cannot be reached: {error.message} {complaint}".strip(),
        hint="The user of the login must be root, or be let at the socket by an ACL (package acl on the hypervisor).",
    )
