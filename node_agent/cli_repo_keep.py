"""``repo check``, ``forget`` and ``tag``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from node_agent.cli_options import lock_wait_s, seconds, wants_json
from node_agent.cli_repo_maintain import prune_options, tell_prune
from node_agent.cli_repo_open import chosen
from node_agent.cli_session import human_size, open_repository, print_json, progress_shown, split_tags, tag_lists
from node_agent.errors import ConfigError
from node_agent.repository import check as check_module
from node_agent.repository import maintenance
from node_agent.repository.check_choice import ReadChoice, VerifiedPacks
from node_agent.repository.known_objects import KnownObjects
from node_agent.repository.prune import prune
from node_agent.repository.repository import Repository
from node_agent.repository.retention import Duration, KeepPolicy

_PERIODS = ("hourly", "daily", "weekly", "monthly", "yearly")


def check(args: argparse.Namespace) -> int:
    choice = _read_choice(args)
    with open_repository(args) as repo, progress_shown(args) as progress:
        with (
            VerifiedPacks(repo.cache_path("verified")) as verified,
            KnownObjects(repo.cache_path("known")) as known,
            repo.lock(wait_s=lock_wait_s(args), read_only_ok=True),
        ):
            report = check_module.check(
                repo,
                read_data=args.read_data or choice is not None,
                choice=choice,
                verified=verified,
                known=known,
                progress=progress,
            )
            if args.accept_gone:
                known.accept(problem.name for problem in report.vanished)
    if wants_json(args):
        print_json({"message_type": "summary", "num_errors": len(report.errors)} | report.to_json())
    else:
        _tell_check(report, everything=args.read_data and choice is None)
    return 0 if report.ok else 1


def _read_choice(args: argparse.Namespace) -> ReadChoice | None:
    """None: everything or nothing is read."""
    limits: dict[str, Any] = {
        "max_age_s": seconds(args.max_age, "--max-age"),
        "max_duration_s": seconds(args.max_duration, "--max-duration"),
    }
    if args.read_data_subset:
        if args.read_data:
            raise ConfigError("--read-data reads everything, --read-data-subset a part.", hint="Leave out one of them.")
        try:
            limits |= ReadChoice.parse_subset(args.read_data_subset)
        except ValueError as error:
            raise ConfigError(f"{error}.", hint="Correct --read-data-subset.") from error
    choice = ReadChoice(**limits)
    return None if choice.everything else choice


def _tell_check(report: check_module.CheckReport, *, everything: bool) -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    for problem in report.errors:
        print(f"error: {problem.message}", file=sys.stderr)
        if problem.snapshots:
            print(f"  hurts snapshots: {', '.join(name[:8] for name in problem.snapshots)}", file=sys.stderr)
        for path in problem.paths:
            print(f"  hurts {path}", file=sys.stderr)
    counts = f"{report.snapshots} snapshots, {report.trees} trees, {report.blobs} blobs in {report.packs} packs"
    print(f"checked {counts}{', every byte read' if everything else ''}")
    if report.chosen_packs is not None:
        print(f"read {report.read_packs} packs ({human_size(report.read_bytes)})")
        if report.unread_packs:
            print(f"the time ran out before {report.unread_packs} more packs")
        print(f"{report.never_read_packs} packs were never read by this machine")
    if any(problem.snapshots for problem in report.errors):
        print("hint: 'repair snapshots' names the files, 'repair packs --from URL' heals them", file=sys.stderr)
    print("no errors were found" if report.ok else f"{len(report.errors)} errors were found")


def forget(args: argparse.Namespace) -> int:
    policy = _policy(args)
    if args.ids and not policy.empty:
        raise ConfigError(
            "Snapshots are forgotten either by name or by a policy.", hint="Leave out the ids or the --keep-… options."
        )
    options = prune_options(args) if args.prune else None
    with open_repository(args) as repo:
        with _lock_for_forget(repo, args):
            result = _forget(repo, policy, args)
        for message in result.locked:
            print(f"note: {message}", file=sys.stderr)
        if wants_json(args):
            print_json(result.to_json())
        else:
            _tell(result, args)
        if options is not None and (result.removed or args.dry_run):
            with progress_shown(args) as progress:
                pruned = prune(repo, options, progress=progress)
            if not wants_json(args):  # whose output is restic's array and nothing else
                tell_prune(pruned, dry_run=args.dry_run)
    return 0


def _forget(repo: Repository, policy: KeepPolicy, args: argparse.Namespace) -> maintenance.ForgetResult:
    if args.ids:
        return maintenance.forget_ids(repo, args.ids, dry_run=args.dry_run)
    return maintenance.forget(
        repo,
        policy,
        group_by=[part for part in args.group_by.split(",") if part],
        hosts=args.host,
        paths=args.path,
        tags=tag_lists(args.tag),
        dry_run=args.dry_run,
    )


def tag(args: argparse.Namespace) -> int:
    if (args.set is None) == (not args.add and not args.remove):
        raise ConfigError("Tags are either set, or added and removed.", hint="Give --set, or --add and --remove.")
    change = maintenance.TagChange(
        set=split_tags(args.set) if args.set is not None else None,
        add=split_tags(args.add),
        remove=split_tags(args.remove),
    )
    with open_repository(args) as repo, repo.lock(exclusive=True, wait_s=lock_wait_s(args)) as lock:
        repo.load_index()
        changed = maintenance.tag_snapshots(repo, lock, chosen(repo, args, args.ids), change)
    if wants_json(args):
        pairs = [{"old_snapshot_id": old, "new_snapshot_id": new} for old, new in changed]
        print_json({"message_type": "summary", "changed_snapshots": len(changed), "changed": pairs})
        return 0
    for old, new in changed:
        print(f"snapshot {old[:8]} is now {new[:8]}")
    print(f"modified tags on {len(changed)} snapshots")
    return 0


@contextlib.contextmanager
def _lock_for_forget(repo: Repository, args: argparse.Namespace) -> Iterator[None]:
    with repo.lock(exclusive=not args.dry_run, wait_s=lock_wait_s(args), read_only_ok=args.dry_run):
        yield


def _policy(args: argparse.Namespace) -> KeepPolicy:
    options: dict[str, Any] = {period: getattr(args, f"keep_{period}") for period in ("last", *_PERIODS)}
    for name in ("within", *(f"within_{period}" for period in _PERIODS)):
        text = getattr(args, f"keep_{name}")
        try:
            options |= {name: Duration.parse(text)} if text else {}
        except ValueError as error:
            raise ConfigError(f"{error}.", hint="Durations are written like 1y5m7d2h.") from error
    return KeepPolicy(**options, tags=tag_lists(args.keep_tag))


def _tell(result: maintenance.ForgetResult, args: argparse.Namespace) -> None:
    for group in result.groups:
        print(f"snapshots of host {group.host or '(any)'}, paths {' '.join(group.paths) or '(any)'}:")
        if args.compact:
            print(f"  keep {len(group.keep)}: {' '.join(snapshot.short_id for snapshot in group.keep)}")
            print(f"  remove {len(group.remove)}: {' '.join(snapshot.short_id for snapshot in group.remove)}")
            continue
        reasons = {reason.snapshot.id: ", ".join(reason.matches) for reason in group.reasons}
        for snapshot in group.keep:
            print(f"  keep    {snapshot.short_id}  {snapshot.time:%Y-%m-%d %H:%M:%S}  {reasons.get(snapshot.id, '')}")
        for snapshot in group.remove:
            print(f"  remove  {snapshot.short_id}  {snapshot.time:%Y-%m-%d %H:%M:%S}")
    planned = sum(len(group.remove) for group in result.groups) or len(args.ids)
    if args.dry_run:
        print(f"{planned} snapshots would be removed; nothing was changed")
        return
    print(f"{len(result.removed)} snapshots were removed{'' if args.prune else '; their space is freed by a prune'}")
