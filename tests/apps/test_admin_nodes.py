"""Nodes in the admin: paused, labelled, enrolled anew."""

from __future__ import annotations

import re

import pytest
from django.test import Client

from apps.iam.models import AuditEvent
from apps.inventory import enrolment
from apps.inventory.models import EnrolmentCode, Node
from tests.apps.test_admin_scope import page, signed_in


@pytest.fixture
def client(world) -> Client:
    return signed_in(world.owner)


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment, "ca_fingerprint", lambda: "0" * 64)


def test_a_node_is_paused_and_resumed(client, world):
    node = world.alpha.node
    client.post(page(Node, "do", node.pk, "pause"))
    assert Node.objects.get(pk=node.pk).paused
    client.post(page(Node, "do", node.pk, "resume"))
    assert not Node.objects.get(pk=node.pk).paused
    verbs = AuditEvent.objects.filter(object_id=str(node.pk)).values_list("verb", flat=True)
    assert {"node.paused", "node.resumed"} <= set(verbs)


def settings(node: Node, labels: str) -> dict[str, object]:
    return {"name": node.name, "labels": labels, "slots": 2, "_save": "1"}


def test_labels_are_typed_as_words_and_kept_as_a_list(client, world):
    node = world.alpha.node
    assert client.post(page(Node, "change", node.pk), settings(node, "zone:a, rack:7 zone:a")).status_code == 302
    assert Node.objects.get(pk=node.pk).labels == ["zone:a", "rack:7"]
    assert 'value="zone:a, rack:7"' in client.get(page(Node, "change", node.pk)).content.decode()


@pytest.mark.parametrize("labels", ["zone", "Zone:a", "node:1", "tenant:beta", "zone:a b", "a:<b>"])
def test_what_is_no_label_is_said_and_not_kept(client, world, labels):
    answer = client.post(page(Node, "change", world.alpha.node.pk), settings(world.alpha.node, labels))
    assert answer.status_code == 200
    assert "label" in answer.content.decode()
    assert Node.objects.get(pk=world.alpha.node.pk).labels == []


def test_enrolling_anew_shows_a_command_for_exactly_this_node(client, world, authority):
    node = world.alpha.node
    assert EnrolmentCode.objects.count() == 0
    client.get(page(Node, "do", node.pk, "enrol"))
    assert EnrolmentCode.objects.count() == 0, "a look changes nothing"
    answer = client.post(page(Node, "do", node.pk, "enrol"))
    assert re.search(r"enroll --server https://\S+ --code \S+ --force", answer.content.decode())
    assert "no-store" in answer["Cache-Control"]
    code = EnrolmentCode.objects.get()
    assert (code.node_name, code.tenant) == (node.name, node.tenant)


def test_a_shared_node_is_enrolled_anew_by_superusers_only(client, world, authority):
    shared = page(Node, "do", world.shared_node.pk, "enrol")
    assert client.post(shared).status_code == 403
    assert signed_in(world.root).post(shared).status_code == 200


@pytest.mark.parametrize("verb", ["pause", "resume", "enrol"])
def test_a_stranger_finds_no_verb_of_a_node(world, authority, verb):
    assert signed_in(world.stranger).post(page(Node, "do", world.alpha.node.pk, verb)).status_code == 404
    assert not EnrolmentCode.objects.exists()
