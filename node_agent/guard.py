"""What this node may touch: paths below the roots of its own configuration, nothing else.

Every path that comes from the server passes here before it is used. Symbolic links are resolved
first, and the *resolved* path is what tasks then work with, so that a link inside a root cannot lead
out of it. Among roots of different kinds the deepest one decides: with ``write = ["/srv"]`` and
``repositories = ["/srv/backup"]`` nothing may be restored into ``/srv/backup``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from node_agent.config import RootsConfig
from node_agent.errors import RefusedError
from node_agent.items import printable

LOCAL_SCHEME = "local:"


class Guard:
    """Decides for one node. ``own`` folders (state: token, pinned CA) may never be written by tasks."""

    def __init__(self, roots: RootsConfig, own: Iterable[Path] = ()) -> None:
        self.roots = roots
        self._own = [_real(str(path)) for path in own]
        self._read = [_real(root) for root in roots.read]
        self._write = [_real(root) for root in roots.write]
        self._repositories = [_real(root) for root in roots.repositories]

    def read(self, path: str) -> Path:
        """The resolved path of a source. RefusedError when it lies outside the read roots."""
        real = _checked(path)
        if _deepest(real, self._read) is None:
            raise _refused(path, real, "read", self.roots.read)
        return real

    def write(self, path: str) -> Path:
        """The resolved path of a target. RefusedError outside the write roots or inside the node's own folders."""
        real = _checked(path)
        root = _deepest(real, self._write)
        if root is None:
            raise _refused(path, real, "write", self.roots.write)
        if self._belongs_to_node(real, root):
            raise RefusedError(
                f"{printable(path)} belongs to the node itself or holds repositories.",
                hint="Choose a folder that is only meant for restored data.",
            )
        return real

    def repository(self, url: str) -> str:
        """The address of a repository with its path resolved. Only local repositories have a path to guard."""
        real = _checked(url.removeprefix(LOCAL_SCHEME))
        if _deepest(real, self._repositories) is None:
            raise _refused(url, real, "repositories", self.roots.repositories)
        return str(real)

    def repository_root(self, url: str) -> Path:
        """The root that allows the repository at ``url``: init makes folders below it, never the root itself."""
        self.repository(url)
        real = _checked(url.removeprefix(LOCAL_SCHEME))
        root = _deepest(real, self._repositories)
        assert root is not None
        return root

    def _belongs_to_node(self, real: Path, write_root: Path) -> bool:
        closed = _deepest(real, [*self._own, *self._repositories])
        return closed is not None and len(closed.parts) > len(write_root.parts)


def _checked(path: str) -> Path:
    if "\0" in path:
        raise RefusedError("A path with a zero byte in it is refused.", hint="Correct the path.")
    if not path.startswith("/"):
        raise RefusedError(f"{printable(path)!r} is not an absolute path.", hint="Give the path from the root, /….")
    return _real(path)


def _real(path: str) -> Path:
    return Path(os.path.realpath(path))


def _deepest(path: Path, roots: Iterable[Path]) -> Path | None:
    holding = [root for root in roots if path == root or root in path.parents]
    return max(holding, key=lambda root: len(root.parts), default=None)


def _refused(asked: str, real: Path, kind: str, roots: list[str]) -> RefusedError:
    where = printable(asked)
    if printable(str(real)) != where.removeprefix(LOCAL_SCHEME):
        where += f" (which is {printable(str(real))})"
    allowed = ", ".join(roots) or "none"
    return RefusedError(
        f"{where} is outside the folders that this node may use ({kind}: {allowed}).",
        hint=f"Add the folder to roots.{kind} in this node's node.toml if it is meant to be allowed.",
    )
