"""Stores for repositories: one contract (:mod:`.base`), one module for each kind of store."""

from __future__ import annotations

import re
from pathlib import Path

from node_agent.errors import ConfigError
from node_agent.repository.backend.base import Backend, Kind, ObjectInfo
from node_agent.repository.backend.local import LocalBackend

__all__ = ["Backend", "Kind", "ObjectInfo", "open_backend"]

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):")


def open_backend(url_or_path: str) -> Backend:
    """The store behind an address: a plain path or ``local:/path``. Nothing is touched yet."""
    if not url_or_path:
        raise ConfigError("The repository's address is empty.", hint="Give a folder, for example /srv/backup.")
    scheme = _SCHEME.match(url_or_path)
    if scheme is None or url_or_path.startswith("/"):
        return LocalBackend(Path(url_or_path))
    if scheme[1] == "local":
        return LocalBackend(Path(url_or_path[len("local:") :]))
    raise ConfigError(
        f"Addresses that begin with {scheme[0]!r} are not supported.",
        hint="Supported are folders: /path or local:/path.",
    )
