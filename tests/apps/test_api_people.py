"""People through the API: oneself, tokens that live and die, members and owners, the audit trail."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone
from guardian.shortcuts import assign_perm

from apps.iam import tokens
from apps.iam.models import ApiToken, AuditEvent, Membership, Role, Tenant, User
from apps.inventory.models import Workload
from tests.api_client import Person, ids, person
from tests.world import PASSWORD

pytestmark = pytest.mark.django_db


def test_oneself_is_shown_and_changed_but_not_ones_rights(world):
    viewer = person(world.viewer)
    assert viewer.get("users/me/").json()["username"] == "viewer"
    answer = viewer.patch("users/me/", {"first_name": "Vera", "time_zone": "Europe/Berlin"})
    assert answer.status_code == 200
    assert answer.json()["first_name"] == "Vera"
    for wrong in ({"is_superuser": True}, {"is_active": False}, {"username": "owner"}, {"password": "x"}, {"id": "x"}):
        assert viewer.patch("users/me/", wrong).status_code == 400, wrong
    assert viewer.patch("users/me/", {"time_zone": "Mars/Olympus"}).status_code == 400
    world.viewer.refresh_from_db()
    assert not world.viewer.is_superuser
    assert "password" not in viewer.get("users/me/").content.decode()


def test_people_see_those_of_their_tenants_and_change_nobody_else(world):
    names = {row["username"] for row in person(world.viewer).get("users/").json()["results"]}
    assert names == {"owner", "admin", "operator", "viewer"}
    assert person(world.owner).patch(f"users/{world.viewer.pk}/", {"first_name": "x"}).status_code == 403
    assert person(world.root).patch(f"users/{world.viewer.pk}/", {"is_active": False}).status_code == 200
    assert not User.objects.get(pk=world.viewer.pk).is_active


def test_a_token_is_shown_once_and_works(world):
    answer = person(world.owner).post("api-tokens/", {"name": "backup script"})
    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "no-store"
    clear = answer.json()["token"]
    assert clear.startswith("brs_")
    assert Person(world.owner, clear).get("users/me/").json()["username"] == "owner"
    shown = person(world.owner).get(f"api-tokens/{answer.json()['id']}/").json()
    assert "token" not in shown and shown["prefix"] == clear[:10]
    assert clear not in str(list(AuditEvent.objects.values()))
    assert not ApiToken.objects.filter(token_hash=clear).exists()


@pytest.mark.parametrize("how", ["delete", "revoke"])
def test_a_revoked_token_is_dead_at_once(world, how):
    one, other = person(world.owner), person(world.owner)
    token = ApiToken.objects.get(token_hash=tokens.digest(one.clear))
    answer = (
        other.delete(f"api-tokens/{token.pk}/") if how == "delete" else other.post(f"api-tokens/{token.pk}/revoke/")
    )
    assert answer.status_code in (200, 204)
    assert one.get("users/me/").status_code == 401
    assert other.get(f"api-tokens/{token.pk}/").json()["revoked_at"] is not None
    assert AuditEvent.objects.filter(verb="token.revoked").count() == 1


def test_expired_unknown_and_broken_tokens_are_401(world):
    owner = person(world.owner)
    ApiToken.objects.filter(token_hash=tokens.digest(owner.clear)).update(expires_at=timezone.now() - timedelta(1))
    for header in (f"Bearer {owner.clear}", "Bearer", "Bearer x", "Bearer a b", "Bearer \xff", "Token brs_wrong"):
        answer = owner.client.get("/api/v1/users/me/", headers={"Authorization": header})
        assert answer.status_code == 401, header
        assert answer.json()["code"] == "unauthorized"


def test_the_token_of_a_person_who_was_switched_off_is_dead(world):
    owner = person(world.owner)
    world.owner.is_active = False
    world.owner.save()
    assert owner.get("users/me/").status_code == 401


def test_a_token_cannot_be_made_that_has_expired_already(world):
    past = (timezone.now() - timedelta(hours=1)).isoformat()
    answer = person(world.owner).post("api-tokens/", {"name": "x", "expires_at": past})
    assert answer.status_code == 400


def test_an_owner_makes_changes_and_removes_members(world):
    owner = person(world.owner)
    body = {"tenant": str(world.alpha.tenant.pk), "username": "newbie", "password": PASSWORD, "role": "operator"}
    made = owner.post("users/", body)
    assert made.status_code == 201, made.content
    membership = Membership.objects.get(user__username="newbie")
    assert membership.role == Role.OPERATOR
    assert membership.user.check_password(PASSWORD)
    path = f"memberships/{membership.pk}/"
    assert owner.patch(path, {"role": "admin"}).json()["role"] == "admin"
    assert owner.patch(path, {"tenant": str(world.beta.tenant.pk)}).status_code == 400
    assert owner.patch(path, {"role": "king"}).status_code == 400
    assert owner.delete(path).status_code == 204
    verbs = list(AuditEvent.objects.filter(verb__startswith="membership.").values_list("verb", flat=True))
    assert sorted(verbs) == ["membership.added", "membership.changed", "membership.removed"]
    assert PASSWORD not in str(list(AuditEvent.objects.values()))


@pytest.mark.parametrize("who", ["viewer", "operator", "admin"])
def test_nobody_but_owners_manages_members(world, who):
    weak = person(getattr(world, who))
    mine = Membership.objects.get(user=getattr(world, who))
    assert weak.patch(f"memberships/{mine.pk}/", {"role": "owner"}).status_code == 403
    assert weak.delete(f"memberships/{mine.pk}/").status_code == 403
    body = {"tenant": str(world.alpha.tenant.pk), "username": "x", "password": PASSWORD}
    assert weak.post("users/", body).status_code == 403
    body = {"tenant": str(world.alpha.tenant.pk), "user": str(world.viewer.pk), "role": "owner"}
    assert weak.post("memberships/", body).status_code == 403
    mine.refresh_from_db()
    assert mine.role == who


def test_members_come_from_the_people_one_sees(world):
    owner = person(world.owner)
    body = {"tenant": str(world.alpha.tenant.pk), "user": str(world.stranger.pk), "role": "viewer"}
    assert owner.post("memberships/", body).status_code == 400
    assert person(world.root).post("memberships/", body).status_code == 201
    assert owner.post("memberships/", {**body, "user": str(world.viewer.pk)}).status_code == 409


def test_a_tenant_keeps_an_owner(world):
    owner = person(world.owner)
    mine = Membership.objects.get(user=world.owner)
    assert owner.delete(f"memberships/{mine.pk}/").status_code == 409
    assert owner.patch(f"memberships/{mine.pk}/", {"role": "viewer"}).status_code == 409
    theirs = Membership.objects.get(user=world.admin)
    assert owner.patch(f"memberships/{theirs.pk}/", {"role": "owner"}).status_code == 200
    assert owner.patch(f"memberships/{mine.pk}/", {"role": "viewer"}).status_code == 200
    assert owner.delete(f"memberships/{theirs.pk}/").status_code == 403  # an owner no more


@pytest.mark.parametrize("password", ["short", "password123", "1234567890"])
def test_weak_passwords_are_refused(world, password):
    body = {"tenant": str(world.alpha.tenant.pk), "username": "newbie", "password": password}
    answer = person(world.owner).post("users/", body)
    assert answer.status_code == 400
    assert "password" in answer.json()["message"]
    assert not User.objects.filter(username="newbie").exists()


def test_a_user_name_is_taken_once(world):
    body = {"tenant": str(world.alpha.tenant.pk), "username": "STRANGER", "password": PASSWORD}
    assert person(world.owner).post("users/", body).status_code == 409
    for bad in ("", "a b", "a\nb", "x" * 151, "a\x00"):
        assert person(world.owner).post("users/", {**body, "username": bad}).status_code == 400


def test_tenants_are_made_by_superusers_and_renamed_by_owners(world):
    root, owner = person(world.root), person(world.owner)
    made = root.post("tenants/", {"name": "Gamma", "slug": "gamma"})
    assert made.status_code == 201
    assert root.post("tenants/", {"name": "gamma", "slug": "gamma2"}).status_code in (400, 409)
    path = f"tenants/{world.alpha.tenant.pk}/"
    assert owner.patch(path, {"name": "Alpha Ltd"}).status_code == 200
    assert owner.patch(path, {"slug": "other"}).status_code == 400
    assert owner.patch(path, {"is_active": False}).status_code == 403
    assert root.patch(path, {"is_active": False}).status_code == 200
    assert Tenant.objects.get(pk=world.alpha.tenant.pk).slug == "alpha"
    assert person(world.admin).patch(path, {"name": "x"}).status_code in (403, 404)


def test_the_audit_trail_is_read_and_filtered_and_never_written(world):
    owner = person(world.owner)
    owner.patch(f"workloads/{world.alpha.workload.pk}/", {"name": "renamed"})
    answer = owner.get(f"audit-events/?object_id={world.alpha.workload.pk}&verb=workload.changed")
    event = answer.json()["results"][0]
    assert event["detail"]["name"] == ["alpha-documents", "renamed"]
    assert event["remote_addr"] == "127.0.0.1"
    later = (timezone.now() + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert ids(owner.get(f"audit-events/?since={later}")) == set()
    assert str(event["id"]) in ids(owner.get(f"audit-events/?until={later}"))
    assert owner.patch(f"audit-events/{event['id']}/", {"verb": "x"}).status_code == 405
    assert person(world.viewer).get(f"audit-events/{event['id']}/").status_code == 200


def test_ones_password_is_changed_with_the_old_one_only(world, client):
    viewer = person(world.viewer)
    new = "another long phrase"
    assert viewer.post("users/me/password/", {"old": "wrong", "new": new}).status_code == 400
    assert viewer.post("users/me/password/", {"old": PASSWORD, "new": "short"}).status_code == 400
    assert viewer.post("users/me/password/", {"old": PASSWORD, "new": new}).status_code == 204
    world.viewer.refresh_from_db()
    assert world.viewer.check_password(new)
    assert new not in str(list(AuditEvent.objects.values()))
    answers = [viewer.post("users/me/password/", {"old": "guess", "new": new}).status_code for _ in range(12)]
    assert answers[0] == 400 and answers[-1] == 429


def test_a_session_survives_the_change_of_its_own_password(world, client):
    client.force_login(world.viewer)
    body = {"old": PASSWORD, "new": "another long phrase"}
    assert client.post("/api/v1/users/me/password/", body, content_type="application/json").status_code == 204
    assert client.get("/api/v1/users/me/").status_code == 200


def test_one_who_was_granted_a_single_workload_sees_that_and_no_other(world):
    other = Workload.objects.create(
        tenant=world.alpha.tenant, platform=world.alpha.platform, name="other", source={"paths": ["/srv/other"]}
    )
    assign_perm("inventory.operate_workload", world.nobody, world.alpha.workload)
    guest = person(world.nobody)
    assert ids(guest.get("workloads/")) == {str(world.alpha.workload.pk)}
    assert ids(guest.get("restore-points/")) == {str(world.alpha.point.pk)}
    assert ids(guest.get("jobs/")) == {str(world.alpha.job.pk)}
    assert guest.get(f"workloads/{other.pk}/").status_code == 404
    assert ids(guest.get("policies/")) == ids(guest.get("destinations/")) == ids(guest.get("tenants/")) == set()
    assert guest.post(f"workloads/{world.alpha.workload.pk}/backup/").status_code == 202
    assert guest.patch(f"workloads/{world.alpha.workload.pk}/", {"name": "x"}).status_code == 403
    body = {"target": {"in_place": True}}
    assert guest.post(f"restore-points/{world.alpha.point.pk}/restore/", body).status_code == 403
