"""Random garbage at every route of the API, in every place where a value goes: it never answers 500.

BRS_GARBAGE_ROUNDS sets how many requests each route gets (default 8; a thousand take some minutes).
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest
from django.test import Client

from tests.api_client import Route, alphas_things, person, routes

pytestmark = pytest.mark.django_db
ROUNDS = int(os.environ.get("BRS_GARBAGE_ROUNDS", "8"))
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, -(2**63), 1.5, 1e308, "", " ", "x", "x" * 70_000, "\x00",
    "\ud800", "\u202e", "é€😀", "/", "/srv", "/srv/../etc", "..", "%00", "'; DROP TABLE x; --", "${7*7}",
    "2020-01-01", "0 22 * * *", "* * * * *", "99 99 * * *", "UTC", "Mars/X", "true", "never", "files", "image",
    "owner", [], {}, [[]], [{}], {"": ""}, [None], ["x"] * 300,
    {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": 1}}}}}}}}}, {"paths": ["/srv"]}, {"paths": "/"},
    {"path": "/x"}, {"path": 3}, {"in_place": True}, "11111111-2222-4333-8444-555555555555", "-" * 36,
]  # fmt: skip
NAMES = [
    "id", "tenant", "name", "slug", "kind", "node", "nodes", "path", "source", "platform", "policy",
    "workloads", "schedules", "destination", "time_zone", "cron", "keep_last", "priority", "full", "reason",
    "typed_name", "target", "chosen", "verify", "staging", "read_data", "username", "password", "role", "user",
    "labels", "slots", "paused", "expires_at", "node_name", "workload", "in_place", "overwrite", "__proto__",
    "", "\x00", "is_active", "first_name", "email",
]  # fmt: skip
QUERIES = [
    "limit", "offset", "search", "ordering", "tenant", "workload", "state", "kind", "since", "until", "after",
    "path", "open", "policy", "node", "actor", "object_id", "verb", "hold", "covered", "copy", "outcome",
    "format", "page", "lang",
]  # fmt: skip
QUERY_VALUES = [
    "", "x", "1", "-1", "0", "201", "9" * 30, "%00", "%ff", "%ed%a0%80", "true", "null", "[]", "2020-01-01",
    "9999-99-99", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59%2B14:00", "11111111-2222-4333-8444-555555555555",
    "name,-name", "/srv", "/..", "a" * 5000, "😀", "1e9", "NaN", "__class__",
]  # fmt: skip


def guess(rng: random.Random, things: list[str]) -> Any:
    value = rng.choice([*VALUES, *things, *things])
    if isinstance(value, dict) and rng.random() < 0.3:
        return {**value, rng.choice(NAMES): rng.choice(VALUES)}
    return [value] if rng.random() < 0.1 else value


def garbage(rng: random.Random, things: list[str], template: dict[str, Any]) -> bytes:
    """A body: an acceptable one with some values replaced, one out of the air, or bytes."""
    lot = rng.random()
    if lot < 0.1:
        return rng.randbytes(rng.randrange(60))
    if lot < 0.2:
        return json.dumps(rng.choice(VALUES)).encode()
    body = dict(template) if lot < 0.7 else {}
    for _ in range(rng.randrange(1, 4)):
        body[rng.choice([*template, *NAMES] if lot < 0.7 else NAMES)] = guess(rng, things)
    return json.dumps(body).encode()


def templates(world) -> dict[str, dict[str, Any]]:
    """Bodies that would be accepted, by the end of a route's path."""
    alpha = world.alpha
    tenant, node = str(alpha.tenant.pk), str(alpha.node.pk)
    return {
        "tenants/": {"name": "x", "slug": "x"},
        "memberships/": {"tenant": tenant, "user": str(world.viewer.pk), "role": "viewer"},
        "users/": {"tenant": tenant, "username": "n", "password": "a long enough phrase"},
        "api-tokens/": {"name": "x"},
        "enrolment-codes/": {"tenant": tenant, "node_name": "n"},
        "platforms/": {"tenant": tenant, "kind": "files", "name": "x", "node": node},
        "destinations/": {"tenant": tenant, "name": "x", "path": "/backup/x", "nodes": [node]},
        "policies/": {"tenant": tenant, "name": "x", "destination": str(alpha.destination.pk), "schedules": [{}]},
        "workloads/": {"tenant": tenant, "platform": str(alpha.platform.pk), "name": "x", "source": {"paths": ["/a"]}},
        "/assign/": {"policy": str(alpha.policy.pk), "workloads": [str(alpha.workload.pk)]},
        "/exclude/": {"reason": "x"},
        "/hold/": {"reason": "x"},
        "/delete/": {"typed_name": "x"},
        "/download/": {"path": "/srv/a"},
        "/restore/": {"chosen": [], "target": {"path": "/restore/x"}, "node": node, "verify": True, "staging": "disk"},
        "/simulate/": {"keep_last": 1},
        "/verify/": {"read_data": True},
    }


@pytest.mark.parametrize("route", [pytest.param(route, id=route.path) for route in routes()])
@pytest.mark.parametrize("who", ["owner", "root"])
def test_garbage_is_answered_but_never_with_500(world, route: Route, who: str, monkeypatch):
    monkeypatch.setattr("apps.iam.api_http.UserThrottle.get_rate", lambda _self: None)
    rng = random.Random(f"{route.path} {who} {os.environ.get('BRS_GARBAGE_SEED', '')}")
    found = alphas_things(world)
    things = [str(thing.pk) for thing in [*found.values(), world.beta.tenant, world.beta.node, world.shared_node]]
    template = next((body for end, body in templates(world).items() if route.path.endswith(end)), {})
    token = person(getattr(world, who)).clear
    client = Client(raise_request_exception=False)
    for _ in range(ROUNDS):
        method = rng.choice(route.methods)
        key = found[route.basename].pk if rng.random() < 0.8 else rng.choice(things)
        path = "/api/v1/" + route.path.replace("{pk}", str(key))
        if rng.random() < 0.5:
            path += "?" + "&".join(f"{rng.choice(QUERIES)}={rng.choice(QUERY_VALUES)}" for _ in range(rng.randrange(3)))
        headers = {"Authorization": f"Bearer {token}"}
        if rng.random() < 0.2:
            headers["Idempotency-Key"] = rng.choice(["k", "é", "", "x" * 300])
        sent: dict[str, Any] = {}
        if method in {"post", "put", "patch"}:
            sent = {"data": garbage(rng, things, template), "content_type": "application/json"}
            if rng.random() < 0.05:
                sent["content_type"] = rng.choice(
                    ["text/plain", "application/json; charset=utf-7", "x", "application/*"]
                )
        answer = client.generic(method.upper(), path, headers=headers, **sent)
        assert answer.status_code < 500, (method, path, sent, answer.content)
        if answer.status_code >= 400 and method != "head":
            assert set(answer.json()) == {"code", "message", "hint"}, (method, path, sent)
        if answer.status_code == 204 and method == "delete":
            break
