"""Messages between a backup and its worker processes, over a pair of connected sockets.

    lengths of message and body, number of descriptors (3 x uint32)  [descriptors, as ancillary data]
    marshal of the message  body

Both ends are this very program started by one another on one machine, and nobody else holds an end: so the
interpreter's own quick encoding will do, and the key may pass. Open folders travel as descriptors.
"""

from __future__ import annotations

import array
import marshal
import os
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from node_agent.repository.backend.base import Buffer

_HEAD = struct.Struct("<III")
MAX_DESCRIPTORS = 128


class ChannelClosed(Exception):
    """The other end has gone."""


class Channel:
    """For one thread at each end. A message is what marshal knows; ``body`` are bytes that are not copied into it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, message: Any, body: Buffer = b"", descriptors: Sequence[int] = ()) -> None:
        """Raises ChannelClosed. Blocks while the other end does not read."""
        content = marshal.dumps(message)
        head = _HEAD.pack(len(content), len(body), len(descriptors))
        try:
            if descriptors:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
                sent = self._end.sendmsg([head], [rights])
                self._end.sendall(head[sent:])
            else:
                self._end.sendall(head)
            self._end.sendall(content)
            if body:
                self._end.sendall(body)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed from error

    def receive(self) -> tuple[Any, bytearray, list[int]]:
        """The next message, its body and its descriptors, which are the caller's to close. Raises ChannelClosed."""
        try:
            head, descriptors, _, _ = socket.recv_fds(self._end, _HEAD.size, MAX_DESCRIPTORS)
            head += self._exactly(_HEAD.size - len(head)) if head else b""
            if not head:
                raise ChannelClosed
            length, body_length, count = _HEAD.unpack(head)
            if count != len(descriptors):
                raise OSError(f"{len(descriptors)} of {count} open folders arrived: too many files are open")
            return marshal.loads(self._exactly(length)), self._exactly(body_length), descriptors
        except ConnectionResetError as error:
            raise ChannelClosed from error

    def _exactly(self, length: int) -> bytearray:
        content = bytearray(length)
        view = memoryview(content)
        while view:
            got = self._end.recv_into(view)
            if not got:
                raise ChannelClosed
            view = view[got:]
        return content

    def fileno(self) -> int:
        """To wait for a message beside others'."""
        return self._end.fileno()

    def shut(self) -> None:
        """Wake whoever waits at either end; from any thread."""
        try:
            self._end.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is closed already

    def close(self) -> None:
        self._end.close()


def serve(end_fd: int, work: Callable[[Channel], None]) -> None:
    """The life of a worker process, at its end of the channel: it ends with the channel, however its run ended.

    The signals by which a run is asked to stop are not for it, since its run decides what to finish.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        work(Channel(socket.socket(fileno=end_fd)))
    except ChannelClosed:
        os._exit(0)  # the run is over; there is nothing to tidy up
