"""The world that the server's tests live in: two tenants with one of everything, and people of every kind.

Alpha's people are ``owner``, ``admin``, ``operator`` and ``viewer`` (the colleague); ``stranger`` owns Beta;
``nobody`` belongs to no tenant; ``root`` is a superuser. All have the password PASSWORD.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

from django.contrib.auth.hashers import make_password
from django.db.models import Model
from django.utils import timezone

from apps.catalog.models import PointCopy, PointOutcome, Protection, ProtectionState, RestorePoint
from apps.iam.models import Membership, Role, Tenant, User
from apps.iam.secrets import keep
from apps.iam.tokens import digest
from apps.inventory.models import Destination, Node, Platform, PlatformKind, Repository, RepositoryState, Workload
from apps.jobs.models import Job, JobKind, LogLine, State, Task
from apps.policies.models import Assignment, Policy, Schedule
from node_agent.protocol import BackupSource, BackupSpec, RepositoryAccess, TaskKind

PASSWORD = "correct horse battery"
NODE_KINDS = [str(kind) for kind in TaskKind]


@dataclass
class House:
    """What one tenant has."""

    tenant: Tenant
    node: Node
    node_token: str
    platform: Platform
    workload: Workload
    destination: Destination
    policy: Policy
    schedule: Schedule
    repository: Repository
    repository_password: str
    point: RestorePoint
    copy: PointCopy
    protection: Protection
    job: Job
    task: Task

    def things(self) -> list[Model]:
        """One object of each kind that belongs to the tenant."""
        return [
            self.node,
            self.platform,
            self.workload,
            self.destination,
            self.policy,
            self.schedule,
            self.repository,
            self.point,
            self.copy,
            self.protection,
            self.job,
            self.task,
        ]


@dataclass
class World:
    alpha: House
    beta: House
    shared_node: Node
    owner: User
    admin: User
    operator: User
    viewer: User
    stranger: User
    nobody: User
    root: User

    @property
    def colleague(self) -> User:
        return self.viewer


@lru_cache(maxsize=1)
def _password_hash() -> str:
    return make_password(PASSWORD)  # once: the hasher is slow by design


def make_user(username: str, **extra: object) -> User:
    return User.objects.create(username=username, password=_password_hash(), is_staff=True, **extra)


def make_node(name: str, tenant: Tenant | None, **extra: object) -> tuple[Node, str]:
    """An enrolled node that was seen just now, and its token."""
    token = f"token-of-{name}-{uuid.uuid4().hex}"
    facts: dict[str, object] = {
        "token_hash": digest(token),
        "incarnation": uuid.uuid4(),
        "version": "0.1.0",
        "hostname": f"{name}.example",
        "kinds": NODE_KINDS,
        "drivers": ["files", "image"],
        "roots": {"read": ["/srv"], "write": ["/restore"], "repositories": ["/backup"]},
        "last_seen_at": timezone.now(),
        "enrolled_at": timezone.now(),
    }
    return Node.objects.create(name=name, tenant=tenant, **{**facts, **extra}), token


def make_house(name: str) -> House:
    slug = name.lower()
    tenant = Tenant.objects.create(name=name, slug=slug)
    node, node_token = make_node(f"{slug}-node", tenant)
    platform = Platform.objects.create(tenant=tenant, kind=PlatformKind.FILES, name=f"{slug}-files", node=node)
    workload = Workload.objects.create(
        tenant=tenant, platform=platform, name=f"{slug}-documents", source={"paths": ["/srv/documents"]}
    )
    destination = Destination.objects.create(tenant=tenant, name=f"{slug}-store", path="/backup")
    destination.nodes.add(node)
    policy = Policy.objects.create(tenant=tenant, name=f"{slug}-nightly", destination=destination)
    schedule = Schedule.objects.create(policy=policy)
    Assignment.objects.create(workload=workload, policy=policy)
    password = f"repository-password-of-{slug}-{uuid.uuid4().hex}"
    repository = Repository.objects.create(
        tenant=tenant,
        destination=destination,
        password=keep(tenant, f"repository at {destination.name}", password),
        repository_id=uuid.uuid4().hex * 2,
        state=RepositoryState.READY,
    )
    job, task = _backup(tenant, workload, repository, policy, node)
    point = RestorePoint.objects.create(
        tenant=tenant,
        workload=workload,
        task=task.pk,
        taken_at=timezone.now() - timedelta(hours=1),
        outcome=PointOutcome.COMPLETE,
        size_bytes=1_000_000,
        files=12,
    )
    Job.objects.filter(pk=job.pk).update(restore_point=point)
    job.refresh_from_db()
    copy = PointCopy.objects.create(
        point=point, repository=repository, snapshot_id=uuid.uuid4().hex * 2, tree_id=uuid.uuid4().hex * 2
    )
    protection = Protection.objects.create(
        workload=workload,
        state=ProtectionState.PROTECTED,
        last_good=point,
        last_good_at=point.taken_at,
        points=1,
        objective_hours=26,
    )
    return House(
        tenant,
        node,
        node_token,
        platform,
        workload,
        destination,
        policy,
        schedule,
        repository,
        password,
        point,
        copy,
        protection,
        job,
        task,
    )


def make_world() -> World:
    alpha, beta = make_house("Alpha"), make_house("Beta")
    shared_node, _ = make_node("shared-node", None)
    people = {name: make_user(name) for name in ("owner", "admin", "operator", "viewer", "stranger", "nobody")}
    for name in ("owner", "admin", "operator", "viewer"):
        Membership.objects.create(user=people[name], tenant=alpha.tenant, role=Role(name))
    Membership.objects.create(user=people["stranger"], tenant=beta.tenant, role=Role.OWNER)
    return World(alpha, beta, shared_node, root=make_user("root", is_superuser=True), **people)


def _backup(tenant: Tenant, workload: Workload, repository: Repository, policy: Policy, node: Node) -> tuple[Job, Task]:
    """A backup that succeeded an hour ago."""
    now = timezone.now()
    then = {"started_at": now - timedelta(hours=1), "finished_at": now - timedelta(minutes=59)}
    job = Job.objects.create(
        tenant=tenant,
        kind=JobKind.BACKUP,
        state=State.SUCCEEDED,
        title=f"Backup of {workload.name}",
        workload=workload,
        platform=workload.platform,
        destination=repository.destination,
        repository=repository,
        policy=policy,
        due_at=then["started_at"],
        **then,
    )
    spec = BackupSpec(
        workload=workload.pk,
        workload_name=workload.name,
        point=uuid.uuid4(),
        source=BackupSource(driver="files", paths=["/srv/documents"]),
        repository=RepositoryAccess(repository=repository.pk, url=repository.url, password=""),
        host=workload.name,
        snapshot_paths=["/srv/documents"],
        tags=[],
    )
    task = Task.objects.create(
        job=job,
        kind=TaskKind.BACKUP,
        state=State.SUCCEEDED,
        spec=spec.model_dump(mode="json"),
        repository=repository,
        available_at=then["started_at"],
        attempt=1,
        node=node,
        **then,
    )
    LogLine.objects.create(job=job, task=task, attempt=1, seq=1, at=now, level="info", message="12 files read")
    return job, task
