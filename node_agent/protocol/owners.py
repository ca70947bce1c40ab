"""Whose what is that backups leave on platforms: node and server must say the same of a name there, for ever."""

from __future__ import annotations

import hashlib


def owner_of(mark: str, machine: str) -> str:
    """The owner in the names of snapshots at images that belong to a machine or a group: backups of this one into the
    repository whose ``mark`` (the first eight digits of its id) stands in all other names itself."""
    return hashlib.sha256(f"{mark}/{machine}".encode()).hexdigest()[:8]
