"""Commands on a hypervisor, through a real sshd: what reaches the shell there, and that the second one always runs."""

from __future__ import annotations

import getpass
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node_agent.drivers.libvirt.access import HostAccess
from node_agent.drivers.libvirt.commands import commands_on
from node_agent.drivers.libvirt.errors import HypervisorError
from node_agent.errors import Cancelled
from tests.contracts.backend_peers import Sshd

UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    made = Sshd(tmp_path_factory.mktemp("peer"))
    yield made
    made.stop()


@pytest.fixture
def access(sshd: Sshd) -> HostAccess:
    key = (sshd.folder / "user").read_text()
    return HostAccess("127.0.0.1", sshd.host_key, getpass.getuser(), sshd.port, key)


def never() -> None:
    pass


def wait_for(there: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 90
    while not there():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_name_reaches_the_command_as_it_is_and_is_no_command(access: HostAccess, tmp_path: Path) -> None:
    name = f"a'b\"; touch {tmp_path}/hacked; $(touch {tmp_path}/hacked) `id`"
    with commands_on(access, UUID, name, 'printf %s "$BRS_MACHINE"', "exit 4", 30, never) as held:
        assert (ran := held.before()) is not None and ran.code == 0
        assert ran.output.rstrip("\n") == name
        after = held.after()
    assert after is not None and after.code == 4
    assert not (tmp_path / "hacked").exists()


def test_one_that_does_not_end_is_ended_there(access: HostAccess, tmp_path: Path) -> None:
    before = f"echo $$ >{tmp_path}/pid; sleep 600"
    with commands_on(access, UUID, "x", before, "", 1, never) as held:
        assert (ran := held.before()) is not None and not ran.in_time
        assert held.after() is None


def test_the_second_one_runs_there_when_the_node_is_killed_or_gives_up(access: HostAccess, tmp_path: Path) -> None:
    with (
        pytest.raises(Cancelled),
        commands_on(access, UUID, "x", "", f"touch {tmp_path}/after-cancel", 30, never),
    ):
        raise Cancelled
    wait_for((tmp_path / "after-cancel").exists, "the command after a run that was cancelled")

    program = (
        "import os, signal, sys\n"
        "from node_agent.drivers.libvirt.access import HostAccess\n"
        "from node_agent.drivers.libvirt.commands import commands_on\n"
        "access = HostAccess('127.0.0.1', sys.argv[1], sys.argv[3], int(sys.argv[2]), sys.stdin.read())\n"
        "with commands_on(access, sys.argv[4], 'x', 'echo ok', f'touch {sys.argv[5]}', 30, lambda: None):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, access.host_key, str(access.port), access.user, UUID, f"{tmp_path}/after-kill"],
        input=access.private_key, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    wait_for((tmp_path / "after-kill").exists, "the command after a node that was killed")


def test_who_is_late_learns_that_the_second_one_has_run(access: HostAccess, tmp_path: Path) -> None:
    there = tmp_path / "after"
    with (
        pytest.raises(HypervisorError, match="was run before"),
        commands_on(access, UUID, "x", "", f"touch {there}", 30, never, hold_s=1) as held,
    ):
        wait_for(there.exists, "the command that nobody asked for")
        held.after()


def test_while_the_first_one_runs_the_task_can_be_stopped(access: HostAccess, tmp_path: Path) -> None:
    begun, let_go = tmp_path / "begun", tmp_path / "let-go"

    def stop() -> None:
        if begun.exists():
            raise Cancelled

    before = f"touch {begun}; sleep 1"
    with pytest.raises(Cancelled), commands_on(access, UUID, "x", before, f"touch {let_go}", 30, stop):
        raise AssertionError("it was not stopped")
    wait_for(let_go.exists, "the command after one that was not waited for")
