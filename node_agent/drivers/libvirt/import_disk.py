"""A disk's content onto the hypervisor: written sparse through the tunnel by a ``qemu-nbd`` there."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from node_agent.drivers.base import DiskReader
from node_agent.drivers.libvirt.host import GENTLY, Host
from node_agent.drivers.libvirt.pull import no_way
from node_agent.drivers.libvirt.tunnel import tunnel
from node_agent.drivers.nbd import NbdClient, NbdError
from node_agent.errors import TargetError, TargetFull

STEP = 4 << 20
GRAIN = 64 << 10  # zeros in runs of this are not written; also qcow2's cluster
_ZEROS = bytes(STEP)


@dataclass(frozen=True, slots=True)
class Target:
    """An image to be made: the command that makes it, empty, and the words by which ``qemu-nbd`` opens it."""

    shown: str
    create: Sequence[str]
    opened: Sequence[str]


def file_target(path: str, format: str, size: int) -> Target:
    return Target(path, ["qemu-img", "create", "-q", "-f", format, path, str(size)], ["-f", format, path])


def write_disk(host: Host, reader: DiskReader, target: Target, folder: str, tick: Callable[[int], None]) -> None:
    """Make the image with the disk's content; durable on return. ``tick`` is told of each step's bytes.

    ``folder``: a private folder on the hypervisor for the socket. The image is the caller's to remove if this raises.
    """
    socket = f"{folder}/import"
    serve = shlex.join([
        "qemu-nbd", "--fork", f"--socket={socket}", "--shared=1", "--discard=unmap",
        f"--pid-file={folder}/import.pid", "--export-name=disk", *target.opened,
    ])  # fmt: skip
    create = shlex.join(target.create)
    host.shell(f"umask 077; rm -f {shlex.quote(socket)}; {create} && {GENTLY} {serve} </dev/null >/dev/null")
    with tunnel(host.connection, socket) as through:
        client = NbdClient(through.path, "disk", ())
        try:
            client.connect()
        except NbdError as error:
            raise no_way(host, socket, error, through.complaint()) from error
        try:
            _copy(reader, client, tick)
            client.flush()
        except NbdError as error:
            if "No space left" in error.message:
                raise TargetFull(f"The hypervisor has no space left for {target.shown}.") from error
            raise TargetError(
                f"The image {target.shown} cannot be written on the hypervisor: {error.message}"
            ) from error
        finally:
            client.close()
    _wait_for_its_end(host, f"{folder}/import.pid")


def _copy(reader: DiskReader, client: NbdClient, tick: Callable[[int], None]) -> None:
    """A step is written while the next one is read."""
    with ThreadPoolExecutor(1) as pool:
        writing: Future[None] | None = None
        for offset in range(0, reader.size, STEP):
            length = min(STEP, reader.size - offset)
            data = reader.read(offset, length)
            if writing is not None:
                writing.result()
            writing = pool.submit(_write, client, offset, data)
            tick(length)
        if writing is not None:
            writing.result()


def _write(client: NbdClient, offset: int, data: bytes) -> None:
    for start, end in runs_of_data(data):
        client.write(offset + start, memoryview(data)[start:end])


def runs_of_data(data: bytes) -> Iterator[tuple[int, int]]:
    """Ranges that are not zeros, in whole grains, neighbours joined."""
    if data == _ZEROS[: len(data)]:
        return
    begun: int | None = None
    for start in range(0, len(data), GRAIN):
        piece = data[start : start + GRAIN]
        if piece == _ZEROS[: len(piece)]:
            if begun is not None:
                yield begun, start
            begun = None
        elif begun is None:
            begun = start
    if begun is not None:
        yield begun, len(data)


def _wait_for_its_end(host: Host, pid_file: str) -> None:
    """Until it has let go of the image: a machine could not be started on it before."""
    file = shlex.quote(pid_file)
    host.shell(
        f"""pid=$(cat {file} 2>/dev/null) || exit 0
tries=0
while kill -0 "$pid" 2>/dev/null && [ $tries -lt 600 ]; do sleep 0.1; tries=$((tries + 1)); done
! kill -0 "$pid" 2>/dev/null"""
    )
