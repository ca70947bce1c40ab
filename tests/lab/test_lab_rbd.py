"""Backups of RBD images of a real cluster: each point is what the rbd program exports of the same instant."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from node_agent.drivers.base import Consistency
from node_agent.drivers.ceph.source import ImageRef, open_images
from node_agent.repository.image_blocks import MIN_BLOCK
from node_agent.repository.repository import Repository
from tests.lab.rbd_world import ALL_FEATURES, NO_MAPS, OWNER, World, store
from tests.repository.core_world import restic
from tests.repository.data_world import MIB, bring_back

KINDS = ("plain", "without maps", "clone", "clone without maps", "clone of a clone", "8 MiB objects")


def make(world: World, kind: str) -> str:
    features = NO_MAPS if "without maps" in kind else ALL_FEATURES
    image = world.image(features=features, objects="8M" if "8 MiB" in kind else "4M")
    for _ in range(kind.count("clone")):
        image = world.clone(image, features)
        world.guest(image, ["write", 11 * MIB + 777, 5000, 3], ["discard", 15 * MIB, MIB])
    return image


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_four_points_is_what_the_image_was(world: World, repo: Repository, kind: str) -> None:
    image, points, truths = make(world, kind), [], []
    rounds = [
        [],
        [["write", random.Random(n).randrange(39 * MIB), 3000 + n, n] for n in range(12)],
        [["discard", 5 * MIB, MIB], ["discard", 21 * MIB + 4096, 65536], ["write", 30 * MIB - 100, 200, 5]],
        [["resize", 47 * MIB], ["write", 46 * MIB, 1000, 6]],
        [["write", 1000, 1000, 7]],
        [["resize", 23 * MIB], ["resize", 33 * MIB], ["write", 25 * MIB, 10, 8]],
    ]
    for do in rounds:
        if do:
            world.guest(image, *do)
        truths.append(world.truth(image))
        points.append(world.back_up(repo, image, points[-1] if points else None))
    for point, truth in zip(points, truths, strict=True):
        assert world.restored(repo, point) == world.exported(truth)
    why = [" ".join(point.notes) for point in points]
    assert why[0] == why[1] == why[2] == why[4] == ""
    assert f"resized from {40 * MIB} to {47 * MIB} bytes" in why[3]
    assert f"resized from {47 * MIB} to {33 * MIB} bytes" in why[5]
    assert points[1].read <= 13 * 2 * MIB and points[2].read <= 5 * MIB and points[4].read <= MIB
    assert len([name for name in world.snapshots(image) if name.startswith("brs-")]) == 1


def test_stock_restic_restores_the_image(world: World, repo: Repository, tmp_path: Path) -> None:
    image = world.image()
    first = world.back_up(repo, image)
    world.guest(image, ["write", 7 * MIB, 100_000, 9])
    truth = world.truth(image)
    point = world.back_up(repo, image, first)
    restic(tmp_path / "repo", "restore", point.result.snapshot_id, "--target", str(tmp_path / "out"))
    sum_ = subprocess.run(["sha256sum", tmp_path / "out" / "disks" / "image.raw"], capture_output=True, text=True)
    assert sum_.stdout.split()[0] == world.exported(truth)


def test_a_large_sparse_image_costs_what_is_in_it(world: World, repo: Repository, tmp_path: Path) -> None:
    image = world.image(5 << 30)
    world.guest(image, ["write", (4 << 30) + 5, 100_000, 1])
    truth = world.truth(image)
    first = world.back_up(repo, image)
    assert first.result.size_bytes == 5 << 30 and first.read < 80 * MIB
    world.guest(image, ["write", (4 << 30) + MIB, 10, 2])
    second = world.back_up(repo, image, first)
    assert second.read <= 2 * MIB
    world.export(truth)
    bring_back(repo, first.result.snapshot_id, tmp_path / "out")
    compared = ["qemu-img", "compare", "-f", "raw", "-F", "raw", world.folder / "exported"]  # skips holes
    assert subprocess.run([*compared, tmp_path / "out" / "disks" / "image.raw"]).returncode == 0


def test_a_renamed_image_goes_on_and_one_made_anew_under_its_name_does_not(world: World, repo: Repository) -> None:
    image = world.image()
    first = world.back_up(repo, image)
    world.lab.rbd("mv", f"rbd/{image}", f"rbd/{image}-b")
    second = world.back_up(repo, f"{image}-b", first)
    assert (second.read, second.notes) == (0, [])
    world.image(name=image)
    third = world.back_up(repo, image, second)
    assert third.read and "another image than before" in third.notes[0]


def test_a_rolled_back_image_is_right(world: World, repo: Repository) -> None:
    for features in (ALL_FEATURES, NO_MAPS):
        image = world.image(features=features)
        world.guest(image, ["snapshot", "earlier"], ["write", 3 * MIB, 10, 1], ["write", 8 * MIB, 10, 1])
        first = world.back_up(repo, image)
        world.guest(image, ["write", 12 * MIB, 10, 1], ["rollback", "earlier"], ["remove-snapshot", "earlier"])
        truth = world.truth(image)
        second = world.back_up(repo, image, first)
        assert world.restored(repo, second) == world.exported(truth)


def test_an_object_map_that_is_not_valid_is_not_believed(world: World, repo: Repository) -> None:
    image = world.image()
    first = world.back_up(repo, image)
    world.lab.rbd("feature", "disable", f"rbd/{image}", "fast-diff", "object-map")
    world.guest(image, ["write", 9 * MIB, 5000, 4])
    world.lab.rbd("feature", "enable", f"rbd/{image}", "object-map", "fast-diff")
    assert world.look(image).flags == {"object-map-invalid", "fast-diff-invalid"}
    truth = world.truth(image)
    second = world.back_up(repo, image, first)
    assert world.restored(repo, second) == world.exported(truth)
    assert second.read <= 2 * MIB and second.notes == []


def test_without_keep_nothing_stays_and_the_next_run_reads_everything(world: World, repo: Repository) -> None:
    image = world.image()
    first = world.back_up(repo, image, keep=False)
    assert world.snapshots(image) == []
    second = world.back_up(repo, image, first)
    assert "kept no snapshot" in second.notes[0] and len(world.snapshots(image)) == 1


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("removed", "is gone"),
        ("replaced", "was replaced by another of its name"),
        ("flattened", "the image was flattened"),
        ("migrated", "another image than before"),
    ],
)
def test_a_reason_for_reading_everything_is_said(world: World, repo: Repository, what: str, said: str) -> None:
    image = world.clone(world.image()) if what == "flattened" else world.image()
    first = world.back_up(repo, image)
    [kept] = [name for name in world.snapshots(image) if name.startswith("brs-")]
    if what == "removed":
        world.guest(image, ["remove-snapshot", kept])
    elif what == "replaced":
        world.guest(image, ["write", 2 * MIB, 10, 1], ["remove-snapshot", kept], ["snapshot", kept])
    elif what == "flattened":
        world.guest(image, ["flatten"])
    else:
        for step in ("prepare", "execute", "commit"):
            world.lab.rbd("migration", step, f"rbd/{image}")
    world.guest(image, ["write", 13 * MIB, 10, 1])
    truth = world.truth(image)
    second = world.back_up(repo, image, first)
    assert said in second.notes[0]
    assert second.read > 5 * MIB
    assert world.restored(repo, second) == world.exported(truth)
    third = world.back_up(repo, image, second)
    assert (third.read, third.notes) == (0, [])


def test_what_an_older_point_was_read_from_is_not_taken_for_the_newer_ones(world: World, repo: Repository) -> None:
    """The point before was deleted, and the one before that is what the next run is to go on from."""
    image = world.image()
    first = world.back_up(repo, image)
    world.guest(image, ["write", 2 * MIB, 10, 1])
    world.back_up(repo, image, first)
    world.guest(image, ["write", 6 * MIB, 10, 1])
    truth = world.truth(image)
    third = world.back_up(repo, image, first)
    assert "is gone" in third.notes[0]
    assert world.restored(repo, third) == world.exported(truth)


def test_a_failed_run_takes_only_its_own_snapshot_along(world: World, repo: Repository) -> None:
    image = world.image()
    world.guest(image, ["snapshot", "brs-ffffffff-1"], ["snapshot", "mine"], ["snapshot", f"brs-{OWNER}-x"])
    first = world.back_up(repo, image)
    before = world.snapshots(image)
    with pytest.raises(ZeroDivisionError), open_images(world.request(image, first), world.journal()):
        assert len(world.snapshots(image)) == len(before) + 1
        raise ZeroDivisionError
    assert world.snapshots(image) == before
    second = world.back_up(repo, image, first)
    assert second.read == 0
    assert {"brs-ffffffff-1", "mine", f"brs-{OWNER}-x"} < set(world.snapshots(image))


def test_snapshots_of_several_images_are_of_one_instant_only_if_nobody_writes(world: World, repo: Repository) -> None:
    names = [world.image(8 * MIB), world.image(8 * MIB)]
    images = {f"vd{letter}": ImageRef("rbd", name) for letter, name in zip("ab", names, strict=True)}
    with open_images(world.request("", images=images), world.journal()) as machine:
        assert machine.consistency is Consistency.NONE
    with open_images(world.request("", images=images, still=True), world.journal()) as machine:
        assert machine.consistency is Consistency.CRASH
        point = store(repo, machine, None)
        machine.acknowledge()
    assert world.restored(repo, point, "vdb") == world.exported(names[1])
    world.guest(names[0], ["write", 0, 10, 1])
    again = world.back_up(repo, "", point, images=images)
    assert (again.read, again.notes) == (MIN_BLOCK, [])
    assert world.restored(repo, again, "vda") == world.exported(names[0])


def test_a_machine_that_writes_is_not_disturbed(world: World, repo: Repository) -> None:
    image = world.image(8 * MIB)
    guest = world.holding("", alternate=[image])
    first = world.back_up(repo, image)
    world.back_up(repo, image, first)
    out, _ = guest.communicate("\n")
    assert guest.returncode == 0 and int(out) > 10
