"""What a node tells of itself is kept, seldom enough, and judged."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from apps.inventory import presence
from apps.inventory.models import Node
from apps.inventory.presence import NodeState
from tests.apps.leasing import ask, capabilities
from tests.world import make_node

pytestmark = pytest.mark.django_db


@pytest.fixture
def node(world) -> Node:
    return world.alpha.node


def test_capabilities_are_kept_with_the_labels_of_the_administrator_untouched(node):
    Node.objects.filter(pk=node.pk).update(labels=["zone:a"])
    ask(node, capabilities=capabilities(labels=["rack:7"], slots=5, hostname="box", staging_bytes=9))
    kept = Node.objects.get(pk=node.pk)
    assert (kept.labels, kept.told_labels, kept.slots, kept.hostname, kept.staging_bytes) == (
        ["zone:a"],
        ["rack:7"],
        5,
        "box",
        9,
    )
    assert {"zone:a", "rack:7", f"node:{node.pk}", "driver:files"} <= presence.labels(kept)


@pytest.mark.parametrize(("told", "kept"), [(0, 1), (-3, 1), (1000, 64)])
def test_a_senseless_number_of_slots_is_brought_to_reason(node, told, kept):
    ask(node, capabilities=capabilities(slots=told))
    assert Node.objects.get(pk=node.pk).slots == kept


def test_an_idle_poll_is_written_down_every_ten_seconds_at_most(node, django_assert_num_queries):
    now = timezone.now()
    ask(node, now)
    fresh = Node.objects.get(pk=node.pk)
    with django_assert_num_queries(0):
        presence.seen(
            fresh, now + timedelta(seconds=9), node_time=now + timedelta(seconds=9), capabilities=None, draining=False
        )
    with django_assert_num_queries(1):
        presence.seen(fresh, now + timedelta(seconds=11), node_time=None, capabilities=None, draining=False)


def test_news_are_written_down_at_once(node):
    now = timezone.now()
    ask(node, now)
    ask(node, now + timedelta(seconds=1), draining=True)
    assert Node.objects.get(pk=node.pk).draining
    ask(node, now + timedelta(seconds=2), node_time=now + timedelta(hours=1))
    assert Node.objects.get(pk=node.pk).clock_offset_s == pytest.approx(3598, abs=1)


def test_a_time_without_a_zone_is_taken_as_utc(node):
    now = timezone.now()
    ask(node, now, node_time=now.replace(tzinfo=None) + timedelta(seconds=100))
    assert Node.objects.get(pk=node.pk).clock_offset_s == 100


def test_a_restart_is_noticed_once(node):
    start = uuid.uuid4()
    assert presence.restarted(node, start)
    assert not presence.restarted(node, start)


def test_how_a_node_stands(node):
    now = timezone.now()
    enrolled, _token = make_node("new-node", node.tenant, last_seen_at=None)
    assert presence.state(enrolled, now) == NodeState.NEVER
    node.last_seen_at = now
    assert presence.state(node, now) == NodeState.ONLINE
    for facts, state in (
        ({"clock_offset_s": 301}, NodeState.CLOCK),
        ({"clock_offset_s": -3600}, NodeState.CLOCK),
        ({"draining": True}, NodeState.DRAINING),
        ({"paused": True}, NodeState.PAUSED),
        ({"last_seen_at": now - timedelta(seconds=91)}, NodeState.OFFLINE),
        ({"quarantined_at": now}, NodeState.QUARANTINED),
    ):
        for name, value in facts.items():
            setattr(node, name, value)
        assert presence.state(node, now) == state  # each is worse than those before
