"""Images of a Ceph cluster as a platform, joined with the driver *ceph*: each image is a machine of one disk, and each
group of images a machine of several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from node_agent.drivers.base import (
    DiskReader,
    Finding,
    FoundDisk,
    FoundMachine,
    ImportOrder,
    Machine,
    MachinePlatform,
    MachineRequest,
    Previous,
    Restored,
)
from node_agent.drivers.ceph.access import CephAccess
from node_agent.drivers.ceph.cluster import Cluster
from node_agent.drivers.ceph.groups import Group, disk_names, group_of, id_of, list_groups, members
from node_agent.drivers.ceph.import_several import import_images, placed
from node_agent.drivers.ceph.inventory import Image, list_images, list_pools
from node_agent.drivers.ceph.journal import Journal
from node_agent.drivers.ceph.probe import probe
from node_agent.drivers.ceph.snapshots import kept_by_owner
from node_agent.drivers.ceph.source import DISK, ImageRef, RbdRequest, open_images, remove_traces
from node_agent.drivers.ceph.undo import heal
from node_agent.errors import BrsError
from node_agent.items import Extent, Issue
from node_agent.protocol import PlatformAccess, owner_of
from node_agent.tasks.context import TaskContext


def _named(wanted: MachineRequest) -> tuple[ImageRef | Group, str]:
    """What a workload stands for, and the owner of its snapshots. An image may be protected by itself and in a group:
    neither takes the other's snapshots for its own."""
    group = group_of(wanted.id)
    if group is not None:
        return group, owner_of(wanted.mark, wanted.id)
    pool, _, image_id = wanted.id.partition("/")[2].rpartition("/")
    return ImageRef(pool, wanted.name, image_id), wanted.mark


@dataclass
class _Content:
    """A disk out of the repository, as the driver reads what it writes. Zeros are found while it is read."""

    reader: DiskReader
    size: int
    format: str = "raw"
    damage: str = ""

    def extents(self) -> Iterator[Extent]:
        if self.size:
            yield Extent(0, self.size)

    def read(self, offset: int, length: int) -> bytes:
        return self.reader.read(offset, length)

    def changed(self) -> bool:
        return False


class RbdPlatform(MachinePlatform):
    def __init__(self, access: PlatformAccess, context: TaskContext) -> None:
        pools = [pool.strip() for pool in access.options.get("pools", "").split(",") if pool.strip()]
        self._access = CephAccess(
            mon_hosts=access.addresses,
            fsid=access.options.get("fsid", ""),
            user=access.user or "admin",
            key=access.secrets.get("key", ""),
            pools=pools,
        )
        self._progress = context.progress
        self._journal = Journal(context.state_dir)

    def host_keys(self) -> Mapping[str, str]:
        return {}  # the cluster proves itself with the user's key, and is refused when its fsid is another

    def probe(self) -> Iterator[Finding]:
        yield from probe(self._access, self._journal)

    def discover(self, *, thorough: bool = False) -> Iterator[FoundMachine | Issue]:  # noqa: ARG002 - all is seen
        with Cluster(self._access) as cluster:
            there = list_pools(cluster)
            for pool in self._access.pools:
                if pool not in there:
                    yield Issue(pool, "pool-missing", "The pool is not in the cluster.")
                    continue
                images: dict[str, Image] = {}
                for image in list_images(cluster, pool):
                    if isinstance(image, BrsError):
                        yield Issue(pool, image.code, image.message)
                        continue
                    self._heal(cluster, image)
                    images[image.name] = image
                    yield self._found(image)
                yield from self._groups(cluster, pool)

    def _groups(self, cluster: Cluster, pool: str) -> Iterator[FoundMachine | Issue]:
        """A cluster that does not tell of groups has images all the same."""
        try:
            groups = list_groups(cluster, pool)
        except BrsError as error:
            yield Issue(pool, error.code, f"The pool's groups are not known: {error.message}")
            return
        for group in groups:
            yield self._found_group(cluster, group)

    def _heal(self, cluster: Cluster, image: Image) -> None:
        """What a restore that died left half written; what cannot be rolled back now, a backup of it will say."""
        try:
            said = heal(cluster, image)
        except BrsError as error:
            said = error.message
        if said:
            self._progress.log("warning", said)

    def _found(self, image: Image) -> FoundMachine:
        return FoundMachine(
            id=f"{self._access.fsid}/{image.pool}/{image.id}",
            name=image.name,
            state="in use" if image.watchers else "not in use",
            disks=[FoundDisk(DISK, image.size, "rbd")],
            project=image.pool,
            summary={"Pool": image.pool, "Snapshots": str(len(image.snapshots))},
            traces=kept_by_owner(image),
        )

    def _found_group(self, cluster: Cluster, group: Group) -> FoundMachine:
        """One that cannot be backed up as it is is there all the same, and says why."""
        images: list[Image] = []
        summary = {"Pool": group.pool}
        try:
            images = members(cluster, group)
            summary["Group of images"] = ", ".join(sorted(image.name for image in images))
        except BrsError as error:
            summary["Cannot be backed up"] = error.message
        named = disk_names(self._access.fsid, images, {})
        return FoundMachine(
            id=id_of(self._access.fsid, group),
            name=group.name,
            state="in use" if any(image.watchers for image in images) else "not in use",
            disks=[FoundDisk(name, image.size, "rbd") for name, image in named.items()],
            project=group.pool,
            summary=summary,
        )

    @contextmanager
    def open(self, wanted: MachineRequest, previous: Previous | None) -> Iterator[Machine]:
        which, owner = _named(wanted)
        request = RbdRequest(
            access=self._access,
            images={} if isinstance(which, Group) else {DISK: which},
            owner=owner,
            group=which if isinstance(which, Group) else None,
            previous=previous,
        )
        with open_images(request, self._journal) as machine:
            yield machine

    def remove_traces(self, wanted: MachineRequest, *, bitmaps: bool, snapshots: bool) -> list[str]:  # noqa: ARG002 - an image has no bitmaps
        return remove_traces(self._access, self._journal, *_named(wanted)) if snapshots else []

    def restore(
        self,
        order: ImportOrder,
        metadata: Mapping[str, bytes],
        disks: Mapping[str, DiskReader],
        tick: Callable[[str, int], None],  # noqa: ARG002 - the driver counts by itself
    ) -> Restored:
        contents = {name: _Content(reader, reader.size) for name, reader in disks.items()}
        options = placed(order.id, order.name, order.storage, metadata, list(disks), overwrite=order.overwrite)
        done = import_images(self._access, self._journal, options, contents, metadata, self._progress)
        notes = [note for one in done for note in one.notes]
        return Restored(", ".join(f"rbd:{one.pool}/{one.name}" for one in done), notes)
