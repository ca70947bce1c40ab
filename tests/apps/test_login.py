from __future__ import annotations

import pytest
from django.test import Client
from django.utils import timezone

from apps.iam import login
from apps.iam.models import Attempts, AuditEvent
from tests.world import PASSWORD, World

pytestmark = pytest.mark.usefixtures("quick_hasher")


@pytest.fixture
def quick_hasher(settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def people(world: World) -> World:
    for user in (world.owner, world.viewer):
        user.set_password(PASSWORD)
        user.save()
    return world


def attempt(username: str, password: str, address: str = "192.0.2.1") -> tuple[bool, str]:
    """Whether it logged in, and the page."""
    client = Client(REMOTE_ADDR=address)
    response = client.post("/admin/login/", {"username": username, "password": password}, secure=True)
    return response.status_code == 302, response.content.decode()


def test_after_ten_failures_even_the_right_password_has_to_wait(people: World) -> None:
    for _ in range(login.TRIES_OF_NAME):
        assert not attempt("owner", "wrong")[0]
    inside, page = attempt("owner", PASSWORD)
    assert not inside
    assert "Too many failed attempts" in page
    assert attempt("owner", PASSWORD, address="192.0.2.2")[0]
    assert attempt("viewer", PASSWORD)[0]
    Attempts.objects.update(until=timezone.now())
    assert attempt("owner", PASSWORD)[0]


def test_a_wrong_password_is_called_so_and_nobody_is_asked_to_be_staff(people: World) -> None:
    inside, page = attempt("owner", "wrong")
    assert not inside
    assert "The user name or the password is wrong." in page
    assert "staff" not in page
    assert "Return to site" not in page


def test_one_address_cannot_try_many_names(people: World) -> None:
    for number in range(login.TRIES_OF_ADDRESS):
        attempt(f"name-{number}", "wrong")
    assert "Too many" in attempt("owner", PASSWORD)[1]


def test_good_logins_never_count(people: World) -> None:
    for _ in range(login.TRIES_OF_NAME + 2):
        assert attempt("owner", PASSWORD)[0]


def test_logins_and_failures_are_in_the_audit_trail_without_the_password(people: World) -> None:
    attempt("owner", "not-" + PASSWORD)
    attempt("owner", PASSWORD)
    events = AuditEvent.objects.filter(verb__startswith="login.").order_by("id")
    assert [(event.actor_name, event.verb) for event in events] == [
        ("owner", "login.failed"),
        ("owner", "login.succeeded"),
    ]
    assert events[0].remote_addr == "192.0.2.1"
    assert PASSWORD not in str(list(AuditEvent.objects.values()))
