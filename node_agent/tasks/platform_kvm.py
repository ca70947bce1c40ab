"""KVM hosts as a platform: one or several hypervisors that are reached over SSH, joined with the driver *libvirt*."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import paramiko

from node_agent.drivers.base import (
    Around,
    DiskReader,
    Finding,
    FoundDisk,
    FoundMachine,
    ImportOrder,
    Machine,
    MachinePlatform,
    MachineRequest,
    Previous,
    Restored,
)
from node_agent.drivers.libvirt import BackupRequest, HostAccess, ImportRequest, LibvirtHost
from node_agent.drivers.libvirt.access import Limits
from node_agent.drivers.libvirt.commands import commands_on
from node_agent.drivers.libvirt.errors import HypervisorUnreachable, MachineMissing
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.inventory import Vm, machines
from node_agent.drivers.libvirt.traces import traces
from node_agent.errors import BrsError, RefusedError
from node_agent.items import Issue
from node_agent.protocol import PlatformAccess
from node_agent.ssh_trust import SILENT, quick_transport
from node_agent.tasks.context import TaskContext

_CONNECT_S = 15


class KvmPlatform(MachinePlatform):
    def __init__(self, access: PlatformAccess, context: TaskContext) -> None:
        self._access = access
        self._state: Path = context.state_dir / "kvm"
        self._now = context.now

    # --- which host ---

    def _host(self, address: str) -> LibvirtHost:
        """Raises RefusedError for a host whose key nobody has confirmed."""
        key = self._access.host_keys.get(address)
        if not key:
            raise RefusedError(
                f"The key of {address} has not been confirmed.",
                hint="Test the platform's connection, compare the key that it shows, and confirm it.",
            )
        name, port = split(address)
        told, options = self._access.secrets, self._access.options
        access = HostAccess(
            host=name,
            host_key=key,
            user=self._access.user or "root",
            port=port,
            private_key=told.get("private-key"),
            passphrase=told.get("key-passphrase"),
            password=told.get("password"),
            ceph_snapshots=options.get("rbd-snapshots", "") == "yes",
            **{option: options[option] for option in ("uri", "scratch") if options.get(option)},
        )
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        return LibvirtHost(access, self._state, self._now)

    def _host_of(self, wanted: MachineRequest) -> LibvirtHost:
        """The one that has the machine: where it was seen last, or wherever it has moved to since."""
        addresses = sorted(self._access.addresses, key=lambda address: address != wanted.host)
        if len(addresses) == 1:
            return self._host(addresses[0])
        problems = []
        for address in addresses:
            try:
                if self._host(address).has(wanted.id):
                    return self._host(address)
            except BrsError as error:
                problems.append(error)
        if problems:
            raise problems[0]
        raise MachineMissing(f"None of the hosts has the virtual machine {wanted.name}.")

    # --- what a platform does ---

    def host_keys(self) -> Mapping[str, str]:
        return {address: met_key(address) for address in self._access.addresses}

    def probe(self) -> Iterator[Finding]:
        several = len(self._access.addresses) > 1
        for address in self._access.addresses:
            for found in self._host(address).probe():
                name = f"{address}: {found.name}" if several else found.name
                yield Finding(name, found.ok, found.detail, found.hint)

    def discover(self, *, thorough: bool = False) -> Iterator[FoundMachine | Issue]:
        for address in self._access.addresses:
            try:
                with Host(self._host(address).access) as host:
                    found = machines(host)
                    sizes = _sizes(host, found)
                    kept = traces(host, found, ask_qemu=thorough)
            except BrsError as error:
                yield Issue(address, error.code, error.message)
                continue
            for vm in found:
                yield replace(_found(vm, address, sizes), traces=kept[vm.uuid])

    @contextmanager
    def around(
        self, wanted: MachineRequest, before: str, after: str, limit_s: int, check: Callable[[], None], /
    ) -> Iterator[Around]:
        access = self._host_of(wanted).access
        with commands_on(access, wanted.id, wanted.name, before, after, limit_s, check) as held:
            yield held

    @contextmanager
    def open(self, wanted: MachineRequest, previous: Previous | None) -> Iterator[Machine]:
        request = BackupRequest(
            machine=wanted.id,
            mark=wanted.mark,
            previous=previous,
            freeze=wanted.freeze,
            leave_out=wanted.leave_out,
            limits=Limits(frozen_s=wanted.freeze_limit_s),
        )
        with self._host_of(wanted).open(request) as machine:
            yield machine

    def remove_traces(self, wanted: MachineRequest, *, bitmaps: bool, snapshots: bool) -> list[str]:
        """Whatever the platform's option says now: a cluster is asked when something may have been kept there."""
        driver = self._host_of(wanted)
        driver.access = replace(driver.access, ceph_snapshots=snapshots)
        return driver.remove_traces(wanted.id, wanted.mark, bitmaps=bitmaps)

    def restore(
        self,
        order: ImportOrder,
        metadata: Mapping[str, bytes],
        disks: Mapping[str, DiskReader],
        tick: Callable[[str, int], None],
    ) -> Restored:
        address = order.host if order.host in self._access.addresses else self._access.addresses[0]
        request = ImportRequest(
            name=order.name,
            folder=order.storage,
            format=order.format,
            disks=order.disks,
            networks=order.networks,
            new_identity=order.new_identity,
            start=order.start,
            overwrite=order.overwrite,
        )
        done = self._host(address).import_machine(metadata, disks, request, tick)
        state = "running" if done.started else "not started"
        return Restored(f"{done.name} on {split(address)[0]}, {state}", done.notes)


