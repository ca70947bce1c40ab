"""Send one file of a restore point to the server in pieces, for somebody to download."""

from __future__ import annotations

import hashlib

from node_agent.errors import TargetError, TargetFull
from node_agent.items import printable
from node_agent.protocol import PIECE_BYTES, DownloadResult, DownloadSpec
from node_agent.repository.files_browse import dump, find_node
from node_agent.repository.snapshot import load_snapshot
from node_agent.tasks.context import TaskContext
from node_agent.tasks.opening import open_for_reading
from node_agent.tasks.restore import snapshot_path


def run(context: TaskContext, spec: DownloadSpec) -> DownloadResult:
    context.phase("restore")
    path = snapshot_path(spec.path)
    with open_for_reading(context, spec.repository) as repo:
        snapshot = load_snapshot(repo, spec.snapshot_id)
        node = find_node(repo, snapshot.id, path)
        if not node.is_file:
            raise TargetError(f"{printable(path)} is not a file.", hint="Restore it to a folder instead.")
        if node.size > spec.max_bytes:
            raise TargetFull(
                f"{printable(path)} has {node.size} bytes; at most {spec.max_bytes} may be downloaded.",
                hint="Restore it to a folder instead.",
            )
        context.progress.set(total_bytes=node.size, total_files=1, current=printable(path))
        pieces = _Pieces(context, spec.max_bytes)
        dump(repo, snapshot.id, path, pieces.take)
        pieces.end()
    context.progress.add(done_files=1)
    return DownloadResult(size_bytes=pieces.size, sha256=pieces.digest.hexdigest())


class _Pieces:
    """Gathers what comes into pieces of the wire's size. An empty file is one empty piece."""

    def __init__(self, context: TaskContext, max_bytes: int) -> None:
        self._context = context
        self._max_bytes = max_bytes
        self._waiting = bytearray()
        self._sent = 0
        self.digest = hashlib.sha256()
        self.size = 0

    def take(self, data: bytes) -> None:
        self._context.progress.check()
        self.size += len(data)
        if self.size > self._max_bytes:  # the tree's size was a lie
            raise TargetFull("The file is larger than may be downloaded.", hint="Restore it to a folder instead.")
        self.digest.update(data)
        self._waiting += data
        while len(self._waiting) >= PIECE_BYTES:
            self._send(bytes(self._waiting[:PIECE_BYTES]))
            del self._waiting[:PIECE_BYTES]

    def end(self) -> None:
        if self._waiting or not self._sent:
            self._send(bytes(self._waiting))
            self._waiting.clear()

    def _send(self, piece: bytes) -> None:
        self._context.outlet.upload(self._sent, piece)
        self._sent += len(piece)
        self._context.progress.add(done_bytes=len(piece))
