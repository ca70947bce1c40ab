"""Images that carry a bitmap of ours and come to lie in the place of another image: nothing is built upon them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.lab.kvm_world import Protected

Make = Callable[..., Protected]
pytestmark = pytest.mark.slow


def test_a_copy_of_another_machines_image_is_read_whole(protected: Make) -> None:
    """Both machines are as old to us as each other: what tells their bitmaps apart is not how many there were."""
    mine, theirs = protected("mine"), protected("theirs")
    for one in (mine, theirs):
        one.guest.run(f"echo {one.guest.name} >/data/whose; dd if=/dev/urandom of=/data/own bs=1M count=4; sync")
        one.back_up()
    for one in (mine, theirs):
        one.guest.destroy()
    mine.lab.shell(f"cp {theirs.guest.disks['vda']} {mine.guest.disks['vda']}")
    mine.guest.start()
    point = mine.back_up_with_copies("copied")
    mine.assert_equals_copies(point)
    assert "tracking-lost" in point.codes, point.issues


@pytest.mark.parametrize("how", ["files", "description"])
def test_two_images_of_a_machine_that_change_places_are_read_whole(protected: Make, how: str) -> None:
    one = protected(f"places-{how}", "mixed", start=False)
    guest, lab = one.guest, one.lab
    second, third = guest.disks["vdb"], guest.disks["vdb"].with_suffix(".third")
    lab.shell(
        f"""set -e
qemu-img create -q -f qcow2 {third} 64M
qemu-img convert -f raw -O qcow2 {second} {second}.new
mv {second}.new {second}
virsh -q dumpxml {guest.uuid} | sed "s/type='raw'/type='qcow2'/" >{one.folder}/two.xml
virsh -q define {one.folder}/two.xml
virsh -q attach-disk {guest.uuid} {third} vdc --driver qemu --subdriver qcow2 --config"""
    )
    guest.disks["vdc"] = third
    guest.start()
    guest.run("dd if=/dev/urandom of=/dev/vdc bs=1M count=8 2>/dev/null; sync")
    one.back_up()
    guest.destroy()
    if how == "files":
        lab.shell(f"mv {second} {second}.x && mv {third} {second} && mv {second}.x {third}")
    else:
        exchange = f"s#{second}#@@#; s#{third}#{second}#; s#@@#{third}#"
        lab.shell(
            f"virsh -q dumpxml {guest.uuid} | sed '{exchange}' >{one.folder}/changed.xml\n"
            f"virsh -q define {one.folder}/changed.xml"
        )
        guest.disks.update(vdb=third, vdc=second)
    for running in (False, True):
        if running:
            guest.start()
            point = one.back_up_with_copies("running")
        else:
            copies = {target: one._copy(target, f"stopped-{target}") for target in guest.disks}
            before, point = one.last, one.back_up()
            point.instant_copies = copies
            one.last = before  # the running machine is backed up from the same point
        one.assert_equals_copies(point)
        said = {issue.path for issue in point.issues if issue.code == "tracking-lost"}
        assert {"vdb", "vdc"} <= said, point.issues
