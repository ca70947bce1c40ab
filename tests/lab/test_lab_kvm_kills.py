"""qemu, the node, sshd and libvirtd are killed at random moments of a backup: the next runs heal, and nothing is left.

BRS_KILLS says how many rounds (4: one of each), BRS_KILLS_SEED makes the moments of an earlier run again. Not in CI.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pytest

from node_agent.drivers.libvirt.errors import JobLost
from tests.lab.kvm_node import Node
from tests.lab.kvm_world import MARK, Protected, footprint
from tests.lab.libvirt import wait
from tests.repository.data_world import MIB

ROUNDS = int(os.environ.get("BRS_KILLS") or 4)
SEED = int(os.environ.get("BRS_KILLS_SEED") or random.SystemRandom().randrange(1 << 32))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 120 * ROUNDS)]
_WRITES = (
    "while :; do dd if=/dev/urandom of=/data/busy bs=64k count=16 seek=$((i % 8 * 16)) conv=notrunc; sync; "
    "i=$((i + 1)); sleep 0.5; done"
)


def kill_qemu(one: Protected, _node: subprocess.Popen[str], _rng: random.Random) -> None:
    one.lab.shell(f"kill -9 $(cat /run/libvirt/qemu/{one.guest.name}.pid)")


def kill_node(_one: Protected, node: subprocess.Popen[str], _rng: random.Random) -> None:
    node.kill()


def kill_sshd(one: Protected, _node: subprocess.Popen[str], rng: random.Random) -> None:
    """The processes of all connections, and every other time the daemon too, which is then started again."""
    daemon = "$(cat /run/sshd.pid)" if (both := rng.random() < 0.5) else ""
    one.lab.shell(f"kill -9 {daemon} $(pgrep -f '[s]shd: [^/]') 2>/dev/null || :")
    if both:
        one.lab.start_again("sshd")


def kill_libvirtd(one: Protected, _node: subprocess.Popen[str], _rng: random.Random) -> None:
    """It is started again at once, as the system's service manager does."""
    one.lab.shell("kill -9 $(cat /run/libvirtd.pid)")
    one.lab.start_again("libvirtd")


VICTIMS: list[Callable[[Protected, subprocess.Popen[str], random.Random], None]] = [
    kill_qemu, kill_node, kill_sshd, kill_libvirtd,
]  # fmt: skip


def test_the_next_runs_heal_after_a_kill_at_any_moment(
    protected: Callable[..., Protected], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = protected("kills")
    (one.folder / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(one.folder / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it is asked for again
    node, rng = Node(one), random.Random(SEED)
    print(f"\nBRS_KILLS={ROUNDS} BRS_KILLS_SEED={SEED}")
    keep_writing(one)
    one.back_up()
    takes_s = node.seconds()
    before = all_that_could_be_left(one)
    for number in range(ROUNDS):
        if number % len(VICTIMS) == 0:
            rng.shuffle(VICTIMS)
        victim, moment = VICTIMS[number % len(VICTIMS)], rng.uniform(0, takes_s)
        with node.running() as process:
            time.sleep(moment)  # not to wait for something: the moment is what is tried
            victim(one, process, rng)
        told = node.said or "killed" if node.code else "made its point all the same"
        print(f"{number + 1}: {victim.__name__} after {moment:.2f} of {takes_s:.2f} s: {told}", flush=True)
        takes_s = heals(one, before)
        if victim is kill_qemu:
            keep_writing(one)
    one.guest.destroy()
    check_chain(one)


def heals(one: Protected, before: dict[str, Any]) -> float:
    """The next run succeeds, its point is right, and the one after it is an increment: seconds that this took."""
    wait(lambda: _libvirt_answers(one), "libvirtd")
    if one.guest.state == "shut off":
        check_chain(one)
        one.guest.start()
    assert one.guest.state == "running"
    try:
        first = one.back_up_with_copies("healed")
    except JobLost:
        cure_as_documented(one)
        first = one.back_up_with_copies("healed")
    assert all_that_could_be_left(one) == before, first.issues
    one.assert_equals_copies(first)
    began = time.monotonic()
    second = one.back_up()
    took_s = time.monotonic() - began
    assert not {"tracking-lost", "tracking-not-possible"} & second.codes, second.issues
    assert second.result.read_bytes < 64 * MIB
    assert all_that_could_be_left(one) == before, second.issues
    print(f"   next run: {'; '.join(i.message for i in first.issues if i.code != 'not-frozen') or 'an increment'}")
    return took_s


def cure_as_documented(one: Protected) -> None:
    """libvirt 9.0 keeps a job that it lost for as long as qemu runs; without systemd, what the page says is this."""
    print("   libvirt has lost the job: its record is removed, as docs/platform-kvm.md says")
    one.lab.virsh("resume", one.guest.uuid)
    one.lab.shell(
        "kill $(cat /run/libvirtd.pid); while kill -0 $(cat /run/libvirtd.pid) 2>/dev/null; do sleep 0.1; done; "
        "sed -i \"s/<job type='none' async='backup'.*>/<job type='none' async='none'\\/>/\" "
        f"/run/libvirt/qemu/{one.guest.name}.xml"
    )
    one.lab.start_again("libvirtd")
    wait(lambda: _libvirt_answers(one), "libvirtd")


def all_that_could_be_left(one: Protected) -> dict[str, Any]:
    """On the hypervisor, inside of qemu, in the repository and on the node. Of bitmaps one is to be there."""
    bitmaps = [bitmap for node in _qmp(one, "query-named-block-nodes") for bitmap in node.get("dirty-bitmaps", [])]
    ours = {bitmap["name"] for bitmap in bitmaps if bitmap["name"].startswith(f"brs-{MARK}-")}
    return {
        **footprint(one.lab, one.guest),
        "bitmaps": (len(ours), len(bitmaps)),
        "jobs of qemu": _qmp(one, "query-block-jobs"),
        "exports of qemu": _qmp(one, "query-block-exports"),
        "nodes of qemu": sorted((node["drv"], node["file"]) for node in _qmp(one, "query-named-block-nodes")),
        "images": sorted(path.name for path in (one.lab.folder / "images").iterdir()),
        "locks": sorted(path.name for path in (one.folder / "repo/locks").iterdir()),
        "journal": sorted(path.name for path in (one.folder / "state").iterdir()),
        "tunnels": sorted(path.name for path in (one.folder / "tmp").iterdir()),
    }


def _qmp(one: Protected, command: str) -> list[dict[str, Any]]:
    answer = one.lab.virsh("qemu-monitor-command", one.guest.uuid, json.dumps({"execute": command}))
    return list(json.loads(answer)["return"])


def check_chain(one: Protected) -> None:
    """Clusters that a killed qemu leaked take space; anything else is damage."""
    for image in one.guest.disks.values():
        done = one.lab.shell(f"qemu-img check -q --output=json {image} || [ $? = 3 ]")
        assert "corruptions" not in done, done


def keep_writing(one: Protected) -> None:
    command = ["-c", f"({_WRITES}) >/dev/null 2>&1 &"]
    one.guest.agent({"execute": "guest-exec", "arguments": {"path": "/bin/sh", "arg": command}})


def _libvirt_answers(one: Protected) -> bool:
    try:
        return bool(one.guest.state)
    except subprocess.CalledProcessError:
        return False
