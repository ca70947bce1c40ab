"""``make run`` on an empty folder: the processes that the browser's story is told of."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from brs.local import ROOT
from tests.ports import port_of_its_own

COMMAND = "-m brs.local"  # what the Makefile's target ``run`` executes, with its options
STARTS_S = 120
STOPS_S = 60


@dataclass
class MakeRun:
    """Server and local node in ``data``, as ``make run PORT=…`` starts them; the login is read from what it prints."""

    data: Path
    port: int
    home: Path  # stands for the home of the person who types: other nodes keep their state below it
    running: subprocess.Popen[str] | None = None
    said: str = ""
    password: str = ""
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def backups(self) -> Path:
        return self.data / "backups"

    @property
    def restored(self) -> Path:
        return self.data / "restored"

    def env(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in an activated environment
        own = {name: value for name, value in os.environ.items() if not name.startswith("BRS_")}
        return own | {"BRS_DATA_DIR": str(self.data), "PATH": path, "PYTHONUNBUFFERED": "1"}

    def start(self) -> None:
        output = self.data.parent / "make-run.txt"
        with output.open("w") as log:
            self.running = subprocess.Popen(
                [sys.executable, *COMMAND.split(), "--port", str(self.port)],
                cwd=ROOT, env=self.env(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        deadline = time.monotonic() + STARTS_S
        while "Ctrl-C stops it." not in (said := output.read_text()):
            assert self.running.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        self.said = said
        if found := re.search(r"^  password +(\S+)$", said, re.MULTILINE):
            self.password = found[1]

    def stop(self) -> None:
        assert self.running is not None
        self.running.send_signal(signal.SIGTERM)
        self.running.wait(STOPS_S)

    def paste(self, command: str) -> str:
        """Types a command literally into a shell that stands in the checkout; what it printed."""
        done = subprocess.run(
            ["bash", "-ec", command], cwd=ROOT, env=self.other_env(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def other_env(self) -> dict[str, str]:
        return self.env() | {"BRS_NODE_STATE": str(self.home / "node")}

    def start_other_node(self, command: str) -> None:
        with (self.home / "node.log").open("wb") as log:
            other = subprocess.Popen(
                shlex.split(command), cwd=ROOT, env=self.other_env(), stdout=log, stderr=subprocess.STDOUT
            )
        self.others.append(other)

    def stop_all(self) -> None:
        for process in self.others:
            process.terminate()
            process.wait(STOPS_S)
        if self.running is not None and self.running.poll() is None:
            self.stop()


@contextmanager
def site() -> Iterator[MakeRun]:
    """One on a new folder with a short path, since it is on every picture."""
    place = Path(tempfile.mkdtemp(prefix="brs-"))
    made = MakeRun(data=place / "var", port=port_of_its_own(), home=place)
    made.data.mkdir()
    try:
        made.start()
        yield made
    finally:
        made.stop_all()
        shutil.rmtree(place)
