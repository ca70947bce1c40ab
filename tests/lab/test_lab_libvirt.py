"""The lab's hypervisor: up twice is up once, and down ends it with its guests, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.libvirt import Lab, LabError


def test_up_twice_is_one_hypervisor_and_this_machine_sees_nothing_of_it(lab: Lab) -> None:
    state, running = lab.state(), lab.pids()
    assert lab.up() == state and lab.pids() == running and len(running) == 1
    mounts = Path("/proc/self/mounts").read_text()
    assert str(lab.folder) not in mounts
    assert "operator" not in Path("/etc/passwd").read_text()
    guest = lab.guest("seen")
    try:
        assert guest.name in lab.virsh("list", "--all", "--name")
        outside = subprocess.run(["virsh", "-q", "list", "--all"], capture_output=True, text=True)
        assert guest.name not in outside.stdout
    finally:
        guest.remove()


def test_down_ends_its_own_hypervisor_and_nobody_else(lab: Lab, tmp_path: Path) -> None:
    other = Lab(tmp_path / "other")
    other.up()
    inside = other.shell("pgrep -x libvirtd")
    assert inside
    stranger = subprocess.Popen([sys.executable, "-c", "input()", str(other.folder)], stdin=subprocess.PIPE)
    try:
        assert other.down() == 1
        assert stranger.poll() is None and lab.answers(lab.up())
    finally:
        stranger.kill()
        stranger.wait()
    assert other.pids() == [] and not other.folder.exists() and other.down() == 0


def test_a_folder_of_somebody_else_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(LabError, match="no folder of this lab"):
        Lab(tmp_path).down()
    assert (tmp_path / "precious").exists()
