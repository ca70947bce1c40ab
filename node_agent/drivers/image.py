"""Disk images in files and block devices, opened for reading one whole disk.

``open_image`` gives the disk's content whatever the file's format: raw is read directly with its
holes; qcow2 and other formats are read through ``qemu-nbd``, never by a parser of our own.

An image is hostile: a guest can write a qcow2 header into its raw disk, and a header can name a
backing file such as ``/etc/shadow``. Therefore the format is believed only where it is given or
plain (:func:`detect_format`), every file that qemu may open is known beforehand
(:mod:`node_agent.drivers.image_chain`), lies in the allowed folders, and is handed to qemu explicitly.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from node_agent.drivers.image_chain import RAW, Layer, detect_format, resolve_chain
from node_agent.drivers.image_check import damage_of
from node_agent.drivers.nbd import NbdClient, NbdError
from node_agent.errors import RefusedError, SourceChanged, SourceError, SourceMissing
from node_agent.items import Extent, printable

START_TIMEOUT_S = 30.0
_POLL_S = 0.01
_IN_USE_HINT = "Shut the virtual machine down, protect it through its hypervisor, or protect a snapshot of the disk."
# qemu marks an image it may write by a shared lock on this byte (block/file-posix.c: base 100 + write permission).
_QEMU_WRITER_BYTE = 101
_F_OFD_GETLK = 36
_FLOCK = "hhqqi4x"


class OpenImage(Protocol):
    """One disk, open for reading. Not for several threads at once.

    ``damage``: what is wrong with the file that holds it, as a sentence; what is read may then not be the disk.
    """

    size: int
    format: str
    damage: str

    def extents(self) -> Iterator[Extent]:
        """The whole disk in order, without gaps."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes."""
        ...

    def changed(self) -> bool:
        """Whether a file of the image was written since it was opened."""
        ...


@contextmanager
def open_image(path: Path, *, format: str | None = None, roots: Sequence[Path] | None = None) -> Iterator[OpenImage]:
    """Open the disk in ``path``.

    ``format`` overrides what the file looks like. With ``roots``, the image and all files it refers to
    must lie inside; without, backing files must lie in the image's own folder or below.
    """
    real = _real_path(path, roots)
    allowed = list(roots) if roots is not None else [real.parent]
    chosen = format or detect_format(real)
    if chosen == RAW:
        with _open_raw(real) as image:
            yield image
        return
    layers = resolve_chain(real, chosen, allowed)
    with _open_through_qemu(layers) as image:
        yield image


def _real_path(path: Path, roots: Sequence[Path] | None) -> Path:
    try:
        real = path.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceMissing(f"There is no image {printable(str(path))}.") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symlinks
        raise SourceError(f"The image {printable(str(path))} cannot be reached: {error}.") from error
    if roots is not None and not any(real.is_relative_to(root.resolve()) for root in roots):
        raise RefusedError(f"The image {printable(str(path))} lies outside of the folders this node may read.")
    return real


# --- raw ---


