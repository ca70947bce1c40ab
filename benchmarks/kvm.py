"""``make bench-kvm``: a virtual machine backed up and restored over SSH, beside virtnbdbackup, in turns in one run.

The hypervisor is the tests' own (real libvirt, qemu and sshd), the guest does nothing but hold its disks. BRS does
whole tasks of a running node: log in, open and lock the repository, begin the job, read, store, tidy up.
virtnbdbackup runs on the hypervisor itself. Writes the table into docs/benchmarks-kvm.md, between its two marks.
"""

from __future__ import annotations

import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from benchmarks import data, settings
from benchmarks.kvm_table import CHANGED_MIB, Figures
from benchmarks.settings import MIB
from node_agent.drivers.libvirt.ssh import Connection
from node_agent.drivers.libvirt.tunnel import tunnel
from node_agent.protocol import BackupResult, MachineFacts, MachineTarget, PlatformAccess
from tests.lab.kvm_world import access_to
from tests.lab.libvirt import Guest, Lab
from tests.lab.platform_bench import Bench

T = TypeVar("T")
PAGE = Path(os.environ.get("BENCH_PAGE") or settings.ROOT / "docs" / "benchmarks-kvm.md")
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"
ROUNDS = int(os.environ.get("BENCH_ROUNDS") or 3)
DATA_MIB = int(os.environ.get("BENCH_DATA_MIB") or 1740)  # 1.7 GiB
RANDOM_MIB = int(os.environ.get("BENCH_RANDOM_MIB") or 1024)  # of the disk that does not compress
PIECE_MIB = 2  # a change
SMALL = 16 << 10  # files under this would take most of the time to make the disk
STRETCH = 64 * MIB  # of data, then as much of nothing
NAME = "bench"


