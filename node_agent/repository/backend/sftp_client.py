"""SFTP as a server may speak it that is not to be trusted: what paramiko would believe is looked at here.

paramiko waits for ever behind answers that nobody asked for, makes as many entries of a listing as the server says
there are (four thousand million), and cannot read names that are not UTF-8. This stays below its public face, like
:mod:`.sftp_session`.
"""

from __future__ import annotations

import errno
import struct
import time
from dataclasses import dataclass
from typing import Any

import paramiko
from paramiko.sftp import CMD_ATTRS, CMD_HANDLE, CMD_NAME, CMD_OPENDIR, CMD_READDIR

from node_agent.repository.backend.settings import shown

MAX_OBJECTS = 10_000_000  # of one folder; a repository has 256 of packs
_MAX_ODD = 100_000  # names in a folder that are none of ours
_MAX_IDLE = 1000  # parts of a list with nothing new
_MAX_STRAYS = 1000
_MAX_PACKET = 1 << 20  # no answer is as long; OpenSSH's limit is 256 KiB
_SLOWEST = 1024  # bytes a second
_OK, _EOF, _NO_SUCH_FILE, _PERMISSION_DENIED = range(4)
_SIZE, _OWNER, _MODE, _TIMES, _EXTENDED = 1, 2, 4, 8, 1 << 31


class Broken(Exception):
    """The session cannot be used any more: the connection is lost, or the server talks nonsense."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a server says of a file. ``mode`` 0: nothing."""

    size: int
    mode: int
    modified: float


class CarefulClient(paramiko.SFTPClient):
    timeout_s = 60.0  # within which an answer must come, and more where it is long
    _strays = 0

    def stat_of(self, request: int, what: str | bytes) -> Found:
        """``request`` is CMD_STAT with a path, or CMD_FSTAT with a handle."""
        kind, message = self._raw._request(request, what)
        if kind != CMD_ATTRS:
            raise Broken("the server answered a question for a file's size with something else")
        return _Reader(message.get_remainder()).attributes()

    def folder(self, path: str) -> dict[str, Found]:
        """What is in a folder, but for names that are not ASCII."""
        kind, message = self._raw._request(CMD_OPENDIR, path)
        if kind != CMD_HANDLE:
            raise Broken("the server opened a folder without giving a handle")
        handle, found, odd, idle = message.get_binary(), dict[str, Found](), 0, 0
        try:
            while True:
                before = len(found)
                odd += self._part_of_folder(handle, found)
                idle = idle + 1 if before == len(found) else 0
                if odd > _MAX_ODD or idle > _MAX_IDLE or len(found) > MAX_OBJECTS:
                    raise Broken("the server lists more files than can be there")
        except EOFError:
            pass  # the end of the list
        self._raw._request(paramiko.sftp.CMD_CLOSE, handle)
        return found

    def _part_of_folder(self, handle: bytes, found: dict[str, Found]) -> int:
        """Returns how many names were of no use."""
        kind, message = self._raw._request(CMD_READDIR, handle)
        if kind != CMD_NAME:
            raise Broken("the server answered a question for a list with something else")
        reader, odd = _Reader(message.get_remainder()), 0
        for _ in range(reader.number()):
            name, _, attributes = reader.text(), reader.text(), reader.attributes()
            if name in (b".", b".."):
                continue
            if len(name) > 255 or b"/" in name or not name.isascii() or (text := name.decode("ascii")) in found:
                odd += 1
                continue
            found[text] = attributes
        return odd

    # --- what paramiko does when it reads ---

    @property
    def _raw(self) -> Any:
        return self

    def _read_all(self, n: int) -> bytes:
        if n > _MAX_PACKET:
            raise Broken("the server sends a packet that is too long")
        out, ends = bytearray(), time.monotonic() + self.timeout_s + n / _SLOWEST
        while len(out) < n:
            data = self._raw.sock.recv(n - len(out))
            if not data:
                raise EOFError
            out += data
            if time.monotonic() > ends:
                raise Broken("the server sends too slowly")
        return bytes(out)

    def _read_packet(self) -> tuple[int, bytes]:
        kind, data = super()._read_packet()  # type: ignore[misc]
        if len(data) < 4 or int.from_bytes(data[:4], "big") not in self._raw._expecting:
            self._strays += 1
            if self._strays > _MAX_STRAYS:
                raise Broken("the server answers what it was not asked")
        return kind, data

    def _convert_status(self, message: Any) -> None:
        code = message.get_int()
        text = shown(message.get_binary().decode("utf-8", "replace")) or "no reason given"
        if code == _OK:
            return
        if code == _EOF:
            raise EOFError(text)
        if code == _NO_SUCH_FILE:
            raise OSError(errno.ENOENT, text)
        if code == _PERMISSION_DENIED:
            raise OSError(errno.EACCES, text)
        raise OSError(text)


class _Reader:
    """Numbers and texts of a packet; Broken where it ends too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise Broken("the server sent half an answer")
        data, self._at = self._data[self._at : end], end
        return data

    def number(self) -> int:
        value: int = struct.unpack(">I", self._take(4))[0]
        return value

    def text(self) -> bytes:
        return self._take(self.number())

    def attributes(self) -> Found:
        flags, size, mode, modified = self.number(), 0, 0, 0
        if flags & _SIZE:
            size = struct.unpack(">Q", self._take(8))[0]
        if flags & _OWNER:
            self._take(8)
        if flags & _MODE:
            mode = self.number()
        if flags & _TIMES:
            self._take(4)
            modified = self.number()
        if flags & _EXTENDED:
            for _ in range(self.number()):
                self.text()
                self.text()
        if size >= 1 << 63:
            raise Broken("the server tells a size that no file has")
        return Found(size, mode, float(modified))
