"""The API describes itself: a valid OpenAPI schema of every route, and a docs page that loads nothing from outside."""

from __future__ import annotations

import re
from io import StringIO

import pytest
import yaml
from django.core.management import call_command

from tests.api_client import person, routes

pytestmark = pytest.mark.django_db


def test_the_schema_is_valid_and_complete(tmp_path):
    file = tmp_path / "schema.yml"
    call_command("spectacular", "--validate", "--fail-on-warn", file=str(file), stderr=StringIO())
    paths = yaml.safe_load(file.read_text())["paths"]
    described = {(path, method) for path, methods in paths.items() for method in methods}
    for route in routes():
        path = "/api/v1/" + route.path.replace("{pk}", "{id}")
        for method in set(route.methods) - {"head", "options"}:
            assert (path, method) in described


def test_long_work_is_described_as_202(tmp_path):
    file = tmp_path / "schema.yml"
    call_command("spectacular", file=str(file))
    paths = yaml.safe_load(file.read_text())["paths"]
    for path in (
        "workloads/{id}/backup",
        "restore-points/{id}/restore",
        "restore-points/{id}/download",
        "restore-points/{id}/browse",
        "restore-points/{id}/delete",
        "repositories/{id}/verify",
        "destinations/{id}/test",
        "jobs/{id}/retry",
    ):
        assert set(paths[f"/api/v1/{path}/"]["post"]["responses"]) == {"202"}, path


def test_the_schema_is_served_to_those_who_are_logged_in(world, client):
    assert client.get("/api/v1/schema/").status_code == 401
    answer = person(world.viewer).get("schema/")
    assert answer.status_code == 200
    assert b"openapi: 3" in answer.content


def test_the_docs_page_loads_nothing_from_outside(world, client):
    assert client.get("/api/v1/docs/").status_code == 302
    client.force_login(world.viewer)
    page = client.get("/api/v1/docs/").content.decode()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert loaded
    assert all(address.startswith("/") and not address.startswith("//") for address in loaded)
    assert "http://" not in page and "https://" not in page


@pytest.mark.parametrize("query", ["lang=xx", "lang=%00", "lang=../..", "version=%ff", "format=xml", "lang=vi"])
@pytest.mark.parametrize("accept", ["*/*", "text/html", "application/vnd.oai.openapi+json", "x"])
def test_odd_wishes_for_the_schema_do_no_harm(world, client, query, accept):
    client.force_login(world.viewer)
    for page in ("schema", "docs"):
        answer = client.get(f"/api/v1/{page}/?{query}", headers={"Accept": accept})
        assert answer.status_code in (200, 400, 406), (page, answer.content[:200])
