"""What an import into an existing image can be taken back by, also by whoever comes next when the node died meanwhile.

Before the first write a snapshot ``brs-undo-…`` is made, and its name written into the image's own metadata
(:data:`MARK`). The mark goes when everything is written, and then the snapshot: so an image that bears the mark while
nobody has it open is written in part, whichever node did that, and is rolled back by the next task that looks at it.
"""

from __future__ import annotations

import logging
import secrets

from node_agent.drivers.ceph.cluster import CephBusy, CephError, CephMissing, Cluster
from node_agent.drivers.ceph.inventory import Image, Snapshot, describe
from node_agent.drivers.ceph.snapshots import UNDO, ours_on, remove
from node_agent.errors import BrsError
from node_agent.items import printable

log = logging.getLogger("brs.node.ceph")

MARK = "brs_import"


def begin(cluster: Cluster, image: Image, handle: int) -> tuple[Image, Snapshot]:
    """The image as it is with the snapshot on it. From here on :func:`heal` rolls back."""
    name = f"brs-{UNDO}-{secrets.randbelow(10**12)}"
    cluster.call("create_snapshot", pool=image.pool, image_id=image.id, name=name)
    now = describe(cluster, image.pool, image_id=image.id)
    undo = next(one for one in now.snapshots if one.name == name)
    cluster.call("set_metadata", handle=handle, key=MARK, value=name)
    return now, undo


def finish(cluster: Cluster, image: Image, handle: int, undo: Snapshot) -> list[BrsError]:
    """What is there now stays. Snapshots that cannot be removed are nothing but a nuisance: the next import tries."""
    cluster.call("remove_metadata", handle=handle, key=MARK)
    failed: list[BrsError] = []
    for one in ours_on(describe(cluster, image.pool, image_id=image.id), UNDO):
        if one.snapshot.id <= undo.id:
            try:
                remove(cluster, one)
            except BrsError as error:
                failed.append(error)
    return failed


def take_back(cluster: Cluster, image: Image, handle: int, undo: Snapshot) -> None:
    """Never raises: the error that led here is the one to be told of."""
    try:
        cluster.call("rollback", handle=handle, name=undo.name)
        finish(cluster, image, handle, undo)
    except BrsError as error:
        log.error(
            "%s is written in part and could not be rolled back now; the next task does: %s", image.spec, error
        )  # fmt: skip


def heal(cluster: Cluster, image: Image) -> str:
    """Roll back what an import that died has left, and say so; empty if there is nothing of that kind.

    Raises CephBusy while somebody has such an image open (an import that lives, or a machine that was started on it),
    and CephError where there is nothing to roll back to.
    """
    if MARK not in image.metadata:
        return ""
    shown = printable(image.spec)
    _refuse_open(image, shown)
    handle = int(cluster.call("open", pool=image.pool, image_id=image.id, read_only=False)["handle"])
    try:
        if "exclusive-lock" in image.features:
            cluster.call("lock", handle=handle)  # a node that was only cut off cannot write any more
        now = describe(cluster, image.pool, image_id=image.id)
        _refuse_open(now, shown)
        name = now.metadata.get(MARK)
        if name is None:
            return ""  # another node was quicker
        undo = next((one for one in now.snapshots if one.name == name), None)
        if undo is None:
            raise CephError(
                f"{shown} is written in part by a restore that died, and the snapshot {printable(name)} to go back to "
                "is gone.",
                hint=f"Restore into it again; or, to take it as it is: rbd image-meta remove {shown} {MARK}",
            )
        cluster.call("rollback", handle=handle, name=undo.name)
        for problem in finish(cluster, now, handle, undo):
            log.warning("A snapshot of %s stays for now: %s", shown, problem)
    finally:
        _close(cluster, handle, shown)
    said = f"A restore into {shown} died before its end. The image was rolled back to what it was before."
    log.warning("%s", said)
    return said


def _refuse_open(image: Image, shown: str) -> None:
    if image.watchers:
        raise CephBusy(
            f"A restore into {shown} is under way or died, and {', '.join(image.watchers)} has it open.",
            hint="Wait for the restore. If it died, shut down what uses the image: the next task then rolls it back; "
            f"or, to keep it as it is: rbd image-meta remove {shown} {MARK}",
        )


def _close(cluster: Cluster, handle: int, shown: str) -> None:
    try:
        cluster.call("close", handle=handle)
    except (CephError, CephMissing) as error:  # the process is gone, and the image closed with it
        log.warning("%s was not closed: %s", shown, error)
