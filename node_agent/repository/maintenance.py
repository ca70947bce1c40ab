"""Forgetting snapshots by a policy, and changing their tags. Data stay until they are pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from node_agent.errors import ConfigError, ObjectLocked, RepositoryError
from node_agent.repository.backend.base import Kind
from node_agent.repository.repository import Lock, Repository
from node_agent.repository.retention import Decision, Duration, KeepPolicy, Reason, apply_policy
from node_agent.repository.snapshot import (
    Snapshot,
    find_snapshot,
    identity_of,
    list_snapshots,
    prove_removable,
    remove_snapshot,
    save_snapshot,
)

__all__ = [
    "Duration",
    "ForgetGroup",
    "ForgetResult",
    "GroupKey",
    "KeepPolicy",
    "Reason",
    "TagChange",
    "forget",
    "forget_ids",
    "group_snapshots",
    "plan_forget",
    "tag_snapshots",
]

GROUPINGS = ("host", "paths", "tags")


@dataclass(frozen=True, slots=True)
class ForgetGroup:
    """What happens to the snapshots of one workload; newest first."""

    host: str
    paths: list[str]
    tags: list[str]
    keep: list[Snapshot]
    remove: list[Snapshot]
    reasons: list[Reason]

    def to_json(self) -> dict[str, Any]:
        """As one element of ``restic forget --json``: lists that are empty are null there."""
        return {
            "tags": self.tags or None,
            "host": self.host,
            "paths": self.paths or None,
            "keep": [snapshot.describe_json() for snapshot in self.keep] or None,
            "remove": [snapshot.describe_json() for snapshot in self.remove] or None,
            "reasons": [reason.to_json() for reason in self.reasons] or None,
        }


@dataclass(slots=True)
class ForgetResult:
    groups: list[ForgetGroup] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)  # ids that are gone now; empty after a dry run
    locked: list[str] = field(default_factory=list)  # what stays, and until when: the store keeps it

    def to_json(self) -> list[dict[str, Any]]:
        return [group.to_json() for group in self.groups]


def forget(
    repo: Repository,
    policy: KeepPolicy,
    *,
    group_by: Sequence[str] = ("host", "paths"),
    hosts: Sequence[str] = (),
    paths: Sequence[str] = (),
    tags: Sequence[Sequence[str]] = (),
    dry_run: bool = False,
    now: datetime | None = None,
) -> ForgetResult:
    """Apply a policy to each group of the snapshots that match; under an exclusive lock unless ``dry_run``.

    Refuses a policy that says nothing, and to remove the last snapshot of a group.
    """
    found = list_snapshots(repo, hosts=hosts, paths=paths, tags=tags)
    result = ForgetResult(plan_forget(found, policy, group_by=group_by, now=now or datetime.now(UTC)))
    if not dry_run:
        for group in result.groups:
            for snapshot in group.remove:
                _remove(repo, snapshot.id, result)
    return result


def forget_ids(repo: Repository, specs: Sequence[str], *, dry_run: bool = False) -> ForgetResult:
    """Remove the named snapshots (ids, their beginnings, ``latest``), also those whose file is damaged.

    Raises SnapshotNotFound before removing any.
    """
    names = list(dict.fromkeys(_name_of(repo, spec) for spec in specs))
    result = ForgetResult()
    for name in [] if dry_run else names:
        _remove(repo, name, result)
    return result


def _remove(repo: Repository, name: str, result: ForgetResult) -> None:
    try:
        remove_snapshot(repo, name)
    except ObjectLocked as error:
        result.locked.append(error.message)
    else:
        result.removed.append(name)


def _name_of(repo: Repository, spec: str) -> str:
    names = [info.name for info in repo.backend.list(Kind.SNAPSHOT) if spec and info.name.startswith(spec)]
    return names[0] if len(names) == 1 else find_snapshot(repo, spec).id


@dataclass(frozen=True, slots=True)
class TagChange:
    """Either ``set`` (not None; empty removes all tags), or ``add`` and ``remove``."""

    set: Sequence[str] | None = None
    add: Sequence[str] = ()
    remove: Sequence[str] = ()

    def apply(self, tags: Sequence[str]) -> tuple[str, ...]:
        if self.set is not None:
            return tuple(dict.fromkeys(self.set))
        return tuple(tag for tag in dict.fromkeys((*tags, *self.add)) if tag not in self.remove)


def tag_snapshots(
    repo: Repository, lock: Lock, snapshots: Sequence[Snapshot], change: TagChange
) -> list[tuple[str, str]]:
    """Snapshots never change: each is written anew, naming its original, then the old one goes. As ``restic tag``.

    Under an exclusive lock. Returns (old id, new id) of those whose tags changed.
    """
    changed = []
    there = {identity_of(snapshot): snapshot.id for snapshot in list_snapshots(repo)}
    for snapshot in snapshots:
        tags = change.apply(snapshot.tags)
        if tags == tuple(snapshot.tags):
            continue
        new = replace(snapshot, id="", tags=tags, original=snapshot.original or snapshot.id)
        prove_removable(repo, snapshot.id)
        # A run that was killed may have written it already.
        name = there.get(identity_of(new)) or save_snapshot(repo, lock, new).id
        remove_snapshot(repo, snapshot.id, replaced=True)
        changed.append((snapshot.id, name))
    return changed


def plan_forget(
    snapshots: Sequence[Snapshot], policy: KeepPolicy, *, group_by: Sequence[str], now: datetime
) -> list[ForgetGroup]:
    """What a policy would do; pure. Raises ConfigError, RepositoryError (it would leave a group empty)."""
    if policy.empty:
        raise ConfigError("No policy was given, so nothing is forgotten.", hint="Give at least one --keep-… option.")
    groups = []
    for key, group in group_snapshots(snapshots, group_by).items():
        decision = apply_policy(group, policy, now)
        if not decision.keep:
            raise RepositoryError(
                f"The policy would remove the last snapshot of {key.host or 'a group'} {' '.join(key.paths)}".rstrip()
                + ".",
                hint="Nothing was removed. Keep at least one, for example with --keep-last 1.",
            )
        groups.append(_group(key, decision))
    return groups


class GroupKey(NamedTuple):
    """What the snapshots of a group share; empty where they are not grouped by it."""

    host: str = ""
    paths: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @classmethod
    def of(cls, snapshot: Snapshot, group_by: Sequence[str]) -> GroupKey:
        return cls(
            snapshot.hostname if "host" in group_by else "",
            tuple(sorted(snapshot.paths)) if "paths" in group_by else (),
            tuple(sorted(snapshot.tags)) if "tags" in group_by else (),
        )


def group_snapshots(snapshots: Sequence[Snapshot], group_by: Sequence[str]) -> dict[GroupKey, list[Snapshot]]:
    """Groups in the order of their keys, the snapshots of each in theirs. Raises ConfigError."""
    if unknown := set(group_by) - set(GROUPINGS):
        raise ConfigError(
            f"Snapshots cannot be grouped by {min(unknown)!r}.", hint=f"Known are {', '.join(GROUPINGS)}."
        )
    members: dict[GroupKey, list[Snapshot]] = {}
    for snapshot in snapshots:
        members.setdefault(GroupKey.of(snapshot, group_by), []).append(snapshot)
    return dict(sorted(members.items()))


def _group(key: GroupKey, decision: Decision) -> ForgetGroup:
    return ForgetGroup(key.host, list(key.paths), list(key.tags), decision.keep, decision.remove, decision.reasons)
