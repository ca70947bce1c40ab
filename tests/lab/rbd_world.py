"""What the tests of RBD share: one cluster for a session, guests that write, backups and restores in one line."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from node_agent.drivers.base import Machine, Previous
from node_agent.drivers.ceph.access import CephAccess
from node_agent.drivers.ceph.cluster import Cluster
from node_agent.drivers.ceph.inventory import Image, describe
from node_agent.drivers.ceph.journal import Journal
from node_agent.drivers.ceph.source import DISK, ImageRef, RbdRequest, open_images
from node_agent.items import Issues, TrackingBase
from node_agent.repository.image import ImageBackup
from node_agent.repository.publish import BackupResult
from node_agent.repository.repository import Repository
from tests.lab import ceph
from tests.repository.data_world import MIB, back_up_images, bring_back

PYTHON = "/usr/bin/python3"
GUEST = Path(__file__).with_name("rbd_guest.py")
ALL_FEATURES = 61  # layering, exclusive-lock, object-map, fast-diff, deep-flatten
NO_MAPS = 37  # the same without object-map and fast-diff
OWNER = "0123abcd"


@dataclass
class Point:
    """A stored backup, and what a later one needs of it."""

    result: BackupResult
    previous: Previous
    issues: Issues
    notes: list[str]

    @property
    def read(self) -> int:
        return self.result.read_bytes


@dataclass
class World:
    lab: ceph.Ceph
    state: ceph.State
    folder: Path
    number: int = 0
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def access(self) -> CephAccess:
        return self.access_as("brs", self.state.keys["brs"])

    def access_as(self, user: str, key: str, pools: Sequence[str] = (ceph.RBD_POOL,)) -> CephAccess:
        return CephAccess([f"127.0.0.1:{self.state.mon_port}"], self.state.fsid, user, key, pools)

    def connect(self) -> Cluster:
        return Cluster(self.access)

    # --- beside the code that is tested ---

    def image(self, size: int = 40 * MIB, *, name: str = "", features: int = ALL_FEATURES, objects: str = "4M") -> str:
        """A new image of that size with a fifth of random data in it."""
        name = name or f"vm-{uuid.uuid4().hex[:8]}"
        kinds = "layering,exclusive-lock,deep-flatten" + (",object-map,fast-diff" if features & 8 else "")
        self.lab.rbd(
            "create", f"rbd/{name}", "--size", f"{size // MIB}M", "--object-size", objects, "--image-feature", kinds
        )
        do = [["write", at, MIB, at] for at in range(0, min(size, 64 * MIB), 5 * MIB)]
        self.guest(name, *do, ["write", size - 4096, 4096, 1])
        return name

    def clone(self, parent: str, features: int = ALL_FEATURES) -> str:
        """Of the image as it is now. The parent's snapshot is what keeps it from being removed."""
        name, snapshot = f"clone-{uuid.uuid4().hex[:8]}", f"base-{uuid.uuid4().hex[:8]}"
        self.guest(parent, ["snapshot", snapshot])
        kinds = "layering,exclusive-lock,deep-flatten" + (",object-map,fast-diff" if features & 8 else "")
        format2 = ("--rbd-default-clone-format", "2")
        self.lab.rbd("clone", *format2, f"rbd/{parent}@{snapshot}", f"rbd/{name}", "--image-feature", kinds)
        return name

    def guest(self, image: str, *do: list[Any]) -> None:
        done = subprocess.run(
            [PYTHON, GUEST], input=self._order(image=image, do=do), text=True, capture_output=True, timeout=120
        )
        assert done.returncode == 0, done.stderr

    def create_named(self, name: str, size: int = 8 * MIB) -> None:
        """A name that the rbd program does not take."""
        order = self._order(create=name, size=size, features=ALL_FEATURES)
        done = subprocess.run([PYTHON, GUEST], input=order, text=True, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr

    def holding(self, image: str, **order: Any) -> subprocess.Popen[str]:
        """A process that has the image open, until it gets a line."""
        given = self._order(**(order or {"image": image, "do": [["wait"]]}))
        process = subprocess.Popen([PYTHON, GUEST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(given)
        process.stdin.flush()
        assert process.stdout.readline()
        return process

    def _order(self, **what: Any) -> str:
        mon = f"[v2:127.0.0.1:{self.state.mon_port}]"
        return json.dumps({"mon": mon, "key": self.lab.admin_key(), **what}) + "\n"

    def snapshots(self, image: str) -> list[str]:
        return [one["name"] for one in json.loads(self.lab.rbd("snap", "ls", f"rbd/{image}", "--format", "json"))]

    def exported(self, spec: str) -> str:
        """SHA-256 of what the rbd program exports."""
        return _sha256(self.export(spec))

    def export(self, spec: str) -> Path:
        target = self.folder / "exported"
        target.unlink(missing_ok=True)
        self.lab.rbd("export", "--no-progress", f"rbd/{spec}", target)
        return target

    def look(self, image: str) -> Image:
        with self.connect() as cluster:
            return describe(cluster, ceph.RBD_POOL, name=image)

    # --- through the code that is tested ---

    def journal(self) -> Journal:
        return Journal(self.folder / "state")

    def request(self, image: str, previous: Point | None = None, **options: Any) -> RbdRequest:
        images = options.pop("images", {DISK: ImageRef(ceph.RBD_POOL, image)})
        request = RbdRequest(self.access, images, OWNER, previous=previous.previous if previous else None)
        return replace(request, **options)

    def back_up(self, repo: Repository, image: str, previous: Point | None = None, **options: Any) -> Point:
        with open_images(self.request(image, previous, **options), self.journal()) as machine:
            point = store(repo, machine, previous)
            machine.acknowledge()
        return point

    def restored(self, repo: Repository, point: Point, disk: str = DISK) -> str:
        """SHA-256 of what the engine restores."""
        target = self.folder / "restored"
        shutil.rmtree(target, ignore_errors=True)
        bring_back(repo, point.result.snapshot_id, target)
        digest = _sha256(target / "disks" / f"{disk}.raw")
        shutil.rmtree(target)
        return digest

    def truth(self, image: str) -> str:
        """A snapshot by somebody else, to compare with: nothing is written between it and the backup."""
        self.number += 1
        self.guest(image, ["snapshot", f"truth-{self.number}"])
        return f"{image}@truth-{self.number}"

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.lab.down()


def store(repo: Repository, machine: Machine, previous: Point | None) -> Point:
    """What a task does with a machine."""
    issues = Issues()
    images = [
        ImageBackup(
            name,
            disk.content,
            disk.changes.extents if disk.changes is not None else None,
            disk.content.changed,
            disk.changes.base if disk.changes is not None else None,
            disk.identity,
        )
        for name, disk in machine.disks.items()
    ]
    parent = previous.result.snapshot_id if previous is not None else None
    metadata = machine.metadata
    result = back_up_images(repo, *images, issues=issues, paths=["/w"], metadata=metadata, parent=parent)
    assert result.block_size is not None
    bases = {
        name: TrackingBase(
            repo.id, result.snapshot_id, result.tree_id, disk.content.size, result.block_size, disk.identity
        )
        for name, disk in machine.disks.items()
    }
    notes = [one.message for one in (*machine.left_out, *machine.notes, *issues.items)]
    return Point(result, Previous(bases, metadata), issues, notes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
