"""The REST API as the tests use it: a person with a token, and every route that the router knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Model
from django.test import Client
from django.utils import timezone

from apps.catalog.models import Trace
from apps.iam import audit, tokens
from apps.iam.models import Membership, User
from apps.inventory.models import EnrolmentCode
from apps.jobs.models import Download, Job, JobKind, State
from brs.api_urls import router
from tests.world import World

BASE = "/api/v1"


@dataclass
class Person:
    """Requests with an API token. Answers are Django's test responses."""

    user: User
    clear: str

    def __post_init__(self) -> None:
        self.client = Client(raise_request_exception=True)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        extra = {"content_type": "application/json", "data": body} if body is not None else {}
        headers = {"Authorization": f"Bearer {self.clear}", **headers}
        return getattr(self.client, method.lower())(f"{BASE}/{path}", headers=headers, **extra)

    def get(self, path: str, **headers: str) -> Any:
        return self.call("get", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.call("post", path, {} if body is None else body, **headers)

    def patch(self, path: str, body: Any) -> Any:
        return self.call("patch", path, body)

    def put(self, path: str, body: Any) -> Any:
        return self.call("put", path, body)

    def delete(self, path: str) -> Any:
        return self.call("delete", path)


def person(user: User) -> Person:
    return Person(user, tokens.issue(user, "test")[1])


@dataclass(frozen=True)
class Route:
    """One address of the router: ``path`` with ``{pk}`` where an object's key goes."""

    basename: str
    path: str
    methods: tuple[str, ...]

    @property
    def detail(self) -> bool:
        return "{pk}" in self.path


def routes() -> Iterator[Route]:
    for prefix, viewset, basename in router.registry:
        for route in router.get_routes(viewset):
            mapping = router.get_method_map(viewset, route.mapping)
            if not mapping:
                continue
            allowed = [method for method in mapping if method in viewset.http_method_names]
            path = route.url.replace("{prefix}", prefix).replace("{lookup}", "{pk}").replace("{trailing_slash}", "/")
            path = path.replace("/?", "/")
            yield Route(basename, path.strip("^$"), (*allowed, *(["head"] if "get" in allowed else []), "options"))


def alphas_things(world: World) -> dict[str, Model]:
    """One object of Alpha, or of its owner, for each resource of the API."""
    alpha, owner = world.alpha, world.owner
    now = timezone.now()
    code = EnrolmentCode.objects.create(tenant=alpha.tenant, code_hash="0" * 64, expires_at=now + timedelta(minutes=5))
    job = Job.objects.create(
        tenant=alpha.tenant, kind=JobKind.DOWNLOAD, state=State.SUCCEEDED, title="Download", due_at=now
    )
    download = Download.objects.create(
        tenant=alpha.tenant, user=owner, job=job, file_name="a.txt", expires_at=now + timedelta(hours=1), ready_at=now
    )
    return {
        "tenant": alpha.tenant,
        "membership": Membership.objects.get(user=owner, tenant=alpha.tenant),
        "user": owner,
        "apitoken": tokens.issue(owner, "program")[0],
        "auditevent": audit.record(owner, "test.done", alpha.workload),
        "node": alpha.node,
        "enrolmentcode": code,
        "platform": alpha.platform,
        "workload": alpha.workload,
        "destination": alpha.destination,
        "repository": alpha.repository,
        "policy": alpha.policy,
        "restorepoint": alpha.point,
        "trace": Trace.objects.create(workload=alpha.workload, owner="feedbeef", names=["brs-feedbeef-1 (vda)"]),
        "job": alpha.job,
        "download": download,
    }


def ids(answer: Any) -> set[str]:
    return {str(row["id"]) for row in answer.json()["results"]}
