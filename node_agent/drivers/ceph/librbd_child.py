"""Speaks librbd for the node, in a process of its own, run by the system's Python (never imported by the node).

Why a process: the bindings (python3-rbd, which every ``ceph-common`` brings along) exist for the system's Python only;
librados waits for ever for a cluster that does not answer, and a process can be ended. Why the bindings rather than
the programs rbd and qemu-nbd: they open an image and remove a snapshot by *id*, so that nothing done to names
meanwhile leads to another one; they take every name there is, which an ``rbd`` specification does not (``a@b``);
errors come as numbers, not as text.

Frames both ways: two big-endian uint32 (length of the JSON, length of the payload), JSON, payload. One answer for each
request, in order. The key comes in the first request, so it is in no file, argument or environment. When the pipe
closes the process ends, and with it every watch and lock that it held.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime, timezone
from typing import Any, BinaryIO

import rados
import rbd

FRAME = struct.Struct(">II")
EXTENT = struct.Struct(">QQB")
WRITES_UNDER_WAY = 16
READS_UNDER_WAY = 3
FAREWELL_S = 20
MODES = {rbd.RBD_SNAP_NAMESPACE_TYPE_USER: "user", rbd.RBD_SNAP_NAMESPACE_TYPE_GROUP: "group",
         rbd.RBD_SNAP_NAMESPACE_TYPE_TRASH: "trash", rbd.RBD_SNAP_NAMESPACE_TYPE_MIRROR: "mirror"}  # fmt: skip
SETTINGS = {
    "log_file": "/dev/null", "log_to_stderr": "false", "err_to_stderr": "false", "admin_socket": "",
    "client_mount_timeout": "15", "rados_mon_op_timeout": "30", "rados_osd_op_timeout": "300",
    "rbd_cache": "false",
}  # fmt: skip


def _seconds(utc: datetime) -> float:
    return utc.replace(tzinfo=timezone.utc).timestamp()  # noqa: UP017 - older Pythons of systems know no UTC


class Writes:
    """Writes under way on one image: at most so many, and the first that failed is told to whoever asks next."""

    def __init__(self) -> None:
        self._slots = threading.Semaphore(WRITES_UNDER_WAY)
        self.failed = 0

    def begin(self) -> Callable[[Any], None]:
        self._slots.acquire()
        return self._done

    def _done(self, completion: Any) -> None:
        code = completion.get_return_value()
        if code < 0 and not self.failed:
            self.failed = -code
        self._slots.release()

    def settle(self) -> None:
        for _ in range(WRITES_UNDER_WAY):
            self._slots.acquire()
        for _ in range(WRITES_UNDER_WAY):
            self._slots.release()
        self.check()

    def check(self) -> None:
        if self.failed:
            raise rbd.OSError(self.failed, os.strerror(self.failed))


class Child:
    def __init__(self) -> None:
        self.cluster: Any = None
        self.pools: dict[str, Any] = {}
        self.images: dict[int, Any] = {}
        self.writes: dict[int, Writes] = {}
        self.next = 1

    # --- the cluster ---

    def connect(self, mon_host: str, user: str, key: str) -> dict[str, str]:
        conf = dict(SETTINGS, mon_host=mon_host, key=key)
        self.cluster = rados.Rados(name="client." + user, clustername="ceph", conf=conf)
        self.cluster.connect()
        return {"fsid": self.cluster.get_fsid(), "librbd": ".".join(map(str, rbd.RBD().version()))}

    def list_pools(self) -> list[dict[str, Any]]:
        return [{"name": name, "id": self.cluster.pool_lookup(name)} for name in self.cluster.list_pools()]

    def _pool(self, pool: str) -> Any:
        if pool not in self.pools:
            name, _, namespace = pool.partition("/")
            ioctx = self.cluster.open_ioctx(name)
            if namespace:
                ioctx.set_namespace(namespace)
            self.pools[pool] = ioctx
        return self.pools[pool]

    def list_images(self, pool: str) -> list[dict[str, str]]:
        return [{"name": one["name"], "id": one["id"]} for one in rbd.RBD().list2(self._pool(pool))]

    def farewell(self) -> None:
        """Give back watches and locks, which others would otherwise have to wait for."""
        for image in self.images.values():
            image.close()
        if self.cluster is not None:
            self.cluster.shutdown()

    # --- one image ---

    def _opened(self, pool: str, name: str | None = None, image_id: str | None = None, read_only: bool = True) -> Any:
        # read_only also means: no watch, and no exclusive lock
        if image_id:
            return rbd.Image(self._pool(pool), image_id=image_id, read_only=read_only)
        return rbd.Image(self._pool(pool), name=name, read_only=read_only)

    def describe(self, pool: str, name: str | None = None, image_id: str | None = None) -> dict[str, Any]:
        with self._opened(pool, name, image_id) as image:
            stat, me = image.stat(), self.cluster.get_instance_id()
            return {
                "id": "" if image.old_format() else image.id(),
                "name": image.get_name(),
                "pool_id": self._pool(pool).get_pool_id(),
                "size": stat["size"],
                "object_size": stat["obj_size"],
                "features": image.features(),
                "flags": image.flags(),
                "stripe_unit": image.stripe_unit(),
                "stripe_count": image.stripe_count(),
                "data_pool": self._data_pool(image),
                "created": _seconds(image.create_timestamp()),
                "parent": self._parent(image),
                "snapshots": [self._snapshot(image, one) for one in image.list_snaps()],
                "watchers": [one["addr"] for one in image.watchers_list() if one["id"] != me],
                "metadata": [[key, value] for key, value in image.metadata_list()],
            }

    def _data_pool(self, image: Any) -> str:
        if not image.features() & rbd.RBD_FEATURE_DATA_POOL:
            return ""
        return str(self.cluster.pool_reverse_lookup(image.data_pool_id()))

    def _parent(self, image: Any) -> dict[str, Any] | None:
        try:
            spec = image.get_parent_image_spec()
        except rbd.ImageNotFound:
            return None
        names = ("pool_name", "pool_namespace", "image_name", "image_id", "snap_name", "snap_id")
        return dict({name: spec.get(name) for name in names}, overlap=image.overlap())

    def _snapshot(self, image: Any, one: dict[str, Any]) -> dict[str, Any]:
        image.set_snap_by_id(one["id"])
        try:
            return {
                "id": one["id"], "name": self._snapshot_name(one), "size": one["size"], "flags": image.flags(),
                "kind": MODES.get(one["namespace"], "other"),
                "made": _seconds(image.get_snap_timestamp(one["id"])),
                "protected": bool(one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER
                                  and image.is_protected_snap(one["name"])),
            }  # fmt: skip
        finally:
            image.set_snap(None)

    def _snapshot_name(self, one: dict[str, Any]) -> str:
        if one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_GROUP:
            return str(one["group"]["snap_name"])  # its own is made of numbers
        return str(one["name"])

    def open(self, pool: str, image_id: str, snapshot_id: int | None = None, read_only: bool = True) -> dict[str, int]:
        image = self._opened(pool, None, image_id, read_only)
        try:
            if snapshot_id is not None:
                image.set_snap_by_id(snapshot_id)
            size = image.size()
        except BaseException:
            image.close()
            raise
        handle, self.next = self.next, self.next + 1
        self.images[handle], self.writes[handle] = image, Writes()
        return {"handle": handle, "size": size}

    def close(self, handle: int) -> None:
        self.writes.pop(handle)
        self.images.pop(handle).close()

    # --- reading ---

    def read(self, handle: int, offset: int, length: int) -> tuple[None, bytes]:
        data = self.images[handle].read(offset, length)
        if len(data) != length:
            raise rbd.OSError(5, "short read")
        return None, data

    def diff(self, handle: int, since: str | None, offset: int, length: int, whole_object: bool) -> tuple[None, bytes]:
        """Extents (offset, length, exists), sorted and joined, of what changed since the snapshot of that name."""
        found: list[tuple[int, int, bool]] = []
        self.images[handle].diff_iterate(
            offset, length, since, lambda at, size, exists: found.append((at, size, bool(exists))),
            include_parent=True, whole_object=whole_object,
        )  # fmt: skip
        found.sort()
        joined: list[tuple[int, int, bool]] = []
        for at, size, exists in found:
            if joined and joined[-1][2] == exists and joined[-1][0] + joined[-1][1] == at:
                joined[-1] = (joined[-1][0], joined[-1][1] + size, exists)
            else:
                joined.append((at, size, exists))
        return None, b"".join(EXTENT.pack(*one) for one in joined)

    # --- snapshots ---

    def create_snapshot(self, pool: str, image_id: str, name: str) -> None:
        with self._opened(pool, None, image_id, read_only=False) as image:
            image.create_snap(name)

    def remove_snapshot(self, pool: str, image_id: str, snapshot_id: int, name: str) -> None:
        with self._opened(pool, None, image_id, read_only=False) as image:
            if not any(one["id"] == snapshot_id and one["name"] == name for one in image.list_snaps()):
                raise rbd.ImageNotFound("no such snapshot", errno=2)
            image.remove_snap_by_id(snapshot_id)

    def rollback(self, handle: int, name: str) -> None:
        self.images[handle].rollback_to_snap(name)

    # --- groups ---

    def _group(self, pool: str, name: str) -> Any:
        return rbd.Group(self._pool(pool), name)

    def list_groups(self, pool: str) -> list[str]:
        return list(rbd.RBD().group_list(self._pool(pool)))

    def group_images(self, pool: str, name: str) -> list[dict[str, str]]:
        images = self._group(pool, name).list_images()
        return [{"name": one["name"], "pool": self.cluster.pool_reverse_lookup(one["pool"])} for one in images]

    def list_group_snapshots(self, pool: str, group: str) -> list[str]:
        return [one["name"] for one in self._group(pool, group).list_snaps()]

    def create_group_snapshot(self, pool: str, group: str, name: str) -> None:
        self._group(pool, group).create_snap(name)

    def remove_group_snapshot(self, pool: str, group: str, name: str) -> None:
        self._group(pool, group).remove_snap(name)

    def create_group(self, pool: str, name: str) -> None:
        rbd.RBD().group_create(self._pool(pool), name)

    def add_to_group(self, pool: str, group: str, image_pool: str, image: str) -> None:
        self._group(pool, group).add_image(self._pool(image_pool), image)

    # --- writing ---

    def create(
        self,
        pool: str,
        name: str,
        size: int,
        order: int,
        features: int,
        stripe_unit: int,
        stripe_count: int,
        data_pool: str,
    ) -> str:
        rbd.RBD().create(
            self._pool(pool), name, size, order=order, old_format=False, features=features,
            stripe_unit=stripe_unit, stripe_count=stripe_count, data_pool=data_pool or None,
        )  # fmt: skip
        with self._opened(pool, name) as image:
            return str(image.id())

    def rename(self, pool: str, name: str, new_name: str) -> None:
        rbd.RBD().rename(self._pool(pool), name, new_name)

    def remove(self, pool: str, name: str, image_id: str) -> None:
        with self._opened(pool, name) as image:
            if image.id() != image_id:
                raise rbd.ImageNotFound("another image has this name now", errno=2)
        rbd.RBD().remove(self._pool(pool), name)

    def lock(self, handle: int) -> None:
        """Not to be taken from a machine that runs: whoever wants the lock meanwhile gets EROFS for its writes."""
        self.images[handle].lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)

    def resize(self, handle: int, size: int) -> None:
        self.images[handle].resize(size, allow_shrink=True)

    def set_metadata(self, handle: int, key: str, value: str) -> None:
        self.images[handle].metadata_set(key, value)

    def remove_metadata(self, handle: int, key: str) -> None:
        self.images[handle].metadata_remove(key)

    def write(self, handle: int, offset: int, payload: bytes) -> None:
        writes = self.writes[handle]
        writes.check()
        self.images[handle].aio_write(payload, offset, writes.begin())

    def zero(self, handle: int, offset: int, length: int) -> None:
        writes = self.writes[handle]
        writes.check()
        self.images[handle].aio_write_zeroes(offset, length, writes.begin())

    def flush(self, handle: int) -> None:
        self.writes[handle].settle()
        self.images[handle].flush()


def answer_to(child: Child, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    try:
        result = getattr(child, request.pop("op"))(**request)
    except Exception as error:  # noqa: BLE001 - every failure is the answer; the node decides what it means
        code = getattr(error, "errno", None)
        return {"error": {"kind": type(error).__name__, "errno": code or 0, "text": str(error)}}, b""
    return ({"result": result[0]}, result[1]) if isinstance(result, tuple) else ({"result": result}, b"")


def tell(waiting: queue.Queue[Future[tuple[dict[str, Any], bytes]] | None], outgoing: BinaryIO) -> None:
    """Each answer when it is there, in the order of the requests."""
    while (future := waiting.get()) is not None:
        answer, data = future.result()
        raw = json.dumps(answer).encode()
        try:
            outgoing.write(FRAME.pack(len(raw), len(data)))
            outgoing.write(raw)
            outgoing.write(data)
            outgoing.flush()
        except OSError:  # nobody listens any more; the requests end, too
            return


def serve(child: Child, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Reads are worked on beside each other; whatever else is asked waits until they are done, and is done alone."""
    waiting: queue.Queue[Future[tuple[dict[str, Any], bytes]] | None] = queue.Queue()
    speaker = threading.Thread(target=tell, args=(waiting, outgoing), daemon=True)
    speaker.start()
    reads: list[Future[tuple[dict[str, Any], bytes]]] = []
    with ThreadPoolExecutor(READS_UNDER_WAY) as pool:
        while len(head := incoming.read(FRAME.size)) == FRAME.size:
            text, payload = (incoming.read(size) for size in FRAME.unpack(head))
            request = json.loads(text)
            if payload:
                request["payload"] = payload
            if request["op"] == "read":
                reads = [*(one for one in reads if not one.done()), pool.submit(answer_to, child, request)]
                waiting.put(reads[-1])
                continue
            wait(reads)
            done: Future[tuple[dict[str, Any], bytes]] = Future()
            done.set_result(answer_to(child, request))
            waiting.put(done)


if __name__ == "__main__":
    # Only frames go where the node listens: whatever a library prints goes to the log.
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    child = Child()
    serve(child, sys.stdin.buffer, frames)
    signal.alarm(FAREWELL_S)  # a cluster that does not answer must not keep us
    child.farewell()
