"""The lab's hypervisor and its cluster, once for all tests that need them, and guests that are thrown away."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node_agent.repository.repository import Repository
from tests.contracts.backend_peers import missing, needed
from tests.lab import ceph, libvirt
from tests.lab.kvm_world import Protected
from tests.lab.rbd_world import PYTHON, World
from tests.repository.core_world import new_repo
from tests.repository.data_world import need_root


@pytest.fixture(scope="session")
def lab() -> Iterator[libvirt.Lab]:
    if not os.environ.get("BRS_LAB"):
        pytest.skip("NOT TESTED HERE: a real hypervisor is started by make test-lab (BRS_LAB=1)")
    need_root()
    if absent := libvirt.missing_programs():
        missing(f"{', '.join(absent)} (make test-lab installs them)")
    needed("e2fsck")
    with tempfile.TemporaryDirectory(prefix="brs-kvm-", ignore_cleanup_errors=True) as folder:
        made = libvirt.Lab(Path(folder) / "lab")
        Path(folder).chmod(0o755)
        made.up()
        (made.folder / "scratch").mkdir()
        try:
            yield made
        finally:
            made.down()


@pytest.fixture
def protected(lab: libvirt.Lab) -> Iterator[Callable[..., Protected]]:
    """Makes guests of a kind, with a repository each; started unless told otherwise."""
    made: list[Protected] = []

    def make(name: str, kind: str = "qcow2", *, start: bool = True, **options: int) -> Protected:
        guest = lab.guest(name, kind, **options)
        folder = lab.folder / "work" / name  # where qemu, which is another user, can reach it
        folder.mkdir(parents=True)
        made.append(Protected(guest, folder))
        if start:
            guest.start()
        return made[-1]

    yield make
    for one in made:
        one.guest.remove()
        one.repo.close()
        shutil.rmtree(one.folder)


@pytest.fixture(scope="session")
def running(lab: libvirt.Lab) -> Iterator[libvirt.Guest]:
    guest = lab.guest("running")
    guest.start()
    yield guest
    guest.remove()


@pytest.fixture
def shared(running: libvirt.Guest, request: pytest.FixtureRequest) -> Iterator[Protected]:
    """A guest that runs all the time, for tests that leave it as it was, with a repository for each of them."""
    folder = running.lab.folder / "work" / request.function.__name__[:40]
    folder.mkdir(parents=True)
    one = Protected(running, folder)
    yield one
    one.repo.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cluster_of_session() -> Iterator[World]:
    if not os.environ.get("BRS_LAB"):
        pytest.skip("NOT TESTED HERE: a real cluster is started by make test-lab (BRS_LAB=1)")
    needed(*(program if ceph.which(program) is None else str(ceph.which(program)) for program in ceph.PROGRAMS))
    needed("rbd", PYTHON, "restic", "qemu-img")
    folder = Path(tempfile.mkdtemp(prefix="brs-lab-rbd-"))
    lab = ceph.Ceph(folder, gateway=False)
    world = World(lab, lab.up(), folder)
    yield world
    world.stop()


@pytest.fixture
def world(cluster_of_session: World, tmp_path: Path) -> World:
    cluster_of_session.folder = tmp_path  # each test its own state of the node
    return cluster_of_session


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return new_repo(tmp_path / "repo")
