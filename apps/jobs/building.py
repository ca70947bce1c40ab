"""Jobs and their tasks as unsaved rows: one function a kind. ``jobs.requests`` and ``jobs.planner`` insert them.

A task's ``spec`` is checked against the protocol's type when it is made and stored without anything secret: the
repository's address and password, and the parent of a backup, are added when the task is leased.

Gates: whatever reads or appends shares ``repository:<id>``; forget, prune and init hold it alone. Restores into one
place exclude one another with ``target:<digest>``; so do all restores onto one KVM host, where an import keeps its
journal; and so does what needs or removes what is kept at a machine (``machine_gate``). Of the backups and restores of
machines only so many as their platform says hold ``load:<digest>`` of a host.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.utils.translation import gettext as _
from pydantic import BaseModel

from apps.catalog.models import PointCopy, RestorePoint, Trace
from apps.inventory import platforms, sources, stores
from apps.inventory.models import (
    Destination,
    DestinationKind,
    Node,
    Platform,
    PlatformKind,
    Repository,
    Workload,
)
from apps.jobs.models import Job, JobKind, Task
from apps.policies import commands
from apps.policies.assignment import rule_of
from apps.policies.models import Policy, Staging
from node_agent import protocol
from node_agent.protocol import PlatformAccess, RepositoryAccess, RestoreTarget, TaskKind

_NAMESPACE = uuid.UUID("6f0c6b1e-5b0f-5d0e-9a53-0d6b8a1d2c11")
AT_LEASE = {"repository", "password", "repository_url", "options", "parent", "platform"}  # what is added then
Made = tuple[Job, list[Task]]


def job(kind: JobKind, tenant_id: uuid.UUID, title: str, now: datetime, *, key: str | None = None, **facts: Any) -> Job:
    """A job row. With a ``key`` its id follows from it, so that two who plan the same thing make the same rows."""
    return Job(
        id=uuid.uuid5(_NAMESPACE, key) if key else uuid.uuid4(),
        tenant_id=tenant_id,
        kind=kind,
        title=title[:300],
        dedupe_key=key,
        due_at=facts.pop("due_at", now),
        **facts,
    )


def task(of: Job, ordinal: int, kind: TaskKind, spec: dict[str, Any], model: type[BaseModel], **facts: Any) -> Task:
    """A task row whose spec is a valid ``model`` but for what is added at the lease."""
    secret: dict[str, Any] = {}
    if "repository" in model.model_fields and facts.get("repository") is not None:
        secret = {"repository": RepositoryAccess(repository=facts["repository"].pk, url="", password="")}
    if model in (protocol.DiscoverSpec, protocol.RemoveTracesSpec):
        secret["platform"] = PlatformAccess(kind="", addresses=[])
    checked = model.model_validate({**spec, **secret, "kind": kind})
    return Task(
        id=task_id(of, ordinal),
        kind=kind.value,
        spec=checked.model_dump(mode="json", exclude=AT_LEASE),
        **facts,
    )


def task_id(of: Job, ordinal: int) -> uuid.UUID:
    return uuid.uuid5(of.id, str(ordinal))


def repository_gate(repository: Repository) -> str:
    return f"repository:{repository.pk}"


def on_node(node: Node) -> list[str]:
    return [f"node:{node.pk}"]


def _target_gate(*parts: object) -> str:
    return f"target:{_digest(*parts)}"


def machine_gate(workload: Workload) -> str:
    """Whoever makes, needs or removes what backups keep at a machine; a restore in place has it, too."""
    return _target_gate(workload.pk) if workload.platform.holds_machines else ""


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()


def _load(platform: Platform, host: str) -> dict[str, Any]:
    """The part of a host that a task takes; nothing for what is not a machine's."""
    if not platform.holds_machines:
        return {}
    return {"loads": f"load:{_digest(platforms.loaded(platform, host))}", "load_limit": platform}


# --- backup -----------------------------------------------------------------------------------------


