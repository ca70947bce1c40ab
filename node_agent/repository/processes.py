"""A worker process as the run sees it that started it: a new interpreter and a channel to it.

A new interpreter, since a program with threads must not fork. It inherits nothing but its end of the channel: keys and
folders come over that, its command line holds module paths and its environment the language, so neither tells a
secret. It ends when the channel closes, however this process ended.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys

from node_agent.errors import WorkerDied
from node_agent.repository.channel import Channel

logger = logging.getLogger(__name__)

_PROGRAM = """
import sys
sys.path[:] = sys.argv[3:]
from importlib import import_module
import_module(sys.argv[2]).main(int(sys.argv[1]))
"""
ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TZ")
PATIENCE_S = 10.0


class WorkerProcess:
    """Runs ``main(descriptor of its end)`` of a module. For one thread, but for :meth:`kill`.

    Raises OSError when it cannot be started.
    """

    def __init__(self, module: str) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM, str(theirs.fileno()), module, *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
                start_new_session=True,  # a Ctrl-C is for the run, which then ends this
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.channel = Channel(ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """From any thread; whoever waits for an answer finds the channel closed."""
        self.channel.shut()
        self._process.kill()

    def close(self) -> None:
        """Let it finish what it was given, and wait for its end."""
        self.channel.close()
        for _attempt in range(2):
            try:
                self._process.wait(PATIENCE_S)
                return
            except subprocess.TimeoutExpired:
                self._process.kill()
        logger.warning("worker process %d does not end: it hangs in the file system", self.pid)

    def died(self) -> WorkerDied:
        """The error to raise when its channel was found closed."""
        try:
            code = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return WorkerDied(f"Worker process {self.pid} closed its channel.")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return WorkerDied(f"Worker process {self.pid} {how} before its work was done.")
