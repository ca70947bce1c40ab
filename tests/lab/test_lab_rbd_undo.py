"""An import into an existing image that dies or is cut off: who comes next rolls it back, and says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node_agent.drivers.ceph.cluster import CephBusy, CephError
from node_agent.drivers.ceph.import_ import ImportOptions, ImportResult, import_image
from node_agent.drivers.ceph.source import DISK
from node_agent.drivers.ceph.undo import MARK, heal
from node_agent.drivers.image import open_image
from node_agent.progress import Progress
from node_agent.repository.repository import Repository
from tests.lab.libvirt import wait
from tests.lab.rbd_world import NO_MAPS, OWNER, Point, World
from tests.lab.test_lab_rbd_import import bring, content_of
from tests.repository.data_world import MIB

_NODE = """
import json, sys
from pathlib import Path
from node_agent.drivers.ceph import cluster, import_, journal, undo
from node_agent.drivers.ceph.access import CephAccess
from node_agent.drivers.image import open_image
from node_agent.progress import Progress
given = json.loads(sys.stdin.readline())

def hold(where):
    if where == given["stop_at"]:
        print(where, held[0]._process.pid, flush=True)
        sys.stdin.readline()

held, call = [], cluster.Cluster.call
def calling(self, op, *args, **more):
    held[:] = [self]
    done = call(self, op, *args, **more)
    hold(f"after {op} {more.get('key', '')}".strip())
    return done
cluster.Cluster.call = calling

class Source:
    reads = 0
    def __init__(self, inner):
        self.inner, self.size, self.format, self.damage = inner, inner.size, inner.format, ""
        self.extents, self.changed = inner.extents, inner.changed
    def read(self, offset, length):
        self.reads += 1
        hold(f"read {self.reads}")
        return self.inner.read(offset, length)

access = CephAccess(given["mon"], given["fsid"], "brs", given["key"], ["rbd"])
with open_image(Path(given["disk"]), format="raw") as content:
    import_.import_image(
        access, journal.Journal(Path(given["state"])), import_.ImportOptions("rbd", given["image"], overwrite=True),
        Source(content), {}, "image", Progress())
