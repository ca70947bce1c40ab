"""What the models have to declare and may not do. The import linter does not see keys that are named by text."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.db.models import BinaryField, CharField, ForeignKey, JSONField, Model, TextField

from apps.iam import access
from apps.iam.models import Tenant

ORDER = ["iam", "inventory", "policies", "catalog", "jobs", "reports"]  # from the bottom up
SIBLINGS = {"policies", "catalog"}
OWN = [model for model in apps.get_models() if model.__module__.startswith("apps.")]
# Of the system itself: no tenant's, so nobody but superusers sees them.
SYSTEM = {"jobs.gate", "iam.attempts"}


def names(models: list[type[Model]]) -> list[str]:
    return [model._meta.label_lower for model in models]


@pytest.mark.parametrize("model", OWN, ids=names(OWN))
def test_every_model_declares_a_way_to_its_tenant_that_exists(model: type[Model]) -> None:
    assert "tenant_path" in model.__dict__, "declare tenant_path (see apps/iam/access.py)"
    path = access.tenant_path(model)
    if model._meta.label_lower in SYSTEM:
        assert path == ""
        return
    if model is Tenant:
        assert path == "id"
        return
    end = model
    for step in path.split("__"):
        end = end._meta.get_field(step).related_model
    assert end is Tenant


@pytest.mark.parametrize("model", OWN, ids=names(OWN))
def test_other_declarations_of_rights_lead_somewhere(model: type[Model]) -> None:
    way = getattr(model, "grant_path", "")
    if way and way != "pk":
        end = model
        for step in way.split("__"):
            end = end._meta.get_field(step).related_model
        assert end.grant_path == "pk", "grants are kept on nodes, platforms, workloads, policies and destinations only"
    if owner := getattr(model, "owner_path", ""):
        assert model._meta.get_field(owner).related_model._meta.label_lower == "iam.user"
    assert access.change_right(model) in access.Right


def test_no_key_points_to_a_higher_app() -> None:
    upward = []
    for model in OWN:
        here = model._meta.app_label
        for field in [*model._meta.get_fields(include_parents=False)]:
            target = getattr(field, "related_model", None)
            if field.auto_created or target is None or target._meta.app_label not in ORDER:
                continue
            there = target._meta.app_label
            sideways = {here, there} == SIBLINGS
            if sideways or ORDER.index(there) > ORDER.index(here):
                upward.append(f"{model.__name__}.{field.name} -> {target._meta.label}")
    assert upward == []


def test_every_model_of_the_apps_has_a_place_in_the_order() -> None:
    assert {model._meta.app_label for model in OWN} <= set(ORDER)


def test_keys_that_join_tenants_things_cannot_delete_history_by_accident() -> None:
    """Points and jobs outlive what they came from: deleting a workload or repository with points is refused."""
    for label, field in [
        ("catalog.RestorePoint", "workload"),
        ("catalog.PointCopy", "repository"),
        ("jobs.Job", "workload"),
        ("inventory.Repository", "destination"),
        ("inventory.Repository", "password"),
    ]:
        key = apps.get_model(label)._meta.get_field(field)
        assert isinstance(key, ForeignKey)
        assert key.remote_field.on_delete.__name__ == "PROTECT", f"{label}.{field}"


def test_what_sounds_secret_is_kept_sealed_or_as_a_hash() -> None:
    """A password, a token or a key is never a plain text column."""
    suspicious = ("password", "secret", "token", "code", "key")
    harmless = {
        "iam.User.password",  # Django's hash
        "iam.ApiToken.token_hash",
        "iam.Attempts.key",
        "inventory.Node.token_hash",
        "inventory.Node.next_token_hash",
        "inventory.Node.old_token_hash",
        "inventory.EnrolmentCode.code_hash",
        "inventory.Destination.secret_names",  # which secrets are set, not what they are
        "inventory.Platform.secret_names",
        "inventory.Platform.host_keys",  # public ones
        "inventory.Platform.offered_keys",
        "jobs.Job.dedupe_key",
        "jobs.Job.error_code",
        "jobs.Task.error_code",
        "jobs.Task.lease_token",  # a fence, not a credential: worth nothing without the node's token
        "jobs.Gate.key",
    }
    found = {
        f"{model._meta.label}.{field.name}"
        for model in OWN
        for field in model._meta.concrete_fields
        if isinstance(field, CharField | TextField | JSONField) and any(word in field.name for word in suspicious)
    }
    assert found <= harmless, found - harmless


def test_sealed_values_are_bytes() -> None:
    assert isinstance(apps.get_model("iam.Secret")._meta.get_field("sealed"), BinaryField)
