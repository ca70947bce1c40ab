"""``repo diff``, ``find`` and ``cat``: looking into snapshots and objects."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

from node_agent.cli_options import wants_json
from node_agent.cli_repo_modes import long_line, permissions
from node_agent.cli_repo_open import chosen, reading
from node_agent.cli_session import human_size, open_repository, print_json, progress_shown
from node_agent.errors import ConfigError, ObjectMissing, RepositoryError
from node_agent.items import printable
from node_agent.progress import Progress
from node_agent.repository import diff as diff_module
from node_agent.repository.backend.base import Kind
from node_agent.repository.find import BlobUse, Finder, Wanted, find_blobs
from node_agent.repository.pack import PackedBlob, read_header
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.rfc3339 import format_datetime, format_ns
from node_agent.repository.snapshot import Snapshot, find_snapshot
from node_agent.repository.tree import Node

# --- diff ---


def diff(args: argparse.Namespace) -> int:
    def show(change: diff_module.Change) -> None:
        if wants_json(args):
            print_json(change.to_json())
        else:
            print(f"{change.sign:<4} {printable(change.path)}")

    with reading(args) as repo, progress_shown(args) as progress:
        before, after = (find_snapshot(repo, spec) for spec in (args.before, args.after))
        if not wants_json(args):
            print(f"comparing snapshot {before.short_id} to {after.short_id}:\n")
        stats = diff_module.diff(repo, before, after, show, metadata=args.metadata, progress=progress)
    if wants_json(args):
        print_json(
            {
                "message_type": "statistics",
                "source_snapshot": args.before,
                "target_snapshot": args.after,
                "changed_files": stats.changed_files,
                "added": stats.added.to_json(),
                "removed": stats.removed.to_json(),
            }
        )
        return 0
    added, removed = stats.added, stats.removed
    print(f"\nFiles:       {added.files:5d} new, {removed.files:5d} removed, {stats.changed_files:5d} changed")
    print(f"Dirs:        {added.dirs:5d} new, {removed.dirs:5d} removed")
    print(f"Others:      {added.others:5d} new, {removed.others:5d} removed")
    print(f"Data Blobs:  {added.data_blobs:5d} new, {removed.data_blobs:5d} removed")
    print(f"Tree Blobs:  {added.tree_blobs:5d} new, {removed.tree_blobs:5d} removed")
    print(f"  Added:   {human_size(added.bytes)}\n  Removed: {human_size(removed.bytes)}")
    return 0


# --- find ---


def find(args: argparse.Namespace) -> int:
    with reading(args) as repo, progress_shown(args) as progress:
        snapshots = chosen(repo, args, args.snapshot)
        if args.blob or args.tree:
            return _find_blobs(repo, args, snapshots, progress)
        wanted = Wanted(args.patterns, args.ignore_case, _time(args.oldest), _time(args.newest))
        finder = Finder(repo, wanted, progress)
        (_show_json if wants_json(args) else _show_lines)(finder, snapshots, args)
    return 0


def _show_json(finder: Finder, snapshots: list[Snapshot], _args: argparse.Namespace) -> None:
    """restic's array, one element for each snapshot with hits, written as it is found."""
    written = 0
    print("[", end="")
    for snapshot in snapshots:
        matches = [_match_json(path, node) for path, node in finder.find(snapshot)]
        if matches:
            value = {"matches": matches, "hits": len(matches), "snapshot": snapshot.id}
            print("," * bool(written) + json.dumps(value, ensure_ascii=False, separators=(",", ":")), end="")
            written += 1
    print("]")


def _match_json(path: bytes, node: Node) -> dict[str, Any]:
    value: dict[str, Any] = {
        "path": printable(path),
        "permissions": permissions(node),
        "type": node.type,
        "mode": node.mode,
        "mtime": format_ns(node.mtime),
        "atime": format_ns(node.atime),
        "ctime": format_ns(node.ctime),
        "uid": node.uid,
        "gid": node.gid,
    }
    optional = {
        "user": node.user,
        "group": node.group,
        "device_id": node.device_id,
        "size": node.size,
        "links": node.links,
    }
    return value | {name: content for name, content in optional.items() if content}


def _show_lines(finder: Finder, snapshots: list[Snapshot], args: argparse.Namespace) -> None:
    shown = 0
    for snapshot in snapshots:
        for number, (path, node) in enumerate(finder.find(snapshot)):
            if not number:
                print(f"{chr(10) * bool(shown)}snapshot {snapshot.short_id} of {snapshot.time.isoformat()}:")
            print(long_line(path, node) if args.long else printable(path))
            shown += 1


