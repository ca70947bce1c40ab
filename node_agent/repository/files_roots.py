"""The roots of a backup, and the folders above them.

A snapshot's tree begins at ``/`` as restic's does for absolute paths: the folders above a root are in it with
their metadata, but hold only what leads to a root. Roots inside other roots add nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node_agent.errors import SourceError, SourceMissing
from node_agent.items import printable


@dataclass(slots=True)
class RootFolder:
    """A folder above roots, or (``is_root``) a root itself. Keys are raw names.

    ``path`` is what the snapshot calls it, ``real`` where its content is read from.
    """

    path: bytes
    real: bytes
    is_root: bool = False
    children: dict[bytes, RootFolder] = field(default_factory=dict)


def plan_roots(roots: Sequence[Path], found_at: Mapping[Path, Path] | None = None) -> RootFolder:
    """The tree from ``/`` down to the roots. Raises SourceMissing for a root that is not there.

    ``found_at`` says where a root really lies when that is not its own path (a staged copy, a resolved link).
    """
    if not roots:
        raise SourceError("No path to protect is given.", hint="Name at least one path.")
    top = RootFolder(b"/", b"/")
    for root in roots:
        path = os.path.abspath(os.fsencode(root))  # not resolved: the snapshot shows the name that was given
        real = os.path.abspath(os.fsencode((found_at or {}).get(root, root)))
        _require(real)
        _insert(top, path, real)
    return top


def _require(path: bytes) -> None:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceMissing(f"The path {printable(path)} does not exist.") from error
    except OSError as error:
        raise SourceError(f"The path {printable(path)} cannot be reached: {error.strerror}.") from error


def _insert(top: RootFolder, path: bytes, real: bytes) -> None:
    here = top
    for name in [part for part in path.split(b"/") if part]:
        if here.is_root:
            return  # inside a root that is protected anyway
        below = os.path.join(here.path, name)
        here = here.children.setdefault(name, RootFolder(below, below))
    here.is_root = True
    here.real = real
    here.children.clear()
