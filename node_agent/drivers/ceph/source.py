"""Images of a cluster, opened as the disks of one machine: snapshot, what changed since the point before, content.

with open_images(request, journal) as machine:
    … store machine.disks …
    machine.acknowledge()
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from node_agent.drivers.base import Consistency, Disk, Machine, Previous
from node_agent.drivers.ceph.access import CephAccess
from node_agent.drivers.ceph.cluster import CephError, CephMissing, Cluster
from node_agent.drivers.ceph.content import RbdContent
from node_agent.drivers.ceph.groups import Group, disk_names, drop, members, snapshot_of
from node_agent.drivers.ceph.inventory import Image, describe, identity
from node_agent.drivers.ceph.journal import Journal
from node_agent.drivers.ceph.snapshots import Made, clear_left_behind, ours_on, release, snapshots_of
from node_agent.drivers.ceph.tracking import FILE, changes_since, described, kept_by, read_facts
from node_agent.drivers.ceph.undo import heal
from node_agent.errors import BrsError, RefusedError
from node_agent.items import Issue, Severity, printable

log = logging.getLogger("brs.node.ceph")

DISK = "image"  # the name of a single image's disk: it stays when the image is renamed


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image. With ``image_id``, found by it whatever its name is now; the name alone finds what has it now."""

    pool: str
    name: str
    image_id: str = ""


@dataclass(frozen=True, slots=True)
class RbdRequest:
    """``images`` by the disk's name in the snapshot. ``owner``: see :mod:`snapshots`.

    ``keep``: leave the new snapshot on the images once it is acknowledged, for the next run to go on from.
    ``still``: nobody writes to the images until ``open_images`` has yielded (their machine stands still or is off), so
    that snapshots of several are of one instant. ``group``: instead of ``images`` those of a group, of one instant.
    """

    access: CephAccess
    images: Mapping[str, ImageRef]
    owner: str
    group: Group | None = None
    keep: bool = True
    still: bool = False
    previous: Previous | None = None


@contextmanager
def open_images(request: RbdRequest, journal: Journal) -> Iterator[Machine]:
    """A Machine. What it made is removed at the end unless it was acknowledged; the older snapshots go only then."""
    with Cluster(request.access) as cluster, ExitStack() as opened:
        images, healed = _images(cluster, request)
        there = list(images.values())
        before = kept_by(request.previous, list(images))
        clear_left_behind(cluster, journal, there, [kept.snapshot_id for kept in before])
        names = [kept.snapshot_name for kept in before]
        taking = opened.enter_context(snapshots_of(cluster, journal, there, request.owner, names))
        read: Sequence[Made] = taking.made
        if request.group is not None:
            name = taking.made[0].snapshot.name
            read = opened.enter_context(snapshot_of(cluster, request.group, there, request.owner, name))
        instant = time.time()
        made = dict(zip(images, taking.made, strict=True))
        disks, notes = {}, []
        for name, one in zip(images, read, strict=True):
            disks[name], note = _disk(cluster, request, name, one)
            notes += [note] if note is not None else []

        def acknowledge() -> None:
            if request.keep:
                taking.keep()
            for one in made.values():
                _release_older(cluster, one, request.owner)

        one_instant = request.still or request.group is not None or len(images) == 1
        yield Machine(
            disks=disks,
            metadata=_metadata(request, made, {name: disk.content.size for name, disk in disks.items()}),
            consistency=Consistency.CRASH if one_instant else Consistency.NONE,
            instant=instant,
            acknowledge=acknowledge,
            notes=[*healed, *notes],
            kept=[f"{one.image.spec}@{one.snapshot.name}" for one in made.values()] if request.keep else [],
        )


