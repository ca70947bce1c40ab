from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from django.db import connection

from brs.guard import ADVISORY_KEY, AnotherServer, ServerGuard

pytestmark = pytest.mark.django_db


@pytest.fixture
def guards() -> Iterator[list[ServerGuard]]:
    made: list[ServerGuard] = []
    yield made
    for guard in made:
        guard.release()


def new(guards: list[ServerGuard], *, shared: bool = False) -> ServerGuard:
    guards.append(ServerGuard(shared=shared))
    return guards[-1]


def test_only_one_standalone_server_holds_the_database(guards: list[ServerGuard]) -> None:
    first = new(guards)
    first.take()
    first.keep()
    with pytest.raises(AnotherServer, match="Another server runs on this database"):
        new(guards).take()
    first.release()
    new(guards).take()


on_postgres = pytest.mark.skipif("connection.vendor != 'postgresql'", reason="advisory locks are PostgreSQL's")


@on_postgres
def test_web_processes_share_it_but_never_with_a_standalone_server(guards: list[ServerGuard]) -> None:
    web = [new(guards, shared=True) for _ in range(3)]
    for guard in web:
        guard.take()
    with pytest.raises(AnotherServer):
        new(guards).take()
    for guard in web:
        guard.release()
    new(guards).take()
    with pytest.raises(AnotherServer):
        new(guards, shared=True).take()


def _cut_off(guard: ServerGuard) -> None:
    """As a database that is restarted does."""
    assert isinstance(guard._session, psycopg.Connection)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [guard._session.info.backend_pid])


@on_postgres
def test_after_the_database_was_away_it_is_taken_again(guards: list[ServerGuard]) -> None:
    guard = new(guards)
    guard.take()
    _cut_off(guard)
    guard.keep()
    with pytest.raises(AnotherServer):
        new(guards).take()


@on_postgres
def test_a_server_that_lost_it_to_another_one_learns_so(guards: list[ServerGuard]) -> None:
    guard = new(guards)
    guard.take()
    _cut_off(guard)
    wanted = {"dbname", "user", "host", "port", "password"}
    address = {name: value for name, value in connection.get_connection_params().items() if name in wanted}
    with psycopg.connect(**address, autocommit=True) as other:
        found = None
        for _ in range(50):  # the ended session gives its lock up a moment later
            found = other.execute("SELECT pg_try_advisory_lock(%s)", [ADVISORY_KEY]).fetchone()
            if found and found[0]:
                break
            other.execute("SELECT pg_sleep(0.1)")
        assert found == (True,)
        with pytest.raises(AnotherServer):
            guard.keep()
