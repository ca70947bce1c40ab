"""virtnbdbackup, the real one, on the same machine between our runs: neither tool's chain suffers from the other's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contracts.backend_peers import needed
from tests.lab.kvm_world import MARK, Protected, footprint
from tests.repository.data_world import MIB

pytestmark = pytest.mark.slow


class Virtnbdbackup:
    """Run on the hypervisor; its backups and checkpoints are one chain in one folder."""

    def __init__(self, one: Protected) -> None:
        needed("virtnbdbackup", "virtnbdrestore")
        self.one = one
        self.folder = one.folder / "theirs"

    def back_up(self, level: str) -> None:
        name = self.one.guest.name
        self.one.lab.shell(
            f"virtnbdbackup -n -d {name} -l {level} -o {self.folder} -S {self.one.lab.folder}/scratch 2>&1"
        )

    @property
    def checkpoints(self) -> list[str]:
        return self.one.lab.virsh("checkpoint-list", self.one.guest.uuid, "--name").split()

    def assert_equals(self, until: int, copy: Path) -> None:
        out = self.one.folder / f"theirs-{until}"
        log = f"-L {self.one.folder}/restore.log"
        self.one.lab.shell(f"virtnbdrestore -n -i {self.folder} -o {out} --until virtnbdbackup.{until} {log} 2>&1")
        [image] = out.glob(f"*{self.one.guest.disks['vda'].suffix}")
        words = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(image), str(copy)]
        compared = subprocess.run(words, capture_output=True, text=True)
        assert compared.returncode == 0, compared.stdout + compared.stderr


@pytest.mark.timeout(400)
def test_both_tools_in_turns_on_one_machine_keep_their_chains(protected: Callable[..., Protected]) -> None:
    one = protected("beside")
    theirs = Virtnbdbackup(one)
    before = footprint(one.lab, one.guest)
    for number in range(3):
        one.guest.run(f"dd if=/dev/urandom of=/data/file-{number} bs=1M count=3 2>/dev/null && sync")
        one.lab.virsh("suspend", one.guest.uuid)  # one instant for both, and for the copy that judges them
        copy = one._copy("vda", f"both-{number}")
        if number == 1:
            theirs.back_up("inc")  # now and then they come first
        ours = one.back_up()
        if number != 1:
            theirs.back_up("inc" if number else "full")
        one.lab.virsh("resume", one.guest.uuid)
        assert "tracking-lost" not in ours.codes and (not number or ours.result.read_bytes < 32 * MIB), ours
        assert theirs.checkpoints == [f"virtnbdbackup.{index}" for index in range(number + 1)]
        ours.instant_copies = {"vda": copy}
        theirs.assert_equals(number, copy)
        one.assert_equals_copies(ours)
        increments = [file.stat().st_size for file in theirs.folder.glob("vda.inc.*.data")]
        assert len(increments) == number and all(size < 32 * MIB for size in increments), increments
    assert {**footprint(one.lab, one.guest), "checkpoints": []} == before

    one.driver.remove_traces(one.guest.uuid, MARK)
    assert len(theirs.checkpoints) == 3
    theirs.back_up("inc")  # and theirs goes on when we are gone
    assert len(theirs.checkpoints) == 4
