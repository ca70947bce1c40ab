"""One worker process, seen from the backup that feeds it (the other side is :mod:`node_agent.repository.files_worker`).

A new interpreter, since a program with threads must not fork. It inherits nothing but its end of a channel: the key and
the folders come over that, its command line holds module paths and its environment the language, so neither tells a
secret. It ends when the channel closes, however this process ended.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from node_agent.errors import DamagedError, WorkerDied
from node_agent.repository import files_worker as wire
from node_agent.repository.files_channel import Channel, ChannelClosed
from node_agent.repository.files_small import Outcome, Sealed, Work
from node_agent.repository.sealing import SealedBlob, Sealer

logger = logging.getLogger(__name__)

_PROGRAM = """
import sys
sys.path[:] = sys.argv[2:]
from node_agent.repository.files_worker import main
main(int(sys.argv[1]))
"""
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TZ")
_PATIENCE_S = 10.0


class Answer(NamedTuple):
    """Either the ids of the oldest batch that was only read, or all of the oldest that was to be sealed."""

    ids: Sequence[bytes] | None = None
    sealed: Sealed | None = None


class Process:
    """A context manager; for one thread, but for :meth:`kill`. Raises OSError when it cannot be started."""

    def __init__(self, sealer: Sealer) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,  # a Ctrl-C is for the run, which then ends this
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = Channel(ours)
        self._sealer = sealer

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._channel.close()
        for _attempt in range(2):
            try:
                self._process.wait(_PATIENCE_S)
                return
            except subprocess.TimeoutExpired:
                self._process.kill()
        logger.warning("worker process %d does not end: it hangs in the file system", self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """From any thread; whoever waits for an answer gets WorkerDied."""
        self._channel.shut()
        self._process.kill()

    def wait_ready(self) -> None:
        """Raises WorkerDied, as everything below."""
        try:
            self._channel.send((wire.START, *self._sealer.to_wire()))
            self._channel.receive()
        except ChannelClosed:
            raise self._died() from None

    def read(self, work: Work) -> None:
        try:
            self._channel.send((wire.READ, *map(list, work[1:])), descriptors=work.folders)
        except ChannelClosed:
            raise self._died() from None

    def seal(self, wanted: Sequence[int]) -> None:
        try:
            self._channel.send((wire.SEAL, list(wanted)))
        except ChannelClosed:
            raise self._died() from None

    def answer(self) -> Answer:
        """Waits. Raises DamagedError, too, as :class:`Sealer` does."""
        try:
            (kind, *rest), body, _ = self._channel.receive()
        except ChannelClosed:
            raise self._died() from None
        if kind == wire.IDS:
            return Answer(ids=rest[0])
        if kind == wire.SEALED:
            outcomes, blobs = rest
            return Answer(sealed=Sealed([Outcome(*row) for row in outcomes], [SealedBlob(*row) for row in blobs], body))
        damaged, message = rest
        raise DamagedError(message) if damaged else WorkerDied(f"A worker process gave up: {message}.")

    def _died(self) -> WorkerDied:
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return WorkerDied(f"Worker process {self.pid} closed its channel.")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return WorkerDied(f"Worker process {self.pid} {how} before its work was done.")
