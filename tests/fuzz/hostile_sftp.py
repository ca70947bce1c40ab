"""An SFTP server that lies, on paramiko's transport: what it answers to each request is up to ``lie``.

Without a lie it serves a folder of files in memory, well enough for a repository.
"""

from __future__ import annotations

import contextlib
import random
import socket
import stat as modes
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

import paramiko
from paramiko.sftp import (
    CMD_ATTRS,
    CMD_CLOSE,
    CMD_DATA,
    CMD_EXTENDED,
    CMD_FSTAT,
    CMD_HANDLE,
    CMD_INIT,
    CMD_LSTAT,
    CMD_MKDIR,
    CMD_NAME,
    CMD_OPEN,
    CMD_OPENDIR,
    CMD_READ,
    CMD_READDIR,
    CMD_REMOVE,
    CMD_RENAME,
    CMD_STAT,
    CMD_STATUS,
    CMD_VERSION,
    CMD_WRITE,
)

from tests.listener import Listener

OK, EOF, NO_SUCH_FILE, FAILURE, UNSUPPORTED = 0, 1, 2, 4, 8
ENDLESS = 96 << 20


@dataclass(frozen=True)
class Reply:
    kind: int
    body: bytes  # after the request's number
    number: int | None = None  # of another request
    raw: bytes | None = None  # instead of all that
    endless: bool = False  # the same for ever
    then_gone: bool = False


Lie = Callable[[int, bytes, Reply], Reply]


def text(value: bytes | str) -> bytes:
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return struct.pack(">I", len(data)) + data


def attributes(size: int, mode: int, mtime: int = 1_700_000_000) -> bytes:
    return struct.pack(
        ">IQIII", 1 | 4 | 8, size & (1 << 64) - 1, mode & 0xFFFFFFFF, mtime & 0xFFFFFFFF, mtime & 0xFFFFFFFF
    )


def names(entries: list[tuple[bytes, bytes]]) -> bytes:
    told = b"".join(text(name) + text(b"-rw------- " + name) + attrs for name, attrs in entries)
    return struct.pack(">I", len(entries)) + told


