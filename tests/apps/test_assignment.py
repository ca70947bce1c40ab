"""Which policy covers which workload."""

from __future__ import annotations

import pytest

from apps.errors import Denied, Invalid, NotFound
from apps.iam.models import AuditEvent
from apps.inventory.models import Workload
from apps.policies import assignment
from apps.policies.models import Assignment, Policy


def test_an_administrator_covers_a_workload_and_takes_the_cover_away(world):
    other = Policy.objects.create(tenant=world.alpha.tenant, name="weekly", destination=world.alpha.destination)
    assert assignment.assign(world.admin, [world.alpha.workload], other) == 1
    assert assignment.policy_of(world.alpha.workload) == other
    assert assignment.assign(world.admin, [world.alpha.workload], None) == 1
    assert assignment.policy_of(world.alpha.workload) is None
    details = AuditEvent.objects.filter(verb="policy.assigned").order_by("id").values_list("detail", flat=True)
    assert [detail["policy"] for detail in details] == [["alpha-nightly", "weekly"], ["weekly", None]]


def test_assigning_what_is_assigned_changes_and_audits_nothing(world):
    assert assignment.assign(world.admin, [world.alpha.workload], world.alpha.policy) == 0
    assert not AuditEvent.objects.filter(verb="policy.assigned").exists()


def test_an_operator_may_not_assign_and_a_stranger_sees_nothing(world):
    with pytest.raises(Denied):
        assignment.assign(world.operator, [world.alpha.workload], None)
    with pytest.raises(NotFound):
        assignment.assign(world.stranger, [world.alpha.workload], world.beta.policy)
    assert assignment.policy_of(world.alpha.workload) == world.alpha.policy


def test_a_foreign_policy_does_not_exist_for_the_administrator(world):
    with pytest.raises(NotFound):
        assignment.assign(world.admin, [world.alpha.workload], world.beta.policy)


def test_not_even_a_superuser_mixes_tenants(world):
    with pytest.raises(Invalid, match="another tenant"):
        assignment.assign(world.root, [world.alpha.workload], world.beta.policy)


def test_one_refused_workload_keeps_all_as_they_were(world):
    Assignment.objects.all().delete()
    with pytest.raises(NotFound):
        assignment.assign(world.admin, [world.alpha.workload, world.beta.workload], world.alpha.policy)
    assert not Workload.objects.filter(assignment__isnull=False).exists()


def test_the_rule_is_a_copy_in_plain_values(world):
    rule = assignment.rule_of(world.alpha.policy)
    assert rule["keep"] == {
        "last": 7,
        "hourly": 0,
        "daily": 14,
        "weekly": 8,
        "monthly": 12,
        "yearly": 0,
        "within_days": 0,
    }
    assert rule["schedules"] == [{"cron": "0 22 * * *", "mode": "incremental", "enabled": True}]
    assert rule["destination"] == "alpha-store"
