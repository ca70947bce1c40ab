"""Backups of real guests on a real hypervisor, over SSH: each point equals a copy of the same instant, and boots."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from node_agent.drivers.base import Consistency, Freeze
from node_agent.drivers.libvirt import ImportRequest
from node_agent.drivers.libvirt.errors import MachineMissing, MachineMoved
from tests.lab.kvm_world import MARK, Protected, boot, footprint, fsck
from tests.lab.libvirt import Guest
from tests.lab.libvirt_guests import DISK_SIZE, ROOT_START
from tests.repository.core_world import restic

MIB = 1 << 20
Make = Callable[..., Protected]
pytestmark = pytest.mark.slow


def write(guest: Guest, name: str, mib: int) -> None:
    guest.run(f"dd if=/dev/urandom of=/data/{name} bs=1M count={mib} 2>/dev/null && sync")


def overwrite_at_random(guest: Guest, name: str, times: int, mib: int) -> None:
    """Single blocks all over a file, through the page cache to the disk."""
    guest.run(
        f"i=0; while [ $i -lt {times} ]; do dd if=/dev/urandom of=/data/{name} bs=4k count=1 conv=notrunc "
        f"seek=$(($(od -An -N2 -tu2 /dev/urandom) % {mib * 256})) 2>/dev/null; i=$((i+1)); done; sync"
    )


def test_qcow2_full_and_increments_equal_copies_of_the_same_instant_and_boot(protected: Make) -> None:
    one = protected("whole", size=DISK_SIZE + 64 * MIB)
    before = footprint(one.lab, one.guest)
    write(one.guest, "large", 24)
    full = one.back_up_with_copies("full")
    assert (full.consistency, full.codes) == (Consistency.CRASH, {"not-frozen"})  # suspended: no agent answers
    assert footprint(one.lab, one.guest) == before

    overwrite_at_random(one.guest, "large", 20, 24)
    second = one.back_up_with_copies("second")
    assert second.result.read_bytes < 32 * MIB and "tracking-lost" not in second.codes

    one.guest.run("rm /data/large && sync && fstrim / && echo new >/data/new && sync")
    third = one.back_up_with_copies("third")
    assert third.result.read_bytes < second.result.size_bytes

    one.lab.virsh("blockresize", one.guest.uuid, "vda", f"{DISK_SIZE + 96 * MIB}B")
    write(one.guest, "after", 2)
    fourth = one.back_up_with_copies("fourth")
    assert fourth.bases["vda"].size == DISK_SIZE + 96 * MIB
    assert footprint(one.lab, one.guest) == before
    for point in (full, second, third, fourth):
        one.assert_equals_copies(point)

    imported = one.bring_in(fourth, ImportRequest(name="brs-lab-copy", folder=str(one.folder / "vms"), start=True))
    try:
        copy = Guest(one.lab, imported.name, imported.uuid, {t: Path(p) for t, p in imported.disks.items()})
        assert imported.started and imported.uuid != one.guest.uuid
        _booted(copy)
        assert copy.run("cat /data/new") == "new\n"
        assert _macs(one.lab.virsh("dumpxml", copy.uuid)).isdisjoint(_macs(one.lab.virsh("dumpxml", one.guest.uuid)))
    finally:
        copy.remove()
    fsck(one.restored(fourth)["vda"], ROOT_START)


def _booted(guest: Guest) -> None:
    guest.wait_for_agent()
    assert guest.run("cat /run/marker") == "GUEST-IS-UP known=[what a guest knows of itself]\n"


def _macs(xml: str) -> set[str]:
    return {part.split("'")[0] for part in xml.split("<mac address='")[1:]}


@pytest.mark.parametrize("kind", ["raw", "mixed", "backing"])
def test_other_kinds_equal_copies_of_the_same_instant(protected: Make, kind: str) -> None:
    one = protected(f"kind-{kind}", kind)
    place = "/second" if kind == "mixed" else "/data"
    before = footprint(one.lab, one.guest)
    full = one.back_up_with_copies("full")
    one.guest.run(f"dd if=/dev/urandom of={place}/more bs=1M count=3 2>/dev/null && sync && rm -f {place}/more2")
    second = one.back_up_with_copies("second")
    one.guest.run(f"dd if=/dev/urandom of={place}/more bs=64k seek=5 count=2 conv=notrunc 2>/dev/null && sync")
    third = one.back_up_with_copies("third")
    assert footprint(one.lab, one.guest) == before
    for point in (full, second, third):
        one.assert_equals_copies(point)
    if kind == "backing":
        assert third.result.read_bytes < 24 * MIB  # by changes
    assert third.result.stored_bytes < 16 * MIB  # however it was read, only what is new is stored


def test_a_killed_qemu_loses_its_bitmap_and_the_next_run_says_why_and_reads_all(protected: Make) -> None:
    one = protected("killed")
    one.back_up()
    one.guest.kill()
    one.guest.start()
    write(one.guest, "after-the-kill", 2)
    again = one.back_up_with_copies("again")
    assert "tracking-lost" in again.codes
    [said] = [issue.message for issue in again.issues if issue.code == "tracking-lost"]
    assert "bitmap" in said
    one.assert_equals_copies(again)
    write(one.guest, "later", 1)
    healed = one.back_up_with_copies("healed")
    assert "tracking-lost" not in healed.codes and healed.result.read_bytes < again.result.read_bytes
    one.assert_equals_copies(healed)
    one.last = None  # nobody knows of the point, nor of the bitmap that qemu holds
    healed = one.back_up()
    assert "tracking-not-possible" not in healed.codes
    one.guest.destroy()  # the broken bitmap is gone for good, and one of ours is there
    assert _bitmaps(one) == {json.loads(healed.metadata["tracking.json"])["checkpoint"]}


def _bitmaps(one: Protected) -> set[str]:
    info = json.loads(one.lab.shell(f"qemu-img info -U --output=json {one.guest.disks['vda']}"))
    return {bitmap["name"] for bitmap in info["format-specific"]["data"].get("bitmaps", [])}


def test_a_run_that_fails_leaves_nothing_and_the_next_goes_on_from_the_point_before(protected: Make) -> None:
    one = protected("failing")
    before = footprint(one.lab, one.guest)
    one.back_up()
    write(one.guest, "first", 2)

    class Broken(Exception):
        pass

    with pytest.raises(Broken):
        with one.driver.open(one.request()):
            raise Broken
    assert footprint(one.lab, one.guest) == before
    write(one.guest, "second", 2)
    point = one.back_up_with_copies("next")  # must hold what was written before and after the failed run
    assert "tracking-lost" not in point.codes and point.result.read_bytes < 40 * MIB
    one.assert_equals_copies(point)


def test_bitmaps_outlive_a_restart_and_a_stopped_machine_is_read_by_its_changes(protected: Make) -> None:
    one = protected("stopping")
    one.back_up()
    write(one.guest, "before-the-stop", 2)
    one.guest.destroy()
    with one.driver.open(one.request()) as machine:
        assert machine.consistency is Consistency.STOPPED
        one.guest.start()  # a machine can always be started while it is read
        with pytest.raises(MachineMoved):
            machine.disks["vda"].content.changed()
        assert machine.disks["vda"].changes is not None
    one.guest.destroy()
    copy = one._copy("vda", "stopped")
    point = one.back_up()
    assert point.consistency is Consistency.STOPPED and point.result.read_bytes < 48 * MIB
    point.instant_copies = {"vda": copy}
    one.assert_equals_copies(point)
    one.guest.start()
    write(one.guest, "after-the-start", 1)
    after = one.back_up_with_copies("after")
    assert "tracking-lost" not in after.codes and after.result.read_bytes < 48 * MIB
    one.assert_equals_copies(after)


def test_disks_with_internal_snapshots_are_not_tracked_and_foreign_checkpoints_left_alone(protected: Make) -> None:
    one = protected("foreign")
    xml = one.folder / "foreign.xml"
    xml.write_text("<domaincheckpoint><name>virtnbdbackup.0</name></domaincheckpoint>")
    one.lab.virsh("checkpoint-create", one.guest.uuid, str(xml))
    write(one.guest, "more", 1)
    for _ in range(3):
        write(one.guest, "again", 1)
        one.back_up_with_copies("beside")
        assert one.last is not None
        one.assert_equals_copies(one.last)
    assert one.lab.virsh("checkpoint-list", one.guest.uuid, "--name").split() == ["virtnbdbackup.0"]
    assert one.driver.traces(one.guest.uuid, "11111111") == []
    assert len(one.driver.traces(one.guest.uuid, MARK)) == 1
    one.driver.remove_traces(one.guest.uuid, MARK)
    assert one.driver.traces(one.guest.uuid, MARK) == []
    one.lab.virsh("checkpoint-delete", one.guest.uuid, "virtnbdbackup.0")
    one.guest.destroy()
    assert _bitmaps(one) == set()
    one.lab.shell(f"qemu-img snapshot -c inside {one.guest.disks['vda']}")
    one.guest.start()
    point = one.back_up()
    assert "tracking-not-possible" in point.codes and "tracking.json" not in point.metadata


def test_a_guest_is_frozen_for_the_instant_and_sees_it(shared: Protected) -> None:
    one = shared
    point = one.back_up(freeze=Freeze.REQUIRE)
    assert (point.consistency, point.codes) == (Consistency.APPLICATION, set())
    *_, frozen, thawed = (line.split() for line in one.guest.run("cat /run/freeze.log").splitlines())
    assert (frozen[0], thawed[0]) == ("freeze", "thaw")
    assert float(thawed[1]) - float(frozen[1]) < 10
    assert one.guest.agent({"execute": "guest-fsfreeze-status"}) == "thawed"


def test_what_is_not_there_is_missing(protected: Make) -> None:
    one = protected("missing", start=False)
    one.guest.remove()
    with pytest.raises(MachineMissing):
        with one.driver.open(one.request()):
            pass


def test_stock_restic_restores_a_disk_that_boots(shared: Protected, tmp_path: Path) -> None:
    one = shared
    point = one.back_up()
    restic(one.folder / "repo", "restore", point.result.snapshot_id, "--target", str(tmp_path / "stock"))
    boot(tmp_path / "stock/disks/vda.raw")
