"""What lies beside the disks in a machine's snapshot: the driver's small files, and our facts of the disks.

/disks/NAME.raw    the disks
/vm.json …         what the driver gave: what recreates the machine, and what its next increment needs
/brs-disks.json    of each disk: the driver's word for which disk it is, its format there, its size
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from node_agent.drivers.base import Machine, Previous
from node_agent.errors import DamagedError
from node_agent.items import TrackingBase, printable
from node_agent.progress import Progress
from node_agent.repository.image_parent import Parent
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import Snapshot
from node_agent.repository.tree import load_tree

FACTS = "brs-disks.json"
SUFFIX = ".raw"
FILE_MOST = 64 << 20  # bytes of one small file (NVRAM and TPM states among them)


@dataclass(frozen=True, slots=True)
class DiskFacts:
    identity: str = ""
    format: str = ""
    size: int = 0


def facts_of(machine: Machine) -> bytes:
    disks = {
        name: asdict(DiskFacts(disk.identity, disk.format, disk.content.size)) for name, disk in machine.disks.items()
    }
    told = {"version": 1, "consistency": str(machine.consistency), "instant": machine.instant, "disks": disks}
    return json.dumps(told, indent=1).encode()


def small_files(repo: Repository, snapshot: Snapshot) -> dict[str, bytes]:
    """All files beside the disks, by name. Raises DamagedError."""
    found: dict[str, bytes] = {}
    for node in load_tree(repo, bytes.fromhex(snapshot.tree)):
        if not node.is_file:
            continue
        name = printable(node.name)
        if node.size > FILE_MOST:
            raise DamagedError(f"{name} of snapshot {snapshot.short_id} is too large to be what it should be.")
        ids = list(node.content)
        blobs = repo.load_together(BlobKind.DATA, ids)
        found[name] = b"".join(blobs[blob_id] for blob_id in ids)
    return found


def disk_facts(files: Mapping[str, bytes]) -> dict[str, DiskFacts]:
    """By the disk's name; empty when there are none or they cannot be read: then nothing is built upon them."""
    try:
        told = json.loads(files[FACTS])["disks"]
        return {str(name): _facts(one) for name, one in told.items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _facts(told: Mapping[str, Any]) -> DiskFacts:
    return DiskFacts(str(told["identity"]), str(told["format"]), int(told["size"]))


def previous(repo: Repository, parent: str | None, host: str, paths: list[str], progress: Progress) -> Previous | None:
    """What a driver may build upon: the parent, if it is whole, here, and of this very machine."""
    if parent is None:
        return None
    found = Parent.find(repo, parent, host, paths, progress)
    if not found.trusted or found.snapshot is None:
        return None
    try:
        files = small_files(repo, found.snapshot)
    except DamagedError as error:
        progress.log("warning", f"The restore point before this one is damaged: everything is read. {error}")
        return None
    facts = disk_facts(files)
    bases: dict[str, TrackingBase] = {}
    for raw in found.disks:
        name = printable(raw).removesuffix(SUFFIX)
        blocks = found.blocks(repo, raw)
        if blocks is not None and name in facts:
            bases[name] = TrackingBase(
                repository=repo.id,
                snapshot=found.snapshot.id,
                tree=found.snapshot.tree,
                size=blocks.size,
                block_size=blocks.block_size,
                disk=facts[name].identity,
            )
    return Previous(bases=bases, metadata={name: data for name, data in files.items() if name != FACTS})