def backup(
    workload: Workload,
    policy: Policy,
    repository: Repository,
    now: datetime,
    *,
    full: bool = False,
    key: str | None = None,
    due_at: datetime | None = None,
    **facts: Any,
) -> Made:
    """Staging stream: one task. Staging disk: Export, then Store on the same node."""
    due = due_at or now
    planned = key is not None
    made = job(
        JobKind.BACKUP,
        workload.tenant_id,
        _("Back up %(name)s") % {"name": workload.name},
        now,
        key=key,
        due_at=due,
        start_before=due + timedelta(minutes=policy.start_window_minutes) if planned else None,
        workload=workload,
        platform=workload.platform,
        destination=policy.destination,
        repository=repository,
        policy=policy,
        rule=rule_of(policy),
        priority=policy.priority,
        full=full,
        **facts,
    )
    if policy.staging == Staging.DISK:
        return made, _staged_backup(made, workload, policy, repository)
    spec = _backup_spec(made, workload, policy, ordinal=0)
    return made, [_storing(made, 0, TaskKind.BACKUP, spec, workload, repository)]


def _staged_backup(made: Job, workload: Workload, policy: Policy, repository: Repository) -> list[Task]:
    staging = made.id.hex
    source = sources.backup_source(workload)
    spec = {
        "workload": workload.pk, "workload_name": workload.name, "source": source, "staging": staging,
        "commands": commands.of(policy),
    }  # fmt: skip
    labels = [*on_node(workload.platform.node), f"driver:{source.driver}"]
    export = task(made, 0, TaskKind.EXPORT, spec, protocol.ExportSpec, requires=labels)
    stored = _backup_spec(made, workload, policy, ordinal=1) | {"staging": staging, "commands": None}
    store = _storing(made, 1, TaskKind.STORE, stored, workload, repository)
    store.after, store.same_node = export, True
    return [export, store]


def _storing(
    made: Job, ordinal: int, kind: TaskKind, spec: dict[str, Any], workload: Workload, repository: Repository
) -> Task:
    return task(
        made,
        ordinal,
        kind,
        spec,
        protocol.BackupSpec,
        repository=repository,
        shares=repository_gate(repository),
        excludes=machine_gate(workload),
        requires=[*on_node(workload.platform.node), f"driver:{spec['source'].driver}"],
        **_load(workload.platform, workload.facts.get("host", "")),
    )


def _backup_spec(made: Job, workload: Workload, policy: Policy, *, ordinal: int) -> dict[str, Any]:
    source = sources.backup_source(workload)
    if source.machine is not None and policy.freeze:
        told = {"freeze": policy.freeze, "freeze_limit_s": policy.freeze_limit_s}
        source = source.model_copy(update={"machine": source.machine.model_copy(update=told)})
    host, paths = sources.identity(workload)
    point = uuid.uuid5(made.id, "point")
    return {
        "workload": workload.pk,
        "workload_name": workload.name,
        "point": point,
        "source": source,
        "host": host,
        "snapshot_paths": paths,
        "tags": [f"brs.task={task_id(made, ordinal)}", f"brs.point={point}", f"brs.workload={workload.pk}"],
        "full": made.full,
        "send_directories": policy.list_files,
        "bandwidth_bytes_s": policy.bandwidth_mib_s << 20,
        "commands": commands.of(policy),
    }


# --- restore, download, browse ------------------------------------------------------------------------


def restore(
    point: RestorePoint,
    copy: PointCopy,
    node: Node,
    target: RestoreTarget,
    now: datetime,
    *,
    chosen: list[str],
    verify: bool,
    staging: str,
    platform: Platform | None = None,
    **facts: Any,
) -> Made:
    """``platform``: of machines, the one that it is restored to."""
    repository = copy.repository
    where = _("in place") if target.in_place else target.path
    made = job(
        JobKind.RESTORE,
        point.tenant_id,
        _("Restore %(name)s to %(where)s") % {"name": point.workload.name, "where": where},
        now,
        **_about(point, repository),
        **facts,
    )
    spec: dict[str, Any] = {
        "workload_name": point.workload.name,
        "snapshot_id": copy.snapshot_id,
        "include": chosen,
        "target": target,
        "verify": verify,
        "machine_id": point.workload.external_id,
    }
    labels = [*on_node(node), f"driver:{target.driver}"]
    reading: dict[str, Any] = {"repository": repository, "shares": repository_gate(repository), "requires": labels}
    if platform is not None and target.machine is not None:
        reading |= _load(platform, target.machine.host)
    gate = _target_gate(*_place(point, node, target, platform))
    if staging != Staging.DISK:
        return made, [task(made, 0, TaskKind.RESTORE, spec, protocol.RestoreSpec, excludes=gate, **reading)]
    spec["staging"] = made.id.hex
    fetch = task(made, 0, TaskKind.FETCH, spec, protocol.RestoreSpec, **reading)
    place = task(made, 1, TaskKind.IMPORT, spec, protocol.RestoreSpec, requires=labels, excludes=gate)
    place.after, place.same_node = fetch, True
    return made, [fetch, place]


