"""The packs' part of a check: each pack that the index names, against the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from node_agent.errors import BrsError, DamagedError, ObjectMissing, WorkerDied
from node_agent.progress import Progress
from node_agent.repository.backend.base import Kind
from node_agent.repository.pack import PackedBlob, header_of, pack_size, read_header
from node_agent.repository.prover import Prover, side_by_side
from node_agent.repository.sealed import SealedFiles

T = TypeVar("T")

_HELD = 64 << 20  # bytes of packs in memory at once
_MAX_READ = 256 << 20  # larger files are no packs of anybody


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a pack; ``lost`` are its blobs that cannot be had from it any more."""

    pack: str
    message: str
    lost: Sequence[PackedBlob] = ()


@dataclass(slots=True)
class PackCheck:
    files: SealedFiles
    progress: Progress
    read_data: bool
    prover: Prover
    seen: int = 0
    read_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    named: set[str] = field(default_factory=set)  # packs of the index

    def run(self, indexed: Iterator[tuple[str, list[PackedBlob]]], stored: Mapping[str, int]) -> Iterator[Finding]:
        """``stored`` holds the packs that the store lists, with their sizes."""

        def works() -> Iterator[tuple[int, Callable[[], list[Finding]]]]:
            for pack, blobs in indexed:
                self.named.add(pack)
                size = stored.get(pack)
                yield (size or 0) if self.read_data else 0, partial(self._check, pack, blobs, size)

        for findings in self._side_by_side(works()):
            yield from findings
        self.seen = len(self.named)
        self._note_orphans({name: size for name, size in stored.items() if name not in self.named})

    def read(self, packs: Iterable[tuple[str, int]]) -> Iterator[tuple[str, bool]]:
        """Read packs (name, size) wholly, without the index: each with whether all in it is what its header says.

        Ends early, without an error, when the caller stops asking.
        """
        return self._side_by_side((size, partial(self._is_whole, pack, size)) for pack, size in packs)

    def _side_by_side(self, works: Iterable[tuple[int, Callable[[], T]]]) -> Iterator[T]:
        """The results in order, of works that each hold so many bytes."""

        def watched() -> Iterator[tuple[int, Callable[[], T]]]:
            for work in works:
                self.progress.check()
                yield work

        with closing(side_by_side(watched(), self.prover.threads, _HELD)) as results:
            for result in results:
                yield result
                self.progress.add(done_files=1)

    def judge(self, pack: str, blobs: list[PackedBlob], size: int) -> list[Finding]:
        """What is wrong with one pack, read as a whole."""
        self.read_data = True
        return self._check(pack, blobs, size)

    def _is_whole(self, pack: str, size: int) -> tuple[str, bool]:
        if size > _MAX_READ:
            return pack, False
        try:
            content = memoryview(self.files.backend.get(Kind.PACK, pack))
            self._count(content)
            blobs = header_of(self.files.key, pack, content)
            whole = not self._open_all(pack, blobs, content) and hashlib.sha256(content).hexdigest() == pack
        except (DamagedError, ObjectMissing):
            whole = False
        return pack, whole

    def _count(self, content: memoryview) -> None:
        self.read_bytes += len(content)
        self.progress.add(done_bytes=len(content), read_bytes=len(content))

    def _check(self, pack: str, blobs: list[PackedBlob], size: int | None) -> list[Finding]:
        if size is None:
            return [Finding(pack, f"pack {pack} is missing; {len(blobs)} blobs are lost with it.", blobs)]
        if len({blob.kind for blob in blobs}) > 1:
            self.notes.append(f"pack {pack} holds trees and data; stock restic will repack it when it prunes.")
        try:
            return self._check_whole(pack, blobs, size) if self.read_data else self._check_header(pack, blobs, size)
        except ObjectMissing:
            return [Finding(pack, f"pack {pack} is missing; {len(blobs)} blobs are lost with it.", blobs)]
        except DamagedError as error:
            return [Finding(pack, error.message, _beyond(blobs, size))]
        except WorkerDied:
            raise  # it says nothing of the pack
        except BrsError as error:
            return [Finding(pack, f"pack {pack} cannot be read: {error.message}", blobs)]

    def _check_header(self, pack: str, blobs: list[PackedBlob], size: int) -> list[Finding]:
        if size < pack_size(blobs):
            message = f"pack {pack} is damaged: it has {size} bytes, its blobs need {pack_size(blobs)}."
            return [Finding(pack, message, _beyond(blobs, size))]
        header = set(read_header(self.files.backend, self.files.key, pack, size))
        strange = [blob for blob in blobs if blob not in header]
        if strange:
            message = f"pack {pack} is damaged: its header does not know {len(strange)} blobs that the index names."
            return [Finding(pack, message, strange)]
        if len(header) > len(blobs):
            self.notes.append(f"pack {pack} holds {len(header) - len(blobs)} blobs that no index names.")
        return []

    def _check_whole(self, pack: str, blobs: list[PackedBlob], size: int) -> list[Finding]:
        if size > _MAX_READ:
            return [Finding(pack, f"pack {pack} is damaged: it has {size} bytes.", blobs)]
        content = memoryview(self.files.backend.get(Kind.PACK, pack))
        self._count(content)
        findings = [] if self.progress.stopping else self._open_all(pack, blobs, content)
        if hashlib.sha256(content).hexdigest() != pack and not findings:
            findings.append(Finding(pack, f"pack {pack} is damaged: its name is not the SHA-256 of its content."))
        return findings or self._check_header(pack, blobs, len(content))

    def _open_all(self, pack: str, blobs: list[PackedBlob], content: memoryview) -> list[Finding]:
        bad = self.prover.prove(pack, sorted(blobs, key=lambda blob: blob.offset), content)
        return [Finding(pack, error.message, [blob]) for blob, error in bad]

    def _note_orphans(self, orphans: Mapping[str, int]) -> None:
        """Packs that no index names: left by a killed backup, or just being written. Nothing needs them."""
        for pack in sorted(orphans):
            self.progress.check()
            note = f"pack {pack} is named by no index: left by an interrupted backup, or just being written; harmless."
            if self.read_data and orphans[pack] <= _MAX_READ:
                try:
                    content = self.files.backend.get(Kind.PACK, pack)
                except ObjectMissing:
                    continue
                if hashlib.sha256(content).hexdigest() != pack:
                    note += " It is damaged."
                self.progress.add(done_bytes=len(content))
            self.progress.add(done_files=1)
            self.notes.append(note)


def _beyond(blobs: Sequence[PackedBlob], size: int) -> list[PackedBlob]:
    """The blobs that reach beyond the end of a pack that was cut; none if only its header is hurt."""
    return [blob for blob in blobs if blob.offset + blob.length > size]
