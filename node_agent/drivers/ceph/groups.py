"""Groups of images (``rbd group``): snapshots of all their images at one instant, while their machines write.

librbd takes the images' exclusive locks for the moment of the snapshot, which holds their writers up and gives them no
errors. A group's snapshot can be read, and what changed can be asked *up to* it, but not *since* it: librbd looks for
the older end among the snapshots that users made. So an ordinary snapshot of each image is made just before, which is
the one that stays: what changed since it is all that changed since the group's, and perhaps a little more.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from node_agent.drivers.ceph.cluster import CephMissing, Cluster
from node_agent.drivers.ceph.inventory import Image, Snapshot, describe, identity
from node_agent.drivers.ceph.snapshots import Made
from node_agent.errors import BrsError, RefusedError, SourceChanged, SourceError
from node_agent.items import printable

log = logging.getLogger("brs.node.ceph")


@dataclass(frozen=True, slots=True)
class Group:
    pool: str  # pool or pool/namespace
    name: str

    @property
    def shown(self) -> str:
        return printable(f"{self.pool}/{self.name}")


def list_groups(cluster: Cluster, pool: str) -> list[Group]:
    return [Group(pool, name) for name in cluster.call("list_groups", pool=pool)]


def members(cluster: Cluster, group: Group) -> list[Image]:
    """The group's images, by their ids. Raises CephMissing, and RefusedError for one in a pool that is not ours."""
    listed = cluster.call("group_images", pool=group.pool, name=group.name)
    if not listed and group not in list_groups(cluster, group.pool):  # librbd takes it for an empty one
        raise CephMissing(
            f"There is no group {printable(group.name)} in the pool {group.pool}.",
            hint="It was removed or renamed: discover the platform anew.",
        )
    namespace = group.pool.partition("/")[2]
    found = []
    for one in listed:
        pool = one["pool"] + (f"/{namespace}" if namespace else "")
        if pool not in cluster.access.pools:
            raise RefusedError(
                f"The group {group.shown} has an image in the pool {pool}, which is not among those of the platform.",
                hint="Add the pool to the platform.",
            )
        found.append(describe(cluster, pool, name=one["name"]))
    if not found:
        raise SourceError(f"The group {group.shown} has no images.", hint="rbd group image add")
    return sorted(found, key=lambda image: (image.pool, image.id))


def disk_names(fsid: str, images: Sequence[Image], before: Mapping[str, str]) -> dict[str, Image]:
    """Images by the names that their disks have in a snapshot. ``before``: names by identity, of the point before:
    an image that was renamed keeps its disk's name, and with it what the next increment builds upon."""
    named: dict[str, Image] = {}
    kept = {before[one]: image for image in images if (one := identity(fsid, image)) in before}
    named.update(kept)
    for image in images:
        if image in kept.values():
            continue
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", image.name).lstrip(".-")[:80] or "image"
        name, number = plain, 1
        while name in named:
            number += 1
            name = f"{plain}-{number}"
        named[name] = image
    return named


@contextmanager
def snapshot_of(cluster: Cluster, group: Group, images: Sequence[Image], owner: str, name: str) -> Iterator[list[Made]]:
    """A snapshot of the whole group, removed at the end. One of ours that a run left behind is removed first."""
    drop(cluster, group, owner)
    cluster.call("create_group_snapshot", pool=group.pool, group=group.name, name=name)
    try:
        seen = [_seen(cluster, group, image, name) for image in images]
        if len(cluster.call("group_images", pool=group.pool, name=group.name)) != len(images):
            raise SourceChanged(
                f"The group {group.shown} got another image while its snapshot was made.", hint="Run the backup again."
            )
        yield seen
    finally:
        try:
            cluster.call("remove_group_snapshot", pool=group.pool, group=group.name, name=name)
        except CephMissing:
            pass
        except BrsError as error:
            log.warning("The snapshot %s of the group %s stays for now: %s", name, group.shown, error)


def drop(cluster: Cluster, group: Group, owner: str) -> None:
    """Snapshots of the whole group that a run of this owner left behind."""
    for name in cluster.call("list_group_snapshots", pool=group.pool, group=group.name):
        if re.fullmatch(rf"brs-{owner}-[0-9]{{1,12}}", name):
            cluster.call("remove_group_snapshot", pool=group.pool, group=group.name, name=name)


def _seen(cluster: Cluster, group: Group, image: Image, name: str) -> Made:
    now = describe(cluster, image.pool, image_id=image.id)
    found: Snapshot | None = next((one for one in now.snapshots if one.kind == "group" and one.name == name), None)
    if found is None:
        raise SourceChanged(
            f"{printable(image.spec)} left the group {group.shown} while its snapshot was made.",
            hint="Run the backup again.",
        )
    return Made(now, found)


def group_of(machine_id: str) -> Group | None:
    """The group that a workload's id names (see :func:`id_of`); None for an image's."""
    pool, found, name = machine_id.partition("/")[2].partition("/group:")
    return Group(pool, name) if found else None


def id_of(fsid: str, group: Group) -> str:
    """librbd gives groups no id that it tells: one that is renamed is another workload."""
    return f"{fsid}/{group.pool}/group:{group.name}"
