"""Images of a cluster, opened as the disks of one machine: snapshot, what changed since the point before, content.

with open_images(request, journal) as machine:
    … store machine.disks …
    machine.acknowledge()
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from node_agent.drivers.base import Consistency, Disk, Machine, Previous
from node_agent.drivers.ceph.access import CephAccess
from node_agent.drivers.ceph.cluster import CephError, CephMissing, Cluster
from node_agent.drivers.ceph.content import RbdContent
from node_agent.drivers.ceph.inventory import Image, describe, identity
from node_agent.drivers.ceph.journal import Journal
from node_agent.drivers.ceph.snapshots import Made, clear_left_behind, release, snapshots_of
from node_agent.drivers.ceph.tracking import FILE, changes_since, described, kept_by
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
    """``images`` by the disk's name in the snapshot. ``owner``: see :func:`snapshots.owner_of`.

    ``keep``: leave the new snapshot on the images once it is acknowledged, for the next run to go on from.
    ``still``: nobody writes to the images until ``open_images`` has yielded (their machine stands still or is off), so
    that snapshots of several are of one instant.
    """

    access: CephAccess
    images: Mapping[str, ImageRef]
    owner: str
    keep: bool = True
    still: bool = False
    previous: Previous | None = None


@contextmanager
def open_images(request: RbdRequest, journal: Journal) -> Iterator[Machine]:
    """A Machine. What it made is removed at the end unless it was acknowledged; the older snapshots go only then."""
    with Cluster(request.access) as cluster, ExitStack() as opened:
        refs = request.images
        images = [find(cluster, ref) for ref in refs.values()]
        before = kept_by(request.previous, list(refs))
        clear_left_behind(cluster, journal, images, [kept.snapshot_id for kept in before])
        names = [kept.snapshot_name for kept in before]
        taking = opened.enter_context(snapshots_of(cluster, journal, images, request.owner, names))
        instant = time.time()
        made = dict(zip(refs, taking.made, strict=True))
        disks, notes = {}, []
        for name, one in made.items():
            disks[name], note = _disk(cluster, request, name, one)
            notes += [note] if note is not None else []

        def acknowledge() -> None:
            if request.keep:
                taking.keep()
            for one in made.values():
                _release_older(cluster, one, request.owner)

        yield Machine(
            disks=disks,
            metadata=_metadata(request, made),
            consistency=Consistency.CRASH if request.still or len(refs) == 1 else Consistency.NONE,
            instant=instant,
            acknowledge=acknowledge,
            left_out=notes,
        )


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


def _metadata(request: RbdRequest, made: Mapping[str, Made]) -> dict[str, bytes]:
    fsid = request.access.fsid
    disks = [
        {"name": name, "path": f"rbd:{one.image.pool}/{one.image.name}", "format": "rbd", "size": one.snapshot.size}
        for name, one in made.items()
    ]
    facts = {"version": 1, "platform": "ceph", "fsid": fsid, "disks": disks}
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
