from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.test import RequestFactory
from django.utils import timezone

from apps.iam import audit
from apps.iam.models import AuditEvent, Tenant
from tests.world import World


def test_an_event_names_who_did_what_to_which_object(world: World) -> None:
    request = RequestFactory().get("/", REMOTE_ADDR="192.0.2.7")
    event = audit.record(world.admin, "policy.changed", world.alpha.policy, detail={"x": 1}, request=request)
    event.refresh_from_db()
    assert (event.actor, event.actor_name, event.tenant) == (world.admin, "admin", world.alpha.tenant)
    assert (event.object_type, event.object_id) == ("policies.policy", str(world.alpha.policy.pk))
    assert (event.object_name, event.remote_addr, event.detail) == ("alpha-nightly", "192.0.2.7", {"x": 1})


def test_the_tenant_is_found_along_the_declared_way(world: World) -> None:
    assert audit.record("node x", "task.failed", world.beta.task).tenant == world.beta.tenant
    assert audit.record("server", "user.created", world.owner).tenant is None


def test_a_snapshot_holds_no_secret_and_names_what_is_linked(world: World) -> None:
    node = audit.snapshot(world.alpha.node)
    assert not [name for name in node if "token" in name]
    assert "password" not in audit.snapshot(world.owner)
    assert "password" not in audit.snapshot(world.alpha.repository)
    assert audit.snapshot(world.alpha.destination)["nodes"] == ["alpha-node"]


def test_changes_are_told_as_before_and_after(world: World) -> None:
    before = audit.snapshot(world.alpha.policy)
    world.alpha.policy.keep_daily = 30
    assert audit.changes(before, audit.snapshot(world.alpha.policy)) == {"keep_daily": [14, 30]}


def test_detail_of_any_kind_is_kept_but_what_sounds_secret_is_left_out(world: World) -> None:
    raw = {
        "when": timezone.now(),
        "id": uuid.uuid4(),
        "name": "a\x00b\udcff",
        "inner": [{"api_token": "tell nobody", "password": "tell nobody"}],
        "odd": object(),
    }
    event = audit.record("server", "test", detail=raw)
    event.refresh_from_db()
    assert event.detail["name"] == "a␀b\\udcff"
    assert event.detail["id"] == str(raw["id"])
    assert "tell nobody" not in str(event.detail)


@pytest.fixture
def chained(world: World) -> list[AuditEvent]:
    AuditEvent.objects.all().delete()
    events = [audit.record(world.owner, f"step.{number}", world.alpha.node) for number in range(5)]
    AuditEvent.objects.update(at=timezone.now() - timedelta(minutes=5))
    assert audit.link(limit=3) == 3
    assert audit.link() == 2
    return events


def test_settled_events_are_chained_once_and_the_chain_holds(chained: list[AuditEvent], world: World) -> None:
    audit.record("server", "fresh")
    assert audit.link() == 0  # too young: an earlier one may yet be committed
    assert audit.first_broken() is None


def test_deleting_a_user_or_tenant_does_not_break_the_chain(chained: list[AuditEvent], world: World) -> None:
    world.owner.delete()
    spare = Tenant.objects.create(name="spare", slug="spare")
    AuditEvent.objects.filter(pk=chained[0].pk).update(tenant=spare)
    assert audit.first_broken() is None


def test_a_changed_and_a_removed_event_break_the_chain(chained: list[AuditEvent]) -> None:
    AuditEvent.objects.filter(pk=chained[2].pk).update(detail={"changed": True})
    assert audit.first_broken() == chained[2]
    chained[2].delete()
    assert audit.first_broken() == chained[3]
