"""Secrets as canaries: they pass through every part of the server, and afterwards nobody finds them anywhere but
sealed. A repository's password leaves the server in a lease and in the recovery kit only."""

from __future__ import annotations

import logging
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone

from apps.errors import DomainError
from apps.iam import tokens
from apps.inventory import enrolment, node_auth, repositories
from apps.inventory.models import Node
from apps.jobs import lease, requests
from brs import pki
from node_agent.protocol import EnrolRequest
from tests.apps.leasing import capabilities, done, failing, take, working
from tests.world import World


def everything_stored() -> str:
    """Every value of every table, as text and as bytes."""
    found: list[str] = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            for row in cursor.fetchall():
                found += [
                    bytes(value).decode("latin-1") if isinstance(value, bytes | memoryview) else str(value)
                    for value in row
                ]
    return "\n".join(found)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def test_a_repositorys_password_is_nowhere_after_jobs_of_every_end(world: World, log: pytest.LogCaptureFixture) -> None:
    house, canary = world.alpha, world.alpha.repository_password
    now = timezone.now()
    seen = []
    for end in ("complete", "fail", "cancel"):
        job = requests.backup_now(world.operator, house.workload)
        handed = take(house.node)
        assert handed.spec.repository.password == canary  # it does come where it is needed
        seen.append(repr(handed) + str(handed))
        lease.progress(house.node, handed.task_id, working(handed.token, current="/srv/documents/a"), now)
        if end == "complete":
            lease.complete(house.node, handed.task_id, done(handed.token), now)
        elif end == "fail":
            lease.fail(house.node, handed.task_id, failing(handed.token), now)
        else:
            requests.cancel(world.operator, job)
    assert canary in repositories.kit(world.owner, house.repository)
    assert canary not in everything_stored()
    assert canary not in log.text + "".join(seen)


def test_no_page_or_address_of_the_api_shows_it_even_to_the_owner(world: World) -> None:
    client, canary = Client(), world.alpha.repository_password
    client.force_login(world.root)
    asked = 0
    for thing in world.alpha.things():
        meta = thing._meta
        name = meta.verbose_name_plural.replace(" ", "-")
        for path in (
            f"/admin/{meta.app_label}/{meta.model_name}/",
            f"/admin/{meta.app_label}/{meta.model_name}/{thing.pk}/change/",
            f"/api/v1/{name}/{thing.pk}/",
        ):
            response = client.get(path, secure=True, follow=True)
            asked += response.status_code == 200
            assert canary not in response.content.decode(errors="replace"), path
    assert asked >= 12  # most of them do exist


def test_tokens_and_codes_are_nowhere_after_their_use(world: World, log: pytest.LogCaptureFixture) -> None:
    pki.ensure()
    canaries = [tokens.issue(world.owner, "canary")[1]]
    code = enrolment.issue_code(world.admin, world.alpha.tenant)[1]
    told = {"incarnation": uuid.uuid4(), "node_time": datetime.now(UTC), "capabilities": capabilities()}
    reply = enrolment.redeem(EnrolRequest(code=code, name="canary", **told), "192.0.2.1")
    node = Node.objects.get(pk=reply.node_id)
    rotated = node_auth.rotate(node, uuid.uuid4()).token
    node_auth.authenticate(rotated)
    canaries += [code.partition(".")[0], reply.token, rotated]
    for call in (
        lambda: node_auth.authenticate(reply.token),
        lambda: enrolment.redeem(EnrolRequest(code=code, name="canary", **told), "192.0.2.1"),
    ):
        with pytest.raises(DomainError) as refused:
            call()
        assert not [canary for canary in canaries if canary in str(refused.value.as_dict())]
    stored, logged = everything_stored(), log.text
    assert [canary for canary in canaries if canary in stored or canary in logged] == []


def test_celery_gets_no_arguments_that_could_be_secret() -> None:
    """Chores find out for themselves what to do: their arguments are keys of rows at most."""
    from brs.celery import app

    app.loader.import_default_modules()
    chores = [task for name, task in app.tasks.items() if not name.startswith("celery.")]
    assert chores
    known = {"policies"}
    for chore in chores:
        code = chore.run.__code__
        assert set(code.co_varnames[: code.co_argcount]) <= known, chore.name


def test_private_files_of_the_server_are_its_own(settings) -> None:
    pki.ensure()
    folder = Path(settings.PKI_DIR)
    open_to_others = [
        file.name for file in folder.iterdir() if file.stat().st_mode & 0o077 and "PRIVATE" in file.read_text()
    ]
    assert open_to_others == []