def _images(cluster: Cluster, request: RbdRequest) -> tuple[dict[str, Image], list[Issue]]:
    """By the disk's name; none of them half written by a restore that died: such a one is rolled back first."""
    if request.group is None:
        found = {name: find(cluster, ref) for name, ref in request.images.items()}
    else:
        facts = read_facts(request.previous.metadata) if request.previous is not None else {}
        before = {str(one.get("tracking", {}).get("identity", "")): name for name, one in facts.items()}
        found = disk_names(request.access.fsid, members(cluster, request.group), before)
    notes = []
    for name, image in found.items():
        if said := heal(cluster, image):
            notes.append(Issue(name, "restore-undone", said, Severity.NOTE))
            found[name] = describe(cluster, image.pool, image_id=image.id)
    return found, notes


def remove_traces(access: CephAccess, journal: Journal, ref: ImageRef | Group, owner: str) -> list[str]:
    """Remove this owner's snapshots of an image, or of a group and its images; the names of what was there. The first
    that cannot be removed is raised when the others are gone."""
    with Cluster(access) as cluster:
        images = members(cluster, ref) if isinstance(ref, Group) else [find(cluster, ref)]
        if isinstance(ref, Group):
            drop(cluster, ref, owner)
        found = [f"{image.spec}@{one.snapshot.name}" for image in images for one in ours_on(image, owner)]
        failed = [error for image in images for error in release(cluster, image, owner)]
        clear_left_behind(cluster, journal, images)  # what is gone need not be remembered
        if failed:
            raise failed[0]
        return found


def find(cluster: Cluster, ref: ImageRef) -> Image:
    """Raises CephMissing, and RefusedError for a pool that is not among those of the access."""
    if ref.pool not in cluster.access.pools:
        raise RefusedError(f"The pool {ref.pool} is not among those of the platform.", hint="Add it to the platform.")
    try:
        if ref.image_id:
            return describe(cluster, ref.pool, image_id=ref.image_id)
        return describe(cluster, ref.pool, name=ref.name)
    except CephMissing as error:
        raise CephMissing(
            f"There is no image {printable(ref.name)} in the pool {ref.pool}"
            f"{f' with the id {ref.image_id}' if ref.image_id else ''}.",
            hint="It was removed, moved to the trash or to another pool: discover the platform anew.",
        ) from error


def _disk(cluster: Cluster, request: RbdRequest, name: str, made: Made) -> tuple[Disk, Issue | None]:
    content = RbdContent(cluster, made.image, made.snapshot)
    fsid = request.access.fsid
    changes, why = changes_since(content, fsid, made.image, made.snapshot, name, request.previous)
    note = None
    if why:
        note = Issue(name, "tracking-not-used", f"Everything is read, because {why}.", Severity.NOTE)
    path = f"rbd:{made.image.pool}/{made.image.name}"
    return Disk(path, content, "rbd", changes, identity(fsid, made.image)), note


def _metadata(request: RbdRequest, made: Mapping[str, Made], sizes: Mapping[str, int]) -> dict[str, bytes]:
    fsid = request.access.fsid
    disks = [
        {"name": name, "path": f"rbd:{one.image.pool}/{one.image.name}", "format": "rbd", "size": sizes[name]}
        for name, one in made.items()
    ]
    facts = {"version": 1, "platform": "ceph", "fsid": fsid, "disks": disks}
    if request.group is not None:
        facts["group"] = {"pool": request.group.pool, "name": request.group.name}
    return {
        "vm.json": json.dumps(facts, indent=1).encode(),
        FILE: described(fsid, {name: (one.image, one.snapshot) for name, one in made.items()}, kept=request.keep),
    }


def _release_older(cluster: Cluster, made: Made, owner: str) -> None:
    """The point is stored, so a snapshot that stays for now is a nuisance and no failure: the next run tries again."""
    try:
        now = describe(cluster, made.image.pool, image_id=made.image.id)
        failed: list[BrsError] = release(cluster, now, owner, keep={made.snapshot.id})
    except (CephError, CephMissing) as error:
        failed = [error]
    for problem in failed:
        log.warning("An older snapshot of %s stays for now: %s", made.image.spec, problem)
