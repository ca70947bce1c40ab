"""Images of a Ceph cluster as a platform: each image is a machine of one disk, joined with the driver *ceph*."""

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
from node_agent.drivers.ceph.import_ import ImportOptions, import_image
from node_agent.drivers.ceph.inventory import list_images, list_pools
from node_agent.drivers.ceph.journal import Journal
from node_agent.drivers.ceph.probe import probe
from node_agent.drivers.ceph.source import DISK, ImageRef, RbdRequest, open_images
from node_agent.errors import BrsError, TargetError
from node_agent.items import Extent, Issue
from node_agent.protocol import PlatformAccess
from node_agent.tasks.context import TaskContext


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

    def discover(self) -> Iterator[FoundMachine | Issue]:
        with Cluster(self._access) as cluster:
            there = list_pools(cluster)
            for pool in self._access.pools:
                if pool not in there:
                    yield Issue(pool, "pool-missing", "The pool is not in the cluster.")
                    continue
                for image in list_images(cluster, pool):
                    if isinstance(image, BrsError):
                        yield Issue(pool, image.code, image.message)
                        continue
                    yield FoundMachine(
                        id=f"{self._access.fsid}/{pool}/{image.id}",
                        name=image.name,
                        state="in use" if image.watchers else "not in use",
                        disks=[FoundDisk(DISK, image.size, "rbd")],
                        project=pool,
                        summary={"Pool": pool, "Snapshots": str(len(image.snapshots))},
                    )

    @contextmanager
    def open(self, wanted: MachineRequest, previous: Previous | None) -> Iterator[Machine]:
        _fsid, _, rest = wanted.id.partition("/")
        pool, _, image_id = rest.rpartition("/")
        request = RbdRequest(
            access=self._access,
            images={DISK: ImageRef(pool, wanted.name, image_id)},
            owner=wanted.mark,
            previous=previous,
        )
        with open_images(request, self._journal) as machine:
            yield machine

    def restore(
        self,
        order: ImportOrder,
        metadata: Mapping[str, bytes],
        disks: Mapping[str, DiskReader],
        tick: Callable[[str, int], None],  # noqa: ARG002 - the driver counts by itself
    ) -> Restored:
        if len(disks) != 1:
            raise TargetError("An image of Ceph is one disk.", hint="Choose one disk.")
        name, reader = next(iter(disks.items()))
        pool = order.storage or order.id.partition("/")[2].rpartition("/")[0]
        options = ImportOptions(pool=pool, name=order.name, overwrite=order.overwrite)
        done = import_image(
            self._access, self._journal, options, _Content(reader, reader.size), metadata, name, self._progress
        )
        return Restored(f"rbd:{done.pool}/{done.name}")
