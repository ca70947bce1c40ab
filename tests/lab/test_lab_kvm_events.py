"""What happens to a machine *during* its backup: it never suffers, the point is right or says why not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from node_agent.drivers.base import Consistency
from node_agent.drivers.libvirt import LibvirtHost
from node_agent.drivers.libvirt.access import Limits
from node_agent.drivers.libvirt.errors import JobAborted, MachineMissing, MachineMoved
from tests.lab.kvm_world import Protected, access_to, footprint
from tests.lab.libvirt import wait
from tests.repository.data_world import MIB

Make = Callable[..., Protected]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def refused(one: Protected, *words: str) -> str:
    """What libvirt says to an order that it does not carry out."""
    with pytest.raises(subprocess.CalledProcessError) as error:
        one.lab.virsh(*words)
    return str(error.value.stderr)


def disk(one: Protected, name: str) -> Path:
    path = one.lab.folder / "images" / f"{name}.qcow2"
    one.lab.shell(f"qemu-img create -q -f qcow2 {path} 16M")
    return path


def test_changes_of_a_running_machine_are_refused_or_do_no_harm(protected: Make) -> None:
    one = protected("changed", "mixed")
    uuid, before = one.guest.uuid, footprint(one.lab, one.guest)
    plugged = disk(one, "plugged")
    one.guest.disks["vdc"] = plugged  # to be removed with it
    attach = (
        "attach-disk",
        uuid,
        str(plugged),
        "vdc",
        "--driver",
        "qemu",
        "--subdriver",
        "qcow2",
        "--live",
        "--config",
    )

    def change() -> None:
        assert "active domain" in refused(one, "domrename", uuid, "brs-lab-other")
        for target in ("vda", "vdb"):
            assert "in use" in refused(one, "blockresize", uuid, target, "400M")
        assert "active block job" in refused(one, "detach-disk", uuid, "vdb", "--live")
        one.lab.virsh(*attach)
        one.guest.run("dd if=/dev/urandom of=/data/meanwhile bs=1M count=4 2>/dev/null && sync")

    one.back_up()
    one.lab.virsh("suspend", uuid)
    copies = {target: one._copy(target, f"changed-{target}") for target in ("vda", "vdb")}
    with one.driver.open(one.request()) as machine:
        one.lab.virsh("resume", uuid)
        change()
        point = one._store(machine)
        machine.acknowledge()
    assert set(point.bases) == {"vda", "vdb"} and not {"tracking-lost", "tracking-not-possible"} & point.codes
    point.instant_copies = copies
    one.last = point
    one.assert_equals_copies(point)

    one.lab.virsh("blockresize", uuid, "vda", "400M")  # what was refused is possible afterwards
    after = one.back_up_with_copies("after")
    assert (set(after.bases), after.bases["vda"].size) == ({"vda", "vdb", "vdc"}, 400 * MIB)
    one.assert_equals_copies(after)
    one.lab.virsh("detach-disk", uuid, "vdc", "--live", "--config")
    assert set(one.back_up().bases) == {"vda", "vdb"}
    assert footprint(one.lab, one.guest) == before


def test_a_machine_that_is_undefined_runs_on_and_is_missing_when_it_has_stopped(protected: Make) -> None:
    one = protected("undefined")
    xml = one.lab.virsh("dumpxml", "--inactive", one.guest.uuid)
    one.back_up()
    point = one.back_up(meanwhile=lambda: one.lab.virsh("undefine", one.guest.uuid))
    assert one.guest.state == "running" and "tracking-lost" not in point.codes
    one.back_up()  # nothing is there to be defined again, and its disks are protected all the same
    one.guest.run("echo fine >/data/fine && sync")
    assert footprint(one.lab, one.guest)["scratch"] == []
    with pytest.raises(MachineMissing):
        with one.driver.open(one.request()) as machine:
            one.guest.destroy()
            machine.disks["vda"].content.read(0, 8 * MIB)
    assert one.lab.shell(f"find {one.lab.folder}/scratch -mindepth 1") == ""
    (one.folder / "again.xml").write_text(xml)
    one.lab.virsh("define", str(one.folder / "again.xml"))
    assert one.back_up().consistency is Consistency.STOPPED


def test_a_machine_that_is_stopped_renamed_resized_or_started_meanwhile(protected: Make) -> None:
    one = protected("moved")
    uuid, before = one.guest.uuid, footprint(one.lab, one.guest)
    one.back_up()
    with pytest.raises(MachineMoved, match="shut off"):
        with one.driver.open(one.request()) as machine:
            one.guest.destroy()
            machine.disks["vda"].content.read(0, 8 * MIB)
    assert footprint(one.lab, one.guest) == before
    stopped = one.back_up(meanwhile=lambda: one.lab.virsh("domrename", uuid, "brs-lab-renamed"))
    assert stopped.consistency is Consistency.STOPPED and "tracking-lost" not in stopped.codes
    copy = one._copy("vda", "stopped")
    stopped.instant_copies = {"vda": copy}
    one.assert_equals_copies(stopped)

    for disturbed in (
        lambda: one.lab.shell(f"qemu-img resize -q {one.guest.disks['vda']} 400M"),
        lambda: one.lab.virsh("start", uuid),
    ):
        with pytest.raises(MachineMoved, match="was started, or its images were written"):
            one.back_up(meanwhile=disturbed)
        assert footprint(one.lab, one.guest) == before
    assert one.guest.state == "running"
    one.guest.wait_for_agent()
    point = one.back_up_with_copies("running-again")
    assert point.bases["vda"].size == 400 * MIB
    one.assert_equals_copies(point)
    assert footprint(one.lab, one.guest) == before


def test_a_scratch_folder_that_the_guest_fills_ends_the_backup_before_it_is_full(protected: Make) -> None:
    one = protected("filled")
    small = f"{one.lab.folder}/small"
    one.lab.shell(f"mkdir {small} && mount -t tmpfs -o size=128m,mode=1777 tmpfs {small}")
    try:
        one.guest.run("dd if=/dev/urandom of=/data/large bs=1M count=32 2>/dev/null && sync")
        one.driver = LibvirtHost(access_to(one.lab, scratch=small), one.folder / "state")
        before = footprint(one.lab, one.guest)
        limits = Limits(floor_percent=90)  # of 128 MiB: what the guest can write in a second does not fill the rest
        with pytest.raises(JobAborted, match="ran out of free space"):
            with one.driver.open(one.request(limits=limits)) as machine:
                one.guest.run("dd if=/dev/urandom of=/data/large bs=1M count=32 conv=notrunc 2>/dev/null && sync")
                wait(lambda: footprint(one.lab, one.guest)["job"] == before["job"], "the watchdog")
                machine.disks["vda"].content.read(0, 8 * MIB)
        assert one.lab.shell(f"find {small} -mindepth 1") == ""
        assert one.guest.run("sync && dmesg | grep -ci 'i/o error' || :").strip() == "0"
        one.assert_equals_copies(one.back_up_with_copies("healed"))
        assert footprint(one.lab, one.guest) == before
    finally:
        one.lab.shell(f"umount -l {small}")