class RawImage:
    """A regular file or block device whose bytes are the disk."""

    format = RAW
    damage = ""  # a raw file has no tables that could be

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self._before = os.fstat(fd)
        self._regular = stat.S_ISREG(self._before.st_mode)
        self.size = os.lseek(fd, 0, os.SEEK_END)

    def extents(self) -> Iterator[Extent]:
        """Data and holes as the file system knows them; a block device is all data."""
        if not self._regular:
            if self.size:
                yield Extent(0, self.size)
            return
        position = 0
        while position < self.size:
            data = self._seek(position, os.SEEK_DATA)
            if data > position:
                yield Extent(position, data - position, zero=True)
            if data >= self.size:
                return
            hole = self._seek(data, os.SEEK_HOLE)
            yield Extent(data, hole - data)
            position = hole

    def read(self, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        while length:
            try:
                part = os.pread(self._fd, length, offset)
            except OSError as error:
                raise SourceError(f"{self._path} cannot be read at offset {offset}: {error.strerror}.") from error
            if not part:
                raise SourceChanged(f"{self._path} became shorter while it was read.")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def changed(self) -> bool:
        return _fingerprint(os.fstat(self._fd)) != _fingerprint(self._before)

    def _seek(self, position: int, whence: int) -> int:
        """Next data or hole; never past the size the image had when it was opened."""
        try:
            return min(os.lseek(self._fd, position, whence), self.size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self.size
            raise SourceError(f"{self._path} cannot be read: {error.strerror}.") from error


@contextmanager
def _open_raw(path: Path) -> Iterator[RawImage]:
    try:
        # O_NONBLOCK: a FIFO in the image's place must not hang the run.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SourceError(f"The image {path} cannot be opened: {error.strerror}.") from error
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise SourceError(
                f"{path} is neither a file nor a block device.", hint="Give the file that holds the disk."
            )
        if _written_by_qemu(fd):
            raise SourceError(f"The image {path} is in use by a virtual machine.", hint=_IN_USE_HINT)
        yield RawImage(fd, path)
    finally:
        os.close(fd)


def _written_by_qemu(fd: int) -> bool:
    probe = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _QEMU_WRITER_BYTE, 1, 0)
    try:
        answer = fcntl.fcntl(fd, _F_OFD_GETLK, probe)
    except OSError:  # a file system without locks: nothing can be known, as for qemu itself
        return False
    kind: int = struct.unpack(_FLOCK, answer)[0]
    return kind != fcntl.F_UNLCK


# --- through qemu ---


class QemuImage:
    """An image that a ``qemu-nbd`` of our own serves on a private socket."""

    def __init__(self, client: NbdClient, layers: Sequence[Layer], damage: str) -> None:
        self._client = client
        self.damage = damage
        self._files = [path for layer in layers for path in layer.files()]
        self._before = self._fingerprints()
        self.size = client.size
        self.format = layers[0].format

    def extents(self) -> Iterator[Extent]:
        return self._client.extents()

    def read(self, offset: int, length: int) -> bytes:
        return self._client.read(offset, length)

    def changed(self) -> bool:
        return self._fingerprints() != self._before

    def _fingerprints(self) -> list[tuple[int, ...]]:
        try:
            return [_fingerprint(path.stat()) for path in self._files]
        except OSError as error:
            raise SourceChanged(f"A file of the image vanished while it was read: {error}.") from error


def _fingerprint(st: os.stat_result) -> tuple[int, ...]:
    return (st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns)


@contextmanager
def _open_through_qemu(layers: Sequence[Layer]) -> Iterator[QemuImage]:
    with tempfile.TemporaryDirectory(prefix="brs-nbd-") as folder:
        socket_path = Path(folder) / "nbd"
        with Path(folder, "messages").open("w+b") as messages:
            server = _start_server(layers, socket_path, messages.fileno())
            try:
                client = _connect(server, socket_path, Path(folder, "messages"), layers[0])
                with closing(client):
                    yield QemuImage(client, layers, damage_of(layers))
            finally:
                _end(server)


def _start_server(layers: Sequence[Layer], socket_path: Path, messages: int) -> subprocess.Popen[bytes]:
    # "--" is not needed: the json: address begins with j. Not --persistent: it ends with our connection.
    command = ["qemu-nbd", "--read-only", "--shared=1", f"--socket={socket_path}", layers[0].address()]
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages)
    except FileNotFoundError as error:
        raise SourceError(
            f"Reading {layers[0].format} images needs the program qemu-nbd.",
            hint="Install it on the node (Debian: apt install qemu-utils).",
        ) from error


def _connect(server: subprocess.Popen[bytes], socket_path: Path, messages: Path, layer: Layer) -> NbdClient:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        client = NbdClient(socket_path)
        try:
            client.connect()
        except NbdError as error:
            if server.poll() is not None:
                raise _refusal(messages, layer) from error
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return client


def _refusal(messages: Path, layer: Layer) -> SourceError:
    text = messages.read_text(errors="replace").strip().replace("qemu-nbd: ", "")
    if "lock" in text:
        return SourceError(f"The image {layer.path} is in use by a virtual machine.", hint=_IN_USE_HINT)
    detail = " ".join(text.split()) or "no reason given"
    return SourceError(
        f"The image {layer.path} cannot be opened as {layer.format}: {detail[:500]}",
        hint="Check the file with 'qemu-img check', or state its format.",
    )


def _end(server: subprocess.Popen[bytes]) -> None:
    try:
        server.wait(timeout=2)  # it ends by itself once we hung up
    except subprocess.TimeoutExpired:
        server.terminate()
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
