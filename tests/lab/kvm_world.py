"""A guest of the lab with its backups: taken through the driver, stored by the engine, restored and compared."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from node_agent.drivers.base import Consistency, Machine, Previous
from node_agent.drivers.libvirt import BackupRequest, HostAccess, ImportRequest, LibvirtHost
from node_agent.drivers.libvirt.import_ import Imported
from node_agent.items import Issue, Issues, TrackingBase
from node_agent.repository.image import Comparison, ImageBackup
from node_agent.repository.lock import LockHolder
from node_agent.repository.publish import BackupResult
from node_agent.repository.random_access import RandomAccess
from tests.lab.libvirt import Guest, Lab, _run, wait
from tests.repository.core_world import new_repo, open_repo
from tests.repository.data_world import back_up_images, bring_back

MARK = "0badcafe"


def access_to(lab: Lab, **other: Any) -> HostAccess:
    state = lab.state()
    assert state is not None
    given = {"host": "127.0.0.1", "port": state.port, "host_key": state.host_key, "private_key": state.private_key}
    return HostAccess(**{**given, "scratch": f"{lab.folder}/scratch", **other})


@dataclass
class Point:
    result: BackupResult
    metadata: Mapping[str, bytes]
    bases: Mapping[str, TrackingBase]
    consistency: Consistency
    issues: list[Issue]
    instant_copies: Mapping[str, Path] = field(default_factory=dict)

    def previous(self) -> Previous:
        return Previous(self.bases, self.metadata)

    @property
    def codes(self) -> set[str]:
        return {issue.code for issue in self.issues}


class Protected:
    """One guest, one repository. Each backup goes on from the one before unless told otherwise."""

    def __init__(self, guest: Guest, folder: Path) -> None:
        self.guest = guest
        self.lab = guest.lab
        self.folder = folder
        repo, holder = folder / "repo", LockHolder.for_node("kvm-lab", folder / "locks")
        self.repo = open_repo(repo, holder=holder) if repo.exists() else new_repo(repo, holder=holder)
        self.driver = LibvirtHost(access_to(self.lab), folder / "state")
        self.last: Point | None = None

    def request(self, **options: Any) -> BackupRequest:
        previous = self.last.previous() if self.last is not None else None
        return BackupRequest(self.guest.uuid, MARK, **{"previous": previous, **options})

    def back_up(self, *, meanwhile: Callable[[], object] = lambda: None, repo: Any = None, **options: Any) -> Point:
        """``meanwhile`` is called when the source is open and nothing has been read."""
        with self.driver.open(self.request(**options)) as machine:
            meanwhile()
            point = self._store(machine)
            machine.acknowledge()
        self.last = point
        return point

    def back_up_with_copies(self, name: str, **options: Any) -> Point:
        """Suspended for both: an independent copy by qemu-img, and the beginning of the backup. Then it runs on."""
        self.lab.virsh("suspend", self.guest.uuid)
        copies = {target: self._copy(target, f"{name}-{target}") for target in self.guest.disks}
        point = self.back_up(meanwhile=lambda: self.lab.virsh("resume", self.guest.uuid), **options)
        point.instant_copies = copies
        return point

    def _copy(self, target: str, name: str) -> Path:
        copy = self.folder / f"{name}.copy"
        self.lab.shell(f"qemu-img convert -U -O raw {self.guest.disks[target]} {copy}")
        return copy

    def _store(self, machine: Machine) -> Point:
        images = [
            ImageBackup(
                name,
                disk.content,
                disk.changes.extents if disk.changes is not None else None,
                base=disk.changes.base if disk.changes is not None else None,
                identity=disk.identity,
                was_written=disk.content.changed,
            )
            for name, disk in machine.disks.items()
        ]
        issues = Issues()
        for issue in [*machine.left_out, *machine.notes]:
            issues.add(issue)
        result = back_up_images(
            self.repo, *images, issues=issues, metadata=machine.metadata, time=datetime.now(UTC),
            parent=self.last.result.snapshot_id if self.last is not None else None, compare=Comparison.none(),
        )  # fmt: skip
        assert result.block_size is not None
        bases = {
            name: TrackingBase(
                self.repo.id, result.snapshot_id, result.tree_id, disk.content.size, result.block_size, disk.identity
            )
            for name, disk in machine.disks.items()
        }
        return Point(result, machine.metadata, bases, machine.consistency, issues.items)

    def restored(self, point: Point) -> dict[str, Path]:
        """Raw files of the point's disks."""
        out = self.folder / f"restored-{point.result.snapshot_id[:8]}"
        shutil.rmtree(out, ignore_errors=True)
        bring_back(self.repo, point.result.snapshot_id, out)
        return {path.stem: path for path in out.rglob("disks/*.raw")}

    def assert_equals_copies(self, point: Point) -> None:
        restored = self.restored(point)
        assert set(restored) == set(point.instant_copies)
        for target, copy in point.instant_copies.items():
            compared = subprocess.run(
                ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(restored[target]), str(copy)],
                capture_output=True, text=True,
            )  # fmt: skip
            assert compared.returncode == 0, f"{target}: {compared.stdout}{compared.stderr}"
            copy.unlink()
        shutil.rmtree(next(iter(restored.values())).parents[1], ignore_errors=True)

    @contextmanager
    def readers(self, point: Point) -> Iterator[dict[str, Any]]:
        with self.repo.lock():
            self.repo.load_index()
            with RandomAccess(self.repo) as access:
                snapshot = point.result.snapshot_id
                yield {name: access.open(snapshot, f"/disks/{name}.raw".encode()) for name in point.bases}

    def bring_in(self, point: Point, request: ImportRequest) -> Imported:
        with self.readers(point) as readers:
            return self.driver.import_machine(point.metadata, readers, request)


def footprint(lab: Lab, guest: Guest) -> dict[str, Any]:
    """What a run could leave behind: jobs, checkpoints, folders, programs, and the guest's chain."""
    return {
        "checkpoints": lab.virsh("checkpoint-list", guest.uuid, "--name").split(),
        "job": lab.shell(f"virsh -q domjobinfo {guest.uuid} || echo 'Job type: None'").split()[2:3],
        "scratch": lab.shell(f"find {lab.folder}/scratch -mindepth 1 2>/dev/null || :").split(),
        "programs": lab.shell("pgrep -f '[q]emu-nbd|[w]atch.sh' || :").split(),
        "blocks": [line.split()[-1] for line in lab.virsh("domblklist", guest.uuid).splitlines() if line.strip()],
    }


def fsck(image: Path, offset: int) -> str:
    """The file system in a raw image, its journal replayed first as a boot would, then checked without a change."""
    part = image.with_suffix(".part")
    with image.open("rb") as source, part.open("wb") as out:
        source.seek(offset)
        shutil.copyfileobj(source, out, 1 << 20)
    try:
        subprocess.run(["e2fsck", "-fp", "-E", "journal_only", str(part)], capture_output=True)
        return _run("e2fsck", "-fn", str(part))
    finally:
        part.unlink()


def boot(disk: Path) -> None:
    """A raw image starts in a qemu of its own, without any hypervisor."""
    console = disk.with_suffix(".console")
    command = [
        "qemu-system-x86_64", "-accel", "tcg", "-m", "192", "-nodefaults", "-display", "none",
        "-serial", f"file:{console}", "-drive", f"file={disk},format=raw,if=virtio",
    ]  # fmt: skip
    with subprocess.Popen(command) as machine:
        try:
            wait(lambda: console.exists() and "GUEST-IS-UP" in console.read_text(errors="replace"), "the boot")
        finally:
            machine.kill()
