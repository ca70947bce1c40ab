"""A node's tasks on a platform of the lab, without a server: test, look, back up, bring back."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from node_agent.config import RootsConfig
from node_agent.guard import Guard
from node_agent.progress import Progress
from node_agent.protocol import (
    BackupResult,
    BackupSource,
    BackupSpec,
    Commands,
    DiscoverSpec,
    InitSpec,
    MachineFacts,
    MachineSource,
    MachineTarget,
    Parent,
    PlatformAccess,
    ProbeResult,
    ProbeSpec,
    RemoveTracesResult,
    RemoveTracesSpec,
    RepositoryAccess,
    RestoreResult,
    RestoreSpec,
    RestoreTarget,
)
from node_agent.repository.backend import open_backend
from node_agent.repository.lock import LockHolder
from node_agent.repository.random_access import RandomAccess
from node_agent.repository.repository import Repository
from node_agent.tasks.context import TaskContext
from node_agent.tasks.dispatch import perform

STEP = 8 << 20


class Outlet:
    def __init__(self) -> None:
        self.machines: list[MachineFacts] = []

    def directories_wanted(self, _tree_ids: list[str]) -> list[str]:
        return []

    def found(self, machines: list[MachineFacts]) -> None:
        self.machines += machines


class Bench:
    """Makes a repository in ``folder``, which is also the node's state."""

    def __init__(self, folder: Path, access: PlatformAccess) -> None:
        self.folder, self.access = folder, access
        self.outlet = Outlet()
        self.said: list[str] = []
        self.repository = RepositoryAccess(repository=uuid4(), url=str(folder / "node-repo"), password="of the lab")
        self.mark: str = self.perform(InitSpec(repository=self.repository)).repository_id[:8]

    def perform(self, spec: Any) -> Any:
        context = TaskContext(
            task_id=uuid4(),
            guard=Guard(RootsConfig(repositories=[str(self.folder)], platforms=[f"{self.access.kind}:"])),
            progress=Progress(log=lambda level, text: self.said.append(f"{level}: {text}")),
            outlet=self.outlet,  # type: ignore[arg-type]
            holder=LockHolder("lab"),
            cache_dir=self.folder / "cache",
            staging_dir=self.folder / "staging",
            state_dir=self.folder / "node-state",
        )
        done = perform(context, spec)
        self.issues = context.issues
        return done

    def probe(self, **facts: Any) -> ProbeResult:
        access = self.access.model_copy(update=facts)
        done = self.perform(ProbeSpec(driver=access.kind, path="", platform=access))
        assert isinstance(done, ProbeResult)
        return done

    def discover(self, *, thorough: bool = False) -> dict[str, MachineFacts]:
        """By name."""
        self.outlet.machines.clear()
        assert self.perform(DiscoverSpec(platform=self.access, thorough=thorough)).whole
        return {machine.name: machine for machine in self.outlet.machines}

    def back_up(
        self, machine: MachineFacts, parent: BackupResult | None = None, commands: Commands | None = None
    ) -> BackupResult:
        spec = BackupSpec(
            workload=uuid4(),
            workload_name=machine.name,
            point=uuid4(),
            source=BackupSource(
                driver=self.access.kind,
                paths=[],
                machine=MachineSource(id=machine.id, name=machine.name, host=machine.host),
            ),
            repository=self.repository,
            host="as-found-first",
            snapshot_paths=[f"/{self.access.kind}/{machine.id}"],
            tags=[],
            parent=Parent(snapshot_id=parent.snapshot_id, tree_id=parent.tree_id) if parent else None,
            platform=self.access,
            commands=commands,
        )
        done = self.perform(spec)
        assert isinstance(done, BackupResult)
        assert self.issues.left_out == 0, self.issues.items
        return done

    def traces(self, name: str, *, thorough: bool = True) -> dict[str, list[str]]:
        """Of a machine, by whose they are."""
        return {one.owner: one.names for one in self.discover(thorough=thorough)[name].traces or []}

    def remove_traces(self, machine: MachineFacts, **facts: Any) -> RemoveTracesResult:
        source = MachineSource(id=machine.id, name=machine.name, host=machine.host)
        spec = RemoveTracesSpec(platform=self.access, machine=source, marks=[self.mark], **facts)
        done = self.perform(spec)
        assert isinstance(done, RemoveTracesResult)
        return done

    def content(self, point: BackupResult, disk: str) -> bytes:
        """Of the disk in the repository."""
        where = self.repository
        with Repository.open(open_backend(where.url), where.password) as repo, repo.lock():
            repo.load_index()
            with RandomAccess(repo) as access:
                reader = access.open(point.snapshot_id, f"/disks/{disk}.raw".encode())
                return b"".join(
                    reader.read(offset, min(STEP, reader.size - offset)) for offset in range(0, reader.size, STEP)
                )

    def restore(
        self, machine: MachineFacts, point: BackupResult, order: MachineTarget, *, overwrite: bool = False
    ) -> RestoreResult:
        allowed = "always" if overwrite else "never"
        target = RestoreTarget(driver=self.access.kind, path="", format="", machine=order, overwrite=allowed)
        spec = RestoreSpec(
            workload_name=machine.name,
            repository=self.repository,
            snapshot_id=point.snapshot_id,
            target=target,
            platform=self.access,
            machine_id=machine.id,
        )
        done = self.perform(spec)
        assert isinstance(done, RestoreResult)
        return done
