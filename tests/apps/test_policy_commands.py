"""Commands around a policy's backups: who may set them, how a node hears of them; and freezing by policy."""

from __future__ import annotations

import pytest
from rest_framework.test import APIClient

from apps.errors import Conflict, Denied
from apps.iam.models import AuditEvent
from apps.inventory.models import Workload
from apps.jobs import requests
from apps.jobs.models import Task
from apps.policies import assignment, commands
from apps.policies.models import Policy
from node_agent.protocol import ExportSpec
from tests.apps.acting import ActingNode
from tests.apps.clouds import find, machine, make_platform, workload
from tests.apps.test_admin_scope import page, signed_in

pytestmark = pytest.mark.django_db
LOCK = {"command_before": "lock; echo $BRS_MACHINE", "command_after": "unlock"}


@pytest.fixture
def vm(world) -> Workload:
    kvm = make_platform(world.alpha)
    find(world.alpha, kvm, [machine(1)])
    assignment.assign(world.admin, [workload(kvm)], world.alpha.policy)
    return workload(kvm)


def told(policy: Policy, **facts) -> None:
    Policy.objects.filter(pk=policy.pk).update(**{**LOCK, **facts})


def spec_of(world, what):
    requests.backup_now(world.operator, what)
    return ActingNode(world.alpha.node).take().spec


def test_a_node_hears_of_them_as_they_were_set(world, vm):
    told(world.alpha.policy, command_limit_s=30, command_accepts="0, 3", command_on_error="go-on")
    heard = spec_of(world, vm).commands
    assert (heard.where, heard.before, heard.after) == ("host", "lock; echo $BRS_MACHINE", "unlock")
    assert (heard.limit_s, heard.exit_codes, heard.on_error) == (30, [0, 3], "go-on")


def test_lines_end_as_a_shell_wants_them_however_a_browser_sent_them(world, vm):
    told(world.alpha.policy, command_before="lock\r\ntrue", command_after="unlock\r\n")
    heard = spec_of(world, vm).commands
    assert (heard.before, heard.after) == ("lock\ntrue", "unlock\n")


def test_a_policy_without_commands_tells_of_none(world, vm):
    assert spec_of(world, vm).commands is None


def test_what_has_no_hypervisor_is_refused_with_the_way_out_and_runs_them_on_the_node(world):
    told(world.alpha.policy)
    with pytest.raises(Conflict, match="no hypervisor") as refused:
        requests.backup_now(world.operator, world.alpha.workload)
    assert "on the node" in refused.value.hint
    told(world.alpha.policy, command_where="node")
    assert spec_of(world, world.alpha.workload).commands.where == "node"


def test_when_it_is_copied_first_they_are_around_the_copy_alone(world):
    told(world.alpha.policy, command_where="node", staging="disk")
    spec = spec_of(world, world.alpha.workload)
    assert isinstance(spec, ExportSpec) and spec.commands.before
    store = Task.objects.get(job__workload=world.alpha.workload, kind="store", state="queued")
    assert store.spec["commands"] is None


@pytest.mark.parametrize(
    ("policy", "heard"), [("", ("try", 10)), ("no", ("no", 25)), ("try", ("try", 25)), ("require", ("require", 25))]
)
def test_a_policy_says_whether_guests_are_frozen_or_leaves_it_to_each_machine(world, vm, policy, heard):
    Policy.objects.filter(pk=world.alpha.policy.pk).update(freeze=policy, freeze_limit_s=25)
    source = spec_of(world, vm).source.machine
    assert (source.freeze, source.freeze_limit_s) == heard


# --- who may ---


def test_commands_are_set_over_the_api_by_owners_only(world):
    """An administrator configures everything else of a policy."""
    api, address = APIClient(), f"/api/v1/policies/{world.alpha.policy.pk}/"
    wanted = ((world.stranger, 404), (world.viewer, 403), (world.operator, 403), (world.admin, 403), (world.owner, 200))
    for user, status in wanted:
        api.force_authenticate(user)
        answer = api.patch(address, LOCK, format="json")
        assert answer.status_code == status, (user, answer.content)
    assert answer.data["command_before"] == LOCK["command_before"]
    event = AuditEvent.objects.filter(object_id=str(world.alpha.policy.pk)).latest("pk")
    assert "unlock" in str(event.detail) and event.actor == world.owner

    api.force_authenticate(world.admin)
    assert api.patch(address, {**LOCK, "keep_last": 9}, format="json").status_code == 200  # they stay as they are
    assert api.patch(address, {"command_after": "rm -rf /"}, format="json").status_code == 403
    assert api.patch(address, {"freeze": "require", "freeze_limit_s": 5}, format="json").status_code == 200


