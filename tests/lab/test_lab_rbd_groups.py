"""Groups of images: snapshots of one instant while their machine writes, increments of each image, and back."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from node_agent.drivers.base import Consistency
from node_agent.drivers.ceph.cluster import CephMissing
from node_agent.drivers.ceph.groups import Group
from node_agent.drivers.ceph.source import open_images
from node_agent.errors import SourceError, TargetExists
from node_agent.protocol import MachineTarget
from node_agent.repository.repository import Repository
from tests.lab.platform_bench import Bench
from tests.lab.rbd_world import NO_MAPS, Point, World, store
from tests.lab.test_lab_platform_rbd import bench as bench
from tests.repository.data_world import MIB, bring_back


def group_of(world: World, *images: str) -> Group:
    group = Group("rbd", f"group-{uuid.uuid4().hex[:8]}")
    world.lab.rbd("group", "create", f"rbd/{group.name}")
    for image in images:
        world.lab.rbd("group", "image", "add", f"rbd/{group.name}", f"rbd/{image}")
    return group


def ours(world: World, group: Group, *images: str) -> list[int]:
    left = world.lab.rbd("group", "snap", "ls", f"rbd/{group.name}")
    assert "brs-" not in left, left
    return [len([name for name in world.snapshots(image) if name.startswith("brs-")]) for image in images]


def test_images_that_are_written_in_turn_are_of_one_instant_each_time(
    world: World, repo: Repository, tmp_path: Path
) -> None:
    names = [world.image(8 * MIB), world.image(8 * MIB, features=NO_MAPS), world.image(8 * MIB)]
    group = group_of(world, *names)
    guest = world.holding("", alternate=names)
    point: Point | None = None
    seen: list[int] = []
    for turn in range(4):
        with open_images(world.request("", point, images={}, group=group), world.journal()) as machine:
            assert machine.consistency is Consistency.CRASH and set(machine.disks) == set(names)
            assert all((disk.changes is not None) == bool(turn) for disk in machine.disks.values()), machine.notes
            point = store(repo, machine, point)
            machine.acknowledge()
        out = tmp_path / f"out-{turn}"
        bring_back(repo, point.result.snapshot_id, out)
        counters = []
        for name in names:
            with (out / "disks" / f"{name}.raw").open("rb") as file:
                counters.append(int.from_bytes(file.read(8), "big"))
        # Each was written after the one before it: none may be behind the next, nor more than one write ahead.
        assert counters == sorted(counters, reverse=True) and counters[0] - counters[-1] <= 1, counters
        seen.append(counters[0])
        assert point.read <= 3 * MIB if turn else point.read
    assert seen == sorted(seen) and seen[0] < seen[-1]
    assert ours(world, group, *names) == [1, 1, 1]
    written, _ = guest.communicate("\n")
    assert guest.returncode == 0 and int(written) >= seen[-1]  # no write of the machine failed


def test_each_of_four_points_of_a_group_is_what_its_images_were(world: World, repo: Repository) -> None:
    first, second = world.image(), world.clone(world.image())
    group = group_of(world, first, second)
    rounds: list[list[tuple[str, list[Any]]]] = [
        [],
        [(first, ["write", 3 * MIB, 100_000, 1]), (second, ["write", 21 * MIB + 5, 7000, 2])],
        [(first, ["discard", 5 * MIB, MIB]), (second, ["write", 0, 10, 3])],
        [(second, ["resize", 48 * MIB]), (second, ["write", 47 * MIB, 10, 4])],
    ]
    points: list[Point] = []
    truths = []
    for do in rounds:
        for image, what in do:
            world.guest(image, what)
        truths.append({image: world.truth(image) for image in (first, second)})
        points.append(world.back_up(repo, "", points[-1] if points else None, images={}, group=group))
    for point, truth in zip(points, truths, strict=True):
        for image, spec in truth.items():
            assert world.restored(repo, point, image) == world.exported(spec)
    assert [point.notes for point in points[:3]] == [[], [], []] and "resized" in points[3].notes[0]
    assert points[1].read <= 4 * MIB and points[2].read <= 4 * MIB

    # An image that is renamed keeps its disk, one that joins is read whole, one that leaves is no more in it.
    world.lab.rbd("mv", f"rbd/{first}", f"rbd/{first}-b")
    joins = world.image(8 * MIB)
    world.lab.rbd("group", "image", "add", f"rbd/{group.name}", f"rbd/{joins}")
    again = world.back_up(repo, "", points[-1], images={}, group=group)
    assert set(again.previous.bases) == {first, second, joins}
    assert again.notes == ["Everything is read, because the point before says nothing of this disk."]
    world.lab.rbd("group", "image", "rm", f"rbd/{group.name}", f"rbd/{second}")
    less = world.back_up(repo, "", again, images={}, group=group)
    assert set(less.previous.bases) == {first, joins} and (less.read, less.notes) == (0, [])


def test_a_failed_run_leaves_the_kept_snapshots_and_no_other(world: World, repo: Repository) -> None:
    image = world.image(8 * MIB)
    group = group_of(world, image)
    point = world.back_up(repo, "", images={}, group=group)
    request = world.request("", point, images={}, group=group)
    with pytest.raises(ZeroDivisionError), open_images(request, world.journal()):
        raise ZeroDivisionError
    assert ours(world, group, image) == [1]
    # As a run that was killed leaves it; another's is not touched.
    for name in (f"brs-{request.owner}-77", "brs-ffffffff-1", "mine"):
        world.lab.rbd("group", "snap", "create", f"rbd/{group.name}@{name}")
    again = world.back_up(repo, "", point, images={}, group=group)
    assert (again.read, again.notes) == (0, [])
    left = world.lab.rbd("group", "snap", "ls", f"rbd/{group.name}")
    assert "-77" not in left and "brs-ffffffff-1" in left and "mine" in left
    with pytest.raises(CephMissing, match="There is no group gone"):
        world.back_up(repo, "", images={}, group=Group("rbd", "gone"))
    with pytest.raises(SourceError, match="has no images"):
        world.back_up(repo, "", images={}, group=group_of(world))


def test_a_group_is_found_backed_up_and_brought_back_by_the_tasks_of_a_node(world: World, bench: Bench) -> None:
    names = [world.image(8 * MIB), world.image(12 * MIB)]
    group, empty = group_of(world, *names), group_of(world)
    found = bench.discover()
    assert "has no images" in found[empty.name].summary["Cannot be backed up"]
    machine = found[group.name]
    assert {disk.name: disk.size_bytes for disk in machine.disks} == {names[0]: 8 * MIB, names[1]: 12 * MIB}
    alone = bench.back_up(found[names[0]])
    full = bench.back_up(machine)
    bench.back_up(found[names[0]], alone)  # by itself and in a group: neither takes the other's snapshots
    world.guest(names[0], ["write", 2 * MIB, 10, 1])
    again = bench.back_up(machine, full)
    assert "tracking-not-used" not in {issue.code for issue in bench.issues.items}
    truths = [world.exported(name) for name in names]

    for name in names:
        world.guest(name, ["write", 0, 3 * MIB, 7])
    done = bench.restore(machine, again, MachineTarget(name="other"))
    assert done.target == ", ".join(sorted(f"rbd:rbd/other-{name}" for name in names))
    assert [world.exported(f"other-{name}") for name in names] == truths
    assert f"other-{names[0]}" in world.lab.rbd("group", "image", "ls", f"rbd/{group.name}-2")
    world.lab.rbd("group", "image", "rm", f"rbd/{group.name}-2", f"rbd/other-{names[0]}")
    world.lab.rbd("rm", f"rbd/other-{names[0]}")
    before = world.lab.rbd("ls", "rbd")
    with pytest.raises(TargetExists):  # one of both is there still: nothing is made
        bench.restore(machine, again, MachineTarget(name="other"))
    assert world.lab.rbd("ls", "rbd") == before
    bench.restore(machine, again, MachineTarget(name=group.name), overwrite=True)
    assert [world.exported(name) for name in names] == truths