def _place(point: RestorePoint, node: Node, target: RestoreTarget, platform: Platform | None) -> tuple[object, ...]:
    if platform is not None and target.machine is not None and platform.kind == PlatformKind.KVM:
        return "import", platforms.loaded(platform, target.machine.host)
    if target.in_place:
        return (point.workload_id,)
    if target.machine is not None:  # whichever node does it: what has this name on the platform
        return target.machine.platform, target.machine.host, target.machine.name
    return node.pk, target.path


def download(
    point: RestorePoint, copy: PointCopy, path: str, name: str, most: int, now: datetime, **facts: Any
) -> Made:
    title = _("Download %(file)s of %(name)s") % {"file": name, "name": point.workload.name}
    made = job(JobKind.DOWNLOAD, point.tenant_id, title, now, **_about(point, copy.repository), **facts)
    spec = {"snapshot_id": copy.snapshot_id, "path": path, "max_bytes": most}
    return made, [_reading(made, TaskKind.DOWNLOAD, spec, protocol.DownloadSpec, copy.repository)]


def browse(point: RestorePoint, copy: PointCopy, now: datetime, **facts: Any) -> Made:
    title = _("Read the file list of %(point)s") % {"point": point}
    made = job(JobKind.BROWSE, point.tenant_id, title, now, **_about(point, copy.repository), **facts)
    spec = {"snapshot_id": copy.snapshot_id}
    return made, [_reading(made, TaskKind.BROWSE, spec, protocol.BrowseSpec, copy.repository)]


def _about(point: RestorePoint, repository: Repository) -> dict[str, Any]:
    return {
        "workload": point.workload,
        "platform": point.workload.platform,
        "destination": repository.destination,
        "repository": repository,
        "restore_point": point,
    }


def _reading(made: Job, kind: TaskKind, spec: dict[str, Any], model: type[BaseModel], repository: Repository) -> Task:
    return task(made, 0, kind, spec, model, repository=repository, shares=repository_gate(repository))


# --- repositories -------------------------------------------------------------------------------------


def init(repository: Repository, now: datetime, *, key: str, **facts: Any) -> Made:
    title = _("Prepare the repository at %(name)s") % {"name": repository.destination.name}
    made = _of_repository(JobKind.INIT, repository, title, now, key=key, **facts)
    alone = {"repository": repository, "excludes": repository_gate(repository)}
    return made, [task(made, 0, TaskKind.INIT, {}, protocol.InitSpec, **alone)]


def verify(
    repository: Repository, now: datetime, *, read_data: bool, share: float = 0, key: str | None = None, **facts: Any
) -> Made:
    """``share``: of the data, least recently read first; 0: all of it."""
    title = _("Verify the repository at %(name)s") % {"name": repository.destination.name}
    made = _of_repository(JobKind.VERIFY, repository, title, now, key=key, **facts)
    cycle = timedelta(days=repository.destination.verify_cycle_days)
    spec = {"read_data": read_data, "share": share, "cycle_s": cycle.total_seconds()}
    return made, [_reading(made, TaskKind.VERIFY, spec, protocol.VerifySpec, repository)]


def prune(repository: Repository, now: datetime, *, key: str | None = None, **facts: Any) -> Made:
    title = _("Reclaim space at %(name)s") % {"name": repository.destination.name}
    made = _of_repository(JobKind.PRUNE, repository, title, now, key=key, **facts)
    spec = {"max_duration_s": 60 * repository.destination.prune_max_minutes}
    alone = {"repository": repository, "excludes": repository_gate(repository)}
    return made, [task(made, 0, TaskKind.PRUNE, spec, protocol.PruneSpec, **alone)]


def forget(title: str, repository: Repository, copies: Iterable[PointCopy], now: datetime, **facts: Any) -> Made:
    made = _of_repository(JobKind.EXPIRE, repository, title, now, **facts)
    return made, [forgetting(made, 0, repository, copies)]


