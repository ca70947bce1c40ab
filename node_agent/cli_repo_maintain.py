"""``repo prune`` and ``copy``."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime

from node_agent.cli_options import lock_wait_s, seconds, wants_json
from node_agent.cli_repo_open import chosen, reading_source
from node_agent.cli_session import human_size, open_repository, print_json, progress_shown
from node_agent.errors import ConfigError
from node_agent.repository.backend.settings import parse_size
from node_agent.repository.copy import CopyResult, copy_snapshots
from node_agent.repository.prune import PruneOptions, PruneResult, parse_max_unused
from node_agent.repository.prune import prune as prune_repository


def prune(args: argparse.Namespace) -> int:
    options = prune_options(args)
    with open_repository(args) as repo, progress_shown(args) as progress:
        result = prune_repository(repo, options, progress=progress)
    if wants_json(args):
        print_json({"message_type": "summary", "dry_run": args.dry_run} | result.to_json())
    else:
        tell_prune(result, dry_run=args.dry_run)
    return 0


def prune_options(args: argparse.Namespace) -> PruneOptions:
    """Also of ``forget --prune``. Raises ConfigError before anything is opened."""
    try:
        parse_max_unused(args.max_unused)
        max_repack = parse_size(args.max_repack_size) if args.max_repack_size else None
    except ValueError as error:
        raise ConfigError(f"{error}.", hint="Correct --max-unused or --max-repack-size.") from error
    return PruneOptions(
        max_unused=args.max_unused,
        max_repack_bytes=max_repack,
        max_duration_s=seconds(args.max_duration, "--max-duration"),
        dry_run=args.dry_run,
        wait_s=lock_wait_s(args),
    )


def tell_prune(result: PruneResult, *, dry_run: bool) -> None:
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    would = "would be " if dry_run else ""
    print(
        f"packs kept {result.kept_packs}, {would}removed {result.removed_packs}, "
        f"rewritten {result.rewritten_packs}, without index {result.orphaned_packs}"
    )
    if result.locked_packs:
        when = datetime.fromtimestamp(result.locked_until, UTC).strftime("%Y-%m-%d %H:%M UTC")
        print(f"{result.locked_packs} packs, {human_size(result.locked_bytes)}, are locked, the last until {when}")
    print(
        f"{human_size(result.freed_bytes)} {would}freed, {human_size(result.rewritten_bytes)} {would}stored anew, "
        f"{human_size(result.unused_bytes)} of waste {'would stay' if dry_run else 'stay'}"
    )


def copy(args: argparse.Namespace) -> int:
    with (
        reading_source(args) as source,
        open_repository(args, lockless=False) as target,
        progress_shown(args) as progress,
    ):
        with target.lock(wait_s=lock_wait_s(args)) as lock:
            target.load_index()
            snapshots = chosen(source, args, args.ids)
            result = copy_snapshots(source, target, lock, snapshots, progress=progress)
    if wants_json(args):
        print_json({"message_type": "summary"} | result.to_json())
    else:
        _tell_copy(result)
    return 0


def _tell_copy(result: CopyResult) -> None:
    for note in result.notes:
        print(f"warning: {note}", file=sys.stderr)
    for source, target in result.skipped:
        print(f"snapshot {source[:8]} is there already, as {target[:8]}")
    for source, target in result.copied:
        print(f"snapshot {source[:8]} copied as {target[:8]}")
    print(
        f"{len(result.copied)} snapshots copied, {len(result.skipped)} were there; "
        f"{human_size(result.new_bytes)} new, {human_size(result.stored_bytes)} stored"
    )
