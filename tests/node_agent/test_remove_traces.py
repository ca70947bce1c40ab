"""The task that removes what backups of a machine keep on its platform, and what is told of that before."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from node_agent.errors import BrsError, RefusedError, SourceError
from node_agent.protocol import (
    LEASE_CLASS,
    DiscoverSpec,
    LeaseClass,
    MachineSource,
    RemoveTracesResult,
    RemoveTracesSpec,
    TaskKind,
    owner_of,
)
from node_agent.tasks.dispatch import perform
from node_agent.worker import Worker
from tests.node_agent.machine_double import access
from tests.node_agent.server_double import ServerDouble
from tests.node_agent.test_machines import UUID, Bench, Outlet, bench

__all__ = ["bench"]  # a fixture
MACHINE = MachineSource(id=UUID, name="web01")


def removed(bench: Bench, *marks: str, **facts: bool) -> RemoveTracesResult:
    done = perform(bench.context(), RemoveTracesSpec(platform=access(), machine=MACHINE, marks=list(marks), **facts))
    assert isinstance(done, RemoveTracesResult)
    return done


def test_a_backup_tells_what_it_keeps_and_the_task_removes_that_and_nothing_of_others(bench: Bench) -> None:
    first = bench.backup()
    assert first.kept == ["ck-1"]
    mark, vm = bench.there.requests[0].mark, bench.there.vms[UUID]
    vm.dirty["theirs"], vm.marks["theirs"] = {"vda": set(), "vdb": set()}, "11111111"
    assert removed(bench, mark) == RemoveTracesResult(removed=["ck-1"])
    assert set(vm.dirty) == {"theirs"}
    assert removed(bench, mark) == RemoveTracesResult(removed=[]), "again does no harm"
    again = bench.backup(first)
    assert again.kept == ["ck-2"] and again.read_bytes >= first.read_bytes, "the next one reads everything"
    assert bench.restore(again, "back") and bench.disks("back")["vdb"] == bytes(vm.disks["vdb"])


def test_a_machine_that_is_gone_has_nothing_left_and_a_platform_that_refuses_fails_the_task(bench: Bench) -> None:
    vm = bench.there.vms.pop(UUID)
    assert removed(bench, "22222222", "33333333").gone
    assert any("nothing left" in line for line in bench.said)
    bench.there.vms[UUID] = vm
    bench.there.refuses = SourceError("The host does not answer.")
    with pytest.raises(BrsError, match="does not answer"):
        removed(bench, "22222222")
    bench.allowed = []
    with pytest.raises(RefusedError):
        removed(bench, "22222222")


def test_what_is_to_be_removed_is_said_to_the_driver(bench: Bench) -> None:
    removed(bench, "22222222", bitmaps=False)
    removed(bench, "22222222", snapshots=False)
    assert bench.there.removals == [(UUID, "22222222", False, True), (UUID, "22222222", True, False)]


def test_a_look_tells_whose_traces_each_machine_bears(bench: Bench) -> None:
    bench.backup()
    context = bench.context()
    perform(context, DiscoverSpec(platform=access()))
    perform(context, DiscoverSpec(platform=access(), thorough=True))
    assert bench.there.thorough == [False, True]
    assert isinstance(context.outlet, Outlet)
    [told] = context.outlet.machines[0].traces or []
    assert (told.owner, told.names) == (bench.there.requests[0].mark, ["ck-1"])


def test_a_node_at_work_removes_for_its_server(
    bench: Bench, server: ServerDouble, start: Callable[..., Worker]
) -> None:
    config = bench.place.state / "node.toml"
    config.write_text(config.read_text().replace("[roots]\n", '[roots]\nplatforms = ["kvm:"]\n'))
    bench.backup()
    start()
    mark = bench.there.requests[0].mark
    done = server.wait(server.add(RemoveTracesSpec(platform=access(), machine=MACHINE, marks=[mark])))
    assert done.state == "succeeded" and done.result is not None
    assert done.result.result == RemoveTracesResult(removed=["ck-1"]) and not bench.there.vms[UUID].dirty


def test_removing_stops_before_its_lease_ends_and_a_hashed_owner_never_changes() -> None:
    assert LEASE_CLASS[TaskKind.REMOVE_TRACES] is LeaseClass.EXCLUSIVE
    assert owner_of("0123abcd", "fsid/vms/group:web") == "4e2e7d48"
