"""The admin under odd and hostile addresses: secrets as filters, foreign history, passwords, keys beyond all bounds."""

from __future__ import annotations

import pytest
from django.contrib import admin
from django.test import Client
from django.urls import reverse

from apps.iam import audit
from apps.iam.models import AuditEvent, Membership, User
from apps.inventory.models import Node
from tests.world import PASSWORD

NEW_PASSWORD = "another-Long-one-7"


def signed_in(user) -> Client:
    client = Client()
    client.force_login(user)
    return client


def listing(model) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


@pytest.mark.parametrize("model", sorted(admin.site._registry, key=lambda model: model._meta.label))
def test_no_list_can_be_filtered_by_what_is_secret(world, model):
    """``?token_hash__startswith=a`` would tell it letter by letter."""
    client = signed_in(world.root)
    for field in model._meta.get_fields():
        if audit.is_hidden(field.name):
            assert client.get(listing(model), {f"{field.name}__startswith": "a"}).status_code == 400, field.name


@pytest.mark.parametrize("model", sorted(admin.site._registry, key=lambda model: model._meta.label))
def test_a_key_beyond_all_bounds_is_a_bad_request_or_nothing(world, model):
    for name in ("id__in", "pk__in", "pk"):
        assert signed_in(world.root).get(listing(model), {name: "9" * 30}).status_code in (200, 302, 400), name


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"app_label": "iam"},
        {"app_label": "iam", "model_name": "user", "field_name": "memberships"},
        {"app_label": "iam", "model_name": "user", "field_name": "username"},
        {"app_label": "no", "model_name": "such", "field_name": "thing"},
    ],
)
def test_choices_of_what_is_no_choice_are_not_found(world, query):
    assert signed_in(world.owner).get(reverse("admin:autocomplete"), query).status_code == 404


def test_the_history_of_a_person_shows_nobody_what_happened_in_another_tenant(world):
    Membership.objects.create(user=world.viewer, tenant=world.beta.tenant, role="viewer")
    audit.record(world.owner, "membership.changed", world.viewer, tenant=world.alpha.tenant, detail={"x": "of alpha"})
    audit.record(world.stranger, "membership.changed", world.viewer, tenant=world.beta.tenant, detail={"x": "of beta"})
    page = reverse("admin:iam_user_history", args=[world.viewer.pk])
    seen = signed_in(world.stranger).get(page).content.decode()
    assert "of beta" in seen and "of alpha" not in seen
    own = signed_in(world.viewer).get(page).content.decode()
    assert "of beta" in own and "of alpha" in own


def test_the_history_of_a_shared_node_is_the_servers_own(world):
    audit.record(world.root, "node.paused", world.shared_node, detail={"x": "of the server"})
    page = reverse("admin:inventory_node_history", args=[world.shared_node.pk])
    assert "of the server" not in signed_in(world.owner).get(page).content.decode()
    assert "of the server" in signed_in(world.root).get(page).content.decode()


def test_a_grant_shows_the_history_of_its_object(world):
    from guardian.shortcuts import assign_perm

    audit.record(world.owner, "node.paused", world.alpha.node, detail={"x": "of the node"})
    assign_perm("view_node", world.stranger, world.alpha.node)
    page = reverse("admin:inventory_node_history", args=[Node.objects.get(name="alpha-node").pk])
    assert "of the node" in signed_in(world.stranger).get(page).content.decode()


def change_own(client: Client, old: str) -> int:
    data = {"old_password": old, "new_password1": NEW_PASSWORD, "new_password2": NEW_PASSWORD}
    return client.post(reverse("admin:password_change"), data).status_code


def test_changing_ones_password_is_recorded_and_ends_the_other_sessions(world):
    one, other = signed_in(world.viewer), signed_in(world.viewer)
    assert change_own(one, PASSWORD) == 302
    assert one.get(reverse("admin:index")).status_code == 200
    assert other.get(reverse("admin:index")).status_code == 302
    event = AuditEvent.objects.get(verb="user.password-changed")
    assert (event.actor, event.object_id) == (world.viewer, str(world.viewer.pk))


def test_an_open_browser_is_no_place_to_guess_the_old_password(world):
    client = signed_in(world.viewer)
    assert {change_own(client, f"guess {number}") for number in range(10)} == {200}
    assert change_own(client, PASSWORD) == 429
    assert User.objects.get(pk=world.viewer.pk).check_password(PASSWORD)
    assert not AuditEvent.objects.filter(verb="user.password-changed").exists()


def test_a_password_set_by_a_superuser_is_recorded_without_it(world):
    data = {"usable_password": "true", "password1": NEW_PASSWORD, "password2": NEW_PASSWORD}
    page = reverse("admin:auth_user_password_change", args=[world.viewer.pk])
    assert signed_in(world.root).post(page, data).status_code == 302
    event = AuditEvent.objects.filter(object_id=str(world.viewer.pk)).latest("id")
    assert event.verb == "user.changed" and event.actor == world.root
    assert set(event.detail) == {"said"} and NEW_PASSWORD not in str(event.detail)
