"""``repo init``, ``backup`` and ``backup-image``."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from node_agent.cli_options import BLOCK_SIZES, lock_wait_s, read_password, repository_url, wants_json
from node_agent.cli_repo_sources import excludes_of, roots_of, stream_name, stream_of
from node_agent.cli_session import (
    human_size,
    open_repository,
    open_store,
    print_json,
    progress_shown,
    report_issues,
    split_tags,
)
from node_agent.drivers.image import open_image
from node_agent.errors import ConfigError, DamagedError, SnapshotNotFound, SourceError
from node_agent.items import Extent, Issue, Issues, TrackingBase, printable
from node_agent.progress import Progress
from node_agent.repository.backend import redacted
from node_agent.repository.files import backup_files
from node_agent.repository.image import Ahead, Comparison, ImageBackup, backup_images
from node_agent.repository.immutable import NOT_IMMUTABLE
from node_agent.repository.lock import waiting
from node_agent.repository.publish import BackupResult
from node_agent.repository.repository import Lock, Repository
from node_agent.repository.snapshot import find_snapshot
from node_agent.repository.stream import backup_stream

_EXTENTS_HINT = (
    'The file must hold [{"offset": bytes, "length": bytes}, …], or {"base": …, "extents": [as before]};'
    " correct it, or back up without it."
)
_MAX_EXTENTS_FILE = 1 << 30


def init(args: argparse.Namespace) -> int:
    url = redacted(repository_url(args))
    password = read_password(args)
    repo = Repository.init(open_store(args), password)
    if wants_json(args):
        print_json({"message_type": "initialized", "id": repo.id, "repository": url})
    else:
        print(f"created repository {repo.id[:10]} at {url}")
        print("Keep the password safe: without it nobody can read the repository.")
    return 0


def backup(args: argparse.Namespace) -> int:
    name = stream_name(args)
    if name:
        return _backup_stream(args, name)
    roots = roots_of(args)
    paths = [str(root) for root in roots]
    excludes = excludes_of(args)

    def run(repo: Repository, lock: Lock, host: str, progress: Progress, issues: Issues) -> BackupResult:
        parent = None if args.force else _parent_id(repo, args.parent, host, paths)
        return backup_files(
            repo,
            lock,
            roots,
            host=host,
            paths=paths,
            tags=split_tags(args.tag),
            excludes=excludes,
            parent=parent,
            progress=progress,
            issues=issues,
            time=_instant(args),
            one_file_system=args.one_file_system,
            compression=args.compression,
            dry_run=args.dry_run,
        )

    return _run(args, run, dry_run=args.dry_run)


def _backup_stream(args: argparse.Namespace, name: str) -> int:
    def run(repo: Repository, lock: Lock, host: str, progress: Progress, issues: Issues) -> BackupResult:
        with stream_of(args, progress) as source:
            return backup_stream(
                repo,
                lock,
                source,
                name,
                host=host,
                tags=split_tags(args.tag),
                progress=progress,
                issues=issues,
                time=_instant(args),
                compression=args.compression,
                ended=source.ended,
                dry_run=args.dry_run,
            )

    return _run(args, run, dry_run=args.dry_run)


def _instant(args: argparse.Namespace) -> datetime:
    if not args.time or args.time == "now":
        return datetime.now(UTC)
    try:
        return datetime.strptime(args.time, "%Y-%m-%d %H:%M:%S").astimezone()
    except ValueError as error:
        raise ConfigError(
            f"{args.time!r} is no time.", hint="Give it as 2026-01-31 23:59:59, in local time."
        ) from error


def backup_image(args: argparse.Namespace) -> int:
    path = Path(os.path.abspath(args.file))
    name = args.name or path.stem
    # Without --backing-root, backing files are only allowed beside the image; the image itself may lie anywhere.
    roots = [path.resolve().parent, *map(Path, args.backing_root)]
    with open_image(path, format=args.format, roots=roots) as source:
        changed, base = read_changes(Path(args.changed_extents), source.size) if args.changed_extents else (None, None)
        if changed is not None and base is None and not args.parent:
            raise ConfigError(
                "--changed-extents needs --parent: extents say what changed since one certain snapshot.",
                hint="Give --parent with the snapshot at whose instant the change tracking began.",
            )

        block_size = BLOCK_SIZES.get(args.block_size)
        said = base.block_size if base is not None and base.block_size in BLOCK_SIZES.values() else None
        ahead = Ahead(source, changed, args.compression, block_size=block_size or said) if changed is not None else None

        def run(repo: Repository, lock: Lock, host: str, progress: Progress, issues: Issues) -> BackupResult:
            paths = [str(path)]
            if source.damage:
                issues.add(Issue(printable(str(path)), "image-damaged", source.damage))
            parent = base.snapshot if base and not args.parent else _parent_id(repo, args.parent, host, paths)
            return backup_images(
                repo,
                lock,
                [ImageBackup(name, source, changed, source.changed, base, args.disk_id or "", ahead, block_size)],
                host=host,
                paths=paths,
                tags=split_tags(args.tag),
                parent=parent,
                progress=progress,
                issues=issues,
                time=_instant(args),
                compare=_comparison(args),
                # Who names both the disk and the snapshot says that they are one, as with snapshots of a volume.
                moved=bool(args.name and args.parent),
                compression=args.compression,
            )

        try:
            return _run(args, run, args.disk_id or "")
        finally:
            if ahead is not None:
                ahead.stop()  # before the image is closed


def _comparison(args: argparse.Namespace) -> Comparison:
    """Only what was asked for: whoever gives a change list by hand means that nothing else is to be read."""
    usual = Comparison() if args.compare else Comparison.none()
    sample = usual.sample if args.sample is None else args.sample
    cycle_days = usual.cycle_days if args.compare_days is None else args.compare_days
    return Comparison(sample, cycle_days, metadata=sample != 0)


def read_changes(path: Path, image_size: int) -> tuple[list[Extent], TrackingBase | None]:
    """The change list in a file, each entry proven to be sensible, and what it says it is relative to.

    Raises SourceError that says what is not.
    """
    try:
        if path.stat().st_size > _MAX_EXTENTS_FILE:
            raise SourceError(f"The change list {path} is larger than 1 GiB.", hint=_EXTENTS_HINT)
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"The change list {path} cannot be read: {error.strerror}.", hint=_EXTENTS_HINT) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"The change list {path} is not JSON: {error}.", hint=_EXTENTS_HINT) from error
    base = None
    if isinstance(value, dict):
        base, value = _base(value.get("base"), path), value.get("extents")
    if not isinstance(value, list):
        raise SourceError(f"The change list {path} holds no list.", hint=_EXTENTS_HINT)
    return [_extent(entry, f"{path}, entry {number}", image_size) for number, entry in enumerate(value, 1)], base


def _base(value: object, path: Path) -> TrackingBase:
    kinds = (("repository", str), ("snapshot", str), ("tree", str), ("size", int), ("block_size", int), ("disk", str))
    if not isinstance(value, dict) or not all(type(value.get(key, "")) is kind for key, kind in kinds):
        raise SourceError(
            f"The change list {path} does not say what it is relative to.",
            hint='Its "base" must be the "tracking_base" that the backup before it printed with --json.',
        )
    return TrackingBase(**{key: value.get(key, "") for key, _ in kinds})


def _extent(entry: object, where: str, image_size: int) -> Extent:
    if not isinstance(entry, dict):
        raise SourceError(f"{where}: {entry!r:.80} is not an object with offset and length.", hint=_EXTENTS_HINT)
    numbers = []
    for key in ("offset", "length"):
        number = entry.get(key)
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise SourceError(
                f'{where}: "{key}" must be a whole number of bytes, not {number!r:.80}.', hint=_EXTENTS_HINT
            )
        numbers.append(number)
    offset, length = numbers
    if offset + length > image_size:
        raise SourceError(
            f"{where}: offset {offset} with length {length} ends beyond the image, which has {image_size} bytes.",
            hint="The change list belongs to another image, or to another size of it; back up without it.",
        )
    return Extent(offset, length)


def _parent_id(repo: Repository, given: str | None, host: str, paths: Sequence[str]) -> str | None:
    """The named parent, which must exist, or the latest snapshot of the same host and exactly these paths."""
    if given:
        return find_snapshot(repo, given, hosts=[host] if given == "latest" else (), paths=_same(given, paths)).id
    try:
        found = find_snapshot(repo, "latest", hosts=[host], paths=paths, damaged=_warn)
    except SnapshotNotFound:
        return None
    return found.id if set(found.paths) == set(paths) else None


def _warn(error: DamagedError) -> None:
    print(f"warning: {error.message} Another parent is looked for.", file=sys.stderr)


def _same(given: str, paths: Sequence[str]) -> Sequence[str]:
    return paths if given == "latest" else ()


_Backup = Callable[[Repository, Lock, str, Progress, Issues], BackupResult]


def _run(args: argparse.Namespace, run: _Backup, disk: str = "", *, dry_run: bool = False) -> int:
    """What all backups share: open, lock, run, tell. 3 when something was left out. A dry run reads as others read."""
    started = time.monotonic()
    issues = Issues()
    host = args.host or socket.gethostname()
    with open_repository(args) as repo, progress_shown(args) as progress:
        pause = waiting(progress, lambda text: progress.log("warning", text))
        with repo.lock(wait_s=lock_wait_s(args), read_only_ok=dry_run, early=not dry_run, pause=pause) as lock:
            repo.load_index()
            result = run(repo, lock, host, progress, issues)
        immutable = None
        if repo.backend.object_lock is not None and not dry_run:
            immutable = all(issue.code != NOT_IMMUTABLE for issue in issues.items)
    report_issues(issues, as_json=wants_json(args), during="archival")
    seconds = time.monotonic() - started
    if wants_json(args):
        facts = _summary(result, issues, seconds) | ({"dry_run": True} if dry_run else {"immutable": immutable})
        print_json(facts | _tracking_base(repo, result, disk))
    else:
        _tell(result, seconds)
        if immutable is not None:
            print("it is immutable" if immutable else "warning: it is NOT IMMUTABLE, see the note above")
    if not result.partial:
        return 0
    where = "would not be, or not whole," if dry_run else "are not, or not whole,"
    print(f"warning: {issues.left_out} items {where} in the snapshot", file=sys.stderr)
    return 3


def _summary(result: BackupResult, issues: Issues, seconds: float) -> dict[str, object]:
    """restic's summary message, and what BRS adds."""
    return {
        "message_type": "summary",
        "files_new": result.files_new,
        "files_changed": result.files_changed,
        "files_unmodified": result.files_unmodified,
        "dirs_new": 0,
        "dirs_changed": 0,
        "dirs_unmodified": 0,
        "dirs": result.dirs,
        "data_added": result.new_bytes,
        "data_added_packed": result.stored_bytes,
        "total_files_processed": result.files,
        "total_bytes_processed": result.size_bytes,
        "total_bytes_read": result.read_bytes,
        "total_duration": seconds,
        "snapshot_id": result.snapshot_id or None,
        "tree": result.tree_id,
        "parent": result.parent_id,
        "block_size": result.block_size,
        "partial": result.partial,
        "left_out": issues.left_out,
        "notes": issues.notes,
    }


def _tracking_base(repo: Repository, result: BackupResult, disk: str) -> dict[str, object]:
    """Of an image: what a list of changes since this backup is relative to."""
    if result.block_size is None:
        return {}
    base = TrackingBase(repo.id, result.snapshot_id, result.tree_id, result.size_bytes, result.block_size, disk)
    return {"total_bytes_compared": result.compared_bytes, "tracking_base": asdict(base)}


def _tell(result: BackupResult, seconds: float) -> None:
    if result.parent_id:
        print(f"parent snapshot {result.parent_id[:8]}")
    print(f"files: {result.files_new} new, {result.files_changed} changed, {result.files_unmodified} unmodified")
    print(f"processed {result.files} files, {human_size(result.size_bytes)}; read {human_size(result.read_bytes)}")
    added = f"{human_size(result.new_bytes)} ({human_size(result.stored_bytes)} stored)"
    if not result.snapshot_id:
        print(f"would add {added}, found in {seconds:.1f} s; nothing was stored, there is no snapshot")
        return
    print(f"added {added} in {seconds:.1f} s")
    print(f"snapshot {result.snapshot_id[:8]} saved")