print("done", flush=True)
"""
MOMENTS = (
    ("after create_snapshot", False),
    ("after set_metadata brs_import", False),
    ("read 5", True),
    ("after remove_metadata brs_import", False),
)


@contextmanager
def node_that_imports(world: World, repo: Repository, point: Point, image: str, stop_at: str) -> Iterator[list[int]]:
    """A node that stands still at a moment of its import; its process and the one that speaks with Ceph."""
    with content_of(world, repo, point):
        pass  # staged
    access, disk = world.access, world.folder / "staged" / "disks" / f"{DISK}.raw"
    given = {"mon": access.mon_hosts, "fsid": access.fsid, "key": access.key, "image": image, "stop_at": stop_at,
             "state": str(world.folder / "state"), "disk": str(disk)}  # fmt: skip
    node = subprocess.Popen([sys.executable, "-c", _NODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    world.processes.append(node)
    assert node.stdin is not None and node.stdout is not None
    node.stdin.write(json.dumps(given) + "\n")
    node.stdin.flush()
    said = node.stdout.readline()
    assert said.startswith(stop_at), said
    yield [node.pid, int(said.split()[-1])]
    node.kill()
    node.wait()


def kill_and_wait(world: World, image: str, pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait(lambda: not world.look(image).watchers, "the cluster to notice")


def ours(world: World, image: str) -> list[str]:
    return [name for name in world.snapshots(image) if name.startswith("brs-undo")]


@pytest.mark.parametrize(("moment", "with_its_process"), MOMENTS)
def test_an_import_that_is_killed_is_rolled_back_by_the_next_backup(
    world: World, repo: Repository, moment: str, with_its_process: bool
) -> None:
    image, other = world.image(), world.image(features=NO_MAPS)
    point = world.back_up(repo, other)
    world.guest(image, ["write", 0, 38 * MIB, 3], ["resize", 44 * MIB])
    before, whole = world.exported(image), world.exported(other)
    with node_that_imports(world, repo, point, image, moment) as pids:
        kill_and_wait(world, image, pids if with_its_process else pids[:1])
    written = "remove_metadata" in moment
    marked = MARK in world.look(image).metadata
    assert marked == (not written and moment != "after create_snapshot")
    now = world.back_up(repo, image)
    assert world.exported(image) == (whole if written else before) == world.restored(repo, now)
    assert any("was rolled back" in note for note in now.notes) == marked
    assert MARK not in world.look(image).metadata
    if marked:
        assert ours(world, image) == []
    done = bring(world, repo, point, image, overwrite=True)
    assert (world.exported(image), done.notes, ours(world, image)) == (whole, [], [])


def test_the_next_import_rolls_back_first_too_and_says_so(world: World, repo: Repository) -> None:
    image = world.image()
    point = world.back_up(repo, image)
    world.guest(image, ["write", 0, 38 * MIB, 3])
    with node_that_imports(world, repo, point, image, "read 5") as pids:
        with pytest.raises(CephBusy, match="under way or died"):  # it lives
            world.back_up(repo, image)
        with pytest.raises(CephBusy, match="under way or died"):
            bring(world, repo, point, image, overwrite=True)
        kill_and_wait(world, image, pids[:1])
    # Seen from the restored machine: somebody who started it on the half written image is not overruled.
    guest = world.holding(image)
    with pytest.raises(CephBusy) as caught:
        world.back_up(repo, image)
    assert "shut down what uses the image" in caught.value.hint and "rbd image-meta remove" in caught.value.hint
    guest.communicate("\n")
    truth = world.restored(repo, point)
    result = bring(world, repo, point, image, overwrite=True, owner=OWNER)
    assert "was rolled back" in result.notes[0] and world.exported(image) == truth


def test_without_its_snapshot_a_half_written_image_is_refused_until_it_is_restored_again(
    world: World, repo: Repository
) -> None:
    image = world.image()
    point = world.back_up(repo, image)
    truth = world.exported(image)
    world.guest(image, ["write", 0, 38 * MIB, 3])
    with node_that_imports(world, repo, point, image, "read 5") as pids:
        kill_and_wait(world, image, pids[:1])
    [undo] = ours(world, image)
    world.lab.rbd("snap", "rm", f"rbd/{image}@{undo}")
    with pytest.raises(CephError, match="written in part by a restore that died"):
        world.back_up(repo, image)
    done = bring(world, repo, point, image, overwrite=True)
    assert "written in part" in done.notes[0] and world.exported(image) == truth
    assert world.back_up(repo, image).notes == []


def test_a_cluster_that_stands_still_for_a_while_holds_an_import_up_and_nothing_else(
    world: World, repo: Repository
) -> None:
    image = world.image()
    point = world.back_up(repo, image)
    truth = world.exported(image)
    world.guest(image, ["write", 0, 38 * MIB, 3])
    stood = threading.Event()

    class Standing(Progress):
        def check(self) -> None:
            if self.counters.done_bytes >= 8 * MIB and not stood.is_set():
                stood.set()
                for pid in world.lab.pids():
                    os.kill(pid, signal.SIGSTOP)
                threading.Timer(7, go_on).start()  # longer than a watch lives

    def go_on() -> None:
        for pid in world.lab.pids():
            os.kill(pid, signal.SIGCONT)

    result = _import(world, repo, point, image, Standing())
    assert stood.is_set() and result.how == "compared" and world.exported(image) == truth
    assert (MARK in world.look(image).metadata, ours(world, image)) == (False, [])


def test_an_import_that_is_cut_off_from_the_cluster_is_rolled_back_when_it_is_there_again(
    world: World, repo: Repository
) -> None:
    image = world.image()
    point = world.back_up(repo, image)
    world.guest(image, ["write", 0, 38 * MIB, 3])
    before = world.exported(image)
    with node_that_imports(world, repo, point, image, "read 6") as pids:
        for pid in world.lab.pids():
            os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    for pid in world.lab.pids():
        os.kill(pid, signal.SIGCONT)
    wait(lambda: not world.look(image).watchers, "the cluster to notice")
    with world.connect() as cluster:
        assert "was rolled back" in heal(cluster, world.look(image))
        assert heal(cluster, world.look(image)) == ""
    assert world.exported(image) == before


def _import(world: World, repo: Repository, point: Point, image: str, progress: Progress) -> ImportResult:
    with content_of(world, repo, point), open_image(Path(world.folder, "staged/disks/image.raw"), format="raw") as disk:
        options = ImportOptions("rbd", image, overwrite=True)
        return import_image(world.access, world.journal(), options, disk, {}, DISK, progress)
