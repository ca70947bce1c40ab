"""What this node has made on a hypervisor and not yet removed, written down before it is made.

One file for each machine and each import, in the node's state folder. It tells the next run which leftovers are its
own, to be removed at once; those of others are waited for until their watchdog ends them. Who works on something holds
its lock: what another thread or process of this node has under way is no leftover.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from node_agent.drivers.libvirt.access import HostAccess
from node_agent.drivers.libvirt.errors import MachineBusy
from node_agent.state import replace_file

_IMPORT = "import"  # in a machine's place


@dataclass(frozen=True, slots=True)
class Entry:
    """One run: its folder on the hypervisor, and the checkpoint it makes; or what an import makes and replaces.

    ``files``: the place of each disk (and of the firmware's files), the name it is written under, and the name of what
    lay there. ``defined``: UUID of the machine it defines; ``before``: description of the one it replaces. ``done``:
    all is in place.
    """

    host: str
    machine: str
    folder: str = ""
    checkpoint: str = ""
    files: list[list[str]] = field(default_factory=list)
    defined: str = ""
    before: str = ""
    images: list[dict[str, Any]] = field(default_factory=list)  # in Ceph clusters, see import_rbd
    done: bool = False


class Journal:
    def __init__(self, folder: Path, access: HostAccess, machine: str, run: str = "") -> None:
        self._path = folder / f"{_name(access, machine)}{run and f'-{run}'}.json"

    @classmethod
    @contextmanager
    def of_new_import(cls, folder: Path, access: HostAccess) -> Iterator[Journal]:
        """One for each, held as ours: several may run at once."""
        journal = cls(folder, access, _IMPORT, secrets.token_hex(8))
        try:
            with journal.held():
                yield journal
        finally:
            journal._put_away()

    @classmethod
    def of_left_imports(cls, folder: Path, access: HostAccess) -> Iterator[Journal]:
        """Those of this host that nobody works on any more, each held as ours meanwhile."""
        name = _name(access, _IMPORT)
        for path in sorted(folder.glob(f"{name}*.json")):
            journal = cls(folder, access, _IMPORT, path.stem.removeprefix(name).removeprefix("-"))
            try:
                with journal.held():
                    yield journal
            except MachineBusy:
                continue
            journal._put_away()

    @property
    def _lock(self) -> Path:
        return self._path.with_suffix(".lock")

    @contextmanager
    def held(self) -> Iterator[None]:
        """MachineBusy when another thread or process of this node holds it; freed by the kernel when this one dies."""
        self._lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MachineBusy(
                    "This node works on the virtual machine already, in another task.",
                    hint="Nothing to do: it is tried again when that one has ended.",
                ) from None
            yield
        finally:
            os.close(handle)

    def read(self) -> Entry | None:
        try:
            value = json.loads(self._path.read_text())
            return Entry(**value)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # torn by a crash of the machine: what it would say is found by its names
            return None

    def write(self, entry: Entry) -> None:
        """Durable on return."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._path, json.dumps(asdict(entry)).encode())

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)

    def _put_away(self) -> None:
        """The lock of an import that is over: nothing else ever has its name."""
        if self.read() is None:
            self._lock.unlink(missing_ok=True)


def _name(access: HostAccess, machine: str) -> str:
    return hashlib.sha256(f"{access.shown}\0{access.uri}\0{machine}".encode()).hexdigest()[:32]
