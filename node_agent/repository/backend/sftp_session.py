"""One SFTP session with many requests on their way at once, and a pool of such sessions.

A plain read or write waits for each 32 KiB to go there and back (6 MiB/s on a quick line). Here up to
``_IN_FLIGHT`` requests are under way, and every answer is looked at: a write that failed late is no success.
This goes below paramiko's file objects, whose pipelined writes never read the last answers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import paramiko
from paramiko.sftp import (
    CMD_CLOSE,
    CMD_DATA,
    CMD_EXTENDED,
    CMD_EXTENDED_REPLY,
    CMD_FSTAT,
    CMD_HANDLE,
    CMD_MKDIR,
    CMD_OPEN,
    CMD_READ,
    CMD_STAT,
    CMD_STATUS,
    CMD_WRITE,
    SFTP_FLAG_CREATE,
    SFTP_FLAG_EXCL,
    SFTP_FLAG_READ,
    SFTP_FLAG_WRITE,
    int64,
)

from node_agent.repository.backend.base import MAX_OBJECT
from node_agent.repository.backend.sftp_client import Broken, CarefulClient, Found

_PIECE = 32768  # what every server must take in one packet
_READ_PIECE = 255 << 10  # what OpenSSH gives at most; a server that gives less is asked for less from then on
_SMALLEST_PIECE = 512  # a server that gives less at once would never come to an end
_IN_FLIGHT = 64
_WINDOW = 4 << 20

logger = logging.getLogger(__name__)


class Session:
    """An SSH connection with one SFTP channel. For one thread at a time."""

    def __init__(self, client: paramiko.SSHClient, timeout_s: float) -> None:
        self._client = client
        transport = client.get_transport()
        if transport is None:
            raise Broken("the connection is closed")
        self._transport = transport
        sftp = CarefulClient.from_transport(transport, window_size=_WINDOW)
        if sftp is None:
            raise Broken("the server offers no SFTP")
        sftp.get_channel().settimeout(timeout_s)  # type: ignore[union-attr]
        sftp.timeout_s = timeout_s
        self.sftp = sftp
        self._raw: Any = sftp  # for what paramiko does not show
        self._can_sync = True
        self._read_piece = _READ_PIECE

    @property
    def alive(self) -> bool:
        return self._transport.is_active()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.close()

    def read(self, path: str, offset: int, length: int | None) -> bytes:
        handle = self._open(path, SFTP_FLAG_READ, None)
        try:
            size = self.sftp.stat_of(CMD_FSTAT, handle).size
            end = size if length is None else min(size, offset + length)
            if end - offset > MAX_OBJECT:
                raise Broken(f"the server tells a size of {size} bytes, which no object has")
            step = self._read_piece
            spans = [(at, min(step, end - at)) for at in range(offset, end, step)]
            pieces: list[bytes] = []
            answers = self._pipeline((CMD_READ, (handle, int64(at), n)) for at, n in spans)
            for (at, n), answer in zip(spans, answers, strict=True):
                pieces.append(self._whole(self._data(answer), handle, at, n))
        finally:
            self._close(handle)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _whole(self, piece: bytes, handle: bytes, at: int, size: int) -> bytes:
        """What a server gave of ``size`` bytes, and the rest, asked for again."""
        smallest = min(size, _SMALLEST_PIECE)
        while len(piece) < size:
            self._read_piece = max(_PIECE, min(self._read_piece, len(piece)))
            left = size - len(piece)
            more = self._data(self._raw._request(CMD_READ, handle, int64(at + len(piece)), left))
            if len(more) < min(smallest, left):
                raise Broken("a file became shorter while it was read")
            piece += more
        if len(piece) > size:
            raise Broken("the server sends more of a file than it was asked for")
        return piece

    def stat(self, path: str) -> Found:
        return self.sftp.stat_of(CMD_STAT, path)

    def write_new(self, path: str, parts: Iterable[memoryview], mode: int) -> None:
        """A file that was not there, all of it answered for and, where the server can, synced."""
        attributes = paramiko.SFTPAttributes()
        attributes.st_mode = mode
        handle = self._open(path, SFTP_FLAG_WRITE | SFTP_FLAG_CREATE | SFTP_FLAG_EXCL, attributes)
        try:
            for answer in self._pipeline(_writes(handle, parts)):
                self._status(answer)
            self._sync(handle)
        finally:
            self._close(handle)

    def modified_of_new(self, path: str, mode: int) -> float:
        """The time stamp the server gives to a file made now. The file stays."""
        self.write_new(path, [], mode)
        return self.stat(path).modified

    def make_folders(self, paths: Iterable[str], mode: int) -> None:
        attributes = paramiko.SFTPAttributes()
        attributes.st_mode = mode
        for answer in list(self._pipeline((CMD_MKDIR, (path, attributes)) for path in paths)):
            self._status(answer)

    def free_bytes(self, path: str) -> int | None:
        """What this user may still write there; None where the server does not tell."""
        try:
            kind, message = self._raw._request(CMD_EXTENDED, "statvfs@openssh.com", path)
        except OSError:
            return None
        if kind != CMD_EXTENDED_REPLY:
            return None
        numbers = [message.get_int64() for _ in range(5)]  # block size, fragment size, blocks, free, available
        return int(numbers[1] * numbers[4])

    def _open(self, path: str, flags: int, attributes: paramiko.SFTPAttributes | None) -> bytes:
        kind, message = self._raw._request(CMD_OPEN, path, flags, attributes or paramiko.SFTPAttributes())
        if kind != CMD_HANDLE:
            raise Broken("the server opened a file without giving a handle")
        return bytes(message.get_binary())

    def _close(self, handle: bytes) -> None:
        if self.alive:
            self._raw._request(CMD_CLOSE, handle)

    def _sync(self, handle: bytes) -> None:
        if not self._can_sync:
            return
        try:
            self._raw._request(CMD_EXTENDED, "fsync@openssh.com", handle)
        except OSError as error:
            if "unsupported" not in str(error).lower():
                raise
            self._can_sync = False
            logger.info("the SFTP server cannot sync files; a power cut there may lose the last objects")

    def _pipeline(self, requests: Iterable[tuple[int, tuple[Any, ...]]]) -> Iterator[tuple[int, Any]]:
        """Sends ahead and yields the answers in the order of the requests. Reads them all even when left early."""
        replies = _Replies()
        waiting: deque[int] = deque()
        try:
            for kind, arguments in requests:
                waiting.append(self._raw._async_request(replies, kind, *arguments))
                if len(waiting) >= _IN_FLIGHT:
                    yield self._answer(replies, waiting.popleft())
            while waiting:
                yield self._answer(replies, waiting.popleft())
        finally:
            for number in waiting:
                if self.alive:
                    self._answer(replies, number)

    def _answer(self, replies: _Replies, number: int) -> tuple[int, Any]:
        while number not in replies.found:
            self._raw._read_response()
        return replies.found.pop(number)

    def _data(self, answer: tuple[int, Any]) -> bytes:
        kind, message = answer
        if kind == CMD_STATUS:
            self._raw._convert_status(message)
        if kind != CMD_DATA:
            raise Broken("the server answered a read with something else")
        return bytes(message.get_binary())

    def _status(self, answer: tuple[int, Any]) -> None:
        kind, message = answer
        if kind != CMD_STATUS:
            raise Broken("the server answered a write with something else")
        self._raw._convert_status(message)


class _Replies:
    """Where paramiko puts the answers to requests that were sent ahead, in whatever order they come."""

    def __init__(self) -> None:
        self.found: dict[int, tuple[int, Any]] = {}

    def _async_response(self, kind: int, message: Any, number: int) -> None:
        self.found[number] = (kind, message)

    def _check_exception(self) -> None:
        """Part of the face that paramiko expects; errors are in the answers."""


def _writes(handle: bytes, parts: Iterable[memoryview]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    at = 0
    for part in parts:
        for start in range(0, len(part), _PIECE):
            piece = bytes(part[start : start + _PIECE])
            yield CMD_WRITE, (handle, int64(at), piece)
            at += len(piece)


class SessionPool:
    """Sessions that were used and are still alive; a new one is opened when there is none. Not shared over fork."""

    def __init__(self, connect: Callable[[], Session]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._idle: list[Session] = []
        self._process = os.getpid()
        self._closed = False

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """Given back when left, unless the connection was lost under it."""
        session = self._take()
        try:
            yield session
        except OSError as error:
            self._give_back(session, usable=error.errno is not None or session.alive)
            raise
        except BaseException:
            session.close()
            raise
        self._give_back(session, usable=True)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _take(self) -> Session:
        with self._lock:
            if self._process != os.getpid():
                self._idle, self._process = [], os.getpid()
            while self._idle:
                session = self._idle.pop()
                if session.alive:
                    return session
                session.close()
        return self._connect()

    def _give_back(self, session: Session, *, usable: bool) -> None:
        with self._lock:
            if usable and session.alive and not self._closed:
                self._idle.append(session)
                return
        session.close()
