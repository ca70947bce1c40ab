"""Prune and the rolling verification as tasks: what they free, what they find, and what they say."""

from __future__ import annotations

import random
from collections.abc import Callable

from node_agent.protocol import ForgetSpec, PruneResult, PruneSpec, VerifyResult, VerifySpec
from node_agent.worker import Worker
from tests.node_agent.nodes import Place, done_well, ready, restic
from tests.node_agent.server_double import ServerDouble

Start = Callable[..., Worker]


def packs(place: Place) -> list:
    return sorted(path for path in (place.repository / "data").rglob("*") if path.is_file())


def backed_up(server: ServerDouble, place: Place, dice: random.Random) -> str:
    ready(server, place)
    place.fill(dice)
    task = done_well(server, server.add(place.backup()))
    return str(task.result.result.snapshot_id)


def test_what_was_forgotten_is_given_back_and_told(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random
) -> None:
    start()
    first = backed_up(server, enrolled, dice)
    for file in enrolled.source.rglob("f*"):
        if file.is_file():
            file.write_bytes(dice.randbytes(50_000))
    second = done_well(server, server.add(enrolled.backup())).result.result.snapshot_id
    done_well(server, server.add(ForgetSpec(repository=enrolled.access(), snapshot_ids=[first])))
    before = sum(path.stat().st_size for path in packs(enrolled))

    task = done_well(server, server.add(PruneSpec(repository=enrolled.access(), max_duration_s=600)))
    result = task.result.result
    assert isinstance(result, PruneResult)
    after = sum(path.stat().st_size for path in packs(enrolled))
    assert result.freed_bytes > 1_000_000 and abs(before - after - result.freed_bytes) < 100_000
    assert result.stored_bytes == after
    assert any("MiB freed" in line.message for line in task.log.values())
    checked = restic(enrolled, "check", "--read-data")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert second[:8] in restic(enrolled, "snapshots").stdout


def test_a_prune_beside_which_a_snapshot_vanished_removes_nothing_and_says_which(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random
) -> None:
    start()
    snapshot = backed_up(server, enrolled, dice)
    before = packs(enrolled)
    (enrolled.repository / "snapshots" / snapshot).unlink()
    task = server.add(PruneSpec(repository=enrolled.access(), expected=[snapshot]))
    error = server.wait(task).failure
    assert error is not None
    assert (error.code, snapshot[:8] in error.message) == ("snapshots-missing", True)
    assert "Find out why" in error.hint
    assert packs(enrolled) == before


def test_a_share_rolls_over_all_data_and_the_debt_goes_to_nothing(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random
) -> None:
    start()
    backed_up(server, enrolled, dice)
    debts = []
    for _ in range(12):
        spec = VerifySpec(repository=enrolled.access(), read_data=True, share=0.3, cycle_s=86_400)
        result = done_well(server, server.add(spec)).result.result
        assert isinstance(result, VerifyResult) and not result.complete and not result.errors
        debts.append(result.debt_bytes)
        if result.debt_bytes == 0:
            break
    assert (
        debts == sorted(debts, reverse=True)
        and debts[-1] == 0
        and debts[0] < sum(path.stat().st_size for path in packs(enrolled))
    )


def test_a_damaged_pack_names_the_files_that_it_hurts(
    server: ServerDouble, enrolled: Place, start: Start, dice: random.Random
) -> None:
    start()
    snapshot = backed_up(server, enrolled, dice)
    (enrolled.source / "added").write_bytes(dice.randbytes(400_000))
    known = set(packs(enrolled))
    newer = done_well(server, server.add(enrolled.backup())).result.result.snapshot_id
    data = max(set(packs(enrolled)) - known, key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[1000] ^= 0xFF
    data.chmod(0o600)
    data.write_bytes(content)

    task = server.add(VerifySpec(repository=enrolled.access(), read_data=True, cycle_s=86_400))
    result = done_well(server, task).result.result
    assert isinstance(result, VerifyResult)
    assert result.damaged_snapshots == [newer] and snapshot not in result.damaged_paths
    (path,) = result.damaged_paths[newer]
    assert path == f"{enrolled.source}/added"
    assert result.complete and result.debt_bytes >= data.stat().st_size
    # The damaged pack is proven nowhere, so the next share begins with it.
    again = VerifySpec(repository=enrolled.access(), read_data=True, share=0.01, cycle_s=86_400)
    assert done_well(server, server.add(again)).result.result.damaged_snapshots == [newer]