def test_a_new_policy_with_commands_takes_that_right_too(world):
    api = APIClient()
    body = {"tenant": str(world.alpha.tenant.pk), "name": "new", "destination": str(world.alpha.destination.pk)}
    api.force_authenticate(world.admin)
    assert api.post("/api/v1/policies/", {**body, **LOCK}, format="json").status_code == 403
    assert not Policy.objects.filter(name="new").exists()
    assert api.post("/api/v1/policies/", body, format="json").status_code == 201
    api.force_authenticate(world.owner)
    assert api.post("/api/v1/policies/", {**body, **LOCK, "name": "newer"}, format="json").status_code == 201


@pytest.mark.parametrize(
    "wrong",
    [
        {"command_accepts": "zero"},
        {"command_accepts": "0 3"},
        {"command_limit_s": 0},
        {"command_limit_s": 3601},
        {"command_where": "guest"},
        {"command_on_error": "ignore"},
        {"command_before": "x" * 4001},
        {"freeze": "maybe"},
        {"freeze_limit_s": 601},
    ],
)
def test_what_cannot_be_is_refused(world, wrong):
    api = APIClient()
    api.force_authenticate(world.owner)
    answer = api.patch(f"/api/v1/policies/{world.alpha.policy.pk}/", wrong, format="json")
    assert answer.status_code == 400, answer.content


def form_of(policy: Policy, **facts) -> dict[str, object]:
    names = [field.name for field in Policy._meta.concrete_fields if field.editable and field.name != "id"]
    values = {name: getattr(policy, name) for name in names}
    values |= {"tenant": policy.tenant_id, "destination": policy.destination_id}
    plain = {name: ("on" if value is True else value) for name, value in values.items() if value is not False}
    prefixes = ("schedules", "rules")
    management = {f"{one}-{part}": 0 for one in prefixes for part in ("TOTAL_FORMS", "INITIAL_FORMS")}
    return plain | management | facts


def test_the_editor_offers_them_to_owners_and_shows_them_to_administrators(world, vm):
    policy = world.alpha.policy
    address = page(Policy, "change", policy.pk)
    owner, admin = signed_in(world.owner), signed_in(world.admin)
    assert owner.post(address, form_of(policy, **LOCK, freeze="no")).status_code == 302
    policy.refresh_from_db()
    assert (policy.command_after, policy.freeze) == ("unlock", "no")
    text = admin.get(address).content.decode()
    assert 'name="command_before"' not in text and "echo $BRS_MACHINE" in text
    admin.post(address, form_of(policy, command_after="rm -rf /", keep_last=3))
    policy.refresh_from_db()
    assert (policy.command_after, policy.keep_last) == ("unlock", 3)
    assert signed_in(world.stranger).get(address).status_code in (302, 404)


def test_a_schedule_that_is_added_as_it_is_proposed_is_kept(world):
    policy = world.alpha.policy
    policy.schedules.all().delete()
    row = {"schedules-TOTAL_FORMS": 1, "schedules-0-cron": "0 22 * * *", "schedules-0-mode": "incremental"}
    row |= {"schedules-0-enabled": "on", "schedules-0-policy": policy.pk}
    assert signed_in(world.owner).post(page(Policy, "change", policy.pk), form_of(policy, **row)).status_code == 302
    assert policy.schedules.get().cron == "0 22 * * *"


def test_right_in_one_tenant_is_none_in_another(world):
    assert commands.may_set(world.owner, world.alpha.tenant)
    assert not commands.may_set(world.owner, world.beta.tenant)
    with pytest.raises(Denied):
        commands.require_right(world.admin, world.alpha.tenant, None, LOCK)
    commands.require_right(world.admin, world.alpha.tenant, None, {"command_before": ""})  # nothing is changed


def test_the_form_shows_commands_only_where_there_are_any_or_one_asks_for_them(world):
    client = signed_in(world.owner)
    form = page(Policy, "change", world.alpha.policy.pk)
    assert "<details><summary>" in " ".join(client.get(form).content.decode().split()).replace("> <", "><")
    told(world.alpha.policy)
    assert "<details>" not in client.get(form).content.decode()
