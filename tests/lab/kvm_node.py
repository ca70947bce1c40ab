"""A node that can be killed: backs a guest of the lab up once, in a process of its own.

``python -m tests.lab.kvm_node FILE``: in FILE lies, pickled, what it goes on from; it says ``begun`` when it begins,
and its point lies in FILE.done when it has made one.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node_agent.errors import BrsError
from tests.lab.kvm_world import Point, Protected


class Node:
    """``run`` ends with the process; its point is then that of ``one`` if it said that it is done."""

    def __init__(self, one: Protected) -> None:
        self._one = one
        self._file = one.folder / "node.order"
        self._done = self._file.with_suffix(".done")

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """From its beginning; its end is waited for."""
        self._file.write_bytes(pickle.dumps((self._one.guest, self._one.folder, self._one.last)))
        self._done.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.lab.kvm_node", str(self._file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "begun\n"
            yield process
            self.said = process.stdout.read().strip()
        self.code = process.returncode
        if self._done.exists():
            self._one.last = pickle.loads(self._done.read_bytes())

    def seconds(self) -> float:
        """How long a run takes that nobody disturbs."""
        began = time.monotonic()
        with self.running():
            pass
        assert self.code == 0, self.said
        return time.monotonic() - began


def main(file: str) -> int:
    guest, folder, last = pickle.loads(Path(file).read_bytes())
    one = Protected(guest, folder)
    one.last = last
    print("begun", flush=True)
    try:
        point: Point = one.back_up()
    except BrsError as error:
        print(f"{error.code}: {error.message}")
        return 1
    done = Path(file).with_suffix(".new")
    done.write_bytes(pickle.dumps(point))
    done.rename(Path(file).with_suffix(".done"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
