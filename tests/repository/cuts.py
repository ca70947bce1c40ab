"""The power goes: operations that are cut at the n-th change of the store, for every n until they get through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node_agent.repository.backend import Kind
from node_agent.repository.backend.local import LocalBackend


class Cut(Exception):
    """The power went."""


@contextlib.contextmanager
def cut_after(steps: int, folder: Path) -> Iterator[None]:
    """Puts and deletes in the repository at ``folder`` work ``steps`` times, then never again; but for locks."""
    put, delete = LocalBackend.put, LocalBackend.delete
    left = steps

    def count(backend: LocalBackend, kind: Kind) -> None:
        nonlocal left
        if kind is not Kind.LOCK and backend.root == folder:
            left -= 1
            if left < 0:
                raise Cut

    def cut_put(self: LocalBackend, kind: Kind, name: str, parts: object) -> None:
        count(self, kind)
        put(self, kind, name, parts)  # type: ignore[arg-type]

    def cut_delete(self: LocalBackend, kind: Kind, name: str) -> None:
        count(self, kind)
        delete(self, kind, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalBackend, "put", cut_put)
        patch.setattr(LocalBackend, "delete", cut_delete)
        yield


def cut_everywhere(folder: Path, operation: Callable[[], object], after_each: Callable[[], object]) -> int:
    """Run ``operation``, cut at its first change, then at its second and so on until it gets through.

    ``after_each`` judges what is left each time. Returns how many cuts there were.
    """
    for steps in range(200):
        try:
            with cut_after(steps, folder):
                operation()
        except Cut:
            after_each()
            continue
        return steps
    raise AssertionError("it never got through")
