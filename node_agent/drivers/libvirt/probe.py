"""The connection test: step by step, up to a real short pull job on a machine, so that it says what is missing."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Iterator

from node_agent.drivers.base import Finding, Freeze
from node_agent.drivers.libvirt import pull, run_folder
from node_agent.drivers.libvirt.access import BackupRequest, HostAccess, Limits
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.inventory import Vm, machines
from node_agent.errors import BrsError

_PROGRAMS = ("virsh", "qemu-img", "qemu-nbd", "setsid", "timeout", "awk")
_READ = 1 << 20


def probe(access: HostAccess, machine: str = "") -> Iterator[Finding]:
    """``machine``: UUID of one whose disks a pull job of a second is tried on; else the first that runs. Never raises
    for what it finds; the steps after one that failed are not tried."""
    name = "Log in over SSH"
    try:
        with Host(access) as host:
            yield Finding(name, ok=True, detail=access.shown)
            for name, step in (  # noqa: B007 - told in the handler below
                ("Programs on the hypervisor", _programs),
                ("libvirt may be managed", _libvirt),
                ("Scratch folder", _scratch),
            ):
                finding = step(host)
                yield finding
                if not finding.ok:
                    return
            name = "A short backup job is read through the tunnel"
            yield _pull_job(name, host, machine)
    except BrsError as error:
        yield Finding.of(name, error)


def _programs(host: Host) -> Finding:
    script = "\n".join(f"command -v {program} >/dev/null || echo {program}" for program in _PROGRAMS)
    missing = host.shell(script + '\n[ "$(id -u)" = 0 ] || command -v setfacl >/dev/null || echo setfacl').split()
    name = "Programs on the hypervisor"
    if missing:
        hint = "Debian: apt install libvirt-clients qemu-utils acl (setfacl is needed where the login is not root)."
        return Finding(name, ok=False, detail=f"{', '.join(missing)} not found", hint=hint)
    return Finding(name, ok=True, detail=host.shell("qemu-img --version").split("\n", 1)[0])


def _libvirt(host: Host) -> Finding:
    name = "libvirt may be managed"
    result = host.try_virsh("list", "--all", "--uuid")
    if result.code:
        hint = "Put the user into the group libvirt, or log in as root; and look whether libvirtd runs."
        return Finding(name, ok=False, detail=" ".join(result.errors.split())[-300:], hint=hint)
    version = re.search(r"Using library: libvirt (\S+)", host.virsh("version"))
    count = len(result.out.split())
    return Finding(
        name, ok=True, detail=f"{host.access.uri}, libvirt {version[1] if version else '?'}, {count} machines"
    )


def _scratch(host: Host) -> Finding:
    name, folder = "Scratch folder", shlex.quote(host.access.scratch)
    if len(host.access.scratch.encode()) > run_folder.MAX_SCRATCH or not host.access.scratch.startswith("/"):
        hint = f"Choose one whose whole path has at most {run_folder.MAX_SCRATCH} bytes: a socket is to lie below it."
        return Finding(name, ok=False, detail=f"{host.access.scratch} cannot be used", hint=hint)
    result = host.connection.run(
        f"test -d {folder} && test -w {folder} && df -Pk {folder} | awk 'NR == 2 {{ print $4 }}'"
    )
    if result.code or not result.out.strip().isdigit():
        hint = (
            "Make it on the hypervisor, writable for the login's user, with room for what the machines write meanwhile."
        )
        return Finding(name, ok=False, detail=f"{host.access.scratch} cannot be written", hint=hint)
    return Finding(name, ok=True, detail=f"{host.access.scratch}, {int(result.out) >> 10} MiB free")


def _pull_job(name: str, host: Host, machine: str) -> Finding:
    vm = _chosen(machines(host), machine)
    if vm is None:
        return Finding(name, ok=True, detail="not tried: no machine runs", hint="Start one, and test again.")
    request = BackupRequest(
        vm.uuid, f"{secrets.randbits(32):08x}", freeze=Freeze.NO, track=False, limits=Limits(silent_s=30)
    )
    path = run_folder.new_path(host, request)
    with run_folder.run_folder(host, request, path, vm.state) as folder:
        try:
            plan = pull.Plan("", frozenset(), {})
            pull.begin_job(host, vm, request, folder, plan)
            with pull.contents(host, vm, folder, plan) as contents:
                content = next(iter(contents.values()))
                content.read(0, min(_READ, content.size))
        except BrsError as error:
            return _explained(name, host, vm, error)
        finally:
            folder.left = True
            pull.abort_job(host, vm, path)
            folder.left = False
    return Finding(name, ok=True, detail=f"{vm.name}: {len(vm.protected)} disks, read and ended")


def _chosen(there: list[Vm], machine: str) -> Vm | None:
    running = [vm for vm in there if vm.running and vm.protected and machine in ("", vm.uuid)]
    return running[0] if running else None


def _explained(name: str, host: Host, vm: Vm, error: BrsError) -> Finding:
    """A denial that only the hypervisor's kernel knows the reason of."""
    if "Permission denied" not in error.message and "permission" not in error.message:
        return Finding(name, ok=False, detail=f"{vm.name}: {error.message}", hint=error.hint)
    enforced = host.shell("cat /sys/kernel/security/lsm /sys/fs/selinux/enforce 2>/dev/null || :")
    scratch = host.access.scratch
    hint = error.hint
    if "apparmor" in enforced:
        hint = (
            f"AppArmor keeps qemu out of the scratch folder: add “{scratch}/brs-** rw,” to "
            "/etc/apparmor.d/local/abstractions/libvirt-qemu on the hypervisor and restart the machine."
        )
    elif enforced.strip().endswith("1"):
        hint = (
            "SELinux keeps qemu out of the scratch folder: give it the type of images "
            f"(semanage fcontext -a -t virt_image_t '{scratch}/brs-.*'; restorecon)."
        )
    return Finding(name, ok=False, detail=f"{vm.name}: {error.message}", hint=hint)
