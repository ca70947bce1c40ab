"""Machines on a real hypervisor with their disks in a real Ceph: while they run and when they do not, and back."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node_agent.drivers.base import Consistency
from node_agent.drivers.libvirt import ImportRequest, import_, rbd
from node_agent.drivers.libvirt.errors import HypervisorError, MachineMoved
from node_agent.drivers.libvirt.journal import Journal
from node_agent.errors import Cancelled, TargetError, TargetExists
from node_agent.repository.repository import Repository
from tests.lab import rbd_world
from tests.lab.kvm_world import MARK, Point, boot, footprint, fsck
from tests.lab.libvirt import Guest, Lab
from tests.lab.libvirt_guests import MIB, ROOT_START
from tests.lab.rbd_kvm import ProtectedRbd, rbd_guest
from tests.lab.rbd_world import World
from tests.repository.core_world import new_repo, restic


@pytest.fixture
def machine(lab: Lab, world: World) -> Iterator[Callable[..., ProtectedRbd]]:
    made: list[ProtectedRbd] = []

    def make(name: str, **options: Any) -> ProtectedRbd:
        guest = rbd_guest(lab, world, name, **options)
        folder = lab.folder / "work" / name
        folder.mkdir(parents=True)
        made.append(ProtectedRbd(guest, folder))
        return made[-1]

    yield make
    for one in made:
        one.guest.remove()
        one.repo.close()


def booted(one: ProtectedRbd, name: str, uuid: str) -> Guest:
    guest = Guest(one.lab, name, uuid, {})
    guest.wait_for_agent()
    return guest


def round_of(guest: Guest) -> str:
    return guest.run("cat /data/round").strip()


def images(world: World) -> set[str]:
    return set(world.lab.rbd("ls", "rbd").split())


ROUNDS = (
    "echo full >/data/round; dd if=/dev/urandom of=/data/blob bs=1M count=12; sync",
    # Known files, overwrites in the middle of others, some of which nothing has written out yet.
    "echo second >/data/round; cp /data/blob /data/copy; sync; for at in 3 31 44 76 90 11; do"
    " dd if=/dev/urandom of=/data/blob bs=64k seek=$at count=2 conv=notrunc; done; sync /data/round",
    "echo third >/data/round; rm /data/copy; dd if=/dev/urandom of=/data/blob bs=4k seek=7 count=1 conv=notrunc; sync;"
    " fstrim /",
    "echo fourth >/data/round; sync",
)


def test_points_of_a_machine_that_runs_are_what_its_disks_were_and_come_back(
    machine: Callable[..., ProtectedRbd], world: World, tmp_path: Path
) -> None:
    one = machine("ceph", mixed=True)
    image = one.guest.images["vda"]
    one.track_by_cluster(True)
    one.guest.start()
    before = footprint(one.lab, one.guest)
    repo = new_repo(tmp_path / "image-repo")
    points: list[Point] = []
    alone: list[rbd_world.Point] = []
    for number, do in enumerate(ROUNDS):
        one.guest.run(f"exec 2>/dev/null; {do}")
        if number == 3:
            one.lab.virsh("blockresize", one.guest.uuid, "vda", "176M")

        def image_beside() -> None:  # the image's own backup, of the same instant
            alone.append(world.back_up(repo, image, alone[-1] if alone else None))

        points.append(one.back_up_with_copies(f"point-{number}", beside=image_beside))
    assert footprint(one.lab, one.guest) == before
    said = [" ".join(issue.message for issue in point.issues if issue.code != "not-frozen") for point in points]
    assert said[:3] == ["", "", ""] and "was resized from" in said[3]
    full = points[0].result.read_bytes
    assert all(point.result.read_bytes < full / 2 for point in points[1:3]), points
    mine = [name for name in world.snapshots(image) if name.startswith("brs-")]
    assert len(mine) == 2 and len(one.driver.traces(one.guest.uuid, MARK)) >= 1
    for point, image_point in zip(points, alone, strict=True):
        truth = hashlib.sha256(point.instant_copies["vda"].read_bytes()).hexdigest()
        assert world.restored(repo, image_point) == truth
        one.assert_equals_copies(point)
    fsck(one.restored(points[3])["vda"], ROOT_START)

    _without_the_cluster_s_help_it_is_read_whole(one)
    # That wish taken back, its snapshots alone go: not the image's own, and not the other disk's bitmap.
    one.track_by_cluster(True)
    [ours] = one.driver.remove_traces(one.guest.uuid, MARK, bitmaps=False)
    assert ours.startswith(f"rbd:rbd/{image}@brs-") and ours.rpartition("@")[2] in mine
    assert set(mine) - set(world.snapshots(image)) == {ours.rpartition("@")[2]}
    assert one.driver.traces(one.guest.uuid, MARK)
    one.track_by_cluster(False)
    _restored_in_each_way(one, world, points)
    _stock_restic_s_boots(repo, alone[3], tmp_path)


def _without_the_cluster_s_help_it_is_read_whole(one: ProtectedRbd) -> None:
    one.track_by_cluster(False)
    one.guest.run("echo fifth >/data/round; sync")
    compared = one.back_up_with_copies("compared")
    assert compared.result.new_bytes < 8 * MIB < compared.result.read_bytes
    one.assert_equals_copies(compared)


def _restored_in_each_way(one: ProtectedRbd, world: World, points: Sequence[Point]) -> None:
    there = images(world)
    # Beside it: an image again, and the other disk a file.
    with pytest.raises(Cancelled):
        one.bring_in_until(points[1], 9 * MIB, ImportRequest(name="brs-lab-ceph-2", folder="rbd"))
    assert images(world) == there
    copy = one.bring_in(points[1], ImportRequest(name="brs-lab-ceph-2", folder="rbd", start=True))
    assert copy.disks["vda"] == "rbd:rbd/brs-lab-ceph-2-vda" and images(world) == {*there, "brs-lab-ceph-2-vda"}
    guest = booted(one, copy.name, copy.uuid)
    assert round_of(guest) == "second"
    guest.destroy()
    one.lab.virsh("undefine", copy.uuid)
    user = world.holding("brs-lab-ceph-2-vda")
    with pytest.raises(TargetExists, match="in use"):
        one.bring_in(points[1], ImportRequest(name="brs-lab-ceph-2", folder="rbd", overwrite=True, disks=["vda"]))
    user.communicate("\n")
    with pytest.raises(TargetExists, match="brs-lab-ceph-2-vda exists"):
        one.bring_in(points[1], ImportRequest(name="brs-lab-ceph-2", folder="rbd", disks=["vda"]))

    # As a file.
    copy = one.bring_in(points[2], ImportRequest(name="brs-lab-file", folder=str(one.folder / "vms"), format="qcow2"))
    file = Path(copy.disks["vda"])
    assert file.name == "brs-lab-file-vda.qcow2" and "rbd" not in one.lab.virsh("dumpxml", copy.uuid)
    compared = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(file), str(one.restored(points[2])["vda"])]
    assert subprocess.run(compared).returncode == 0
    one.lab.virsh("undefine", copy.uuid)

    # In its place, by a node that dies when the image is there already: the next import puts back what was.
    one.guest.destroy()
    one.driver.remove_traces(one.guest.uuid, MARK)
    image, in_place = one.guest.images["vda"], ImportRequest(overwrite=True, new_identity=False)
    was = world.exported(image)
    with pytest.MonkeyPatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(import_, "settle_import", lambda *_: [])
        write = Journal.write
        patched.setattr(Journal, "write", lambda self, entry: 1 / 0 if entry.done else write(self, entry))
        one.bring_in(points[0], in_place)
    assert world.exported(image) != was
    with pytest.raises(TargetError, match="is no name"):
        one.bring_in(points[0], replace(in_place, name="a@b"))
    assert world.exported(image) == was and not [name for name in images(world) if "-before-" in name]

    # The image has snapshots of somebody else, who would lose them: it steps aside.
    done = one.bring_in(points[0], replace(in_place, start=True))
    assert done.uuid == one.guest.uuid and round_of(booted(one, done.name, done.uuid)) == "full"
    [aside] = [name for name in images(world) if "-before-" in name]
    assert any(aside in note for note in done.notes)
    # Again, and now nothing keeps what was replaced.
    one.guest.destroy()
    done = one.bring_in(points[3], in_place)
    assert not done.notes
    assert [name for name in images(world) if "-before-" in name] == [aside]
    assert not [name for name in images(world) if "brs-import" in name]


def _stock_restic_s_boots(repo: Repository, point: rbd_world.Point, folder: Path) -> None:
    restic(folder / "image-repo", "restore", point.result.snapshot_id, "--target", str(folder / "stock"))
    boot(folder / "stock/disks/image.raw")


def test_a_stopped_machine_is_read_from_its_cluster_by_each_way_to_name_it(
    machine: Callable[..., ProtectedRbd],
) -> None:
    for by in ("uuid", "usage", "conf"):
        one = machine(f"ceph-{by}", by=by)
        before = footprint(one.lab, one.guest)["scratch"]
        point = one.back_up()
        assert (point.consistency, point.codes) == (Consistency.STOPPED, set())
        point.instant_copies = {"vda": one._copy("vda", "stopped")}
        one.assert_equals_copies(point)
        assert footprint(one.lab, one.guest)["scratch"] == before
        assert one.lab.shell("pgrep -f '[q]emu-nbd|[w]atch.sh' || :") == ""
    # Started and stopped again while it is read: what was read is of no instant.
    with pytest.raises(MachineMoved), one.driver.open(one.request()) as opened:
        one.lab.virsh("start", one.guest.uuid)
        one.guest.destroy()
        one._store(opened)


def test_what_a_hypervisor_lacks_for_an_image_is_said_before_anything_is_made(
    machine: Callable[..., ProtectedRbd], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine("ceph-lacking")
    point, there = one.back_up(), images(world)
    monkeypatch.setattr(rbd, "has_program", lambda _host: False)
    with pytest.raises(TargetError, match="needs the program rbd on the hypervisor"):
        one.bring_in(point, ImportRequest(name="brs-lab-x"))
    monkeypatch.undo()
    monkeypatch.setattr(rbd, "opens_rbd", lambda _host: "qemu there has no driver for RBD.")
    with pytest.raises(TargetError, match="has no driver for RBD"):
        one.bring_in(point, ImportRequest(name="brs-lab-x"))
    with pytest.raises(HypervisorError, match="cannot be read: qemu there has no driver"):
        one.back_up()
    monkeypatch.undo()
    with pytest.raises(TargetError, match="is no name for an image"):
        one.bring_in(point, ImportRequest(name="a@b"))
    assert images(world) == there
