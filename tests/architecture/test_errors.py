"""Every error that a person can meet says what happened and what to do, in the same form on every face."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator

import pytest
from django.core.exceptions import PermissionDenied
from django.core.exceptions import ValidationError as ModelInvalid
from django.db.models import ProtectedError
from django.http import Http404
from rest_framework import exceptions

import apps
from apps.errors import DomainError
from brs import api_errors


def _load_all() -> None:
    for module in pkgutil.walk_packages(apps.__path__, "apps."):
        if ".migrations." not in module.name:
            importlib.import_module(module.name)


def tree(root: type[DomainError]) -> Iterator[type[DomainError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


_load_all()
ERRORS = sorted(
    {error for error in tree(DomainError) if error.__module__.startswith("apps.")}, key=lambda e: e.__name__
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_renders_with_a_code_a_sentence_and_a_hint(error: type[DomainError]) -> None:
    shown = error.__new__(error)
    DomainError.__init__(shown)
    body = shown.as_dict()
    assert set(body) == {"code", "message", "hint"}
    assert body["code"] == body["code"].lower().replace("_", "-")
    assert str(body["message"])[0].isupper()
    assert str(body["message"]).rstrip().endswith((".", "?"))
    assert len(str(body["hint"])) > 10
    assert 400 <= shown.status < 600
    response = api_errors.handle(shown, {"view": None})
    assert response is not None
    assert (response.status_code, json.loads(json.dumps(response.data))) == (shown.status, body)


def test_codes_are_not_shared_by_errors_with_different_statuses() -> None:
    statuses: dict[str, set[int]] = {}
    for error in ERRORS:
        statuses.setdefault(error.code, set()).add(error.status)
    assert [code for code, found in statuses.items() if len(found) > 1] == []


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (Http404(), 404, "not-found"),
        (PermissionDenied(), 403, "denied"),
        (exceptions.NotAuthenticated(), 401, "unauthorized"),
        (exceptions.AuthenticationFailed(), 401, "unauthorized"),
        (exceptions.ParseError(), 400, "malformed"),
        (exceptions.ValidationError({"name": ["Too long."], "source": {"paths": ["Empty."]}}), 400, "invalid"),
        (exceptions.MethodNotAllowed("PUT"), 405, "method-not-allowed"),
        (exceptions.UnsupportedMediaType("text/xml"), 415, "unsupported-media-type"),
        (exceptions.Throttled(wait=3), 429, "too-many"),
        (ModelInvalid({"name": ["Taken."]}), 400, "invalid"),
        (ProtectedError("in use", set()), 409, "conflict"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_foreign_errors_come_out_in_the_same_form(raised: Exception, status: int, code: str) -> None:
    response = api_errors.handle(raised, {"view": None})
    assert response is not None
    assert (response.status_code, response.data["code"]) == (status, code)
    assert set(response.data) == {"code", "message", "hint"}
    json.dumps(response.data)


def test_errors_of_fields_name_the_field() -> None:
    error = exceptions.ValidationError({"name": ["Too long."], "source": {"paths": ["Empty."]}})
    response = api_errors.handle(error, {"view": None})
    assert response is not None
    assert response.data["message"] == "name: Too long.; source.paths: Empty."


def test_what_nobody_expected_is_left_to_the_500_page() -> None:
    assert api_errors.handle(RuntimeError("bug"), {"view": None}) is None


@pytest.mark.parametrize(("path", "kind"), [("/api/none", "application/json"), ("/none", "text/html")])
def test_an_unknown_address_is_answered_in_the_askers_form(client, db, path: str, kind: str) -> None:
    response = client.get(path, secure=True)
    assert response.status_code == 404
    assert response["Content-Type"].startswith(kind)
