"""How fast an image of a cluster is backed up, beside ``rbd export`` and ``rbd export-diff`` to nowhere, in one run:

    python -m tests.lab.rbd_bench [ROUNDS]

A one-node cluster in memory on this machine (tests/lab/ceph.py), an image of 2 GiB with 1 GiB of random data, a
repository in a folder; the same content from a file for comparison. CPU is that of the node and of its process that
speaks with Ceph, without the cluster's.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from node_agent.drivers.image import open_image
from node_agent.repository.image import ImageBackup
from tests.lab.ceph import Ceph, which
from tests.lab.rbd_world import Point, World
from tests.repository.core_world import new_repo
from tests.repository.data_world import MIB, back_up_images

NAME = "bench"


def measured(what: str, run: Callable[[], object]) -> None:
    cpu, began = _cpu(), time.monotonic()
    run()
    print(f"{what:44} {time.monotonic() - began:6.2f} s wall {_cpu() - cpu:6.2f} s CPU", flush=True)


def _cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def to_nowhere(lab: Ceph, *words: str) -> None:
    command = [str(which("rbd")), "-c", str(lab.folder / "ceph.conf"), "--no-progress", *words, "-"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def one_round(world: World, folder: Path, raw: Path) -> None:
    repo = new_repo(folder / "repo")
    last: list[Point] = []

    def back_up() -> None:
        last.append(world.back_up(repo, NAME, last[-1] if last else None))

    measured("rbd export", lambda: to_nowhere(world.lab, "export", f"rbd/{NAME}"))
    measured("first backup", back_up)
    [kept] = [name for name in world.snapshots(NAME) if name.startswith("brs-")]
    world.guest(NAME, *[["write", number * 37 % 1000 * MIB, MIB, number] for number in range(50)])
    measured(
        "rbd export-diff of 50 MiB", lambda: to_nowhere(world.lab, "export-diff", "--from-snap", kept, f"rbd/{NAME}")
    )
    measured("increment of 50 MiB", back_up)
    world.guest(NAME, *[["remove-snapshot", name] for name in world.snapshots(NAME)])
    repo.close()
    shutil.rmtree(folder / "repo")
    repo = new_repo(folder / "repo")
    with open_image(raw, format="raw") as content:
        measured("first backup of the same from a file", lambda: back_up_images(repo, ImageBackup("image", content)))
    repo.close()
    shutil.rmtree(folder / "repo")


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="brs-rbd-bench-") as name:
        folder = Path(name)
        lab = Ceph(folder / "lab", gateway=False)
        world = World(lab, lab.up(), folder)
        try:
            raw = folder / "raw"
            with raw.open("wb") as file:
                file.truncate(2 << 30)
                for _ in range(1024):
                    file.write(os.urandom(MIB))
            lab.rbd("import", "--no-progress", raw, f"rbd/{NAME}")
            for _ in range(rounds):
                one_round(world, folder, raw)
        finally:
            world.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
