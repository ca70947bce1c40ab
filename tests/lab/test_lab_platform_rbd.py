"""The whole way of an image of a real cluster, by the tasks that a node runs: test, look, back up, bring back."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_agent.drivers.ceph.cluster import CephMissing
from node_agent.errors import TargetExists
from node_agent.protocol import MachineTarget, PlatformAccess
from tests.lab import ceph
from tests.lab.platform_bench import Bench
from tests.lab.rbd_world import World
from tests.repository.data_world import MIB


@pytest.fixture
def bench(world: World, tmp_path: Path) -> Bench:
    access = PlatformAccess(
        kind="rbd",
        addresses=[f"127.0.0.1:{world.state.mon_port}"],
        user="brs",
        options={"fsid": world.state.fsid, "pools": ceph.RBD_POOL},
        secrets={"key": world.state.keys["brs"]},
    )
    return Bench(tmp_path, access)


def test_from_the_connection_test_to_the_image_that_is_there_again(world: World, bench: Bench) -> None:
    tested = bench.probe()
    assert all(check.ok for check in tested.checks), tested.checks
    wrong = bench.probe(options={"fsid": "4dea22b3-1d52-d8f3-2516-782e98ab3fa0", "pools": ceph.RBD_POOL})
    assert not wrong.checks[-1].ok

    name = world.image()
    machine = bench.discover()[name]
    assert machine.disks[0].size_bytes == 40 * MIB
    full = bench.back_up(machine)
    world.guest(name, ["write", 7 * MIB, 100_000, 9])
    again = bench.back_up(machine, full)
    # A small disk is compared as a whole, so what is read says nothing here.
    assert again.parent_id == full.snapshot_id and again.new_bytes <= 2 * MIB, (again, bench.said)
    assert "tracking-not-used" not in {issue.code for issue in bench.issues.items}

    truth = world.exported(name)
    done = bench.restore(machine, again, MachineTarget(name=f"{name}-back"))
    assert done.target == f"rbd:{ceph.RBD_POOL}/{name}-back"
    assert world.exported(f"{name}-back") == truth
    with pytest.raises(TargetExists):
        bench.restore(machine, again, MachineTarget(name=f"{name}-back"))


def test_what_is_kept_is_told_and_removed_and_the_owner_may_delete_the_image(world: World, bench: Bench) -> None:
    name = world.image(8 * MIB)
    machine = bench.discover()[name]
    world.lab.rbd("snap", "create", "--no-progress", f"rbd/{name}@manual")
    world.lab.rbd("snap", "create", "--no-progress", f"rbd/{name}@brs-11111111-4")
    full = bench.back_up(machine)
    assert full.kept == [f"rbd/{name}@brs-{bench.mark}-1"]
    assert bench.traces(name) == {"11111111": [f"rbd/{name}@brs-11111111-4"], bench.mark: full.kept}
    assert bench.remove_traces(machine).removed == full.kept
    assert bench.remove_traces(machine).removed == []
    assert set(world.snapshots(name)) == {"manual", "brs-11111111-4"}
    world.guest(name, ["write", 3 * MIB, 100_000, 9])
    again = bench.back_up(machine, full)
    assert "tracking-not-used" in {issue.code for issue in bench.issues.items}
    assert bench.content(again, "image") == world.export(name).read_bytes()
    assert bench.remove_traces(machine).removed == again.kept
    for snapshot in ("manual", "brs-11111111-4"):
        world.lab.rbd("snap", "rm", "--no-progress", f"rbd/{name}@{snapshot}")
    world.lab.rbd("rm", "--no-progress", f"rbd/{name}")  # nothing of ours keeps it
    assert bench.remove_traces(machine).gone


def test_a_kept_snapshot_is_removed_by_rbd_alone_and_a_deleted_image_is_no_longer_found(
    world: World, bench: Bench
) -> None:
    """The commands that docs/platform-ceph.md gives for removing traces."""
    name = world.image(8 * MIB)
    machine = bench.discover()[name]
    full = bench.back_up(machine)
    with pytest.raises(ceph.LabError, match="image has snapshots"):
        world.lab.rbd("rm", "--no-progress", f"rbd/{name}")
    for snapshot in world.snapshots(name):
        assert snapshot.startswith("brs-")
        world.lab.rbd("snap", "rm", "--no-progress", f"rbd/{name}@{snapshot}")
    again = bench.back_up(machine, full)  # nothing breaks: all is read
    assert "tracking-not-used" in {issue.code for issue in bench.issues.items} and again.new_bytes < 64 << 10
    for snapshot in world.snapshots(name):
        world.lab.rbd("snap", "rm", "--no-progress", f"rbd/{name}@{snapshot}")
    world.lab.rbd("rm", "--no-progress", f"rbd/{name}")
    assert name not in bench.discover()
    with pytest.raises(CephMissing, match="There is no image"):
        bench.back_up(machine, again)
