"""The whole way of a machine on a real hypervisor, by the tasks that a node runs: test, look, back up, bring back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from node_agent.drivers import libvirt
from node_agent.protocol import MachineTarget, PlatformAccess
from tests.lab.kvm_world import Protected
from tests.lab.libvirt import Lab
from tests.lab.platform_bench import Bench


@pytest.fixture
def bench(lab: Lab, tmp_path: Path) -> Bench:
    state = lab.state()
    assert state is not None
    address = f"127.0.0.1:{state.port}"
    access = PlatformAccess(
        kind="kvm",
        addresses=[address],
        user="root",
        options={"scratch": f"{lab.folder}/scratch"},
        secrets={"private-key": state.private_key},
        host_keys={address: state.host_key},
    )
    return Bench(tmp_path, access)


@pytest.mark.timeout(280)
def test_from_the_connection_test_to_the_machine_that_runs_again(
    lab: Lab, protected: Callable[..., Protected], bench: Bench
) -> None:
    guest = protected("flow").guest
    ((address, key),) = bench.access.host_keys.items()
    first = bench.probe(host_keys={})
    assert first.host_keys[address].split()[:2] == key.split()[:2] and not first.checks[-1].ok
    tested = bench.probe()
    assert all(check.ok for check in tested.checks), tested.checks

    machine = next(one for one in bench.discover().values() if one.id == guest.uuid)
    assert machine.state == "running" and [disk.name for disk in machine.disks] == list(guest.disks)
    assert all(disk.size_bytes > 0 for disk in machine.disks), machine.disks

    full = bench.back_up(machine)
    again = bench.back_up(machine, full)
    assert again.parent_id == full.snapshot_id
    assert again.read_bytes < full.read_bytes, (again, full, bench.said)

    order = MachineTarget(name="flow-back", start=True, storage=f"{lab.folder}/scratch")
    done = bench.restore(machine, again, order)
    assert "running" in done.target, (done, bench.issues.items)
    assert lab.virsh("domstate", "flow-back").strip() == "running"
    lab.virsh("destroy", "flow-back")
    lab.virsh("undefine", "flow-back")
    lab.shell(f"rm {lab.folder}/scratch/flow-back-vd?.*")


@pytest.mark.timeout(280)
def test_what_is_kept_is_told_and_removed_and_another_tools_checkpoint_stands(
    lab: Lab, protected: Callable[..., Protected], bench: Bench
) -> None:
    guest = protected("traces").guest
    xml = bench.folder / "theirs.xml"
    xml.write_text("<domaincheckpoint><name>theirs.0</name></domaincheckpoint>")
    lab.virsh("checkpoint-create", guest.uuid, str(xml))
    machine = bench.discover()[guest.name]
    assert not bench.traces(guest.name)

    full = bench.back_up(machine)
    [name] = [one.removesuffix(" (vda)") for one in full.kept or []]
    assert name.startswith(f"brs-{bench.mark}-")
    assert bench.traces(guest.name, thorough=False) == {}, "no image shows it yet"
    assert bench.traces(guest.name) == {bench.mark: full.kept}
    assert bench.remove_traces(machine, bitmaps=False).removed == [] and bench.traces(guest.name)
    assert bench.remove_traces(machine).removed == [name]
    assert bench.traces(guest.name) == {} and bench.remove_traces(machine).removed == []
    assert lab.virsh("checkpoint-list", guest.uuid, "--name").split() == ["theirs.0"]

    again = bench.back_up(machine, full)  # nothing breaks: all is read, and tracking begins anew
    third = bench.back_up(machine, again)
    assert third.read_bytes < again.read_bytes, (again, third, bench.said)
    guest.destroy()
    assert bench.traces(guest.name, thorough=False) == {bench.mark: third.kept}
    assert len(bench.remove_traces(machine).removed) == 1
    image = guest.disks["vda"]
    said = lab.shell(f"qemu-img info {image}")
    assert bench.mark not in said and "theirs.0" in said
    stopped = bench.back_up(machine, third)
    raw = bench.folder / "truth.raw"
    lab.shell(f"qemu-img convert -O raw {image} {raw}")
    assert bench.content(stopped, "vda") == raw.read_bytes()


@pytest.mark.timeout(280)
def test_the_hypervisor_alone_removes_what_is_kept_from_a_machine_that_runs_and_one_that_does_not(
    lab: Lab, protected: Callable[..., Protected], bench: Bench
) -> None:
    guest = protected("alone", "mixed").guest
    script = f"sh {Path(libvirt.__file__).parent}/remove-traces.sh"
    machine = bench.discover()[guest.name]
    [name] = bench.back_up(machine).kept or []
    assert lab.shell(f"{script} {guest.name} 11111111").split()[0] == "Nothing"
    assert f"removed {name.partition(' ')[0]} (" in lab.shell(f"{script} {guest.name} {bench.mark}")
    assert bench.traces(guest.name) == {}
    kept = bench.back_up(machine).kept
    guest.destroy()
    assert bench.traces(guest.name) == {bench.mark: kept}
    assert "removed brs-" in lab.shell(f"{script} {guest.uuid}") and bench.traces(guest.name) == {}
    assert "Nothing is kept" in lab.shell(f"{script} {guest.uuid}")
