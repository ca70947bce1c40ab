"""Machines go from a platform into the repository and back, increments are right, and every misbehaviour has an end."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import uuid4

import pytest

from node_agent.config import RootsConfig
from node_agent.errors import BrsError, Cancelled, RefusedError, SourceError, SourceMissing, TargetExists
from node_agent.guard import Guard
from node_agent.items import Issue
from node_agent.progress import Progress
from node_agent.protocol import (
    BackupResult,
    BackupSource,
    BackupSpec,
    Directory,
    DiscoverResult,
    DiscoverSpec,
    MachineFacts,
    MachineSource,
    MachineTarget,
    Parent,
    ProbeResult,
    ProbeSpec,
    RestoreResult,
    RestoreTarget,
    TaskKind,
)
from node_agent.repository.lock import LockHolder
from node_agent.task_log import TaskLog
from node_agent.task_report import progress_report
from node_agent.tasks import sources
from node_agent.tasks.context import TaskContext
from node_agent.tasks.dispatch import perform
from node_agent.worker import Worker
from tests.node_agent.machine_double import KEY, Hypervisor, Vm, access
from tests.node_agent.nodes import Place, restic
from tests.node_agent.server_double import ServerDouble

UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
MIB = 1 << 20


class Outlet:
    def __init__(self) -> None:
        self.machines: list[MachineFacts] = []
        self.pieces = 0

    def directories_wanted(self, tree_ids: list[str]) -> list[str]:
        return tree_ids

    def send_directories(self, directories: list[Directory]) -> None:
        pass

    def upload(self, offset: int, piece: bytes) -> None:
        pass

    def found(self, machines: list[MachineFacts]) -> None:
        self.pieces += 1
        self.machines += machines


@dataclass
class Bench:
    place: Place
    there: Hypervisor
    allowed: list[str] = field(default_factory=lambda: ["kvm:"])
    said: list[str] = field(default_factory=list)

    def context(self, **facts: object) -> TaskContext:
        roots = RootsConfig(repositories=[str(self.place.repositories)], platforms=self.allowed)
        told: dict[str, object] = {
            "task_id": uuid4(),
            "guard": Guard(roots, own=[]),
            "progress": Progress(log=lambda level, text: self.said.append(f"{level}: {text}")),
            "outlet": Outlet(),
            "holder": LockHolder("node"),
            "cache_dir": self.place.base / "cache",
            "staging_dir": self.place.base / "staging",
        }
        return TaskContext(**{**told, **facts})  # type: ignore[arg-type]

    def backup_spec(self, parent: BackupResult | None = None, **machine: object) -> BackupSpec:
        source = MachineSource.model_validate({"id": UUID, "name": "web01", **machine})
        return BackupSpec(
            workload=self.place.workload,
            workload_name="web01",
            point=uuid4(),
            source=BackupSource(driver="kvm", paths=[], machine=source),
            repository=self.place.access(),
            host="web01",
            snapshot_paths=[f"/kvm/{UUID}"],
            tags=[],
            parent=Parent(snapshot_id=parent.snapshot_id, tree_id=parent.tree_id) if parent else None,
            platform=access(),
        )

    def backup(
        self, parent: BackupResult | None = None, context: TaskContext | None = None, **machine: object
    ) -> BackupResult:
        done = perform(context or self.context(), self.backup_spec(parent, **machine))
        assert isinstance(done, BackupResult)
        return done

    def restore(
        self, point: BackupResult, name: str, context: TaskContext | None = None, **more: object
    ) -> RestoreResult:
        target = RestoreTarget(driver="kvm", path=name, machine=MachineTarget(name=name, start=True))
        told = {"target": target.model_dump(), "platform": access(), "machine_id": UUID, **more}
        spec = self.place.restore(point.snapshot_id, **told)
        done = perform(context or self.context(), spec)
        assert isinstance(done, RestoreResult)
        return done

    def disks(self, name: str) -> dict[str, bytes]:
        return {disk: bytes(data) for disk, data in self.there.vms[f"new-{name}"].disks.items()}


@pytest.fixture
def bench(place: Place, monkeypatch: pytest.MonkeyPatch, dice: random.Random) -> Bench:
    there = Hypervisor()
    monkeypatch.setitem(sources.PLATFORMS, "kvm", there.driver())
    there.vms[UUID] = Vm(
        "web01",
        {
            "vda": bytearray(dice.randbytes(5 * MIB) + bytes(7 * MIB) + dice.randbytes(MIB + 512)),
            "vdb": bytearray(dice.randbytes(3 * MIB)),
        },
    )
    bench = Bench(place, there)
    perform(bench.context(), place.init())
    return bench


def test_a_machine_comes_back_disk_by_disk_and_increments_read_only_what_changed(
    bench: Bench, dice: random.Random
) -> None:
    vm = bench.there.vms[UUID]
    states = [{name: bytes(data) for name, data in vm.disks.items()}]
    points = [bench.backup()]
    assert points[0].files == 2 and points[0].size_bytes == 16 * MIB + 512
    for _ in range(3):
        for _ in range(2):
            disk = dice.choice(list(vm.disks))
            vm.write(disk, dice.randrange(len(vm.disks[disk]) - 5000), dice.randbytes(5000))
        states.append({name: bytes(data) for name, data in vm.disks.items()})
        points.append(bench.backup(points[-1]))
        assert points[-1].parent_id == points[-2].snapshot_id
        assert points[-1].new_bytes <= 4 * MIB, "an increment stores the blocks that changed"
    assert all(len(request.mark) == 8 for request in bench.there.requests)
    assert list(vm.dirty) == ["ck-4"], "each acknowledged point drops the tracked state of the one before"
    for number, point in enumerate(points):
        done = bench.restore(point, f"back{number}")
        assert bench.disks(f"back{number}") == states[number]
        assert done.target == f"back{number}, running" and done.files == 2
    assert restic(bench.place, "check", "--read-data").returncode == 0


def test_the_driver_is_told_the_whole_of_what_it_may_build_upon(bench: Bench) -> None:
    first = bench.backup()
    bench.backup(first)
    assert bench.there.given[0] is None
    previous = bench.there.given[1]
    assert previous is not None and set(previous.metadata) == {"vm.json", "checkpoint"}
    base = previous.bases["vda"]
    assert (base.snapshot, base.tree, base.disk) == (first.snapshot_id, first.tree_id, f"{UUID}/vda")
    assert base.size == len(bench.there.vms[UUID].disks["vda"]) and base.block_size == 256 << 10


def test_tracking_that_lies_is_found_out_and_everything_is_read(bench: Bench, dice: random.Random) -> None:
    first = bench.backup()
    vm = bench.there.vms[UUID]
    for number in range(len(vm.disks["vda"]) // MIB):
        vm.write("vda", number * MIB, dice.randbytes(MIB))
    bench.there.lies = True
    second = bench.backup(first)
    bench.restore(second, "back")
    assert bench.disks("back")["vda"] == bytes(vm.disks["vda"])
    assert any("change tracking is wrong" in line for line in bench.said)


def test_a_failed_run_keeps_the_state_of_the_point_before(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench.backup()
    context = bench.context()
    context.progress.stop(Cancelled())
    with pytest.raises(Cancelled):
        bench.backup(first, context)
    assert list(bench.there.vms[UUID].dirty) == ["ck-1"]
    bench.there.vms[UUID].write("vdb", 0, b"written meanwhile")
    again = bench.backup(first)
    bench.restore(again, "back")
    assert bench.disks("back")["vdb"].startswith(b"written meanwhile")


def test_a_retry_adopts_what_its_forerunner_finished(bench: Bench) -> None:
    task = uuid4()
    first = bench.backup(context=bench.context(task_id=task))
    again = bench.backup(context=bench.context(task_id=task))
    assert again.adopted and again.snapshot_id == first.snapshot_id and again.files == 2
    assert len(bench.there.requests) == 1, "the machine was not touched again"


def test_an_unprotected_disk_makes_the_point_partial_unless_it_was_left_out_on_purpose(
    bench: Bench,
) -> None:
    bench.there.vms[UUID].left_out = [Issue("vdc", "disk-left-out", "The disk vdc is shared.")]
    context = bench.context()
    bench.backup(context=context)
    assert [issue.path for issue in context.issues.items if issue.code == "disk-left-out"] == ["vdc"]
    assert context.issues.left_out == 1
    on_purpose = bench.context()
    done = bench.backup(context=on_purpose, leave_out=["vdc", "vdb"])
    assert on_purpose.issues.left_out == 0 and done.files == 1


def test_a_machine_of_which_nothing_is_left_is_no_green_point(bench: Bench) -> None:
    with pytest.raises(SourceError, match="no disk"):
        bench.backup(leave_out=["vda", "vdb"])


def test_what_cannot_be_tidied_on_the_platform_does_not_cost_the_point(bench: Bench) -> None:
    bench.there.acknowledge_fails = True
    assert bench.backup().snapshot_id
    assert any("could not be removed" in line for line in bench.said)


def test_one_disk_can_be_restored_alone(bench: Bench) -> None:
    point = bench.backup()
    done = bench.restore(point, "one", include=["/disks/vdb.raw"])
    assert set(bench.disks("one")) == {"vdb"} and done.files == 1
    with pytest.raises(BrsError, match="none of the chosen"):
        bench.restore(point, "none", include=["/disks/vdx.raw"])


def test_a_restore_that_breaks_and_one_that_would_replace_fail_with_the_reason(bench: Bench) -> None:
    point = bench.backup()
    with pytest.raises(TargetExists):
        bench.restore(point, "web01")
    bench.there.breaks_after = 4 * MIB
    with pytest.raises(SourceError, match="broke"):
        bench.restore(point, "half")
    assert "new-half" not in bench.there.vms
    context = bench.context()
    context.progress.stop(Cancelled())
    with pytest.raises(Cancelled):
        bench.restore(point, "stopped", context)


def test_each_disks_progress_is_told(bench: Bench) -> None:
    context = bench.context()
    bench.backup(context=context)
    report = progress_report("t", context.progress.counters, 0, TaskLog())
    assert [(part.name, part.total_bytes, part.done_bytes) for part in report.parts] == [
        ("vda", 13 * MIB + 512, 13 * MIB + 512),
        ("vdb", 3 * MIB, 3 * MIB),
    ]
    half = Progress()
    half.set(parts=(("a", 10), ("b", 10)), done_bytes=13)
    assert half.counters.done_of_parts == [10, 3]


@pytest.mark.parametrize(
    "error", [SourceError("The host refused."), SourceMissing("It is gone."), TimeoutError("slow")]
)
def test_a_platform_that_refuses_vanishes_or_times_out_ends_the_task_with_words(bench: Bench, error: Exception) -> None:
    bench.there.refuses = error
    for spec in (bench.backup_spec(), DiscoverSpec(platform=access())):
        with pytest.raises(BrsError) as caught:
            perform(bench.context(), spec)
        assert caught.value.message and caught.value.hint


def test_what_lies_on_a_platform_is_told_in_pieces(bench: Bench) -> None:
    for number in range(250):
        bench.there.vms[f"id-{number}"] = Vm(f"vm{number}\x00", {"sda": bytearray(512)}, tags=["prod"])
    context = bench.context()
    done = perform(context, DiscoverSpec(platform=access()))
    assert done == DiscoverResult(found=251, whole=True)
    outlet = context.outlet
    assert isinstance(outlet, Outlet) and outlet.pieces == 3 and len(outlet.machines) == 251
    web = next(one for one in outlet.machines if one.id == UUID)
    assert [(disk.name, disk.size_bytes) for disk in web.disks] == [("vda", 13 * MIB + 512), ("vdb", 3 * MIB)]


def test_a_host_that_could_not_be_asked_makes_the_look_incomplete(bench: Bench) -> None:
    bench.there.unreachable = ["kvm2.example"]
    done = perform(bench.context(), DiscoverSpec(platform=access()))
    assert (
        isinstance(done, DiscoverResult) and not done.whole and done.problems == ["kvm2.example: It does not answer."]
    )


def _probed(bench: Bench, **facts: object) -> ProbeResult:
    done = perform(bench.context(), ProbeSpec(driver="kvm", path="", platform=access(**facts)))
    assert isinstance(done, ProbeResult)
    return done


def test_a_host_is_shown_by_its_key_before_anybody_logs_in(bench: Bench) -> None:
    done = _probed(bench, host_keys={})
    assert done.host_keys == {"kvm1.example": KEY}
    assert [check.ok for check in done.checks] == [True, False] and "confirmed" in done.checks[1].detail
    assert bench.there.logins == 0
    assert all(check.ok for check in _probed(bench).checks) and bench.there.logins == 1
    bench.there.key = KEY + "Other"
    changed = _probed(bench)
    assert "in between" in changed.checks[1].hint and bench.there.logins == 1


def test_a_probe_says_each_failure_and_its_checks_are_told_on_the_way(bench: Bench) -> None:
    bench.there.refuses = SourceError("Permission denied.", hint="Check the password.")
    context = bench.context()
    done = perform(context, ProbeSpec(driver="kvm", path="", platform=access()))
    assert isinstance(done, ProbeResult) and done.checks[-1].hint == "Check the password."
    report = progress_report("t", context.progress.counters, 0, TaskLog())
    assert [check.ok for check in report.checks] == [True, True, False]


def test_a_node_logs_in_only_where_its_own_configuration_lets_it(bench: Bench) -> None:
    bench.allowed = ["kvm:kvm2.example"]
    with pytest.raises(RefusedError, match=r"kvm:kvm1\.example") as caught:
        bench.backup()
    assert "node.toml" in caught.value.hint and not bench.there.accesses
    assert not _probed(bench).checks[0].ok
    bench.allowed = ["kvm:kvm1.example"]
    assert bench.backup().snapshot_id


def test_a_node_tells_only_the_drivers_that_it_can_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "kvm" in sources.names()
    lacking = sources.PlatformDriver(
        bench.there.driver().make, modules=("no_such_module",), programs=("no-such-program",), lacks=lambda: ["luck"]
    )
    monkeypatch.setitem(sources.PLATFORMS, "kvm", lacking)
    assert "kvm" not in sources.names()
    with pytest.raises(RefusedError, match="no_such_module") as caught:
        bench.backup()
    assert "no-such-program" in caught.value.message and "luck" in caught.value.message


def test_secrets_of_a_platform_are_in_no_text(bench: Bench) -> None:
    spec = bench.backup_spec()
    assert "canary-0815" not in repr(spec) and "canary-0815" not in str(spec.platform)
    bench.backup()
    assert not any("canary-0815" in line for line in bench.said)
    for file in bench.place.base.rglob("*"):
        assert not file.is_file() or b"canary-0815" not in file.read_bytes(), file


def test_words_of_this_version_are_read_by_the_version_before_and_its_words_by_this_one(bench: Bench) -> None:
    told = json.loads(bench.backup_spec().model_dump_json())
    for name in ("platform",):
        del told[name]
    del told["source"]["machine"]
    read = BackupSpec.model_validate({**told, "something-newer": 1})
    assert read.platform is None and read.source.machine is None and read.kind == TaskKind.BACKUP


def test_a_node_at_work_tells_its_server_what_there_is_and_of_each_disk(
    bench: Bench, server: ServerDouble, start: Callable[..., Worker]
) -> None:
    config = bench.place.state / "node.toml"
    config.write_text(config.read_text().replace("[roots]\n", '[roots]\nplatforms = ["kvm:kvm1.example"]\n'))
    for number in range(150):
        bench.there.vms[f"id-{number}"] = Vm(f"vm{number}", {"sda": bytearray(512)})
    start()
    looked = server.wait(server.add(DiscoverSpec(platform=access())))
    assert looked.state == "succeeded" and len(looked.machines) == 151
    stored = server.wait(server.add(bench.backup_spec()))
    assert stored.state == "succeeded", stored.failure
    assert stored.result is not None and stored.result.last is not None
    assert [part.name for part in stored.result.last.parts] == ["vda", "vdb"]
    refused = server.wait(server.add(DiscoverSpec(platform=access(addresses=["elsewhere.example"]))))
    assert refused.failure is not None and refused.failure.code == RefusedError.code
