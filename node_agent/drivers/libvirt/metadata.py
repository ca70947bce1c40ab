"""What recreates a machine, beside its disks: ``vm.json``, the firmware's variables, and the TPM's state."""

from __future__ import annotations

import json
import shlex
from typing import Any

from node_agent.drivers.libvirt.errors import HypervisorError
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.inventory import Vm, VmDisk
from node_agent.items import Issue, Severity

VM_FILE, NVRAM_FILE, TPM_FILE = "vm.json", "nvram.fd", "tpm.tar"
_MAX_FILE = 64 << 20


def describe_machine(host: Host, vm: Vm, facts: dict[str, Any]) -> dict[str, bytes]:
    """Files by name. Secrets of the XML (passwords of displays) are in it: it is encrypted with everything else."""
    inactive = host.virsh("dumpxml", "--security-info", "--inactive", vm.uuid) if vm.persistent else ""
    described = {
        "format": 1,
        "platform": "libvirt",
        "name": vm.name,
        "uuid": vm.uuid,
        "state": vm.state,
        "xml": inactive or vm.xml,
        "xml_live": vm.xml if vm.running else "",
        "disks": [_disk(disk) for disk in vm.disks],
        "networks": sorted({nic.network for nic in vm.nics}),
        **facts,
    }
    return {VM_FILE: json.dumps(described, indent=1, ensure_ascii=False).encode()}


def _disk(disk: VmDisk) -> dict[str, Any]:
    return {
        "target": disk.target,
        "bus": disk.bus,
        "kind": disk.kind,
        "source": disk.source,
        "format": disk.format,
        "serial": disk.serial,
        "below": list(disk.below),
        "left_out": disk.left_out,
    }


def firmware_files(host: Host, vm: Vm) -> tuple[dict[str, bytes], list[Issue]]:
    """NVRAM and TPM. What cannot be read is left out, and makes the point partial: it may not boot without."""
    files: dict[str, bytes] = {}
    issues: list[Issue] = []
    wanted = []
    if vm.nvram:
        wanted.append((NVRAM_FILE, "The firmware's variables (NVRAM)", f"cat {shlex.quote(vm.nvram)}"))
    if vm.tpm:
        folder = shlex.quote(f"/var/lib/libvirt/swtpm/{vm.uuid}")
        wanted.append((TPM_FILE, "The state of the TPM", f"tar --sort=name --mtime=@0 -C {folder} -cf - ."))
    for name, what, script in wanted:
        try:
            files[name] = _stable(host, script)
        except HypervisorError as error:
            text = f"{what} cannot be read: {error.message}"
            issues.append(Issue(name, "firmware-left-out", text, Severity.LEFT_OUT))
    return files, issues


def _stable(host: Host, script: str) -> bytes:
    """Read until twice the same comes: the machine may be writing."""
    last: bytes | None = None
    for _ in range(5):
        code, out, errors = host.connection.run_bytes(script)
        if code or len(out) > _MAX_FILE:
            raise HypervisorError(errors.decode("utf-8", "replace").strip()[-300:] or "it is too large")
        if out == last:
            return out
        last = out
    raise HypervisorError("it changes all the time")
