"""Commands around the instant of a backup, on a real hypervisor; and what works there after the machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from node_agent.protocol import Commands, PlatformAccess
from tests.lab.kvm_world import Protected
from tests.lab.libvirt import Guest, Lab, wait
from tests.lab.platform_bench import Bench

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def bench(lab: Lab, tmp_path: Path) -> Bench:
    state = lab.state()
    assert state is not None
    address = f"127.0.0.1:{state.port}"
    access = PlatformAccess(
        kind="kvm", addresses=[address], options={"scratch": f"{lab.folder}/scratch"},
        secrets={"private-key": state.private_key}, host_keys={address: state.host_key},
    )  # fmt: skip
    return Bench(tmp_path, access)


def test_an_application_is_at_rest_at_the_instant_of_the_snapshot(running: Guest, bench: Bench) -> None:
    """The commands talk to the guest by its agent, as one of an operator's might; the point holds what they left."""
    machine = next(one for one in bench.discover().values() if one.id == running.uuid)
    at_rest, at_work = f"rest-{uuid4()}", f"work-{uuid4()}"
    agent = "virsh qemu-agent-command $BRS_MACHINE_ID"
    write = '{"execute":"guest-exec","arguments":{"path":"/bin/sh","arg":["-c","%s"]}}'
    before = (
        f"pid=$({agent} '{write % f'echo {at_rest} >/data/state; sync'}' | tr -dc 0-9)\n"
        'ask=\'{"execute":"guest-exec-status","arguments":{"pid":\'$pid}}\n'
        f'until {agent} "$ask" | grep -q \'"exited":true\'; do sleep 0.1; done\n'
        "echo held $BRS_MACHINE"
    )
    after = f"{agent} '{write % f'echo {at_work} >/data/state; sync'}' && echo let go"
    point = bench.back_up(machine, commands=Commands(before=before, after=after))
    said = "\n".join(bench.said)
    assert f"held {running.name}" in said and "let go" in said, said
    wait(lambda: running.run("cat /data/state") == f"{at_work}\n", "the second command to have worked")
    disk = bench.content(point, "vda")
    assert at_rest.encode() in disk
    assert at_work.encode() not in disk


def test_what_reads_and_decrypts_there_works_after_the_machines(lab: Lab, shared: Protected) -> None:
    def niceness(pattern: str) -> set[int]:
        listed = lab.shell(f"for pid in $(pgrep -f '{pattern}'); do cut -d' ' -f19 /proc/$pid/stat; done")
        return {int(line) for line in listed.split()}

    shared.back_up(meanwhile=lambda: wait(lambda: 10 in niceness("[s]shd: root@notty"), "sshd's process to be nice"))


def test_a_stopped_machine_is_read_there_by_a_program_that_is_nice(
    lab: Lab, protected: Callable[..., Protected]
) -> None:
    one = protected("nice", start=False)
    usual = int(lab.shell("cut -d' ' -f19 /proc/$(cat /run/sshd.pid)/stat"))
    nice: list[str] = []
    one.back_up(meanwhile=lambda: nice.append(lab.shell("cut -d' ' -f19 /proc/$(pgrep -f '[q]emu-nbd --fork')/stat")))
    assert int(nice[0]) == min(19, usual + 10), (nice, usual)
