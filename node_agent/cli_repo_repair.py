"""``repo repair index``, ``packs`` and ``snapshots``."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from datetime import UTC, datetime

from node_agent.cli_options import lock_wait_s, wants_json
from node_agent.cli_repo_open import chosen, names_source, reading_source
from node_agent.cli_session import open_repository, print_json, progress_shown
from node_agent.errors import ConfigError
from node_agent.items import printable
from node_agent.progress import Progress
from node_agent.repository import repair_index as index_module
from node_agent.repository import repair_packs as packs_module
from node_agent.repository import repair_snapshots as snapshots_module
from node_agent.repository.backend.base import Kind
from node_agent.repository.check import check
from node_agent.repository.repository import Repository
from node_agent.repository.withdraw import StillLocked

_PACK = re.compile(r"[0-9a-f]{6,64}\Z")
_SHOWN = 1000


def repair_index(args: argparse.Namespace) -> int:
    with open_repository(args) as repo, progress_shown(args) as progress:
        wait_s = lock_wait_s(args)
        with repo.lock(exclusive=not args.dry_run, wait_s=wait_s, read_only_ok=args.dry_run) as lock:
            result = index_module.repair_index(
                repo, lock, read_all=args.read_all_packs, dry_run=args.dry_run, progress=progress
            )
    if wants_json(args):
        print_json({"message_type": "summary", "dry_run": args.dry_run} | result.to_json())
    else:
        _tell_index(result)
    return 1 if result.unreadable_packs else 3 if result.changed and result.still_locked else 0


def _tell_index(result: index_module.RepairIndexResult) -> None:
    for text, names in (
        ("index file is damaged", result.damaged_files),
        ("pack was in no index", result.added_packs),
        ("pack is missing, its entries go", result.missing_packs),
        ("pack's entries are corrected", result.corrected_packs),
        ("pack cannot be read by anybody", result.unreadable_packs),
    ):
        for name in names[:_SHOWN]:
            print(f"{text}: {name}")
    if result.changed:
        print(f"{result.written_files} index files written, {result.removed_files} removed")
        print("run a check; what snapshots miss now is named by 'repair snapshots'")
    else:
        print("the index is right; nothing was changed")
    _tell_locked(result.still_locked)


def repair_packs(args: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        sources = []
        if names_source(args):
            sources.append(stack.enter_context(reading_source(args)))
        repo = stack.enter_context(open_repository(args))
        progress = stack.enter_context(progress_shown(args))
        lock = stack.enter_context(repo.lock(exclusive=True, wait_s=lock_wait_s(args)))
        packs = _named_packs(repo, args.packs) or _damaged_packs(repo, args.read_data, progress)
        result = packs_module.repair_packs(repo, lock, packs, sources=sources, progress=progress)
    if wants_json(args):
        print_json({"message_type": "summary"} | result.to_json())
    else:
        _tell_packs(result)
    return 1 if result.lost_blobs else 3 if result.still_locked else 0


def _named_packs(repo: Repository, specs: list[str]) -> list[str]:
    """Whole names; beginnings are looked up in the store."""
    if bad := [spec for spec in specs if not _PACK.match(spec)]:
        raise ConfigError(f"{bad[0]!r} is not the name of a pack.", hint="Give the names that a check printed.")
    whole = [spec for spec in specs if len(spec) == 64]
    parts = tuple(spec for spec in specs if len(spec) < 64)
    return whole + [
        info.name for info in (repo.backend.list(Kind.PACK) if parts else ()) if info.name.startswith(parts)
    ]


def _damaged_packs(repo: Repository, read_data: bool, progress: Progress) -> list[str]:
    report = check(repo, read_data=read_data, progress=progress)
    return sorted({problem.name for problem in report.errors if problem.kind == "pack"})


def _tell_packs(result: packs_module.RepairPacksResult) -> None:
    for text, names in (
        ("pack is whole", result.healthy_packs),
        ("pack is in no index", result.unknown_packs),
        ("pack replaced", result.replaced_packs),
        ("pack out of the index, kept aside", result.kept_aside_packs),
        ("lost", result.lost_blobs),
    ):
        for name in names[:_SHOWN]:
            print(f"{text}: {name}")
    print(f"{result.moved_blobs} blobs moved, {result.healed_blobs} fetched, {len(result.lost_blobs)} are still lost")
    _tell_locked(result.still_locked)
    if result.lost_blobs:
        print("hint: give --from URL with a repository that has them, or see 'repair snapshots'", file=sys.stderr)


def _tell_locked(still: list[StillLocked]) -> None:
    for one in still[:_SHOWN]:
        when = datetime.fromtimestamp(one.until, UTC).strftime("%Y-%m-%d %H:%M UTC")
        print(f"out of use, but locked until {when}: {one.kind.name.lower()} {one.name}")
    if still:
        print("the repository is right without them; a prune after that time removes them")


def repair_snapshots(args: argparse.Namespace) -> int:
    write = args.write or args.forget
    with open_repository(args) as repo, progress_shown(args) as progress:
        with repo.lock(exclusive=args.forget, wait_s=lock_wait_s(args), read_only_ok=not write) as lock:
            lost = check(repo, read_data=args.read_data, progress=progress).lost
            repo.load_index()
            snapshots = chosen(repo, args, args.ids)
            if write:
                hurt = snapshots_module.repair_snapshots(
                    repo, lock, snapshots, lost, forget=args.forget, progress=progress
                )
            else:
                hurt = snapshots_module.find_hurt(repo, snapshots, lost, progress)
    if wants_json(args):
        print_json({"message_type": "summary", "hurt": [one.to_json() for one in hurt]})
    else:
        for one in hurt:
            _tell_snapshot(one)
        print(f"{len(hurt)} of {len(snapshots)} snapshots are hurt")
    return 1 if any(one.repaired is None for one in hurt) else 0


def _tell_snapshot(hurt: snapshots_module.HurtSnapshot) -> None:
    print(f"snapshot {hurt.snapshot.short_id} of {hurt.snapshot.hostname} at {hurt.snapshot.time.isoformat()}:")
    for file in hurt.files:
        ranges = "".join(f" [{offset}, +{length}]" for offset, length in file.lost[:10])
        print(f"  {printable(file.path) or '/'}: {file.message}{ranges}")
    if hurt.repaired:
        print(f"  partial snapshot {hurt.repaired[:8]} holds what is left{'; this one is gone' * hurt.forgotten}")
