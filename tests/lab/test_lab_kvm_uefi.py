"""A machine with UEFI and a TPM: its variables and its TPM's state are in the point, and each copy has its own."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from node_agent.drivers.libvirt import ImportRequest
from tests.lab.kvm_world import Protected
from tests.lab.libvirt import Guest, Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def nvram(lab: Lab, guest: Guest) -> str:
    return ElementTree.fromstring(lab.virsh("dumpxml", "--inactive", guest.uuid)).findtext("os/nvram") or ""


def content(lab: Lab, path: str) -> bytes:
    return (lab.folder / "root" / path.lstrip("/")).read_bytes()  # the hypervisor's /var/lib/libvirt


def test_a_copy_of_a_machine_with_uefi_and_tpm_boots_with_its_own(protected: Callable[..., Protected]) -> None:
    one = protected("uefi", uefi=True)
    lab = one.lab
    point = one.back_up()
    assert point.codes == set()
    variables, state = nvram(lab, one.guest), f"/var/lib/libvirt/swtpm/{one.guest.uuid}"
    assert point.metadata["nvram.fd"] == content(lab, variables)
    with tarfile.open(fileobj=io.BytesIO(point.metadata["tpm.tar"])) as tar:
        assert "./tpm2/tpm2-00.permall" in tar.getnames()
    one.guest.destroy()
    originals = content(lab, variables), content(lab, f"{state}/tpm2/tpm2-00.permall")

    folder = str(one.folder / "vms")
    imported = one.bring_in(point, ImportRequest(name="brs-lab-uefi-copy", folder=folder))
    copy = Guest(lab, imported.name, imported.uuid, {t: Path(p) for t, p in imported.disks.items()})
    try:
        place = nvram(lab, copy)
        assert place != variables and content(lab, place) == content(lab, variables)
        lab.virsh("start", copy.uuid)
        copy.wait_for_agent()
        assert "GUEST-IS-UP" in copy.run("cat /run/marker && ls -d /sys/firmware/efi")
        assert lab.shell(f"ls /var/lib/libvirt/swtpm/{copy.uuid}/tpm2").split() == ["tpm2-00.permall"]
        assert (content(lab, variables), content(lab, f"{state}/tpm2/tpm2-00.permall")) == originals
    finally:
        copy.remove()
    assert content(lab, variables)  # a copy that is removed takes only its own along
