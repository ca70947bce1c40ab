"""``repo snapshots``, ``list`` and ``version``."""

from __future__ import annotations

import argparse
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from node_agent import __version__
from node_agent.cli_options import lock_wait_s, wants_json
from node_agent.cli_repo_open import chosen, reading
from node_agent.cli_session import open_repository, print_json
from node_agent.errors import DamagedError
from node_agent.repository.backend.base import Kind
from node_agent.repository.maintenance import GroupKey, group_snapshots
from node_agent.repository.snapshot import Snapshot

# --- snapshots ---


def snapshots(args: argparse.Namespace) -> int:
    """Those that can be read are listed even if others cannot; the damaged ones are named, and the exit code is 1."""
    hurt: list[DamagedError] = []
    grouping = [part for part in args.group_by.split(",") if part]
    with open_repository(args) as repo, repo.lock(wait_s=lock_wait_s(args), read_only_ok=True):
        found = chosen(repo, args, args.ids, damaged=hurt.append)
    groups = {key: _latest(group, args.latest) for key, group in group_snapshots(found, grouping).items()}
    if wants_json(args):
        print_json(_groups_json(groups) if grouping else [one.describe_json() for one in groups.get(GroupKey(), [])])
    else:
        for key, group in groups.items() if grouping else [(GroupKey(), groups.get(GroupKey(), []))]:
            if grouping:
                print(f"snapshots{_group_title(key)}:")
            _print_snapshots(group, compact=args.compact)
    for error in hurt:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
    return 1 if hurt else 0


def _latest(group: Sequence[Snapshot], count: int) -> list[Snapshot]:
    """The last ``count`` of each host with its paths, whatever the grouping, as restic has it; 0 or less: all."""
    if count <= 0:
        return list(group)
    seen: Counter[GroupKey] = Counter()
    kept = []
    for snapshot in reversed(group):
        key = GroupKey.of(snapshot, ("host", "paths"))
        seen[key] += 1
        if seen[key] <= count:
            kept.append(snapshot)
    return kept[::-1]


def _groups_json(groups: dict[GroupKey, list[Snapshot]]) -> list[dict[str, Any]]:
    """restic's: what is not grouped by is empty or null."""
    return [
        {
            "group_key": {"hostname": key.host, "paths": list(key.paths) or None, "tags": list(key.tags) or None},
            "snapshots": [snapshot.describe_json() for snapshot in group],
        }
        for key, group in groups.items()
    ]


def _group_title(key: GroupKey) -> str:
    parts = [f"host [{key.host}]"] if key.host else []
    parts += [f"{name} [{', '.join(values)}]" for name, values in (("tags", key.tags), ("paths", key.paths)) if values]
    return f" for ({', '.join(parts)})" if parts else ""


def _print_snapshots(found: Sequence[Snapshot], *, compact: bool) -> None:
    rows = [("ID", "Time", "Host", "Tags", "Paths")]
    for snapshot in found:
        when = snapshot.time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        rows.append((snapshot.short_id, when, snapshot.hostname, ",".join(snapshot.tags), " ".join(snapshot.paths)))
    _print_table([row[:-1] for row in rows] if compact else rows)
    print(f"{len(found)} snapshots")


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("-" * (sum(widths) + 2 * len(widths) - 2))


# --- list, version ---

_STORED = {
    "packs": Kind.PACK,
    "index": Kind.INDEX,
    "snapshots": Kind.SNAPSHOT,
    "keys": Kind.KEY,
    "locks": Kind.LOCK,
}


def list_names(args: argparse.Namespace) -> int:
    """One name in each line, with --json too: restic 0.14 has no other form."""
    if args.kind == "blobs":
        with reading(args) as repo:
            for _, blobs in repo.index.packs():
                for blob in blobs:
                    print(f"{blob.kind.value} {blob.id.hex()}")
        return 0
    # Without a lock, which would be one of the locks that are listed: the names in a folder need none.
    with open_repository(args) as repo:
        for info in repo.backend.list(_STORED[args.kind]):
            print(info.name)
    return 0


def version(args: argparse.Namespace) -> int:
    where = f"{platform.system().lower()}/{platform.machine()}"
    if wants_json(args):
        print_json({"message_type": "version", "version": __version__, "python_version": platform.python_version()})
    else:
        print(f"BRS {__version__}, repository format 2 of restic, Python {platform.python_version()} on {where}")
    return 0