def _find_blobs(repo: Repository, args: argparse.Namespace, snapshots: list[Snapshot], progress: Progress) -> int:
    kind = "blob" if args.blob else "tree"
    try:
        found = [_use_json(use) for use in find_blobs(repo, snapshots, args.patterns, kind, progress)]
    except ValueError as error:
        raise ConfigError(f"{error}.", hint="Give the ids, or at least four of their digits.") from error
    if wants_json(args):
        print_json(found)
    for use in [] if wants_json(args) else found:
        print(f"{use['object_type']} {use['id']}\n  in {use['path']} of snapshot {use['snapshot'][:8]}")
    return 0


def _use_json(use: BlobUse) -> dict[str, Any]:
    return {
        "object_type": use.object_type,
        "id": use.id.hex(),
        "path": printable(use.path),
        "parent_tree": use.parent_tree.hex(),
        "snapshot": use.snapshot.id,
        "time": format_datetime(use.snapshot.time),
    }


def _time(text: str | None) -> int | None:
    if not text:
        return None
    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp() * 1_000_000_000)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is not a time.", hint="Write 2026-05-17, 2026-05-17 12:00 or 2026-05-17T12:00:00+02:00."
        ) from error


# --- cat ---

_POLY1305_R = 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
_MASTER_KEY_WARNING = (
    "warning: this key opens and forges everything in the repository, without any password. No change of passwords"
    " takes that back; whoever saw it is kept out only by a new repository."
)


def cat(args: argparse.Namespace) -> int:
    if args.kind not in ("config", "masterkey") and not args.id:
        raise ConfigError(f"Which {args.kind}?", hint=f"Give the id: cat {args.kind} ID.")
    if args.kind in ("blob", "tree"):
        with reading(args) as repo:
            return _cat_blob(repo, args)
    with open_repository(args) as repo:
        print(json.dumps(_object(repo, args.kind, args.id), indent=2, ensure_ascii=False))
    return 0


def _cat_blob(repo: Repository, args: argparse.Namespace) -> int:
    """A blob's bytes, of either kind; a tree also by ``SNAPSHOT:``."""
    spec = args.id
    if args.kind == "tree" and spec.endswith(":"):
        spec = find_snapshot(repo, spec[:-1]).tree
    try:
        blob_id = bytes.fromhex(spec)
    except ValueError:
        blob_id = b""
    if len(blob_id) != 32:
        raise ConfigError(f"{spec!r} is not the id of a blob.", hint="Blobs need all 64 digits.")
    kinds = [BlobKind.TREE] if args.kind == "tree" else list(BlobKind)
    kind = next((kind for kind in kinds if repo.has(kind, blob_id)), None)
    if kind is None:
        raise RepositoryError(f"There is no {args.kind} {spec} in the repository.", hint="See 'find --blob'.")
    content = memoryview(repo.load_blob(kind, blob_id))
    while content:
        content = content[os.write(sys.stdout.fileno(), content) :]
    return 0


def _object(repo: Repository, kind: str, spec: str) -> Any:
    if kind == "config":
        config = repo.config
        return {"version": config.version, "id": config.id, "chunker_polynomial": f"{config.polynomial:x}"}
    if kind == "masterkey":
        print(_MASTER_KEY_WARNING, file=sys.stderr)
        return _master_key_json(repo)
    store_kind = Kind[kind.upper()]
    name = _whole_name(repo, store_kind, spec)
    if kind == "pack":
        return _pack_json(repo, name)
    if kind == "key":
        return json.loads(repo.backend.get(Kind.KEY, name))
    return repo.files.load_json(store_kind, name)


def _master_key_json(repo: Repository) -> Any:
    """As restic prints it: ``r`` without the bits that Poly1305 ignores, which restic clears when it uses the key."""
    key = repo.files.key
    r = int.from_bytes(key.mac_r, "little") & _POLY1305_R
    return json.loads(replace(key, mac_r=r.to_bytes(16, "little")).to_json())


def _whole_name(repo: Repository, kind: Kind, spec: str) -> str:
    if kind is Kind.SNAPSHOT and spec == "latest":
        return find_snapshot(repo, spec).id
    names = list(itertools.islice(_beginning(repo, kind, spec), 2))
    if len(names) != 1:
        many = "is the beginning of several names" if names else "is not there"
        raise ObjectMissing(f"{kind.name.lower()} {spec} {many}.", hint="Give more of the name, or another one.")
    return names[0]


def _beginning(repo: Repository, kind: Kind, spec: str) -> Iterator[str]:
    return (info.name for info in repo.backend.list(kind) if info.name.startswith(spec))


def _pack_json(repo: Repository, name: str) -> dict[str, Any]:
    size = repo.backend.stat(Kind.PACK, name).size
    blobs = read_header(repo.backend, repo.files.key, name, size)
    return {"id": name, "size": size, "blobs": [_blob_json(blob) for blob in blobs]}


def _blob_json(blob: PackedBlob) -> dict[str, Any]:
    return {
        "id": blob.id.hex(),
        "type": blob.kind.value,
        "offset": blob.offset,
        "length": blob.length,
        "size": blob.size,
        "compressed": bool(blob.raw_length),
    }
