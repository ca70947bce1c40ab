"""When a forwarded socket is ready, what killed processes leave, and what a hypervisor's refusals mean."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from node_agent.drivers.libvirt.errors import HypervisorUnreachable, JobLost, MachineBusy, MachineMissing
from node_agent.drivers.libvirt.host import refusal
from node_agent.drivers.libvirt.ssh import Result
from node_agent.drivers.libvirt.tunnel import _listens, _own_folder
from node_agent.errors import BrsError


def test_a_socket_is_ready_when_somebody_listens_on_it(tmp_path: Path) -> None:
    path = tmp_path / "nbd"
    assert not _listens(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert path.exists()
        assert not _listens(path)
        listener.listen()
        assert _listens(path)
    assert not _listens(path)


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_that_of_a_living_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, other = tmp_path / "brs-ssh-left", tmp_path / "brs-ssh-just-being-made"
    left.mkdir()
    other.mkdir()
    (left / "held").touch()
    (left / "key").touch()
    with _own_folder() as mine, _own_folder() as another:
        assert sorted(tmp_path.iterdir()) == sorted([mine, another, other])
    assert list(tmp_path.iterdir()) == [other]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("error: failed to connect to the hypervisor\nerror: Failed to connect socket", HypervisorUnreachable),
        ("error: Disconnected from qemu:///system due to end of file\nerror: End of file while reading data",
         HypervisorUnreachable),
        ("error: failed to get domain '4b7d7ff3'", MachineMissing),
        ("error: internal error: backup job data missing", JobLost),
        ("error: Timed out during operation: cannot acquire state change lock (held by monitor=init-vm)", JobLost),
        ("error: Timed out during operation: cannot acquire state change lock", MachineBusy),
    ],
)  # fmt: skip
def test_a_refusal_is_told_by_its_words(said: str, error: type[BrsError]) -> None:
    told = refusal("virsh domstate", Result(1, "", said))
    assert type(told) is error and told.hint
    assert error is JobLost or said.split("error: ")[1].strip() in told.message
