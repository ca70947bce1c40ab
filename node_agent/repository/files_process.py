"""One worker process, seen from the backup that feeds it; :mod:`node_agent.repository.files_worker` is its side."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from node_agent.errors import DamagedError, WorkerDied
from node_agent.repository import files_worker as wire
from node_agent.repository.channel import ChannelClosed
from node_agent.repository.files_small import Outcome, Sealed, Work
from node_agent.repository.processes import WorkerProcess
from node_agent.repository.sealing import SealedBlob, Sealer

__all__ = ["Answer", "Process"]


class Answer(NamedTuple):
    """Either the ids of the oldest batch that was only read, or all of the oldest that was to be sealed."""

    ids: Sequence[bytes] | None = None
    sealed: Sealed | None = None


class Process:
    """A context manager; for one thread, but for :meth:`kill`. Raises OSError when it cannot be started."""

    def __init__(self, sealer: Sealer) -> None:
        self._worker = WorkerProcess(wire.__name__)
        self._channel = self._worker.channel
        self._sealer = sealer

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._worker.close()

    @property
    def pid(self) -> int:
        return self._worker.pid

    def kill(self) -> None:
        """From any thread; whoever waits for an answer gets WorkerDied."""
        self._worker.kill()

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
        return self._worker.died()
