"""What changed on a running machine's RBD images, asked of the cluster. Their content is read through qemu as ever, so
that all disks of the machine are of the one instant of the backup job.

The job begins between two snapshots of each image. The one *before* it is kept for the next run: what changed from the
kept one to the one *after* the next job's beginning holds all that changed between the two jobs, and perhaps a little
more, which is read for nothing. So no guest has to stand still, and nothing is compared.

The snapshot after is needed, and the image as it is now will not do: what the guest wrote may still lie in qemu's
cache. A snapshot makes the owner of the image's exclusive lock, which is qemu, write that out first; so images without
that lock are read whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from node_agent.drivers.base import Changes, DiskContent
from node_agent.drivers.ceph.access import CephAccess
from node_agent.drivers.ceph.cluster import CephError, CephMissing, Cluster
from node_agent.drivers.ceph.content import RbdContent
from node_agent.drivers.ceph.inventory import Image, describe, identity
from node_agent.drivers.ceph.journal import Journal
from node_agent.drivers.ceph.snapshots import Made, Taking, clear_left_behind, release, snapshots_of
from node_agent.drivers.ceph.tracking import FILE, changes_since, described, kept_by
from node_agent.drivers.libvirt.access import BackupRequest
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.inventory import Vm
from node_agent.drivers.libvirt.rbd import RbdSource, key_of
from node_agent.errors import BrsError
from node_agent.protocol import owner_of

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tracked:
    """One image between its two snapshots."""

    cluster: Cluster
    taking: Taking

    @property
    def made(self) -> Made:
        return self.taking.made[0]


@dataclass(slots=True)
class RbdTracking:
    request: BackupRequest
    journal: Journal
    owner: str
    disks: dict[str, _Tracked] = field(default_factory=dict)  # by target
    why_not: dict[str, str] = field(default_factory=dict)  # by target: why all of it is read, though it need not be

    def changes(self, contents: Mapping[str, DiskContent]) -> dict[str, Changes]:
        """To be asked when the job has begun. ``contents``: the job's disks."""
        found = {}
        for target, tracked in self.disks.items():
            try:
                changed, why = self._since(target, tracked, contents[target].size)
            except BrsError as error:
                changed, why = None, f"the cluster does not say what changed: {error.message}"
            if changed is not None:
                found[target] = changed
            if why:
                self.why_not[target] = why
        return found

    def _since(self, target: str, tracked: _Tracked, size: int) -> tuple[Changes | None, str]:
        cluster, image = tracked.cluster, tracked.made.image
        if self.request.previous is None:
            return None, ""
        with snapshots_of(cluster, self.journal, [image], self.owner) as after:
            made = after.made[0]
            if made.snapshot.size != size:
                return None, "the image was resized while the backup began"
            content = RbdContent(cluster, made.image, made.snapshot)
            try:
                fsid = cluster.fsid
                return changes_since(content, fsid, made.image, made.snapshot, target, self.request.previous)
            finally:
                content.close()

    def identity(self, target: str) -> str:
        """Of the disk, or empty for one that is not tracked in its cluster."""
        tracked = self.disks.get(target)
        return identity(tracked.cluster.fsid, tracked.made.image) if tracked is not None else ""

    @property
    def kept(self) -> list[str]:
        return [f"{one.made.image.spec}@{one.made.snapshot.name}" for one in self.disks.values()]

    @property
    def metadata(self) -> dict[str, bytes]:
        """What the next run goes on from."""
        if not self.disks:
            return {}
        fsid = next(iter(self.disks.values())).cluster.fsid
        made = {target: (one.made.image, one.made.snapshot) for target, one in self.disks.items()}
        return {FILE: described(fsid, made, kept=True)}

    def keep(self) -> None:
        """The point is stored: the snapshots before the job stay, and the older ones go."""
        for tracked in self.disks.values():
            tracked.taking.keep()
            image = tracked.made.image
            try:
                now = describe(tracked.cluster, image.pool, image_id=image.id)
                failed = release(tracked.cluster, now, self.owner, keep={tracked.made.snapshot.id})
            except BrsError as error:
                failed = [error]
            for problem in failed:
                logger.warning("An older snapshot of %s stays for now: %s", image.spec, problem)