def forgetting(made: Job, ordinal: int, repository: Repository, copies: Iterable[PointCopy]) -> Task:
    spec = {"snapshot_ids": [copy.snapshot_id for copy in copies]}
    alone = {"repository": repository, "excludes": repository_gate(repository)}
    return task(made, ordinal, TaskKind.FORGET, spec, protocol.ForgetSpec, **alone)


def _of_repository(kind: JobKind, repository: Repository, title: str, now: datetime, **facts: Any) -> Job:
    return job(
        kind, repository.tenant_id, title, now, repository=repository, destination=repository.destination, **facts
    )


# --- tests --------------------------------------------------------------------------------------------


def probe_destination(
    destination: Destination, nodes: Iterable[Node], ready: Repository | None, now: datetime, **facts: Any
) -> Made:
    """A task for each node that should reach it. ``ready``: the repository there, which is opened, too."""
    title = _("Test the destination %(name)s") % {"name": destination.name}
    made = job(JobKind.PROBE, destination.tenant_id, title, now, destination=destination, **facts)
    # A folder is looked at itself; at a remote store only the tenant's own place in it is touched.
    folder = "" if destination.kind == DestinationKind.LOCAL else destination.tenant.slug
    spec = {"path": stores.url(destination, folder)}
    return made, [
        task(made, number, TaskKind.PROBE, spec, protocol.ProbeSpec, requires=on_node(node), repository=ready)
        for number, node in enumerate(nodes)
    ]


def probe_paths(title: str, platform: Platform, paths: Iterable[str], now: datetime, **facts: Any) -> Made:
    made = job(JobKind.PROBE, platform.tenant_id, title, now, platform=platform, **facts)
    return made, [
        task(
            made,
            number,
            TaskKind.PROBE,
            {"driver": platform.kind, "path": path},
            protocol.ProbeSpec,
            requires=on_node(platform.node),
        )
        for number, path in enumerate(paths)
    ]


# --- platforms of machines ------------------------------------------------------------------------------


def probe_platform(platform: Platform, now: datetime, **facts: Any) -> Made:
    title = _("Test the platform %(name)s") % {"name": platform.name}
    made = job(JobKind.PROBE, platform.tenant_id, title, now, platform=platform, **facts)
    spec = {"driver": platform.kind, "path": ""}
    return made, [task(made, 0, TaskKind.PROBE, spec, protocol.ProbeSpec, requires=_for_platform(platform))]


def discover(
    platform: Platform, now: datetime, *, thorough: bool = False, key: str | None = None, **facts: Any
) -> Made:
    title = _("Look for machines on %(name)s") % {"name": platform.name}
    made = job(JobKind.DISCOVER, platform.tenant_id, title, now, key=key, platform=platform, **facts)
    return made, [
        task(
            made, 0, TaskKind.DISCOVER, {"thorough": thorough}, protocol.DiscoverSpec, requires=_for_platform(platform)
        )
    ]


def remove_traces(
    workload: Workload,
    rows: Iterable[Trace],
    now: datetime,
    *,
    snapshots_only: bool = False,
    key: str | None = None,
    **facts: Any,
) -> Made:
    title = _("Remove kept snapshots of %(name)s") % {"name": workload.name}
    platform = workload.platform
    made = job(
        JobKind.REMOVE_TRACES, workload.tenant_id, title, now, key=key, workload=workload, platform=platform, **facts
    )
    spec = {
        "machine": sources.backup_source(workload).machine,
        "marks": sorted({row.owner for row in rows}),
        "bitmaps": not snapshots_only,
        "snapshots": platform.kind != PlatformKind.KVM or any(row.in_cluster for row in rows),
    }
    alone = {"excludes": machine_gate(workload), "requires": _for_platform(platform)}
    if platform.kind == PlatformKind.KVM:  # beside no import onto the host, which may be putting this machine back
        alone["shares"] = _target_gate("import", platforms.loaded(platform, workload.facts.get("host", "")))
    return made, [task(made, 0, TaskKind.REMOVE_TRACES, spec, protocol.RemoveTracesSpec, **alone)]


def _for_platform(platform: Platform) -> list[str]:
    return [*on_node(platform.node), f"driver:{platform.kind}"]
