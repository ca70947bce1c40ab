"""Whether what changed since the point before can be asked of the cluster, and if not, why.

The snapshot that was kept is named in the metadata of the very point whose blocks would be inherited, with its id and
time: so extents since it are relative to what that point holds, and to nothing else. It is what the point was read
from, or was made just before that (of a group): then the extents hold a little more than what changed, never less.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from node_agent.drivers.base import Changes, Previous
from node_agent.drivers.ceph.content import RbdContent
from node_agent.drivers.ceph.inventory import Image, Snapshot, identity

FILE = "rbd.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """What a point says of the snapshot that one of its disks was read from."""

    identity: str
    snapshot_id: int
    snapshot_name: str
    snapshot_made: float
    size: int
    parent: str  # empty if the image was no clone
    kept: bool


def described(fsid: str, disks: Mapping[str, tuple[Image, Snapshot]], *, kept: bool) -> bytes:
    """The file that goes into a point."""
    facts = {name: _facts(fsid, image, snapshot, kept) for name, (image, snapshot) in disks.items()}
    return json.dumps({"version": VERSION, "fsid": fsid, "disks": facts}, indent=1, sort_keys=True).encode()


def _facts(fsid: str, image: Image, snapshot: Snapshot, kept: bool) -> dict[str, Any]:
    state = Kept(identity(fsid, image), snapshot.id, snapshot.name, snapshot.made, snapshot.size, _parent(image), kept)
    return {
        "pool": image.pool,
        "image": image.name,
        "size": snapshot.size,
        "object_size": image.object_size,
        "stripe_unit": image.stripe_unit,
        "stripe_count": image.stripe_count,
        "features": sorted(image.features),
        "data_pool": image.data_pool,
        "metadata": dict(image.metadata),
        "tracking": asdict(state),
    }


def read_facts(metadata: Mapping[str, bytes]) -> Mapping[str, Mapping[str, Any]]:
    """By disk. Empty if there is no such file, or it is not one of ours."""
    try:
        found = json.loads(metadata[FILE])
        disks = found["disks"]
        return disks if found["version"] == VERSION and isinstance(disks, dict) else {}
    except (KeyError, TypeError, ValueError):
        return {}


def kept_of(metadata: Mapping[str, bytes], disk: str) -> Kept | None:
    try:
        return Kept(**read_facts(metadata)[disk]["tracking"])
    except (KeyError, TypeError):
        return None


def changes_since(
    content: RbdContent, fsid: str, image: Image, snapshot: Snapshot, disk: str, previous: Previous | None
) -> tuple[Changes | None, str]:
    """The changes, or why everything must be read (empty when there is nothing before to go on from)."""
    if previous is None:
        return None, ""
    kept, base = kept_of(previous.metadata, disk), previous.bases.get(disk)
    if kept is None or base is None:
        return None, "the point before says nothing of this disk"
    why = why_not(kept, fsid, image, snapshot)
    if not why and base.disk != kept.identity:
        why = "the point before is of another disk"
    if why:
        return None, why
    since = image.snapshot(kept.snapshot_id)
    assert since is not None  # why_not looked
    return Changes(content.differences(since), base), ""


def why_not(kept: Kept, fsid: str, image: Image, snapshot: Snapshot) -> str:
    if not kept.kept:
        return "the point before kept no snapshot"
    if kept.identity != identity(fsid, image):
        return "it is another image than before, although of the same name (made anew, migrated or from another pool)"
    since = image.snapshot(kept.snapshot_id)
    if since is None:
        same = [one for one in image.snapshots if one.name == kept.snapshot_name]
        what = "was replaced by another of its name" if same else "is gone"
        return f"the snapshot {kept.snapshot_name}, which the point before was read from, {what}"
    if (since.name, since.made, since.size) != (kept.snapshot_name, kept.snapshot_made, kept.size):
        return f"the snapshot {kept.snapshot_name} is not as the point before knew it"
    if since.id >= snapshot.id:
        return f"the snapshot {kept.snapshot_name} is not older than the new one"
    if kept.size != snapshot.size:
        return f"the image was resized from {kept.size} to {snapshot.size} bytes"
    if kept.parent != _parent(image):
        return "the image was flattened" if kept.parent and image.parent is None else "the image has another parent"
    if "migrating" in image.features:
        return "the image is being migrated"
    return ""


def _parent(image: Image) -> str:
    one = image.parent
    return f"{one.pool}/{one.namespace}/{one.image_id}@{one.snapshot_id}" if one is not None else ""


def kept_by(previous: Previous | None, disks: Sequence[str]) -> list[Kept]:
    """What the point before was read from."""
    found = (kept_of(previous.metadata, disk) if previous is not None else None for disk in disks)
    return [kept for kept in found if kept is not None]