@contextmanager
def tracked(host: Host, vm: Vm, request: BackupRequest, state: Path) -> Iterator[RbdTracking]:
    """With a snapshot of each image that can be tracked, made now and removed at the end unless kept. A cluster that
    cannot be asked costs a read of the whole, and no backup."""
    tracking = RbdTracking(request, Journal(state), owner(request))
    with ExitStack() as opened:
        if host.access.ceph_snapshots and request.track:
            clusters = _Clusters(host, vm, opened)
            for disk in vm.protected:
                if disk.rbd is None:
                    continue
                try:
                    tracking.disks[disk.target] = _before(clusters, tracking, disk.target, disk.rbd, opened)
                except BrsError as error:
                    tracking.why_not[disk.target] = f"the cluster cannot be asked what changed: {error.message}"
        yield tracking


def owner(request: BackupRequest) -> str:
    """Not that of a backup of the image itself into the same repository."""
    return owner_of(request.mark, request.machine)


def left(host: Host, vm: Vm, request: BackupRequest, *, remove: bool) -> list[str]:
    """Snapshots of ours on the machine's images; removed, if asked."""
    found = []
    with ExitStack() as opened:
        clusters = _Clusters(host, vm, opened)
        for disk in vm.disks:
            if disk.rbd is None or not host.access.ceph_snapshots:
                continue
            cluster = clusters.of(disk.rbd)
            try:
                image = describe(cluster, _pool(disk.rbd), name=disk.rbd.image)
            except CephMissing:
                continue  # its snapshots went with it
            begins = f"brs-{owner(request)}-"
            found += [f"{disk.rbd.path}@{one.name}" for one in image.snapshots if one.name.startswith(begins)]
            if remove and (failed := release(cluster, image, owner(request))):
                raise failed[0]
    return found


# --- parts ---


class _Clusters:
    """Connections, one for each cluster and login that the machine's disks name."""

    def __init__(self, host: Host, vm: Vm, opened: ExitStack) -> None:
        self._host, self._opened = host, opened
        self._pools = sorted({_pool(disk.rbd) for disk in vm.disks if disk.rbd is not None})
        self._known: dict[tuple[Sequence[str], str, str], Cluster | BrsError] = {}

    def of(self, source: RbdSource) -> Cluster:
        login = (source.hosts, source.user, source.secret or source.usage)
        if login not in self._known:
            try:
                self._known[login] = self._opened.enter_context(Cluster(self._access(source)))
            except BrsError as error:  # asked once: each time would take as long
                self._known[login] = error
        known = self._known[login]
        if isinstance(known, BrsError):
            raise known
        return known

    def _access(self, source: RbdSource) -> CephAccess:
        key = key_of(self._host, source) if source.hosts else ""
        if not key:
            raise CephError("The machine's description does not name the monitors and a secret of libvirt.")
        return CephAccess(source.hosts, "", source.user or "admin", key, self._pools, any_cluster=True)


def _pool(source: RbdSource) -> str:
    return "/".join(filter(None, (source.pool, source.namespace)))


def _before(clusters: _Clusters, tracking: RbdTracking, target: str, source: RbdSource, opened: ExitStack) -> _Tracked:
    cluster = clusters.of(source)
    image: Image = describe(cluster, _pool(source), name=source.image)
    if "exclusive-lock" not in image.features:
        raise CephError("The image has no exclusive lock (rbd feature enable POOL/IMAGE exclusive-lock).")
    kept = kept_by(tracking.request.previous, [target])
    clear_left_behind(cluster, tracking.journal, [image], [one.snapshot_id for one in kept])
    names = [one.snapshot_name for one in kept]
    taking = opened.enter_context(snapshots_of(cluster, tracking.journal, [image], tracking.owner, names))
    return _Tracked(cluster, taking)
