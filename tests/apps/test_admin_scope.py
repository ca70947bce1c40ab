"""Owner, colleague and stranger in the admin: every registered page, walked without naming it.

Alpha's things have "alpha" in their names, so a stranger's page that holds the word leaks.
"""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.db.models import Model
from django.test import Client
from django.urls import reverse

from apps.catalog.models import Trace
from apps.iam import audit
from apps.iam.admin_scope import ScopedAdmin, scoped_filter
from apps.iam.models import ApiToken, AuditEvent, Membership
from apps.iam.tokens import issue
from apps.inventory.models import Destination, Platform, Workload
from apps.policies.models import Policy

REGISTERED = sorted(admin.site._registry, key=lambda model: model._meta.label)
OWNED = [model for model in REGISTERED if getattr(model, "tenant_path", "")]
SYSTEM = [model for model in REGISTERED if model not in OWNED]


def page(model: type[Model], name: str, *args: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{name}", args=args)


def signed_in(user) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def things(world) -> dict[type[Model], Model]:
    """One object of Alpha's for every registered model that belongs to somebody."""
    found: dict[type[Model], Model] = {type(one): one for one in world.alpha.things()}
    token, _clear = issue(world.owner, "alpha-token")
    found[ApiToken] = token
    found[type(world.owner)] = world.owner
    found[type(world.alpha.tenant)] = world.alpha.tenant
    found[Membership] = Membership.objects.get(user=world.owner)
    found[Trace] = Trace.objects.create(workload=world.alpha.workload, owner="feedbeef", names=["brs-feedbeef-1"])
    found[AuditEvent] = audit.record(world.owner, "alpha.touched", world.alpha.workload)
    return found


def test_every_page_of_the_admin_is_a_scoped_one():
    assert [model for model, one in admin.site._registry.items() if not isinstance(one, ScopedAdmin)] == []


def test_every_owned_model_has_an_object_in_this_walk(things):
    assert [model for model in OWNED if model not in things] == []


@pytest.mark.parametrize("model", OWNED, ids=lambda model: model._meta.label)
def test_a_stranger_finds_nothing_of_another_tenant(world, things, model):
    client, thing = signed_in(world.stranger), things[model]
    listing = client.get(page(model, "changelist"))
    assert listing.status_code == 200
    text = listing.content.decode()  # rows, filters and all
    assert f"/{thing.pk}/" not in text
    assert "alpha" not in text.lower()
    assert client.get(page(model, "changelist"), {"q": "alpha"}).content.decode().count("alpha-") == 0
    for name in ("change", "history", "delete"):
        assert client.get(page(model, name, thing.pk)).status_code == 404, name
        assert client.post(page(model, name, thing.pk), {"post": "yes"}).status_code == 404, name
    for verb in admin.site._registry[model].verbs:
        assert client.get(page(model, "do", thing.pk, verb)).status_code == 404, verb
        assert client.post(page(model, "do", thing.pk, verb)).status_code == 404, verb
    assert type(thing)._base_manager.filter(pk=thing.pk).exists()


@pytest.mark.parametrize("model", OWNED, ids=lambda model: model._meta.label)
def test_an_owner_finds_his_own(world, things, model):
    client, thing = signed_in(world.owner), things[model]
    listing = client.get(page(model, "changelist"))
    assert listing.status_code == 200
    assert f"/{thing.pk}/" in listing.content.decode()
    assert client.get(page(model, "change", thing.pk)).status_code == 200
    assert client.get(page(model, "history", thing.pk)).status_code == 200
    assert "beta" not in listing.content.decode().lower()


CHANGEABLE = [m for m in OWNED if admin.site._registry[m].change_right is not None]


@pytest.mark.parametrize("model", CHANGEABLE, ids=lambda model: model._meta.label)
def test_what_may_be_changed_has_a_form_on_its_page(world, things, model):
    answer = signed_in(world.root).get(page(model, "change", things[model].pk))
    fields = list(answer.context["adminform"].form.fields)
    assert fields
    missing = [name for name in fields if f'name="{name}' not in answer.content.decode()]
    assert [name for name in missing if name != "password"] == []


@pytest.mark.parametrize("model", [m for m in OWNED if m is not ApiToken], ids=lambda model: model._meta.label)
def test_a_viewer_looks_and_changes_nothing(world, things, model):
    client, thing = signed_in(world.viewer), things[model]
    assert client.get(page(model, "change", thing.pk)).status_code == 200
    before = audit.snapshot(type(thing)._base_manager.get(pk=thing.pk))
    assert client.post(page(model, "change", thing.pk), {"name": "taken over"}).status_code == 403
    assert client.post(page(model, "delete", thing.pk), {"post": "yes"}).status_code == 403
    assert client.get(page(model, "add")).status_code in (302, 403)  # 302: to a page that asks again
    for verb in admin.site._registry[model].verbs:
        assert client.post(page(model, "do", thing.pk, verb), {"reason": "x"}).status_code == 403, verb
    assert audit.snapshot(type(thing)._base_manager.get(pk=thing.pk)) == before


@pytest.mark.parametrize("model", SYSTEM, ids=lambda model: model._meta.label)
def test_pages_of_the_system_are_for_superusers(world, model):
    assert signed_in(world.owner).get(page(model, "changelist")).status_code == 403
    assert signed_in(world.root).get(page(model, "changelist")).status_code == 200


@pytest.mark.parametrize("model", REGISTERED, ids=lambda model: model._meta.label)
def test_a_superuser_sees_every_list(world, things, model):
    client = signed_in(world.root)
    assert client.get(page(model, "changelist")).status_code == 200
    if model in things:
        assert client.get(page(model, "change", things[model].pk)).status_code == 200


@pytest.mark.parametrize("model", OWNED, ids=lambda model: model._meta.label)
@pytest.mark.parametrize("key", ["not-a-key", "00000000-0000-0000-0000-000000000000", "999999999", "%00"])
def test_a_malformed_key_is_not_found(world, model, key):
    client = signed_in(world.owner)
    base = page(model, "changelist")
    for name in ("change", "history", "delete"):
        assert client.get(f"{base}{key}/{name}/").status_code == 404


def test_who_belongs_to_no_tenant_does_not_get_in(world):
    response = signed_in(world.nobody).get(reverse("admin:index"))
    assert response.status_code == 302
    assert "login" in response.url


def test_a_member_who_is_no_staff_gets_in(world):
    world.viewer.is_staff = False
    world.viewer.save()
    assert signed_in(world.viewer).get(reverse("admin:index")).status_code == 200


def test_a_member_of_an_inactive_tenant_does_not_get_in(world):
    world.alpha.tenant.is_active = False
    world.alpha.tenant.save()
    assert signed_in(world.viewer).get(reverse("admin:index")).status_code == 302


# --- ids in a POST --------------------------------------------------------------------------------


def policy_data(house, **changes: object) -> dict[str, object]:
    policy = house.policy
    data = {
        "tenant": house.tenant.pk,
        "name": policy.name,
        "enabled": "on",
        "time_zone": "UTC",
        "start_window_minutes": 240,
        "objective_hours": 26,
        "priority": 50,
        "bandwidth_mib_s": 0,
        "destination": policy.destination_id,
        "staging": "stream",
        "freeze_limit_s": 10,
        "command_where": "host",
        "command_limit_s": 300,
        "command_accepts": "0",
        "command_on_error": "fail",
        **{f"keep_{name}": 1 for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly", "within_days")},
        "schedules-TOTAL_FORMS": 0,
        "schedules-INITIAL_FORMS": 0,
    }
    return {**data, **changes}


def test_a_foreign_destination_in_a_policys_form_is_an_error_and_nothing_is_saved(world):
    client = signed_in(world.owner)
    url = page(Policy, "change", world.alpha.policy.pk)
    response = client.post(url, policy_data(world.alpha, name="renamed", destination=world.beta.destination.pk))
    assert response.status_code == 200
    assert "destination" in response.context["adminform"].form.errors
    world.alpha.policy.refresh_from_db()
    assert world.alpha.policy.name == "alpha-nightly"
    assert world.alpha.policy.destination_id == world.alpha.destination.pk


def test_a_policy_is_saved_when_everything_in_it_is_ones_own(world):
    response = signed_in(world.owner).post(
        page(Policy, "change", world.alpha.policy.pk), policy_data(world.alpha, name="renamed")
    )
    assert response.status_code == 302
    world.alpha.policy.refresh_from_db()
    assert world.alpha.policy.name == "renamed"
    event = AuditEvent.objects.get(verb="policy.changed", object_id=str(world.alpha.policy.pk))
    assert event.detail["changes"]["name"] == ["alpha-nightly", "renamed"]


def test_nothing_can_be_added_to_a_foreign_tenant(world):
    client = signed_in(world.owner)
    data = {"tenant": world.beta.tenant.pk, "name": "x", "kind": "files", "node": world.alpha.node.pk}
    response = client.post(page(Platform, "add"), data)
    assert response.status_code == 200
    assert "tenant" in response.context["adminform"].form.errors
    assert not Platform.objects.filter(name="x").exists()


def test_things_of_ones_own_two_tenants_are_not_joined(world):
    Membership.objects.create(user=world.owner, tenant=world.beta.tenant, role="owner")
    data = {"tenant": world.alpha.tenant.pk, "name": "x", "kind": "files", "node": world.beta.node.pk}
    response = signed_in(world.owner).post(page(Platform, "add"), data)
    assert response.status_code == 200
    assert "node" in response.context["adminform"].form.errors


def test_a_foreign_node_cannot_reach_a_destination(world):
    data = {"tenant": world.alpha.tenant.pk, "name": "x", "nodes": [world.beta.node.pk], "path": "/backup/x"}
    response = signed_in(world.owner).post(page(Destination, "add"), data)
    assert response.status_code == 200
    assert "nodes" in response.context["adminform"].form.errors
    assert not Destination.objects.filter(name="x").exists()


def test_a_foreign_policy_cannot_be_given_to_a_workload(world):
    data = {"name": "alpha-documents", "paths": "/srv/documents", "excludes": "", "policy": world.beta.policy.pk}
    response = signed_in(world.owner).post(page(Workload, "change", world.alpha.workload.pk), data)
    assert response.status_code == 200
    assert "policy" in response.context["adminform"].form.errors
    world.alpha.workload.assignment.refresh_from_db()
    assert world.alpha.workload.assignment.policy_id == world.alpha.policy.pk


def test_a_foreign_schedules_id_in_the_inline_changes_nothing(world):
    data = policy_data(world.alpha) | {
        "schedules-TOTAL_FORMS": 1,
        "schedules-INITIAL_FORMS": 1,
        "schedules-0-id": world.beta.schedule.pk,
        "schedules-0-policy": world.alpha.policy.pk,
        "schedules-0-cron": "1 1 1 1 *",
        "schedules-0-mode": "full",
    }
    signed_in(world.owner).post(page(Policy, "change", world.alpha.policy.pk), data)
    world.beta.schedule.refresh_from_db()
    assert world.beta.schedule.cron != "1 1 1 1 *"
    assert world.beta.schedule.policy_id == world.beta.policy.pk


@pytest.mark.parametrize("action", ["back_up_many", "assign_many", "exclude_many", "include_many"])
def test_an_act_on_many_passes_over_what_is_foreign(world, action):
    data = {
        "action": action,
        "_selected_action": [world.beta.workload.pk],
        "apply": "1",
        "reason": "mine now",
        "policy": world.alpha.policy.pk,
    }
    signed_in(world.owner).post(page(Workload, "changelist"), data)
    world.beta.workload.refresh_from_db()
    assert not world.beta.workload.excluded
    assert world.beta.workload.assignment.policy_id == world.beta.policy.pk
    assert not world.beta.workload.jobs.filter(requested_by=world.owner).exists()


def test_a_viewer_does_nothing_to_many(world):
    data = {"action": "exclude_many", "_selected_action": [world.alpha.workload.pk], "apply": "1", "reason": "x"}
    signed_in(world.viewer).post(page(Workload, "changelist"), data)
    world.alpha.workload.refresh_from_db()
    assert not world.alpha.workload.excluded


# --- choices, search, members ---------------------------------------------------------------------


def test_choices_autocomplete_and_search_hold_only_ones_own(world):
    client = signed_in(world.stranger)
    for model in (Policy, Platform, Destination):
        text = client.get(page(model, "add")).content.decode().lower()
        assert "alpha" not in text, model
    for query in ({"s": "alpha"}, {"s": "alpha", "extended": "1"}):
        assert "alpha-" not in client.get(reverse("admin:search"), query).content.decode()
    asked = {"app_label": "inventory", "model_name": "platform", "field_name": "node", "term": "alpha"}
    answer = client.get(reverse("admin:autocomplete"), asked)
    assert answer.status_code == 403 or answer.json()["results"] == []


def test_search_finds_ones_own(world):
    text = signed_in(world.owner).get(reverse("admin:search"), {"s": "alpha", "extended": "1"}).content.decode()
    assert "alpha-documents" in text


def test_search_forgets_at_once_what_one_may_no_longer_see(world):
    client = signed_in(world.owner)
    client.get(reverse("admin:search"), {"s": "alpha", "extended": "1"})
    Membership.objects.create(user=world.owner, tenant=world.beta.tenant, role="viewer")
    Membership.objects.filter(user=world.owner, tenant=world.alpha.tenant).delete()
    text = client.get(reverse("admin:search"), {"s": "alpha", "extended": "1"}).content.decode()
    assert "alpha-documents" not in text


def test_an_administrator_cannot_make_himself_owner(world):
    membership = Membership.objects.get(user=world.admin)
    response = signed_in(world.admin).post(page(Membership, "change", membership.pk), {"role": "owner"})
    assert response.status_code == 403
    membership.refresh_from_db()
    assert membership.role == "admin"


def test_an_owner_cannot_change_a_person_who_may_be_anothers_member_too(world):
    url = page(type(world.viewer), "change", world.viewer.pk)
    response = signed_in(world.owner).post(url, {"username": "viewer", "is_superuser": "on", "is_active": "on"})
    assert response.status_code == 403
    world.viewer.refresh_from_db()
    assert not world.viewer.is_superuser
    assert signed_in(world.owner).get(f"{url.removesuffix('change/')}password/").status_code in (403, 404)


def test_an_owner_adds_a_person_to_his_tenant_only(world):
    data = {"username": "newcomer", "password1": "a long enough one", "password2": "a long enough one"}
    data |= {"usable_password": "true", "role": "viewer", "tenant": world.beta.tenant.pk}
    client, add = signed_in(world.owner), page(type(world.owner), "add")
    assert client.post(add, data).status_code == 200
    assert not type(world.owner).objects.filter(username="newcomer").exists()
    assert client.post(add, data | {"tenant": world.alpha.tenant.pk}).status_code == 302
    assert Membership.objects.get(user__username="newcomer").tenant == world.alpha.tenant


def test_object_grants_are_given_by_owners_to_their_own_people_only(world):
    url = page(Workload, "permissions", world.alpha.workload.pk)
    assert signed_in(world.stranger).get(url).status_code == 404
    assert signed_in(world.admin).get(url).status_code == 403
    client = signed_in(world.owner)
    assert client.get(url).status_code == 200
    named = client.post(url, {"submit_manage_user": "1", "user": "stranger"})
    assert named.status_code == 200  # the form again: there is no such user
    manage = page(Workload, "permissions_manage_user", world.alpha.workload.pk, world.stranger.pk)
    assert client.post(manage, {"permissions": ["view_workload"]}).status_code == 404


@pytest.mark.parametrize("name", ["name", "tenant__name"])
def test_a_filter_that_would_list_every_tenants_values_is_refused(name):
    with pytest.raises(Exception, match="every tenant"):
        scoped_filter(Workload, name)


def test_the_history_of_an_object_is_its_audit_trail(world):
    audit.record(world.owner, "workload.excluded", world.alpha.workload, detail={"reason": "moved <b>away</b>"})
    text = signed_in(world.viewer).get(page(Workload, "history", world.alpha.workload.pk)).content.decode()
    assert "workload.excluded" in text
    assert "moved &lt;b&gt;away" in text
