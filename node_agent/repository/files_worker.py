"""A process that reads small files for a backup: started by it, fed by it, and gone when it is gone.

It knows folders only as descriptors that it is handed, opens what is below them and never through a link, and holds
the master key, which it got over its channel. It has no store, no index and no configuration.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from node_agent.errors import BrsError, DamagedError
from node_agent.repository.channel import Channel, serve
from node_agent.repository.files_small import SmallReader, Work
from node_agent.repository.sealing import Sealer

# What is said. By the backup: START, READ, SEAL; by the worker: READY, IDS, SEALED, FAILED.
START, READ, SEAL, READY, IDS, SEALED, FAILED = range(7)


def main(end_fd: int) -> None:
    serve(end_fd, _serve)


def _serve(channel: Channel) -> None:
    (kind, *rest), _, _ = channel.receive()
    assert kind == START
    reader = SmallReader(Sealer.from_wire(*rest))
    channel.send((READY,))
    while True:
        (kind, *rest), _, folders = channel.receive()
        try:
            if kind == READ:
                channel.send((IDS, _read(reader, rest, folders)))
            else:
                sealed = reader.seal(*rest)
                outcomes, blobs = list(map(tuple, sealed.outcomes)), list(map(tuple, sealed.blobs))
                channel.send((SEALED, outcomes, blobs), sealed.content)
        except (BrsError, OSError, MemoryError) as error:
            channel.send((FAILED, isinstance(error, DamagedError), str(error) or type(error).__name__))
            _wait_for_the_end(channel)


def _wait_for_the_end(channel: Channel) -> NoReturn:
    """Until the run has read why this failed: while it still sends, a closed channel would be all it learns."""
    while True:
        for folder in channel.receive()[2]:
            os.close(folder)


def _read(reader: SmallReader, work: list[Any], folders: list[int]) -> list[bytes]:
    try:
        return reader.read(Work(folders, *work))
    finally:
        for folder in folders:
            os.close(folder)
