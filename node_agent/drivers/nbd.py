"""A small NBD client: reads and writes an export that qemu serves on a unix socket.

Speaks the "fixed newstyle" handshake with structured replies and block status, as laid down in
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md. Not spoken: TLS, the
old handshake. One request is under way at a time, but for :meth:`NbdClient.read_many`; use one connection for each
thread.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from node_agent.errors import SourceError
from node_agent.items import Extent

ALLOCATION = "base:allocation"
ZERO = 2  # flag of base:allocation: reads as zeros
MAX_READ = 32 * 1024 * 1024  # qemu's limit for one request
MAX_STATUS = 1 << 30  # bytes asked about at once; a 32-bit length, kept well below

_NBDMAGIC = 0x4E42444D41474943
_IHAVEOPT = 0x49484156454F5054
_OPTION_REPLY = 0x3E889045565A9
_REQUEST = 0x25609513
_SIMPLE_REPLY = 0x67446698
_STRUCTURED_REPLY = 0x668E33EF

_OPT_GO, _OPT_STRUCTURED, _OPT_SET_META = 7, 8, 10
_REP_ACK, _REP_INFO, _REP_META_CONTEXT, _REP_ERROR_BIT = 1, 3, 4, 1 << 31
_INFO_EXPORT = 0
_CMD_READ, _CMD_WRITE, _CMD_DISCONNECT, _CMD_FLUSH, _CMD_WRITE_ZEROES, _CMD_BLOCK_STATUS = 0, 1, 2, 3, 6, 7
_FLAG_READ_ONLY, _FLAG_FLUSH, _FLAG_ZEROES = 1 << 1, 1 << 2, 1 << 6
_CHUNK_NONE, _CHUNK_DATA, _CHUNK_HOLE, _CHUNK_STATUS, _CHUNK_ERROR_BIT = 0, 1, 2, 5, 1 << 15
_CHUNK_DONE = 1
_MAX_OPTION_REPLY = 1 << 20
_MAX_CHUNK = MAX_READ + 4096


AT_ONCE = 4  # requests of read_many that are on their way


class NbdError(SourceError):
    default_message = "The image's server broke off the conversation."
    default_hint = "Look at the messages of qemu on this machine; run the backup again."


@dataclass(slots=True)
class _Reading:
    """A read that is under way."""

    offset: int
    data: bytearray
    covered: int = 0
    done: bool = False
    failure: str | None = None

    def place(self, offset: int, size: int) -> memoryview:
        """Where a chunk goes."""
        start = offset - self.offset
        if start < 0 or start + size > len(self.data):
            raise NbdError("The image's server sent data that was not asked for.")
        self.covered += size
        return memoryview(self.data)[start : start + size]


@dataclass
class NbdClient:
    """An open export. ``contexts`` are block status contexts to negotiate; those granted are in ``granted``."""

    socket_path: Path
    export: str = ""
    contexts: Sequence[str] = (ALLOCATION,)
    timeout_s: float = 300.0
    size: int = 0
    flags: int = 0
    granted: dict[str, int] = field(default_factory=dict)
    _sock: socket.socket | None = None
    _handle: int = 0

    def __enter__(self) -> NbdClient:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The kernel's own limits, not Python's, with which no call could wait for all of a block at once.
        limit = struct.pack("ll", int(self.timeout_s), 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, limit)
        try:
            sock.connect(str(self.socket_path))
            self._sock = sock
            self._greet()
            self._option(_OPT_STRUCTURED, b"")
            if self.contexts:
                self._set_contexts()
            self._go()
        except OSError as error:
            self._sock = None
            sock.close()
            raise NbdError(f"The connection to the image's server failed: {error}.") from error
        except BaseException:
            self._sock = None
            sock.close()
            raise

    def another(self) -> NbdClient:
        """One more of the same export, not connected yet."""
        return NbdClient(self.socket_path, self.export, self.contexts, self.timeout_s)

    def close(self) -> None:
        """Say goodbye and hang up; safe to call twice."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        try:
            sock.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _CMD_DISCONNECT, 0, 0, 0))
        except OSError:  # the server may be gone already: there is nothing left to end
            return
        finally:
            sock.close()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; holes come as zeros."""
        starts = range(offset, offset + length, MAX_READ)
        pieces = self.read_many((start, min(MAX_READ, offset + length - start)) for start in starts)
        return b"".join(data for _, data in pieces)

    def read_many(self, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, bytearray]]:
        """(offset, data) of each (offset, length), in their order. Several requests are on their way at once: nothing
        else may be asked before the last of them is here."""
        under_way: deque[int] = deque()
        readings: dict[int, _Reading] = {}
        for offset, length in ranges:
            self._handle += 1
            self._send(struct.pack(">IHHQQI", _REQUEST, 0, _CMD_READ, self._handle, offset, length))
            readings[self._handle] = _Reading(offset, bytearray(length))
            under_way.append(self._handle)
            if len(under_way) == AT_ONCE:
                yield self._finished(readings, under_way.popleft())
        while under_way:
            yield self._finished(readings, under_way.popleft())

    @property
    def writable(self) -> bool:
        return not self.flags & _FLAG_READ_ONLY

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """All of ``data``; on disk only after :meth:`flush`."""
        view = memoryview(data)
        for start in range(0, len(view), MAX_READ):
            piece = view[start : start + MAX_READ]
            self._done(_CMD_WRITE, offset + start, len(piece), piece)

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, which need not take space."""
        if not self.flags & _FLAG_ZEROES:
            raise NbdError("The image's server cannot write zeros.")
        while length:
            step = min(MAX_STATUS, length)
            self._done(_CMD_WRITE_ZEROES, offset, step)
            offset, length = offset + step, length - step

    def flush(self) -> None:
        """What was written is on disk when this returns."""
        if self.flags & _FLAG_FLUSH:
            self._done(_CMD_FLUSH, 0, 0)

    def status(self, context: str, offset: int = 0, length: int | None = None) -> Iterator[tuple[int, int, int]]:
        """(offset, length, flags) of each run in the range, in order and without gaps."""
        if context not in self.granted:
            raise NbdError(f"The image's server does not tell the block status {context!r}.")
        end = self.size if length is None else offset + length
        while offset < end:
            for run_length, flags in self._block_status(offset, min(MAX_STATUS, end - offset), self.granted[context]):
                run_length = min(run_length, end - offset)
                yield offset, run_length, flags
                offset += run_length
                if offset >= end:
                    return

    def extents(self) -> Iterator[Extent]:
        """The whole export in order; neighbours of one kind are joined."""
        if ALLOCATION not in self.granted:
            if self.size:
                yield Extent(0, self.size)
            return
        last: Extent | None = None
        for offset, length, flags in self.status(ALLOCATION):
            zero = bool(flags & ZERO)
            if last is not None and last.zero == zero:
                last = Extent(last.offset, last.length + length, zero)
                continue
            if last is not None:
                yield last
            last = Extent(offset, length, zero)
        if last is not None:
            yield last

    # --- handshake ---

    def _greet(self) -> None:
        magic, options, flags = struct.unpack(">QQH", self._receive(18))
        if magic != _NBDMAGIC or options != _IHAVEOPT or not flags & 1:
            raise NbdError("The image's server does not speak the fixed newstyle NBD handshake.")
        self._send(struct.pack(">I", flags & 3))

    def _option(self, option: int, data: bytes) -> list[tuple[int, bytes | bytearray]]:
        """Send an option; its replies up to the acknowledgement. An error reply is raised."""
        self._send(struct.pack(">QII", _IHAVEOPT, option, len(data)) + data)
        replies: list[tuple[int, bytes | bytearray]] = []
        while True:
            magic, echoed, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != _OPTION_REPLY or echoed != option or length > _MAX_OPTION_REPLY:
                raise NbdError("The image's server sent a malformed reply to an option.")
            payload = self._receive(length)
            if kind & _REP_ERROR_BIT:
                detail = payload.decode("utf-8", "replace") or f"error {kind & ~_REP_ERROR_BIT}"
                raise NbdError(f"The image's server refused option {option}: {detail}.")
            if kind == _REP_ACK:
                return replies
            replies.append((kind, payload))

    def _set_contexts(self) -> None:
        export = self.export.encode()
        data = struct.pack(">I", len(export)) + export + struct.pack(">I", len(self.contexts))
        for context in self.contexts:
            raw = context.encode()
            data += struct.pack(">I", len(raw)) + raw
        for kind, payload in self._option(_OPT_SET_META, data):
            if kind == _REP_META_CONTEXT and len(payload) > 4:
                self.granted[payload[4:].decode("utf-8", "replace")] = int.from_bytes(payload[:4], "big")

    def _go(self) -> None:
        export = self.export.encode()
        replies = self._option(_OPT_GO, struct.pack(">I", len(export)) + export + struct.pack(">H", 0))
        for kind, payload in replies:
            if kind == _REP_INFO and len(payload) >= 12 and int.from_bytes(payload[:2], "big") == _INFO_EXPORT:
                self.size = int.from_bytes(payload[2:10], "big")
                self.flags = int.from_bytes(payload[10:12], "big")
                return
        raise NbdError("The image's server did not tell the size of the image.")

    # --- transmission ---

    def _finished(self, readings: dict[int, _Reading], handle: int) -> tuple[int, bytearray]:
        """Take chunks, whichever read they are of, until this one has all."""
        while not readings[handle].done:
            self._take_chunk(readings)
        one = readings.pop(handle)
        if one.failure is not None:
            raise _cannot(_CMD_READ, one.offset, one.failure)
        if one.covered != len(one.data):
            raise NbdError(
                f"The image's server sent {one.covered} of {len(one.data)} bytes asked for at offset {one.offset}."
            )
        return one.offset, one.data

    def _take_chunk(self, readings: dict[int, _Reading]) -> None:
        (magic,) = struct.unpack(">I", self._receive(4))
        if magic != _STRUCTURED_REPLY:  # a server that has agreed to them answers reads by no others
            raise NbdError("The image's server sent a malformed reply.")
        flags, kind, handle, size = struct.unpack(">HHQI", self._receive(16))
        one = readings.get(handle)
        if one is None or one.done or size > _MAX_CHUNK:
            raise NbdError("The image's server sent a malformed reply.")
        if kind == _CHUNK_DATA and size >= 8:
            offset = int.from_bytes(self._receive(8), "big")
            self._receive_into(one.place(offset, size - 8))
        else:
            payload = self._receive(size)
            if kind & _CHUNK_ERROR_BIT:
                one.failure = one.failure or _error_text(payload)
            elif kind == _CHUNK_HOLE and size == 12:
                one.place(int.from_bytes(payload[:8], "big"), int.from_bytes(payload[8:], "big"))  # zeros already
        one.done = bool(flags & _CHUNK_DONE)

    def _block_status(self, offset: int, length: int, context_id: int) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for kind, payload in self._request(_CMD_BLOCK_STATUS, offset, length):
            if kind == _CHUNK_STATUS and int.from_bytes(payload[:4], "big") == context_id:
                runs += [(size, flags) for size, flags in struct.iter_unpack(">II", payload[4:])]
        if not runs or any(size == 0 for size, _ in runs):
            raise NbdError(f"The image's server told no block status at offset {offset}.")
        return runs

    def _done(self, command: int, offset: int, length: int, data: memoryview | None = None) -> None:
        for _ in self._request(command, offset, length, data):
            raise NbdError("The image's server sent data that was not asked for.")

    def _request(
        self, command: int, offset: int, length: int, data: memoryview | None = None
    ) -> Iterator[tuple[int, bytes | bytearray]]:
        """Send a request; the chunks of its reply. Must be used up before the next request."""
        self._handle += 1
        self._send(struct.pack(">IHHQQI", _REQUEST, 0, command, self._handle, offset, length))
        if data is not None:
            self._send(data)
        failure: str | None = None
        while True:
            (magic,) = struct.unpack(">I", self._receive(4))
            if magic == _SIMPLE_REPLY:
                self._simple_reply(command, offset)
                return
            if magic != _STRUCTURED_REPLY:
                raise NbdError("The image's server sent a malformed reply.")
            flags, kind, handle, size = struct.unpack(">HHQI", self._receive(16))
            if handle != self._handle or size > _MAX_CHUNK:
                raise NbdError("The image's server sent a malformed reply.")
            payload = self._receive(size)
            if kind & _CHUNK_ERROR_BIT:
                failure = failure or _error_text(payload)
            elif kind != _CHUNK_NONE:
                yield kind, payload
            if flags & _CHUNK_DONE:
                break
        if failure is not None:
            raise _cannot(command, offset, failure)

    def _simple_reply(self, command: int, offset: int) -> None:
        error, handle = struct.unpack(">IQ", self._receive(12))
        if handle != self._handle:
            raise NbdError("The image's server sent a malformed reply.")
        if error:
            raise _cannot(command, offset, f"error {error}")

    def _send(self, data: bytes | memoryview) -> None:
        if self._sock is None:
            raise NbdError("The connection to the image's server is closed.")
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise NbdError(f"The image's server is gone: {error}.") from error

    def _receive(self, length: int) -> bytearray:
        data = bytearray(length)
        self._receive_into(memoryview(data))
        return data

    def _receive_into(self, view: memoryview) -> None:
        if self._sock is None:
            raise NbdError("The connection to the image's server is closed.")
        done = 0
        while done < len(view):
            try:
                step = self._sock.recv_into(view[done:], 0, socket.MSG_WAITALL)
            except OSError as error:
                raise NbdError(f"The image's server is gone: {error}.") from error
            if not step:
                raise NbdError("The image's server hung up in the middle of a reply.")
            done += step


def _cannot(command: int, offset: int, why: str) -> NbdError:
    verb = "written" if command in (_CMD_WRITE, _CMD_WRITE_ZEROES, _CMD_FLUSH) else "read"
    return NbdError(f"The image cannot be {verb} at offset {offset}: {why}.")


def _error_text(payload: bytes | bytearray) -> str:
    code, size = struct.unpack(">IH", payload[:6]) if len(payload) >= 6 else (0, 0)
    return bytes(payload[6 : 6 + size]).decode("utf-8", "replace") or f"error {code}"
