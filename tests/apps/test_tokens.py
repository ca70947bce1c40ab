from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.test import APIRequestFactory

from apps.errors import Invalid
from apps.iam import tokens
from apps.iam.models import ApiToken, AuditEvent
from tests.world import World


def authenticate(header: str):
    request = APIRequestFactory().get("/", HTTP_AUTHORIZATION=header)
    return tokens.TokenAuthentication().authenticate(request)


def test_a_token_is_shown_once_and_kept_as_a_hash_only(world: World) -> None:
    token, clear = tokens.issue(world.operator, "laptop")
    assert clear.startswith("brs_")
    assert len(clear) >= 4 + 43  # 256 bits
    row = ApiToken.objects.filter(pk=token.pk).values().get()
    assert clear not in str(row)
    assert row["token_hash"] == tokens.digest(clear)
    assert clear.startswith(row["prefix"])
    assert clear not in str(list(AuditEvent.objects.values()))


@pytest.mark.parametrize("scheme", ["Bearer", "Token", "bearer"])
def test_both_schemes_log_the_tokens_user_in(world: World, scheme: str) -> None:
    token, clear = tokens.issue(world.operator, "laptop")
    user, found = authenticate(f"{scheme} {clear}")
    assert (user, found) == (world.operator, token)
    token.refresh_from_db()
    assert token.last_used_at is not None


def test_a_request_without_a_token_is_left_to_the_session(world: World) -> None:
    assert authenticate("") is None
    assert authenticate("Basic dXNlcjpwYXNz") is None


@pytest.mark.parametrize("header", ["Bearer", "Bearer brs_wrong", "Bearer a b", "Token \xff\xfe", "Bearer "])
def test_a_wrong_token_is_refused(world: World, header: str) -> None:
    with pytest.raises(AuthenticationFailed):
        authenticate(header)


def test_revoked_expired_and_of_inactive_users_no_longer_work(world: World) -> None:
    revoked, first = tokens.issue(world.operator, "revoked")
    tokens.revoke(revoked, world.operator)
    tokens.revoke(revoked, world.operator)
    expired, second = tokens.issue(world.operator, "expired", timezone.now() + timedelta(hours=1))
    ApiToken.objects.filter(pk=expired.pk).update(expires_at=timezone.now())
    _, third = tokens.issue(world.viewer, "left")
    world.viewer.is_active = False
    world.viewer.save()
    assert [tokens.find(clear) for clear in (first, second, third)] == [None, None, None]
    assert AuditEvent.objects.filter(verb="token.revoked").count() == 1


def test_a_token_that_would_have_expired_already_is_not_made(world: World) -> None:
    with pytest.raises(Invalid):
        tokens.issue(world.operator, "late", timezone.now() - timedelta(seconds=1))


def test_using_a_token_often_writes_seldom(world: World, django_assert_num_queries) -> None:
    _, clear = tokens.issue(world.operator, "busy")
    tokens.find(clear)
    with django_assert_num_queries(1):
        tokens.find(clear)
