"""The lab itself: up twice is up once, and down ends its own processes and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.backend_peers import needed
from tests.lab import ceph, libvirt

ALL = (*ceph.PROGRAMS, *ceph.GATEWAY_PROGRAMS)


@pytest.fixture
def folder() -> Iterator[Path]:
    needed(*(program if shutil.which(program) else f"/usr/sbin/{program}" for program in ALL))
    place = Path(tempfile.mkdtemp(prefix="brs-lab-"))
    yield place
    ceph.Ceph(place).down()


def test_up_twice_is_one_lab_and_down_ends_it_and_nobody_else(folder: Path) -> None:
    lab = ceph.Ceph(folder)
    state = lab.up()
    running = lab.pids()
    assert len(running) == 3
    assert lab.up() == state and lab.pids() == running
    stranger = subprocess.Popen([sys.executable, "-c", "input()", f"{folder}/ceph.conf.other"], stdin=subprocess.PIPE)
    try:
        assert lab.down() == 3
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    assert lab.pids() == [] and not folder.exists() and lab.down() == 0


def test_with_a_manager_and_a_store_on_disk_it_tells_its_capacity_and_keeps_what_is_written(folder: Path) -> None:
    needed("ceph-mgr", "rbd")
    lab = ceph.Ceph(folder, store="bluestore", mgr=True, gateway=False, gib=1)
    lab.up()
    assert len(lab.pids()) == 3 and (folder / "osd0" / "block").stat().st_size == 1 << 30
    libvirt.wait(lambda: json.loads(lab.ceph("df", "--format", "json"))["stats"]["total_bytes"] > 0, "the figures")
    (folder / "given").write_bytes(os.urandom(3 << 20))
    lab.rbd("import", "--no-progress", folder / "given", "rbd/one")
    lab.rbd("export", "--no-progress", "rbd/one", folder / "back")
    assert (folder / "back").read_bytes() == (folder / "given").read_bytes()


def test_an_up_that_was_killed_half_way_is_cleared_and_begun_anew(folder: Path) -> None:
    lab = ceph.Ceph(folder)
    lab.up()
    (folder / "state.json").unlink()  # the last thing that up writes
    os.kill(lab.pids()[0], 9)
    state = lab.up()
    assert lab.answers(state) and len(lab.pids()) == 3


def test_a_folder_of_somebody_else_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ceph.LabError, match="no folder of this lab"):
        ceph.Ceph(tmp_path).down()
    assert (tmp_path / "precious").exists()