class Kvm:
    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder, self.figures = lab, folder, Figures()
        self.told = ""
        self.guest = self._guest(NAME, self._data_disk())
        self.noise = self._guest("noise", self._noise_disk())

    # --- what is protected ---

    def _data_disk(self) -> Path:
        """Four fifths real files, one behind the other, and random data; as much again is empty, here and there."""
        raw, rng, count, held = self.folder / "data.raw", random.Random(3), 0, 0
        with raw.open("wb") as disk:
            disk.truncate(2 * DATA_MIB * MIB)
            for path in data.real_files():
                if held >= DATA_MIB * 4 // 5 * MIB:
                    break
                if path.stat().st_size < SMALL:
                    continue
                with path.open("rb") as file:
                    shutil.copyfileobj(file, disk)
                    held += file.tell()
                disk.seek(-disk.tell() % 4096, os.SEEK_CUR)  # as a file system lays them
                if disk.tell() // STRETCH % 2:
                    disk.seek(-disk.tell() % STRETCH, os.SEEK_CUR)
                count += 1
            for _ in range(DATA_MIB - DATA_MIB * 4 // 5):
                disk.write(rng.randbytes(MIB))
        taken = raw.stat().st_blocks * 512 // MIB
        self.told = f"{taken} MiB on a disk of {2 * DATA_MIB} MiB: {count:,} real files, a fifth random"
        return self._as_qcow2(raw)

    def _noise_disk(self) -> Path:
        raw, rng = self.folder / "noise.raw", random.Random(5)
        with raw.open("wb") as file:
            for _ in range(RANDOM_MIB):
                file.write(rng.randbytes(MIB))
        return self._as_qcow2(raw)

    def _as_qcow2(self, raw: Path) -> Path:
        disk = self.lab.folder / "images" / f"{raw.stem}.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(disk)], check=True)
        raw.unlink()
        return disk

    def _guest(self, name: str, disk: Path) -> Guest:
        guest = self.lab.guest(name)
        words = ("attach-disk", guest.uuid, str(disk), "vdb", "--driver", "qemu", "--subdriver", "qcow2")
        self.lab.virsh(*words, "--config")
        guest.start()
        guest.disks["vdb"] = disk
        return guest

    def change(self, number: int) -> None:
        """Random data all over the disk, written by qemu as if by the guest, which has not mounted it."""
        rng, piece = random.Random(number), self.lab.folder / "piece"
        for place in rng.sample(range(0, DATA_MIB * 2 - PIECE_MIB, PIECE_MIB), CHANGED_MIB // PIECE_MIB):
            piece.write_bytes(rng.randbytes(PIECE_MIB * MIB))
            piece.chmod(0o644)
            write = f'qemu-io -d {self._device()} "write -s {piece} {place}M {PIECE_MIB}M"'
            self.lab.virsh("qemu-monitor-command", "--hmp", self.guest.uuid, write)

    def _device(self) -> str:
        blocks = self.lab.virsh("qemu-monitor-command", "--hmp", self.guest.uuid, "info block")
        return [line.split()[-1] for line in blocks.splitlines() if "Attached to" in line][-1]

    # --- what is measured ---

    def round(self, number: int) -> None:
        folder = self.folder / f"round-{number}"
        bench = self._bench(folder)
        machine = bench.discover()[self.guest.name]
        self.warm()
        full = self.timed("first backup", "brs", lambda: bench.back_up(machine))
        self.peer("first backup", "virtnbdbackup", f"virtnbdbackup -d {self.guest.name} -l full -n -o {folder}/peer")
        self.peer(
            "first backup", "virtnbdbackup, lz4", f"virtnbdbackup -d {self.guest.name} -l copy -z -n -o {folder}/lz4"
        )
        self.change(number)
        what = f"increment of {CHANGED_MIB} MiB"
        second = self.timed(what, "brs", lambda: bench.back_up(machine, full))
        # With the blocks around what has changed, and those that are compared with the point before.
        assert CHANGED_MIB * MIB <= second.read_bytes < 4 * CHANGED_MIB * MIB, second
        self.peer(what, "virtnbdbackup", f"virtnbdbackup -d {self.guest.name} -l inc -n -o {folder}/peer")
        self.restores(bench, machine, second, folder)
        for checkpoint in self.lab.virsh("checkpoint-list", self.guest.uuid, "--name").split():
            self.lab.virsh("checkpoint-delete", self.guest.uuid, checkpoint)
        self.figures.stored("brs", data_of(bench.folder))
        self.figures.stored("virtnbdbackup", data_of(folder / "peer"))
        shutil.rmtree(folder)

    def restores(self, bench: Bench, machine: MachineFacts, point: BackupResult, folder: Path) -> None:
        order = MachineTarget(name="brs-lab-back", storage=f"{folder}/back")
        self.timed("restore", "brs", lambda: bench.restore(machine, point, order))
        self.lab.virsh("undefine", "brs-lab-back")
        # One disk: its servers of two disks get in each other's way.
        command = f"virtnbdrestore -n -d vdb -i {folder}/peer -o {folder}/peer-back -L {folder}/log"
        self.peer("restore", "virtnbdbackup", command)
        servers = "pgrep -f '[q]emu-nbd.*peer-back'"  # which it may leave behind, and which hold what is not written
        self.lab.shell(f"kill $({servers}) 2>/dev/null; while {servers} >/dev/null; do sleep 0.1; done")
        ours, theirs = next((folder / "back").glob("*vdb*")), folder / "peer-back" / self.guest.disks["vdb"].name
        subprocess.run(["qemu-img", "compare", "-q", str(ours), str(theirs)], check=True)

    def tunnel_round(self, number: int) -> None:
        """A disk that does not compress: the tunnel with nothing but a reader at its end, and a backup."""
        bench = self._bench(self.folder / f"tunnel-{number}")
        machine = bench.discover()[self.noise.name]
        full = self.timed("incompressible", "brs", lambda: bench.back_up(machine))
        self.timed("nothing has changed", "brs", lambda: bench.back_up(machine, full))
        self.raw_tunnel()
        shutil.rmtree(bench.folder.parent)

    def raw_tunnel(self) -> None:
        """The same export as a backup's, through the same tunnel, into nothing: many requests at once (nbdcopy)."""
        place = f"{self.lab.folder}/scratch"
        job = self.folder / "raw.xml"
        job.write_text(
            f"<domainbackup mode='pull'><server transport='unix' socket='{place}/raw'/>"
            f"<disks><disk name='vda' backup='no'/><disk name='vdb' type='file' exportname='vdb'>"
            f"<scratch file='{place}/raw.scratch'/></disk></disks></domainbackup>"
        )
        self.lab.shell(f"chmod 1777 {place}")
        self.lab.virsh("backup-begin", self.noise.uuid, str(job))
        try:
            with Connection(access_to(self.lab)) as connection, tunnel(connection, f"{place}/raw") as through:
                began = time.monotonic()
                address = f"nbd+unix:///vdb?socket={through.path}"
                subprocess.run(["nbdcopy", address, "null:"], check=True)
                self.figures.took("incompressible", "the tunnel alone", time.monotonic() - began)
        finally:
            self.lab.virsh("domjobabort", self.noise.uuid)
            self.lab.shell(f"rm -f {place}/raw*")

    # --- how ---

    def _bench(self, folder: Path) -> Bench:
        folder.mkdir()
        folder.chmod(0o755)
        state = self.lab.state()
        assert state is not None
        address = f"127.0.0.1:{state.port}"
        access = PlatformAccess(
            kind="kvm",
            addresses=[address],
            options={"scratch": f"{self.lab.folder}/scratch"},
            secrets={"private-key": state.private_key},
            host_keys={address: state.host_key},
        )
        (folder / "brs").mkdir()
        return Bench(folder / "brs", access)

    def versions(self) -> str:
        said = self.lab.shell("qemu-img --version; virsh --version; virtnbdbackup --version; ssh -V 2>&1").splitlines()
        qemu, libvirt, peer, ssh = said[0].split(" (")[0], said[-3], said[-2].split()[-1], said[-1].split(",")[0]
        return f"{qemu} · libvirt {libvirt} · virtnbdbackup {peer} · {ssh}"

    def warm(self) -> None:
        """All that is read is in the machine's page cache for everybody."""
        for disk in (*self.guest.disks.values(), *self.noise.disks.values()):
            with disk.open("rb") as file:
                while file.read(4 * MIB):
                    continue

    def timed(self, work: str, program: str, do: Callable[[], T]) -> T:
        os.sync()
        began = time.monotonic()
        done = do()
        self.figures.took(work, program, time.monotonic() - began)
        return done

    def peer(self, work: str, program: str, command: str) -> None:
        self.timed(work, program, lambda: self.lab.shell(f"{command} 2>&1"))


def data_of(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def write_page(kvm: Kvm, began: datetime, load: float, minutes: float) -> str:
    """The table and how it was made; what stands around the two marks in the page is kept."""
    made = (
        f"`BENCH_ROUNDS={ROUNDS} BENCH_DATA_MIB={DATA_MIB} BENCH_RANDOM_MIB={RANDOM_MIB} make bench-kvm`\n\n"
        f"{began:%Y-%m-%d %H:%M} UTC, {minutes:.0f} minutes · {os.cpu_count()} cores · "
        f"Python {platform.python_version()} · {kvm.versions()} · "
        f"load of the machine before {load:.1f}, after {os.getloadavg()[0]:.1f}\n\n"
        f"Data: {kvm.told}; a disk of {RANDOM_MIB} MiB random. Medians of the rounds."
    )
    before, _, rest = (PAGE.read_text() if PAGE.exists() else "").partition(BEGIN)
    after = rest.partition(END)[2]
    table = kvm.figures.render(RANDOM_MIB)
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{table}\n\n{END}{after}")
    return f"{made}\n\n{table}"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the lab goes down
    began, load, start = datetime.now(UTC), os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="brs-kvm-", dir=settings.WORK) as name:
        folder = Path(name)
        folder.chmod(0o755)
        lab = Lab(folder / "lab")
        try:
            lab.up()
            (lab.folder / "scratch").mkdir()
            kvm = Kvm(lab, folder)
            for number in range(ROUNDS):
                kvm.round(number)
                kvm.tunnel_round(number)
            print(write_page(kvm, began, load, (time.monotonic() - start) / 60))
        finally:
            lab.down()


if __name__ == "__main__":
    main()
