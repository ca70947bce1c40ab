"""A process that writes files for a restore: started by it, fed by it, and gone when it is gone.

It knows the target only as descriptors of open folders and files that it is handed, and reads packs of a local store.
The master key comes over its channel. It finishes the files that it has begun, so that none is left half written.
"""

from __future__ import annotations

import os
from pathlib import Path

from node_agent.repository.backend.base import Kind
from node_agent.repository.backend.local import LocalBackend
from node_agent.repository.channel import Channel, serve
from node_agent.repository.crypto import Key
from node_agent.repository.restore_write import Answer, Part, Performer, Small

SMALL, PART = range(2)


def main(end_fd: int) -> None:
    serve(end_fd, _serve)


def _serve(channel: Channel) -> None:
    (encrypt, mac_k, mac_r, root, verify), _, _ = channel.receive()
    os.umask(0)  # modes are given as they are to be
    store = LocalBackend(Path(os.fsdecode(root)))
    performer = Performer(
        Key(encrypt, mac_k, mac_r),
        lambda pack, offset, length: store.get(Kind.PACK, pack, offset, length),
        verify=verify,
    )
    channel.send(performer.names.prefix)
    while True:
        (kind, *work), _, descriptors = channel.receive()
        try:
            answer = perform(performer, kind, work, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        channel.send(tuple(answer))


def perform(performer: Performer, kind: int, work: list[object], descriptors: list[int]) -> Answer:
    if kind == SMALL:
        return performer.small(Small(*work), descriptors)  # type: ignore[arg-type]  # what the other end made
    return performer.part(Part(*work), descriptors[0])  # type: ignore[arg-type]
