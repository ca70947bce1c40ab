"""What a task is given besides its spec. Tasks know neither the worker nor the network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from uuid import UUID

from node_agent.guard import Guard
from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.protocol import LIST_KEEP, Directory, MachineFacts
from node_agent.repository.lock import LockHolder


class Outlet(Protocol):
    """What a task may tell the server on its way. Calls wait and retry while the server is away."""

    def directories_wanted(self, tree_ids: list[str]) -> list[str]:
        """Which of these directories the server has no list of."""

    def send_directories(self, directories: list[Directory]) -> None: ...

    def found(self, machines: list[MachineFacts]) -> None:
        """A piece of what a platform has."""

    def upload(self, offset: int, piece: bytes) -> None: ...


@dataclass
class TaskContext:
    """One run of one task on this node."""

    task_id: UUID
    guard: Guard
    progress: Progress
    outlet: Outlet
    holder: LockHolder
    cache_dir: Path
    staging_dir: Path
    state_dir: Path = Path("/nonexistent")  # what drivers of platforms must remember over restarts; private
    staging_max_bytes: int = 0
    private: tuple[Path, ...] = ()  # the node's own secrets: never part of a backup
    now: Callable[[], float] = time.time  # the server's clock
    issues: Issues = field(default_factory=lambda: Issues(keep=LIST_KEEP))

    def utc(self) -> datetime:
        return datetime.fromtimestamp(self.now(), UTC)

    def phase(self, name: str) -> None:
        self.progress.set(phase=name)

    def warn(self, message: str) -> None:
        self.progress.log("warning", message)

    def info(self, message: str) -> None:
        self.progress.log("info", message)
