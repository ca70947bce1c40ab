"""Connection test of a cluster: what is there, what is missing, and what to do, in plain words. Never raises."""

from __future__ import annotations

from collections.abc import Callable

from node_agent.drivers.base import Finding
from node_agent.drivers.ceph.access import CephAccess
from node_agent.drivers.ceph.cluster import (
    INSTALL,
    CephDenied,
    CephNotInstalled,
    CephOther,
    CephUnreachable,
    Cluster,
    usable_python,
)
from node_agent.drivers.ceph.content import RbdContent
from node_agent.drivers.ceph.inventory import describe, list_pools
from node_agent.drivers.ceph.journal import Journal
from node_agent.drivers.ceph.snapshots import snapshots_of
from node_agent.drivers.ceph.source import ImageRef, find
from node_agent.errors import BrsError
from node_agent.items import printable

OWNER = "00000000"  # of the snapshot that the test makes
_TRIED = 1 << 20  # bytes

_LIBRARY, _ANSWERS, _LETS_IN = "Ceph's library is installed", "The monitors answer", "The cluster lets the user in"
_MEANT = "It is the cluster that is meant"


def probe(access: CephAccess, journal: Journal, image: ImageRef | None = None) -> list[Finding]:
    """With ``image``: a real snapshot of it is made, read and removed."""
    try:
        access.check()
    except BrsError as error:
        return [Finding.of("The access is complete", error)]
    if usable_python() is None:
        return [Finding(_LIBRARY, ok=False, detail="There is no Python 3 of the system.", hint=INSTALL)]
    try:
        with Cluster(access) as cluster:
            findings = [
                Finding(_LIBRARY, ok=True, detail=f"librbd {cluster.librbd}"),
                Finding(_ANSWERS, ok=True, detail=", ".join(access.mon_hosts)),
                Finding(_LETS_IN, ok=True, detail=f"client.{access.user}"),
                Finding(_MEANT, ok=True, detail=access.fsid),
            ]
            findings += [_pool(cluster, pool) for pool in access.pools]
            if image is not None:
                findings += _real_run(cluster, journal, image)
            return findings
    except BrsError as error:
        return [Finding.of(_failed_step(error), error)]


def _failed_step(error: BrsError) -> str:
    steps: dict[type[BrsError], str] = {
        CephNotInstalled: _LIBRARY,
        CephUnreachable: _ANSWERS,
        CephDenied: _LETS_IN,
        CephOther: _MEANT,
    }
    return steps.get(type(error), "The cluster can be used")


def _pool(cluster: Cluster, pool: str) -> Finding:
    name = f"The pool {printable(pool)} can be read"
    if pool not in list_pools(cluster):
        return Finding(name, ok=False, detail="There is no such pool.", hint="Correct it, or create the pool.")
    try:
        images = cluster.call("list_images", pool=pool)
    except CephDenied as error:
        hint = f"ceph auth caps client.{cluster.access.user} mon 'profile rbd' osd 'profile rbd pool={pool}'"
        return Finding(name, ok=False, detail=error.message, hint=hint)
    except BrsError as error:
        return Finding.of(name, error)
    return Finding(name, ok=True, detail=f"{len(images)} images")


def _real_run(cluster: Cluster, journal: Journal, ref: ImageRef) -> list[Finding]:
    shown = printable(f"{ref.pool}/{ref.name}")
    done: list[Finding] = []

    def step(name: str, run: Callable[[], str]) -> bool:
        try:
            done.append(Finding(f"{name} {shown}", ok=True, detail=run()))
        except BrsError as error:
            done.append(Finding.of(f"{name} {shown}", error))
        return done[-1].ok

    def look() -> str:
        image = find(cluster, ref)
        return f"{image.size} bytes, objects of {image.object_size}, {', '.join(sorted(image.features))}"

    def snapshot_and_read() -> str:
        with snapshots_of(cluster, journal, [find(cluster, ref)], OWNER) as taking:
            made = taking.made[0]
            content = RbdContent(cluster, made.image, made.snapshot)
            data = [extent for extent in content.extents() if not extent.zero]
            if data:
                content.read(data[0].offset, min(_TRIED, data[0].length))
            content.close()
            return f"{sum(extent.length for extent in data)} bytes of data"

    def nothing_left() -> str:
        image = describe(cluster, ref.pool, name=ref.name)
        left = [one.name for one in image.snapshots if one.name.startswith(f"brs-{OWNER}-")]
        if left:
            raise CephDenied(f"The snapshot {left[0]} could not be removed.")
        return ""

    if step("Look at", look) and step("Make a snapshot of and read", snapshot_and_read):
        step("Remove the snapshot of", nothing_left)
    return done