def _sizes(host: Host, found: Sequence[Vm]) -> dict[tuple[str, str], int]:
    """Of all disks in one conversation, by machine and target; what libvirt does not know is left out."""
    script = "\n".join(
        f"echo {vm.uuid}; {host.virsh_words('domblkinfo', vm.uuid, '--all')} 2>/dev/null || :" for vm in found
    )
    sizes: dict[tuple[str, str], int] = {}
    uuid = ""
    for line in host.shell(script).splitlines() if found else ():
        words = line.split()
        if len(words) == 1:
            uuid = words[0]
        elif len(words) == 4 and words[1].isdecimal():
            sizes[uuid, words[0]] = int(words[1])
    return sizes


def _found(vm: Vm, address: str, sizes: Mapping[tuple[str, str], int]) -> FoundMachine:
    state = {"shut off": "stopped"}.get(vm.state, vm.state)
    summary = {
        "Memory": f"{vm.memory_bytes >> 20} MiB",
        "Processors": str(vm.vcpus),
        "Firmware": vm.firmware.rpartition("/")[2],
        "Guest agent": "answers" if vm.agent else "does not answer",
        "Networks": ", ".join(dict.fromkeys(nic.network for nic in vm.nics if nic.network)),
    }
    disks = [
        FoundDisk(disk.target, sizes.get((vm.uuid, disk.target), 0), disk.format, disk.left_out) for disk in vm.disks
    ]
    return FoundMachine(
        id=vm.uuid,
        name=vm.name,
        state=state,
        disks=disks,
        tags=[tag.rpartition("}")[2] for tag in vm.tags],
        host=address,
        summary={name: value for name, value in summary.items() if value},
    )


def split(address: str) -> tuple[str, int]:
    """``host``, ``host:port``, ``[v6]`` or ``[v6]:port``."""
    if address.startswith("["):
        name, _, rest = address[1:].partition("]")
        return name, int(rest[1:] or 22)
    name, _, port = address.partition(":")
    return name, int(port or 22)


def met_key(address: str) -> str:
    """The key that sshd shows there now; nobody is logged in. Raises HypervisorUnreachable."""
    name, port = split(address)
    try:
        with socket.create_connection((name, port), timeout=_CONNECT_S) as connection:
            transport = quick_transport(connection)
            transport.set_log_channel(SILENT)
            try:
                transport.start_client(timeout=_CONNECT_S)
                key = transport.get_remote_server_key()
            finally:
                transport.close()
    except (OSError, paramiko.SSHException, EOFError) as error:
        raise HypervisorUnreachable(f"{address} does not answer: {error or type(error).__name__}.") from error
    return f"{key.get_name()} {key.get_base64()}"
