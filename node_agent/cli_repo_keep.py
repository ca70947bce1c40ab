"""``repo check`` and ``forget``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from node_agent.cli_session import (
    lock_wait_s,
    open_repository,
    print_json,
    progress_shown,
    tag_lists,
    wants_json,
)
from node_agent.errors import ConfigError
from node_agent.repository import check as check_module
from node_agent.repository import maintenance
from node_agent.repository.repository import Repository
from node_agent.repository.retention import Duration, KeepPolicy

_PERIODS = ("hourly", "daily", "weekly", "monthly", "yearly")


def check(args: argparse.Namespace) -> int:
    with open_repository(args) as repo, progress_shown(args) as progress:
        with repo.lock(wait_s=lock_wait_s(args), read_only_ok=True):
            report = check_module.check(repo, read_data=args.read_data, progress=progress)
    if wants_json(args):
        print_json({"message_type": "summary", "num_errors": len(report.errors)} | report.to_json())
        return 0 if report.ok else 1
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    for problem in report.errors:
        print(f"error: {problem.kind} {problem.name}: {problem.message}", file=sys.stderr)
        if problem.snapshots:
            print(f"  hurts snapshots: {', '.join(name[:8] for name in problem.snapshots)}", file=sys.stderr)
    counts = f"{report.snapshots} snapshots, {report.trees} trees, {report.blobs} blobs in {report.packs} packs"
    print(f"checked {counts}{', every byte read' if args.read_data else ''}")
    print("no errors were found" if report.ok else f"{len(report.errors)} errors were found")
    return 0 if report.ok else 1


def forget(args: argparse.Namespace) -> int:
    policy = _policy(args)
    if args.ids and not policy.empty:
        raise ConfigError(
            "Snapshots are forgotten either by name or by a policy.", hint="Leave out the ids or the --keep-… options."
        )
    with open_repository(args) as repo, _lock_for_forget(repo, args):
        if args.ids:
            result = maintenance.forget_ids(repo, args.ids, dry_run=args.dry_run)
        else:
            result = maintenance.forget(
                repo,
                policy,
                group_by=[part for part in args.group_by.split(",") if part],
                hosts=args.host,
                paths=args.path,
                tags=tag_lists(args.tag),
                dry_run=args.dry_run,
            )
    if wants_json(args):
        print_json(result.to_json())
    else:
        _tell(result, args)
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
        reasons = {reason.snapshot.id: ", ".join(reason.matches) for reason in group.reasons}
        for snapshot in group.keep:
            print(f"  keep    {snapshot.short_id}  {snapshot.time:%Y-%m-%d %H:%M:%S}  {reasons.get(snapshot.id, '')}")
        for snapshot in group.remove:
            print(f"  remove  {snapshot.short_id}  {snapshot.time:%Y-%m-%d %H:%M:%S}")
    planned = sum(len(group.remove) for group in result.groups) or len(args.ids)
    if args.dry_run:
        print(f"{planned} snapshots would be removed; nothing was changed")
        return
    print(f"{len(result.removed)} snapshots were removed; their space is freed by a prune")
