"""How a guest of the lab is described to libvirt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

UEFI, UEFI_VARIABLES = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"


def domain_xml(
    name: str, uuid: str, disks: Mapping[str, Path], formats: Mapping[str, str], log: Path, *, uefi: bool
) -> str:
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{formats[target]}' discard='unmap'/>"
        f"<source file='{path}'/><target dev='{target}' bus='virtio'/><serial>{name[8:]}-{target}</serial></disk>"
        for target, path in disks.items()
    )
    loader = f"<loader readonly='yes' type='pflash'>{UEFI}</loader><nvram template='{UEFI_VARIABLES}'/>"
    tpm = "<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>"
    return f"""<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>192</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type>{loader if uefi else ""}<boot dev='hd'/></os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact'><model fallback='allow'>qemu64</model></cpu>
  <on_reboot>restart</on_reboot><on_poweroff>destroy</on_poweroff>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {disks}
    <serial type='pty'><log file='{log}' append='off'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>{tpm if uefi else ""}
  </devices>
</domain>
"""
