"""Operations on repositories at real servers, of which the program is killed at every write and delete.

The program is a process of its own that ends before a request, after its answer, or in the middle of an upload. What
the server then has (for SFTP and REST the files on its disk, for S3 what it lists) is judged like every other cut by
:mod:`tests.repository.cuts`; and the operation is run again at the server itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from node_agent.repository.backend import Backend, Kind, ObjectInfo, open_backend, rest, sftp_session
from node_agent.repository.backend.base import Buffer, object_path
from tests.contracts.backend_peers import ROOT, Moto, Peer, Place, RcloneRest, Sshd
from tests.repository import core_world, cuts, test_cuts
from tests.repository.cuts import Judge
from tests.repository.power import Model, Remains

_KILLED = 77
_TORN_S = 20.0  # within which a server gives up an upload that broke off


class When(StrEnum):
    BEFORE = "before"
    AFTER = "after"
    WITHIN = "within"  # an upload: half of it was sent


class CutBackend(Backend):
    """Ends the process at step ``cut``; None: counts only."""

    def __init__(self, inner: Backend, cut: int | None, when: When, count: list[int]) -> None:
        self.url = inner.url
        self.inner = inner
        self._cut, self._when, self._count = cut, when, count

    def create(self) -> None:
        self.inner.create()

    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        self._step(lambda: self.inner.put(kind, name, parts))

    def delete(self, kind: Kind, name: str) -> None:
        self._step(lambda: self.inner.delete(kind, name))

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.inner.get(kind, name, offset, length)

    def list(self, kind: Kind) -> Iterator[ObjectInfo]:
        return self.inner.list(kind)

    def stat(self, kind: Kind, name: str) -> ObjectInfo:
        return self.inner.stat(kind, name)

    def now(self) -> float:
        return self.inner.now()

    def close(self) -> None:
        self.inner.close()

    def _step(self, action: Callable[[], None]) -> None:
        self._count[0] += 1
        if self._count[0] != self._cut:
            action()
            return
        if self._when is When.BEFORE:
            os._exit(_KILLED)
        if self._when is When.WITHIN:
            rest._slices = _half_of(rest._slices)  # type: ignore[assignment]
            sftp_session._writes = _half_of(sftp_session._writes)  # type: ignore[assignment]
        action()
        os._exit(_KILLED)  # a delete, or a put of nothing, is over before it can be torn


def _half_of(real: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Half of the first piece, and no more."""

    def half(*args: Any) -> Iterator[Any]:
        piece = next(real(*args))
        if isinstance(piece, bytes):
            yield piece[: len(piece) // 2]
        else:
            kind, (handle, at, data) = piece
            yield kind, (handle, at, data[: len(data) // 2])
        os._exit(_KILLED)

    return half


# --- the repository of an operation, at the server ---


@contextmanager
def repositories_at(place: Place, cut: int | None = None, when: When = When.BEFORE) -> Iterator[list[int]]:
    """Folders that are called ``repo`` lie at the server then. Gives the count of writes and deletes."""
    count = [0]

    def opened(path: str, *args: Any, **options: Any) -> Backend:
        if not path.endswith("/repo"):
            return open_backend(path, *args, **options)
        return CutBackend(place.open(), cut, when, count)

    with pytest.MonkeyPatch.context() as patch:
        for module in (core_world, cuts, test_cuts):
            patch.setattr(module, "open_backend", opened)
        yield count


def upload(files: dict[str, bytes], place: Place) -> None:
    store = place.open()
    store.create()
    for path, data in files.items():
        folder, _, name = path.rpartition("/")
        store.put(Kind(folder.partition("/")[0] or "config"), name, [data])
    store.close()


def remains_at(peer: Peer, place: Place) -> dict[str, bytes]:
    """All files of the repository, also those that no listing shows, where the server's disk can be looked at."""
    root = place.url.rstrip("/").rpartition("/")[2]
    if isinstance(peer, Sshd | RcloneRest):
        return {
            str(path.relative_to(peer.stores / root)): path.read_bytes()
            for path in (peer.stores / root).rglob("*")
            if path.is_file()
        }
    assert isinstance(peer, Moto)
    store = place.open()
    found = {object_path(kind, info.name): store.get(kind, info.name) for kind in Kind for info in store.list(kind)}
    store.close()
    return found


def settled(peer: Peer, place: Place, when: When) -> dict[str, bytes]:
    """Once the server has noticed that its client is gone."""
    found = remains_at(peer, place)
    if when is not When.WITHIN or not isinstance(peer, RcloneRest):
        return found
    before: dict[str, bytes] = {}
    deadline = time.monotonic() + _TORN_S
    while found != before and time.monotonic() < deadline:
        before = found
        time.sleep(0.3)
        found = remains_at(peer, place)
    return found


def in_a_process(name: str, world: Path, place: Place, cut: int | None, when: When) -> int:
    """A new program, as the library for S3 bears no fork. Its exit code; without ``cut`` the number of steps."""
    told = json.dumps({"name": name, "world": str(world), "place": asdict(place), "cut": cut, "when": when})
    command = [sys.executable, "-m", "tests.contracts.peer_cuts", told]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in ((0,) if cut is None else (0, _KILLED)), done.stderr[-3000:]
    return int(done.stdout) if cut is None else done.returncode


def main(told: str) -> None:
    given = json.loads(told)
    with (
        pytest.MonkeyPatch.context() as patch,
        repositories_at(Place(**given["place"]), given["cut"], When(given["when"])) as count,
    ):
        test_cuts.make_packs_small(patch)
        test_cuts.make_locks_quick(patch)
        test_cuts.OPERATIONS[given["name"]].run(Path(given["world"]))
    print(count[0])
    sys.stdout.flush()
    os._exit(0)


def cut_at(peer: Peer, name: str, folder: Path, *, every: int = 1) -> tuple[int, int, int]:
    """Cut at each step (each ``every``-th), before, after and, where there is such a thing, within. Returns the number
    of steps, of cuts, and of different states that were judged."""
    operation = test_cuts.OPERATIONS[name]
    world, kept = folder / "world", folder / "kept"
    world.mkdir(parents=True)
    operation.prepare(world)
    shutil.copytree(world, kept, symlinks=True)
    start = {str(p.relative_to(world / "repo")): p.read_bytes() for p in (world / "repo").rglob("*") if p.is_file()}
    place = peer.place()
    upload(start, place)
    steps = in_a_process(name, world, place, None, When.BEFORE)
    assert steps > 3
    shutil.rmtree(world / "repo")
    _write(remains_at(peer, place), world / "repo")
    judge = Judge(operation, kept, world, folder / "states")
    count = 0
    whens = [When.BEFORE, When.AFTER] + ([When.WITHIN] if not isinstance(peer, Moto) else [])
    for step in range(1, steps + 1, every):
        for when in whens:
            if when is When.BEFORE and step > 1 and every == 1:
                continue  # the same as after the step before
            place = peer.place()
            upload(start, place)
            if in_a_process(name, world, place, step, when) == 0:
                continue  # threads take turns: this time there were fewer
            count += 1
            files = settled(peer, place, when)
            judge.judge(Remains(files, f"step {step}, {when}", Model.SFTP))
            run_again(name, world, place)
    return steps, count, judge.judged


def run_again(name: str, world: Path, place: Place) -> None:
    """At the server, once the locks of the dead are gone."""
    store = place.open()
    for info in list(store.list(Kind.LOCK)):
        store.delete(Kind.LOCK, info.name)
    store.close()
    in_a_process(name, world, place, None, When.BEFORE)


def _write(files: dict[str, bytes], folder: Path) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


if __name__ == "__main__":
    main(sys.argv[1])
