"""``repo ls``, ``restore``, ``dump`` and ``stats``: what reads a repository."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from node_agent.cli_options import wants_json
from node_agent.cli_repo_modes import long_line, permissions
from node_agent.cli_repo_open import chosen, reading
from node_agent.cli_repo_sources import patterns_of
from node_agent.cli_session import human_size, print_json, progress_shown, report_issues, tag_lists
from node_agent.errors import ConfigError
from node_agent.items import Issues, printable
from node_agent.repository import files_restore
from node_agent.repository.patterns import Patterns
from node_agent.repository.random_access import RandomAccess
from node_agent.repository.repository import Repository
from node_agent.repository.restore_choice import chosen_by
from node_agent.repository.rfc3339 import format_ns
from node_agent.repository.snapshot import Snapshot, find_snapshot
from node_agent.repository.stats import Stats, stats_of
from node_agent.repository.tree import Node

_PIECE = 4 << 20  # of a dumped range


def _find(repo: Repository, args: argparse.Namespace, spec: str) -> Snapshot:
    return find_snapshot(repo, spec, hosts=args.host, paths=args.path, tags=tag_lists(args.tag))


# --- ls ---


def ls(args: argparse.Namespace) -> int:
    with reading(args) as repo:
        snapshot = _find(repo, args, args.snapshot)
        if wants_json(args):
            print_json(snapshot.describe_json() | {"struct_type": "snapshot"})
        else:
            print(
                f"snapshot {snapshot.short_id} of {list(snapshot.paths)} at {snapshot.time.isoformat()}:",
                file=sys.stderr,
            )
        for folder in args.folders or ["/"]:
            deep = args.recursive or not args.folders
            for path, node in files_restore.list_tree(repo, snapshot.id, os.fsencode(folder), recursive=deep):
                _print_entry(path, node, args)
    return 0


def _print_entry(path: bytes, node: Node, args: argparse.Namespace) -> None:
    if wants_json(args):
        print_json(_entry_json(path, node))
    elif args.long:
        print(long_line(path, node))
    else:
        print(printable(path))


def _entry_json(path: bytes, node: Node) -> dict[str, object]:
    entry: dict[str, object] = {
        "name": printable(node.name),
        "type": node.type,
        "path": printable(path),
        "uid": node.uid,
        "gid": node.gid,
    }
    if node.is_file:
        entry["size"] = node.size
    return entry | {
        "mode": node.mode,
        "permissions": permissions(node),
        "mtime": format_ns(node.mtime),
        "atime": format_ns(node.atime),
        "ctime": format_ns(node.ctime),
        "struct_type": "node",
    }


# --- restore, dump ---


def restore(args: argparse.Namespace) -> int:
    started = time.monotonic()
    issues = Issues()
    choice = chosen_by(
        Patterns(patterns_of(args.include, args.include_file), patterns_of(args.iinclude, args.iinclude_file)),
        Patterns(patterns_of(args.exclude, args.exclude_file), patterns_of(args.iexclude, args.iexclude_file)),
    )
    with reading(args) as repo, progress_shown(args) as progress:
        snapshot = _find(repo, args, args.snapshot)
        result = files_restore.restore(
            repo,
            snapshot.id,
            Path(args.target),
            choice=choice,
            strip=os.fsencode(args.strip) if args.strip else None,
            overwrite=args.overwrite,
            progress=progress,
            issues=issues,
            verify=args.verify,
        )
        total = progress.counters.total_bytes
    report_issues(issues, as_json=wants_json(args), during="restore")
    if wants_json(args):
        print_json(
            {
                "message_type": "summary",
                "snapshot_id": snapshot.id,
                "seconds_elapsed": int(time.monotonic() - started),
                "files_restored": result.files,
                "files_skipped": result.skipped,
                "files_damaged": result.damaged,
                "dirs": result.dirs,
                "total_bytes": total,
                "bytes_written": result.bytes_written,
                "left_out": issues.left_out,
                "notes": issues.notes,
            }
        )
    else:
        print(f"restored {result.files} files, {result.dirs} folders ({human_size(total)}) to {args.target}")
        if result.skipped:
            print(f"left {result.skipped} existing files as they were")
        if args.verify:
            print("every restored file was read back and proven")
    if not issues.left_out:
        return 0
    print(f"warning: {issues.left_out} items were not restored", file=sys.stderr)
    return 1 if result.damaged else 3


def dump(args: argparse.Namespace) -> int:
    out = sys.stdout.fileno()
    with reading(args) as repo:
        snapshot = _find(repo, args, args.snapshot)
        path = os.fsencode(args.entry)
        if args.offset is None and args.length is None:
            files_restore.dump(repo, snapshot.id, path, lambda data: _write_all(out, data))
        else:
            _dump_range(repo, snapshot.id, path, args.offset or 0, args.length, out)
    return 0


def _dump_range(repo: Repository, snapshot_id: str, path: bytes, offset: int, length: int | None, out: int) -> None:
    if offset < 0 or (length is not None and length < 0):
        raise ConfigError("--offset and --length are not negative.", hint="Give whole numbers of bytes.")
    with RandomAccess(repo) as access:
        file = access.open(snapshot_id, path)
        end = file.size if length is None else min(file.size, offset + length)
        while offset < end:
            data = file.read(offset, min(_PIECE, end - offset))
            _write_all(out, data)
            offset += len(data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# --- stats ---


def stats(args: argparse.Namespace) -> int:
    with reading(args) as repo, progress_shown(args) as progress:
        found = stats_of(repo, chosen(repo, args, args.ids), progress)
    if wants_json(args):
        print_json(_stats_json(found, args.mode))
        return 0
    print(f"snapshots:     {found.snapshots}")
    print(f"files:         {found.files}")
    print(f"restore size:  {human_size(found.restore_bytes)}")
    print(f"different data: {human_size(found.unique_bytes)} in {found.blobs} blobs")
    print(f"stored:        {human_size(found.stored_bytes)} ({found.ratio:.2f} times smaller than the restore size)")
    return 0


def _stats_json(found: Stats, mode: str) -> dict[str, object]:
    """restic's fields for the mode, and the others."""
    raw = mode == "raw-data"
    return {
        "total_size": found.stored_bytes if raw else found.restore_bytes,
        "total_file_count": found.entries,
        "total_blob_count": found.blobs,
        "snapshots_count": found.snapshots,
        "total_restore_size": found.restore_bytes,
        "total_uncompressed_size": found.unique_bytes,
        "total_stored_size": found.stored_bytes,
        "compression_ratio": found.unique_bytes / found.stored_bytes if found.stored_bytes else 1.0,
    }
