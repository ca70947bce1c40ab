"""What this node has made on a hypervisor and not yet removed, written down before it is made.

One file for each machine, in the node's state folder. It tells the next run which leftovers are its own, to be removed
at once; those of others are waited for until their watchdog ends them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from node_agent.drivers.libvirt.access import HostAccess
from node_agent.state import replace_file


@dataclass(frozen=True, slots=True)
class Entry:
    """One run: its folder on the hypervisor, and the checkpoint it makes; or what an import makes and replaces.

    ``files``: the place of each disk, the name it is written under, and the name of what lay there. ``defined``: UUID
    of the machine it defines; ``before``: description of the one it replaces. ``done``: all is in place.
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
    def __init__(self, folder: Path, access: HostAccess, machine: str) -> None:
        name = hashlib.sha256(f"{access.shown}\0{access.uri}\0{machine}".encode()).hexdigest()[:32]
        self._path = folder / f"{name}.json"

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
