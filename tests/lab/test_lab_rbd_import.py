"""Restores to a real cluster: new images, over existing ones, and what is left when they fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from node_agent.drivers.base import DiskContent
from node_agent.drivers.ceph.cluster import CephBusy
from node_agent.drivers.ceph.import_ import ImportOptions, ImportResult, import_image
from node_agent.drivers.ceph.source import DISK
from node_agent.drivers.image import open_image
from node_agent.errors import Cancelled, TargetError, TargetExists
from node_agent.progress import Progress
from node_agent.repository.repository import Repository
from tests.lab.rbd_world import NO_MAPS, OWNER, Point, World
from tests.repository.data_world import MIB, bring_back


@contextmanager
def content_of(world: World, repo: Repository, point: Point) -> Iterator[DiskContent]:
    target = world.folder / "staged"
    if not target.exists():
        bring_back(repo, point.result.snapshot_id, target)
    with open_image(target / "disks" / f"{DISK}.raw", format="raw") as content:
        yield content


def bring(world: World, repo: Repository, point: Point, name: str, **options: Any) -> ImportResult:
    with content_of(world, repo, point) as content:
        return import_image(
            world.access,
            world.journal(),
            ImportOptions(options.pop("pool", "rbd"), name, **options),
            content,
            point.previous.metadata,
            DISK,
            Progress(),
        )


class Failing:
    """A source that fails, or is told to stop, after so many reads."""

    def __init__(self, inner: DiskContent, reads: int) -> None:
        self.size, self.format, self.damage = inner.size, inner.format, ""
        self._inner, self._left = inner, reads
        self.extents, self.changed = inner.extents, inner.changed

    def read(self, offset: int, length: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise Cancelled
        return self._inner.read(offset, length)


def test_a_new_image_is_as_the_old_one_was(world: World, repo: Repository) -> None:
    image = world.image(objects="8M")
    world.lab.rbd("config", "image", "set", f"rbd/{image}", "rbd_qos_iops_limit", "1234")
    point = world.back_up(repo, image)
    result = bring(world, repo, point, f"{image}-new")
    was, now = world.look(image), world.look(f"{image}-new")
    assert (now.id, now.size, now.object_size, now.features) == (result.image_id, was.size, 8 * MIB, was.features)
    assert now.metadata["conf_rbd_qos_iops_limit"] == "1234"
    assert world.exported(f"{image}-new") == world.exported(image)
    assert result.how == "new" and result.written_bytes < 10 * MIB  # sparse
    assert not list((world.folder / "state" / "ceph").iterdir())


def test_the_shape_can_be_chosen(world: World, repo: Repository) -> None:
    image = world.image()
    bring(
        world, repo, world.back_up(repo, image), f"{image}-n", object_size=MIB, features=("layering", "exclusive-lock")
    )
    now = world.look(f"{image}-n")
    assert (now.object_size, now.features) == (MIB, {"layering", "exclusive-lock"})
    assert world.exported(f"{image}-n") == world.exported(image)


def test_an_existing_image_is_left_alone_unless_it_is_to_be_overwritten(world: World, repo: Repository) -> None:
    image = world.image()
    point = world.back_up(repo, image)
    world.guest(image, ["write", 0, 10, 1])
    before = world.exported(image)
    with pytest.raises(TargetExists, match="exists already"):
        bring(world, repo, point, image)
    assert world.exported(image) == before


@pytest.mark.parametrize("features", [61, NO_MAPS])
def test_over_the_image_it_came_from_only_what_changed_is_written(
    world: World, repo: Repository, features: int
) -> None:
    image = world.image(features=features)
    truth = world.truth(image)
    point = world.back_up(repo, image)
    world.guest(image, ["write", 7 * MIB, 5000, 1], ["discard", 10 * MIB, MIB], ["write", 23 * MIB, 70_000, 1])
    forget = features != NO_MAPS  # the kept snapshot: else the next backup goes on from it
    result = bring(world, repo, point, image, overwrite=True, owner=OWNER if forget else "")
    assert world.exported(image) == world.exported(truth)
    assert result.how == "changes" and MIB <= result.written_bytes < 2 * MIB and result.zeroed_bytes < 4 * MIB
    assert len([name for name in world.snapshots(image) if name.startswith("brs-")]) == (0 if forget else 1)
    second = world.back_up(repo, image, point)
    assert world.restored(repo, second) == world.exported(truth)
    assert "is gone" in second.notes[0] if forget else second.notes == []


def test_over_another_image_what_is_equal_is_not_written(world: World, repo: Repository) -> None:
    image, other = world.image(), world.image(52 * MIB)
    point = world.back_up(repo, image)
    world.guest(other, ["write", 0, 3 * MIB, 8], ["write", 45 * MIB, 10, 8], ["resize", 30 * MIB], ["resize", 50 * MIB])
    result = bring(world, repo, point, other, overwrite=True)
    assert world.exported(other) == world.exported(image)
    assert result.how == "compared" and result.written_bytes < 5 * MIB


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_import_leaves_things_as_they_were(world: World, repo: Repository, overwrite: bool) -> None:
    image = world.image()
    point = world.back_up(repo, image)
    world.guest(image, ["write", 0, 8 * MIB, 1], ["resize", 44 * MIB])
    before, snapshots, images = world.exported(image), world.snapshots(image), world.lab.rbd("ls", "rbd")
    name = image if overwrite else f"{image}-new"
    with content_of(world, repo, point) as content, pytest.raises(Cancelled):
        import_image(
            world.access,
            world.journal(),
            ImportOptions("rbd", name, overwrite=overwrite, owner=OWNER),
            Failing(content, 3),
            point.previous.metadata,
            DISK,
            Progress(),
        )
    assert (world.exported(image), world.snapshots(image), world.lab.rbd("ls", "rbd")) == (before, snapshots, images)
    assert not list((world.folder / "state" / "ceph").iterdir())


def test_an_image_that_somebody_has_open_is_never_written(world: World, repo: Repository) -> None:
    image = world.image()
    point = world.back_up(repo, image)
    guest, before = world.holding(image), world.exported(image)
    with pytest.raises(CephBusy, match=r"in use by 127\.0\.0\.1"):
        bring(world, repo, point, image, overwrite=True)
    guest.communicate("\n")
    assert world.exported(image) == before


@pytest.mark.parametrize("name", ["", "a/b", "a@b", "-rf", "a\0b", "a\nb"])
def test_names_that_mean_something_else_to_others_are_not_given(world: World, repo: Repository, name: str) -> None:
    point = world.back_up(repo, world.image(8 * MIB))
    with pytest.raises(TargetError, match="is no name for an image"):
        bring(world, repo, point, name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pool": "elsewhere"}, "not among those of the platform"),
        ({"object_size": 12345}, "power of two"),
        ({"features": ("migrating",)}, "No feature to choose: migrating"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_made(
    world: World, repo: Repository, options: dict[str, Any], said: str
) -> None:
    point = world.back_up(repo, world.image(8 * MIB))
    images = world.lab.rbd("ls", "rbd")
    with pytest.raises(TargetError, match=said):
        bring(world, repo, point, "never", **options)
    assert world.lab.rbd("ls", "rbd") == images


def test_an_import_that_was_killed_is_cleared_by_the_next(world: World, repo: Repository, tmp_path: Path) -> None:
    from node_agent.drivers.ceph.journal import Entry

    image = world.image()
    point = world.back_up(repo, image)
    entry = Entry(world.state.fsid, "rbd", "", "brs-import-0011223344556677", "import")
    with world.journal().under_way(entry):  # as a run that was killed leaves it
        world.create_named(entry.name)
        bring(world, repo, point, f"{image}-a")
        assert entry.name in world.lab.rbd("ls", "rbd")  # it lives
    bring(world, repo, point, f"{image}-b")
    assert entry.name not in world.lab.rbd("ls", "rbd")
