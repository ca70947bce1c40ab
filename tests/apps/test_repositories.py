from __future__ import annotations

import threading

import pytest
from django.db import connection

from apps.errors import Denied, Invalid, NotFound
from apps.iam.models import AuditEvent, Secret
from apps.inventory import repositories
from apps.inventory.models import Destination, Repository
from tests.world import World


@pytest.fixture
def destination(world: World) -> Destination:
    made = Destination.objects.create(tenant=world.alpha.tenant, name="second", path="/mnt/second/")
    made.nodes.add(world.alpha.node)
    return made


def test_the_first_time_makes_a_row_with_a_sealed_password(world: World, destination: Destination) -> None:
    made = repositories.ensure(world.alpha.tenant, destination)
    opened = repositories.access(made)
    assert opened.url == "/mnt/second/alpha"
    assert len(opened.password) >= 43
    assert opened.repository_id == ""
    assert repositories.ensure(world.alpha.tenant, destination) == made
    assert opened.password not in repr(opened)
    stored = str(list(Repository.objects.values())) + str(list(Secret.objects.values_list("name", "sealed")))
    assert opened.password not in stored


def test_a_foreign_destination_is_refused(world: World) -> None:
    with pytest.raises(Invalid):
        repositories.ensure(world.alpha.tenant, world.beta.destination)


@pytest.mark.django_db(transaction=True)
def test_several_that_ask_at_once_get_the_same_repository(world: World, destination: Destination) -> None:
    found: list[Repository] = []
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            found.append(repositories.ensure(world.alpha.tenant, destination))
        except BaseException as error:  # noqa: BLE001  told by the assertion below
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(set(found)) == 1
    assert Repository.objects.filter(destination=destination).count() == 1
    assert Secret.objects.filter(name__contains="second").count() == 1


def test_the_recovery_kit_holds_what_restic_needs_and_reading_it_is_audited(world: World) -> None:
    text = repositories.kit(world.owner, world.alpha.repository)
    for needed in (world.alpha.repository_password, "/backup/alpha", "restic restore", "alpha-node.example"):
        assert needed in text
    event = AuditEvent.objects.get(verb="repository.kit-read")
    assert event.actor == world.owner
    assert world.alpha.repository_password not in str(event.detail) + event.object_name
    world.alpha.repository.refresh_from_db()
    assert world.alpha.repository.kit_saved_at is not None


def test_only_owners_read_the_kit(world: World) -> None:
    for user in (world.admin, world.operator, world.viewer):
        with pytest.raises(Denied):
            repositories.kit(user, world.alpha.repository)
    with pytest.raises(NotFound):
        repositories.kit(world.stranger, world.alpha.repository)
    assert not AuditEvent.objects.filter(verb="repository.kit-read").exists()
