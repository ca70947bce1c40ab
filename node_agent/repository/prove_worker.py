"""A process that proves blobs for a prune, a check or a repair: started by it, fed by it, and gone when it is gone.

It gets the master key over its channel and sees sealed blobs in a piece of memory that it shares with the run. It has
no store and no folder.
"""

from __future__ import annotations

import mmap
import os

from node_agent.repository.channel import Channel, serve
from node_agent.repository.crypto import Key
from node_agent.repository.proving import Places, faults


def main(end_fd: int) -> None:
    serve(end_fd, _serve)


def _serve(channel: Channel) -> None:
    parts, _, descriptors = channel.receive()
    key = Key(*parts)
    content = memoryview(mmap.mmap(descriptors[0], 0, prot=mmap.PROT_READ))
    os.close(descriptors[0])
    channel.send(True)
    while True:
        places, _, _ = channel.receive()
        channel.send(faults(key, content, Places(*places)))
