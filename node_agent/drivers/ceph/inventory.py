"""What a cluster holds: pools, and images with their snapshots, parents and users, as values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from node_agent.drivers.ceph.cluster import CephError, CephMissing, Cluster
from node_agent.errors import BrsError

# librbd.h
FEATURES = {
    "layering": 1 << 0,
    "striping": 1 << 1,
    "exclusive-lock": 1 << 2,
    "object-map": 1 << 3,
    "fast-diff": 1 << 4,
    "deep-flatten": 1 << 5,
    "journaling": 1 << 6,
    "data-pool": 1 << 7,
    "operations": 1 << 8,
    "migrating": 1 << 9,
    "non-primary": 1 << 10,
    "dirty-cache": 1 << 11,
}
_FLAGS = {"object-map-invalid": 1, "fast-diff-invalid": 2}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``kind``: user, group, trash, mirror or other; only those of users have a name of their own."""

    id: int
    name: str
    size: int
    made: float  # seconds since the epoch, by the cluster's clock, whole seconds
    kind: str
    protected: bool
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Parent:
    """The snapshot that a clone still takes its untouched data from, and how many bytes of it."""

    pool: str
    namespace: str
    image: str
    image_id: str
    snapshot_id: int
    overlap: int


@dataclass(frozen=True, slots=True)
class Image:
    """``watchers``: addresses of clients, other than this one, that have it open for writing."""

    pool: str  # pool or pool/namespace
    pool_id: int
    id: str  # stays when the image is renamed; another image never gets it
    name: str
    size: int
    object_size: int
    features: frozenset[str]
    flags: frozenset[str]
    stripe_unit: int
    stripe_count: int
    data_pool: str
    created: float
    parent: Parent | None
    snapshots: Sequence[Snapshot]
    watchers: Sequence[str]
    metadata: Mapping[str, str]

    @property
    def spec(self) -> str:
        return f"{self.pool}/{self.name}"

    def snapshot(self, snapshot_id: int) -> Snapshot | None:
        return next((one for one in self.snapshots if one.id == snapshot_id), None)


def identity(fsid: str, image: Image) -> str:
    """Which disk this is, whatever its name is now."""
    namespace = image.pool.partition("/")[2]
    return f"rbd:{fsid}/{image.pool_id}{'/' + namespace if namespace else ''}/{image.id}"


def list_pools(cluster: Cluster) -> list[str]:
    """Those of the access that exist, as the access names them."""
    there = {pool["name"] for pool in cluster.call("list_pools")}
    return [pool for pool in cluster.access.pools if pool.partition("/")[0] in there]


def list_images(cluster: Cluster, pool: str) -> Iterator[Image | BrsError]:
    """Each image of a pool; for one that cannot be looked at, the reason. One that vanishes meanwhile is no image."""
    for one in cluster.call("list_images", pool=pool):
        try:
            yield describe(cluster, pool, image_id=one["id"])
        except CephMissing:
            continue
        except CephError as error:
            yield type(error)(f"{pool}/{one['name']}: {error.message}", hint=error.hint)


def describe(cluster: Cluster, pool: str, name: str | None = None, image_id: str | None = None) -> Image:
    """Raises CephMissing if there is none, and CephError for one of the old format."""
    facts = cluster.call("describe", pool=pool, name=name, image_id=image_id)
    if not facts["id"]:
        raise CephError(
            f"The image {pool}/{facts['name']} has the old format 1, which has no id.",
            hint="Migrate it to format 2: rbd migration prepare.",
        )
    try:
        return _image(pool, facts)
    except (KeyError, TypeError, ValueError) as error:
        raise CephError(f"What Ceph says of {pool}/{name or image_id} is not understood: {error!r}.") from error


def _image(pool: str, facts: Mapping[str, Any]) -> Image:
    parent = facts["parent"]
    return Image(
        pool=pool,
        pool_id=int(facts["pool_id"]),
        id=str(facts["id"]),
        name=str(facts["name"]),
        size=int(facts["size"]),
        object_size=int(facts["object_size"]),
        features=_names(FEATURES, facts["features"]),
        flags=_names(_FLAGS, facts["flags"]),
        stripe_unit=int(facts["stripe_unit"]),
        stripe_count=int(facts["stripe_count"]),
        data_pool=str(facts["data_pool"]),
        created=float(facts["created"]),
        parent=None
        if parent is None
        else Parent(
            str(parent["pool_name"] or ""),
            str(parent["pool_namespace"] or ""),
            str(parent["image_name"] or ""),
            str(parent["image_id"] or ""),
            int(parent["snap_id"] or 0),
            int(parent["overlap"]),
        ),
        snapshots=[_snapshot(one) for one in facts["snapshots"]],
        watchers=[str(address) for address in facts["watchers"]],
        metadata={str(key): str(value) for key, value in facts["metadata"]},
    )


def _snapshot(facts: Mapping[str, Any]) -> Snapshot:
    return Snapshot(
        id=int(facts["id"]),
        name=str(facts["name"]),
        size=int(facts["size"]),
        made=float(facts["made"]),
        kind=str(facts["kind"]),
        protected=bool(facts["protected"]),
        flags=_names(_FLAGS, facts["flags"]),
    )


def _names(table: Mapping[str, int], bits: int) -> frozenset[str]:
    return frozenset(name for name, bit in table.items() if bits & bit)
