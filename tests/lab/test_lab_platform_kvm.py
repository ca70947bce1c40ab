"""The whole way of a machine on a real hypervisor, by the tasks that a node runs: test, look, back up, bring back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from node_agent.config import RootsConfig
from node_agent.guard import Guard
from node_agent.progress import Progress
from node_agent.protocol import (
    BackupResult,
    BackupSource,
    BackupSpec,
    DiscoverSpec,
    InitSpec,
    MachineFacts,
    MachineSource,
    MachineTarget,
    Parent,
    PlatformAccess,
    ProbeResult,
    ProbeSpec,
    RepositoryAccess,
    RestoreResult,
    RestoreSpec,
    RestoreTarget,
)
from node_agent.repository.lock import LockHolder
from node_agent.tasks.context import TaskContext
from node_agent.tasks.dispatch import perform
from tests.lab.kvm_world import Protected
from tests.lab.libvirt import Lab


class Outlet:
    def __init__(self) -> None:
        self.machines: list[MachineFacts] = []

    def directories_wanted(self, tree_ids: list[str]) -> list[str]:
        return []

    def found(self, machines: list[MachineFacts]) -> None:
        self.machines += machines


class Bench:
    def __init__(self, lab: Lab, folder: Path) -> None:
        state = lab.state()
        assert state is not None
        self.lab, self.folder = lab, folder
        self.address = f"127.0.0.1:{state.port}"
        self.key, self.private_key = state.host_key, state.private_key
        self.outlet = Outlet()
        self.said: list[str] = []
        self.repository = RepositoryAccess(repository=uuid4(), url=str(folder / "repo"), password="of the lab")

    def access(self, **facts: Any) -> PlatformAccess:
        told = {
            "kind": "kvm",
            "addresses": [self.address],
            "user": "root",
            "options": {"scratch": f"{self.lab.folder}/scratch"},
            "secrets": {"private-key": self.private_key},
            "host_keys": {self.address: self.key},
        }
        return PlatformAccess(**{**told, **facts})

    def perform(self, spec: Any) -> Any:
        context = TaskContext(
            task_id=uuid4(),
            guard=Guard(RootsConfig(repositories=[str(self.folder)], platforms=["kvm:"])),
            progress=Progress(log=lambda level, text: self.said.append(f"{level}: {text}")),
            outlet=self.outlet,  # type: ignore[arg-type]
            holder=LockHolder("lab"),
            cache_dir=self.folder / "cache",
            staging_dir=self.folder / "staging",
            state_dir=self.folder / "state",
        )
        done = perform(context, spec)
        self.issues = context.issues
        return done

    def back_up(self, machine: MachineFacts, parent: BackupResult | None = None) -> BackupResult:
        spec = BackupSpec(
            workload=uuid4(),
            workload_name=machine.name,
            point=uuid4(),
            source=BackupSource(
                driver="kvm", paths=[], machine=MachineSource(id=machine.id, name=machine.name, host=machine.host)
            ),
            repository=self.repository,
            host=machine.name,
            snapshot_paths=[f"/kvm/{machine.id}"],
            tags=[],
            parent=Parent(snapshot_id=parent.snapshot_id, tree_id=parent.tree_id) if parent else None,
            platform=self.access(),
        )
        done = self.perform(spec)
        assert isinstance(done, BackupResult)
        assert self.issues.left_out == 0, self.issues.items
        return done


@pytest.mark.timeout(280)
def test_from_the_connection_test_to_the_machine_that_runs_again(
    lab: Lab, protected: Callable[..., Protected], tmp_path: Path
) -> None:
    guest = protected("flow").guest
    bench = Bench(lab, tmp_path)
    bench.perform(InitSpec(repository=bench.repository))

    first = bench.perform(ProbeSpec(driver="kvm", path="", platform=bench.access(host_keys={})))
    assert isinstance(first, ProbeResult)
    assert first.host_keys[bench.address].split()[:2] == bench.key.split()[:2] and not first.checks[-1].ok
    tested = bench.perform(ProbeSpec(driver="kvm", path="", platform=bench.access()))
    assert all(check.ok for check in tested.checks), tested.checks

    assert bench.perform(DiscoverSpec(platform=bench.access())).whole
    machine = next(one for one in bench.outlet.machines if one.id == guest.uuid)
    assert machine.state == "running" and [disk.name for disk in machine.disks] == list(guest.disks)
    assert all(disk.size_bytes > 0 for disk in machine.disks), machine.disks

    full = bench.back_up(machine)
    again = bench.back_up(machine, full)
    assert again.parent_id == full.snapshot_id
    assert again.read_bytes < full.read_bytes, (again, full, bench.said)

    order = MachineTarget(name="flow-back", start=True, storage=f"{lab.folder}/scratch")
    spec = RestoreSpec(
        workload_name="flow", repository=bench.repository, snapshot_id=again.snapshot_id,
        target=RestoreTarget(driver="kvm", path="", format="", machine=order), platform=bench.access(),
        machine_id=machine.id,
    )  # fmt: skip
    done = bench.perform(spec)
    assert isinstance(done, RestoreResult) and "running" in done.target, (done, bench.issues.items)
    assert lab.virsh("domstate", "flow-back").strip() == "running"
    lab.virsh("destroy", "flow-back")
    lab.virsh("undefine", "flow-back")