class _Files:
    """Files and folders by path; one world for all connections."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}
        self.folders: set[str] = {"", "/", "/store"}
        self.lock = threading.Lock()

    def below(self, folder: str) -> list[tuple[bytes, bytes]]:
        found = {}
        for path, data in self.files.items():
            parent, _, name = path.rpartition("/")
            if parent == folder:
                found[name] = attributes(len(data), modes.S_IFREG | 0o600)
        for path in self.folders:
            parent, _, name = path.rpartition("/")
            if parent == folder and name:
                found[name] = attributes(0, modes.S_IFDIR | 0o700)
        return [(name.encode(), attrs) for name, attrs in found.items()]


class HostileSftp:
    """``taken``: the most that was taken of one answer without end since it was last honest."""

    def __init__(self) -> None:
        self.lie: Lie | None = None
        self.taken = 0
        self.world = _Files()
        self._key = paramiko.ECDSAKey.generate(bits=256)
        self.host_key = f"{self._key.get_name()} {self._key.get_base64()}"
        self._transports: list[paramiko.Transport] = []
        self._listener = Listener(self._serve)
        self.port = self._listener.port

    def be_honest(self) -> None:
        self.lie = None
        self.taken = 0

    def close(self) -> None:
        self._listener.close()
        for transport in self._transports:
            transport.close()

    def _serve(self, client: socket.socket) -> None:
        transport = paramiko.Transport(client)
        self._transports.append(transport)
        transport.add_server_key(self._key)
        with contextlib.suppress(Exception):  # whoever connects may go at any moment
            transport.start_server(server=_AnyUser())
            channel = transport.accept(30)
            if channel is not None:
                _Talk(self, channel).run()
        transport.close()


class _AnyUser(paramiko.ServerInterface):
    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.common.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        return name == "sftp"

    def get_allowed_auths(self, username: str) -> str:
        return "password"


class _Talk:
    def __init__(self, server: HostileSftp, channel: paramiko.Channel) -> None:
        self._server = server
        self._channel = channel
        self._handles: dict[bytes, str] = {}
        self._told: set[bytes] = set()

    def run(self) -> None:
        self._channel.settimeout(60)
        while True:
            size = struct.unpack(">I", self._take(4))[0]
            packet = self._take(size)
            if packet[0] == CMD_INIT:
                self._send(struct.pack(">BI", CMD_VERSION, 3) + text("fsync@openssh.com") + text("1"))
                continue
            number = struct.unpack(">I", packet[1:5])[0]
            reply = self._honest(packet[0], packet[5:])
            if self._server.lie is not None:
                reply = self._server.lie(packet[0], packet[5:], reply)
            self._tell(number, reply)
            if reply.then_gone:
                return

    def _tell(self, number: int, reply: Reply) -> None:
        packet = struct.pack(">BI", reply.kind, number if reply.number is None else reply.number) + reply.body
        data = reply.raw if reply.raw is not None else struct.pack(">I", len(packet)) + packet
        self._channel.sendall(data)
        sent = 0
        while reply.endless and sent < ENDLESS:
            self._channel.sendall(data * 100)
            sent += len(data) * 100
            self._server.taken = max(self._server.taken, sent)

    def _take(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            data = self._channel.recv(size - len(found))
            if not data:
                raise EOFError
            found += data
        return found

    def _send(self, packet: bytes) -> None:
        self._channel.sendall(struct.pack(">I", len(packet)) + packet)

    def _honest(self, kind: int, body: bytes) -> Reply:
        with self._server.world.lock:
            return self._answer(kind, _Words(body))

    def _answer(self, kind: int, words: _Words) -> Reply:  # noqa: C901 - one request after the other
        world = self._server.world
        match kind:
            case _ if kind == CMD_OPEN:
                path, flags = words.text(), words.number()
                if path not in world.files and not flags & 8:
                    return _status(NO_SUCH_FILE)
                if path.rpartition("/")[0] not in world.folders:
                    return _status(NO_SUCH_FILE)
                world.files.setdefault(path, bytearray())
                return self._handle(path)
            case _ if kind == CMD_OPENDIR:
                path = words.text()
                return self._handle(path) if path in world.folders else _status(NO_SUCH_FILE)
            case _ if kind == CMD_READDIR:
                handle = words.data()
                if handle in self._told:
                    return _status(EOF)
                self._told.add(handle)
                return Reply(CMD_NAME, names(world.below(self._handles[handle])))
            case _ if kind in (CMD_STAT, CMD_LSTAT, CMD_FSTAT):
                path = self._handles[words.data()] if kind == CMD_FSTAT else words.text()
                if path in world.files:
                    return Reply(CMD_ATTRS, attributes(len(world.files[path]), modes.S_IFREG | 0o600))
                found = path in world.folders
                return Reply(CMD_ATTRS, attributes(0, modes.S_IFDIR | 0o700)) if found else _status(NO_SUCH_FILE)
            case _ if kind == CMD_READ:
                path, at, size = self._handles[words.data()], words.long(), words.number()
                data = bytes(world.files[path][at : at + size])
                return Reply(CMD_DATA, text(data)) if data else _status(EOF)
            case _ if kind == CMD_WRITE:
                path, at, data = self._handles[words.data()], words.long(), words.data()
                world.files[path][at:] = data
                return _status(OK)
            case _ if kind == CMD_MKDIR:
                world.folders.add(words.text())
                return _status(OK)
            case _ if kind == CMD_REMOVE:
                return _status(OK if world.files.pop(words.text(), None) is not None else NO_SUCH_FILE)
            case _ if kind == CMD_RENAME:
                return self._renamed(words.text(), words.text(), replace=False)
            case _ if kind == CMD_EXTENDED:
                what = words.data()
                if what == b"posix-rename@openssh.com":
                    return self._renamed(words.text(), words.text(), replace=True)
                return _status(OK if what == b"fsync@openssh.com" else UNSUPPORTED)
            case _ if kind == CMD_CLOSE:
                self._handles.pop(words.data(), None)
                return _status(OK)
        return _status(UNSUPPORTED)

    def _renamed(self, old: str, new: str, *, replace: bool) -> Reply:
        files = self._server.world.files
        if new in files and not replace:
            return _status(FAILURE)
        if old not in files:
            return _status(NO_SUCH_FILE)
        files[new] = files.pop(old)
        return _status(OK)

    def _handle(self, path: str) -> Reply:
        handle = b"h%d" % (len(self._handles) + len(self._told) * 1000)
        while handle in self._handles or handle in self._told:
            handle += b"x"
        self._handles[handle] = path
        return Reply(CMD_HANDLE, text(handle))


class _Words:
    def __init__(self, body: bytes) -> None:
        self._message = paramiko.Message(body)

    def text(self) -> str:
        return self._message.get_binary().decode()

    def data(self) -> bytes:
        return self._message.get_binary()

    def number(self) -> int:
        return self._message.get_int()

    def long(self) -> int:
        return self._message.get_int64()


def _status(code: int, message: str = "as said") -> Reply:
    return Reply(CMD_STATUS, struct.pack(">I", code) + text(message) + text(""))


# --- lies ---

_NAMES = (
    b"..",
    b".",
    b"",
    b"/",
    b"../../etc/passwd",
    b"a/b",
    b"\0",
    b"\xff\xfe",
    b"ab" * 32,
    b"AB" * 32,
    b"x" * 100_000,
    b"\n",
)


def _listing(rng: random.Random, _: int, __: bytes, reply: Reply) -> Reply:
    """Names that lead elsewhere, sizes that no file has, links and folders where files should be."""
    if reply.kind != CMD_NAME:
        return reply
    kinds = (modes.S_IFREG, modes.S_IFLNK, modes.S_IFDIR, modes.S_IFIFO, modes.S_IFBLK)
    sizes = (0, 5, -1, 1 << 63, (1 << 64) - 1)
    entries = [
        (rng.choice(_NAMES), attributes(rng.choice(sizes), rng.choice(kinds) | 0o777, rng.choice((0, -1, 5))))
        for _ in range(rng.choice((1, 5, 2000)))
    ]
    body = names(
        [entry if len(entry[0]) < 1000 or number < 3 else (b"x", entry[1]) for number, entry in enumerate(entries)]
    )
    return Reply(CMD_NAME, rng.choice((body, body[: len(body) // 2], struct.pack(">I", 0xFFFFFFFF) + body, body[:4])))


def _endless_listing(rng: random.Random, kind: int, _: bytes, reply: Reply) -> Reply:
    """Whatever is asked, there is more of it: new names for ever, the same name for ever, none for ever."""
    if kind != CMD_READDIR:
        return reply
    fresh = [(b"%064x" % rng.getrandbits(256), attributes(5, modes.S_IFREG | 0o600)) for _ in range(300)]
    return Reply(CMD_NAME, names(rng.choice((fresh, [fresh[0]], []))))


def _attributes(rng: random.Random, _: int, __: bytes, reply: Reply) -> Reply:
    if reply.kind != CMD_ATTRS:
        return reply
    sizes, kinds = (
        (0, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 29_999),
        (modes.S_IFLNK, modes.S_IFDIR, modes.S_IFREG),
    )
    body = attributes(rng.choice(sizes), rng.choice(kinds), rng.choice((0, -1)))
    extended = struct.pack(">III", 0x80000000, 0xFFFFFFFF, 0)
    return Reply(
        CMD_ATTRS, rng.choice((body, body, body[:5], b"", extended, struct.pack(">I", 0), struct.pack(">I", 8)))
    )


def _data(rng: random.Random, _: int, __: bytes, reply: Reply) -> Reply:
    """Shorter, longer, empty, or the length is a lie."""
    if reply.kind != CMD_DATA:
        return reply
    content = reply.body[4:]
    return Reply(
        CMD_DATA,
        rng.choice(
            (
                text(content[:1]),
                text(b""),
                text(content * 3),
                text(b"x" * (1 << 20)),
                struct.pack(">I", 0xFFFFFFF0),
                b"",
            )
        ),
    )


def _status_lie(rng: random.Random, _: int, __: bytes, ___: Reply) -> Reply:
    message = rng.choice(("", "no", "x" * 100_000, "a\nb\x1b[31m", "Read-only file system"))
    return _status(rng.choice((*range(9), 31, 255, 0xFFFFFFFF)), message)


def _another_kind(rng: random.Random, _: int, __: bytes, reply: Reply) -> Reply:
    kinds = (CMD_DATA, CMD_NAME, CMD_ATTRS, CMD_HANDLE, CMD_STATUS, CMD_VERSION, 201, 0, 255)
    return Reply(rng.choice(kinds), rng.choice((reply.body, b"", b"\xff" * 20)))


def _another_number(rng: random.Random, _: int, __: bytes, reply: Reply) -> Reply:
    return Reply(reply.kind, reply.body, number=rng.choice((0, 1, 5, 0xFFFFFFFF)), endless=rng.random() < 0.5)


def _no_packet(rng: random.Random, _: int, __: bytes, reply: Reply) -> Reply:
    raw = rng.choice(
        (b"\0\0\0\0", b"\xff" * 64, b"\0\xff\xff\xff" + bytes(1000), b"HTTP/1.1 200 OK\r\n\r\n", b"\0\0\0\1\x65")
    )
    return Reply(reply.kind, b"", raw=raw, endless=rng.random() < 0.5, then_gone=rng.random() < 0.5)


def _gone(_: random.Random, __: int, ___: bytes, reply: Reply) -> Reply:
    return Reply(reply.kind, reply.body[: len(reply.body) // 2], then_gone=True)


LIES: dict[str, Callable[[random.Random, int, bytes, Reply], Reply]] = {
    lie.__name__.strip("_"): lie
    for lie in (
        *(_listing, _endless_listing, _attributes, _data, _status_lie, _another_kind, _another_number, _no_packet),
        _gone,
    )
}


def random_lie(rng: random.Random, share: float) -> tuple[str, Lie]:
    name = rng.choice(list(LIES))
    lying = LIES[name]

    def lie(kind: int, body: bytes, reply: Reply) -> Reply:
        return lying(rng, kind, body, reply) if rng.random() < share else reply

    return name, lie
