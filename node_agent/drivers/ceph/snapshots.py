"""Snapshots of ours on images: how they are named, made, found again and removed. Those of others are never touched.

A name is ``brs-<owner>-<number>``, the owner being the repository's mark, or :func:`node_agent.protocol.owner_of`, so
that two servers, or two repositories of one server, do not take each other's for their own. Ours is what has such a
name and our owner. A snapshot is removed by its id after its name was seen beside it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from node_agent.drivers.ceph.cluster import CephBusy, CephError, CephExists, CephMissing, Cluster
from node_agent.drivers.ceph.inventory import Image, Snapshot, describe
from node_agent.drivers.ceph.journal import Entry, Journal
from node_agent.errors import BrsError
from node_agent.items import printable

log = logging.getLogger("brs.node.ceph")

UNDO = "undo"  # in the owner's place: what an import into this image can be taken back by
_NAME = re.compile(rf"brs-([0-9a-f]{{8}}|{UNDO})-([0-9]{{1,12}})")
_TRIES = 5
KIND = "snapshot"


@dataclass(frozen=True, slots=True)
class Ours:
    """One snapshot with a name of this product's form, of whatever owner."""

    pool: str
    image: str
    image_id: str
    snapshot: Snapshot
    owner: str
    number: int


@dataclass(frozen=True, slots=True)
class Made:
    image: Image  # as it was looked at with the snapshot on it
    snapshot: Snapshot


def ours_on(image: Image, owner: str | None = None) -> list[Ours]:
    """Oldest first; of one owner, or of all."""
    found = []
    for snapshot in image.snapshots:
        match = _NAME.fullmatch(snapshot.name)
        if match and snapshot.kind == "user" and owner in (None, match[1]):
            found.append(Ours(image.pool, image.name, image.id, snapshot, match[1], int(match[2])))
    return sorted(found, key=lambda one: one.snapshot.id)


@contextmanager
def snapshots_of(
    cluster: Cluster, journal: Journal, images: Sequence[Image], owner: str, before: Iterable[str] = ()
) -> Iterator[Taking]:
    """Snapshots of these images, one after the other; removed at the end, if ``keep`` was not called.

    ``before``: names that were used before, perhaps by snapshots that are gone, and are not used again.
    """
    names = [*before, *(one.name for image in images for one in image.snapshots)]
    last = max((int(match[2]) for match in map(_NAME.fullmatch, names) if match and match[1] == owner), default=0)
    for number in range(last + 1, last + 1 + _TRIES):
        name = f"brs-{owner}-{number}"
        with ExitStack() as held:
            entries = [Entry(cluster.fsid, image.pool, image.id, name, KIND) for image in images]
            for entry in entries:
                held.enter_context(journal.under_way(entry))
            try:
                for image in images:
                    cluster.call("create_snapshot", pool=image.pool, image_id=image.id, name=name)
                made = [_seen(cluster, image, name) for image in images]
            except CephExists:  # another node's, meanwhile
                for entry in entries:
                    journal.forget(entry)
                continue
            except BaseException:
                _drop(cluster, journal, entries)
                raise
            taking = Taking(made)
            try:
                yield taking
            finally:
                if taking.kept:
                    for entry in entries:
                        journal.forget(entry)
                else:
                    _drop(cluster, journal, entries)
            return
    raise CephExists(f"No name for a snapshot of {images[0].spec} was free.", hint="Look at “rbd snap ls”.")


@dataclass
class Taking:
    made: Sequence[Made]
    kept: bool = False

    def keep(self) -> None:
        self.kept = True


def clear_left_behind(
    cluster: Cluster, journal: Journal, images: Sequence[Image] | None = None, spared: Iterable[int] = ()
) -> int:
    """Remove the snapshots of this node's runs that died, on all images or on these. Returns how many.

    ``spared``: ids of snapshots that a stored point was read from.

    A run may have died between storing its point and saying so; what the point names is then kept as it should be.
    """
    removed, spared = 0, set(spared)
    wanted = {(image.pool, image.id) for image in images} if images is not None else None
    for entry in journal.left_behind(cluster.fsid):
        if entry.kind != KIND or entry.pool not in cluster.access.pools:
            continue
        if wanted is not None and (entry.pool, entry.image_id) not in wanted:
            continue
        try:
            image = describe(cluster, entry.pool, image_id=entry.image_id)
            found = [one for one in ours_on(image) if one.snapshot.name == entry.name]
            if found and found[0].snapshot.id not in spared:
                remove(cluster, found[0])
                removed += 1
        except CephMissing:
            pass  # the image went, and its snapshots with it
        except CephError as error:
            log.warning("The snapshot %s of a run that died stays for now: %s", entry.name, error)
            continue
        journal.forget(entry)
    return removed


def remove(cluster: Cluster, ours: Ours) -> None:
    """Raises CephBusy if somebody made a clone of it. One that is gone already is no error."""
    try:
        cluster.call(
            "remove_snapshot",
            pool=ours.pool,
            image_id=ours.image_id,
            snapshot_id=ours.snapshot.id,
            name=ours.snapshot.name,
        )
    except CephMissing:
        return
    except CephBusy as error:
        raise CephBusy(
            f"The snapshot {ours.snapshot.name} of {ours.pool}/{printable(ours.image)} is protected or has clones.",
            hint="Flatten or remove the clones (“rbd children”), then “rbd snap unprotect”; it is removed later.",
        ) from error


def release(cluster: Cluster, image: Image, owner: str, keep: Iterable[int] = ()) -> list[BrsError]:
    """Remove this owner's snapshots of an image but those of ``keep``; what could not be removed, as errors.

    For when a policy goes, when the image's owner is to delete it (a snapshot blocks that), and after each new point.
    """
    keep, failed = set(keep), []
    for ours in ours_on(image, owner):
        if ours.snapshot.id in keep:
            continue
        try:
            remove(cluster, ours)
        except BrsError as error:
            failed.append(error)
    return failed


def kept_by_owner(image: Image) -> dict[str, list[str]]:
    """What backups keep at an image, whoever's they are."""
    found: dict[str, list[str]] = {}
    for one in ours_on(image):
        if one.owner != UNDO:
            found.setdefault(one.owner, []).append(f"{image.spec}@{one.snapshot.name}")
    return found


# --- parts ---


def _seen(cluster: Cluster, image: Image, name: str) -> Made:
    now = describe(cluster, image.pool, image_id=image.id)
    snapshot = next((one for one in now.snapshots if one.name == name and one.kind == "user"), None)
    if snapshot is None:
        raise CephMissing(f"The snapshot {name} of {image.spec} was removed as soon as it was made.")
    return Made(now, snapshot)


def _drop(cluster: Cluster, journal: Journal, entries: Sequence[Entry]) -> None:
    """What could not be removed stays in the journal, for the next run."""
    for entry in entries:
        try:
            image = describe(cluster, entry.pool, image_id=entry.image_id)
            for one in ours_on(image):
                if one.snapshot.name == entry.name:
                    remove(cluster, one)
        except CephMissing:
            pass
        except BrsError as error:
            log.warning("The snapshot %s stays until the next run removes it: %s", entry.name, error)
            continue
        journal.forget(entry)
