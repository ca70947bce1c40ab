"""Platforms of machines in the admin: only what works is offered, and each page says what is and what to do."""

from __future__ import annotations

import pytest
from django.urls import reverse

from apps.catalog.models import RestorePoint
from apps.inventory import platforms
from apps.inventory.models import Platform, Workload
from apps.jobs import requests
from apps.jobs.models import Job, JobKind, RestoreDraft, State, Task
from apps.policies import assignment
from apps.policies.models import AssignmentRule, Policy
from node_agent.protocol import DiskFacts
from tests.apps.acting import ActingNode, backup_result
from tests.apps.clouds import KEY, SECRET, find, machine, make_platform, workload
from tests.apps.test_admin_scope import page, signed_in

pytestmark = pytest.mark.django_db
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture
def client(world):
    return signed_in(world.owner)


@pytest.fixture
def kvm(world):
    return make_platform(world.alpha)


def told(world, **facts):
    return {
        "tenant": world.alpha.tenant.pk, "name": "cluster", "kind": "kvm", "node": world.alpha.node.pk,
        "addresses_text": "kvm1.example\nkvm2.example", "login": "", "told_password": SECRET,
        "discover_every_hours": "6", **facts,
    }  # fmt: skip


def errors(response):
    return response.context["adminform"].form.errors


def test_a_kind_is_offered_only_when_a_node_can_use_it(client, world):
    text = client.get(page(Platform, "add")).content.decode()
    assert 'value="files"' in text and 'value="kvm"' not in text and "told_password" not in text
    refused = client.post(page(Platform, "add"), told(world))
    assert refused.status_code == 200 and "kind" in errors(refused)
    world.alpha.node.drivers = ["files", "kvm"]
    world.alpha.node.save()
    text = client.get(page(Platform, "add")).content.decode()
    assert 'value="kvm"' in text and 'value="rbd"' not in text
    assert "kvm" not in client.get(reverse("admin:protect")).content.decode()


def test_a_platform_is_added_and_tested_at_once(client, world, kvm):
    answer = client.post(page(Platform, "add"), told(world))
    assert answer.status_code == 302, errors(answer)
    made = Platform.objects.get(name="cluster")
    assert (made.addresses, made.login, made.secret_names) == (["kvm1.example", "kvm2.example"], "root", ["password"])
    assert Job.objects.filter(platform=made, kind=JobKind.PROBE).count() == 1
    assert SECRET not in client.get(page(Platform, "change", made.pk)).content.decode()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"addresses_text": ""}, "addresses_text"), ({"addresses_text": "a b"}, "addresses_text"),
        ({"login": "a b"}, "login"), ({"told_scratch": "tmp"}, "__all__"),
    ],
)  # fmt: skip
def test_what_it_may_not_be_told_is_said_at_its_field(client, world, kvm, wrong, field):
    answer = client.post(page(Platform, "add"), told(world, **wrong))
    assert answer.status_code == 200 and field in errors(answer), errors(answer)


def test_a_saved_password_stays_and_does_not_go_to_another_host(client, world, kvm):
    change = page(Platform, "change", kvm.pk)
    same = told(world, name="kvm", addresses_text="kvm1.example", told_password="")
    assert client.post(change, same).status_code == 302
    kvm.refresh_from_db()
    assert kvm.secret_names == ["password"]
    answer = client.post(change, {**same, "addresses_text": "evil.example"})
    assert answer.status_code == 200 and "told_password" in errors(answer)


def test_a_key_comes_out_as_the_ssh_client_reads_it(client, world, kvm):
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\r\nb3Bl\r\n-----END OPENSSH PRIVATE KEY-----"
    assert client.post(page(Platform, "add"), told(world, told_private_key=key, told_password="")).status_code == 302
    kept = platforms.secrets_of(Platform.objects.get(name="cluster"))["private-key"]
    assert kept == key.replace("\r\n", "\n") + "\n"


def test_the_checks_of_a_running_test_are_shown_one_by_one(client, world, kvm):
    job = requests.test_platform(world.owner, kvm)
    ActingNode(world.alpha.node).take()
    checks = [{"name": "Log in over SSH", "ok": False, "detail": HOSTILE, "hint": "Check the password."}]
    Task.objects.filter(job=job).update(state=State.RUNNING, progress={"checks": checks})
    text = client.get(page(Platform, "change", kvm.pk)).content.decode()
    assert "Log in over SSH" in text and "Check the password." in text and HOSTILE not in text


def test_a_key_is_confirmed_as_it_was_shown(client, world, kvm):
    Platform.objects.filter(pk=kvm.pk).update(host_keys={}, offered_keys={"kvm1.example": KEY})
    text = client.get(page(Platform, "change", kvm.pk)).content.decode()
    assert "SHA256:" in text or KEY in text
    confirm = reverse("admin:inventory_platform_do", args=[kvm.pk, "confirm"])
    assert client.post(confirm, {"keys": ["kvm1.example ssh-ed25519 AAAAother"]}).status_code == 200
    kvm.refresh_from_db()
    assert kvm.host_keys == {}
    assert client.post(confirm, {"keys": [f"kvm1.example {KEY}"]}).status_code == 302
    kvm.refresh_from_db()
    assert kvm.host_keys == {"kvm1.example": KEY}
    assert signed_in(world.viewer).post(confirm, {"keys": []}).status_code in (403, 404)
    assert signed_in(world.stranger).get(confirm).status_code == 404


def test_the_platforms_page_shows_machines_and_how_they_are_protected(client, world, kvm):
    find(world.alpha, kvm, [machine(1), machine(2, HOSTILE, tags=[HOSTILE], summary={HOSTILE: HOSTILE})])
    find(world.alpha, kvm, [machine(2, HOSTILE, tags=[HOSTILE], summary={HOSTILE: HOSTILE})])
    text = client.get(page(Platform, "change", kvm.pk)).content.decode()
    assert "web01" in text and "Gone" in text and "Not protected" in text and HOSTILE not in text
    assert HOSTILE not in client.get(page(Workload, "change", workload(kvm, 2).pk)).content.decode()
    theirs = signed_in(world.stranger).get(page(Platform, "changelist")).content.decode()
    assert page(Platform, "change", kvm.pk) not in theirs
    look = reverse("admin:inventory_platform_do", args=[kvm.pk, "discover"])
    assert client.post(look).status_code == 302
    assert signed_in(world.stranger).post(look).status_code == 404


def test_a_look_that_is_under_way_is_shown_instead_of_another(client, world, kvm):
    Platform.objects.update(tested_at="2026-01-01T00:00Z", problem="")
    running = requests.discover(world.owner, kvm)
    answer = client.post(reverse("admin:inventory_platform_do", args=[kvm.pk, "discover"]))
    assert answer.status_code == 302 and str(running.pk) in answer["Location"]
    assert Job.objects.filter(kind=JobKind.DISCOVER).count() == 1


def test_a_disk_that_cannot_be_protected_is_said_with_the_way_out(client, world, kvm):
    disks = [DiskFacts(name="vda", size_bytes=1), DiskFacts(name="vdb", size_bytes=1, why_left_out="it is shared")]
    find(world.alpha, kvm, [machine(1, disks=disks)])
    vm = workload(kvm)
    assignment.assign(world.admin, [vm], world.alpha.policy)
    job = requests.backup_now(world.operator, vm)
    change = page(Workload, "change", vm.pk)
    words = "Cannot be protected: vdb. So each point is partial, and each run reads the whole machine."
    text = client.get(change).content.decode()
    assert words in text and "vdb – cannot be protected: it is shared" in text
    told = client.get(page(Job, "change", job.pk)).content.decode()
    assert words in told and f'href="{change}#settings"' in told
    form = {"name": "web01", "policy": world.alpha.policy.pk, "freeze": "try", "freeze_limit_s": "5"}
    assert "disks" in errors(client.post(change, {**form, "disks": ["vdb"]}))  # then nothing would be protected
    assert client.post(change, {**form, "disks": ["vda"]}).status_code == 302
    assert words not in client.get(change).content.decode()


def test_a_machines_page_chooses_its_disks(client, world, kvm):
    find(world.alpha, kvm, [machine(1)])
    vm = workload(kvm)
    change = page(Workload, "change", vm.pk)
    text = client.get(change).content.decode()
    assert "vda" in text and "10.0 GiB" in text
    form = {"name": "web01", "policy": world.alpha.policy.pk, "freeze": "require", "freeze_limit_s": "5"}
    refused = client.post(change, form)
    assert refused.status_code == 200 and "disks" in errors(refused)
    assert client.post(change, {**form, "disks": ["vda"]}).status_code == 302
    vm.refresh_from_db()
    assert vm.source["leave_out"] == ["vdb"] and vm.source["freeze"] == "require" and vm.source["known_as"] == "web01"
    assert assignment.policy_of(vm) == world.alpha.policy
    assert "left out on purpose" in client.get(change).content.decode()


def test_rules_are_offered_where_there_are_machines_and_act_when_saved(client, world):
    change = page(Policy, "change", world.alpha.policy.pk)
    assert "rules-TOTAL_FORMS" not in client.get(change).content.decode()
    kvm = make_platform(world.alpha)
    find(world.alpha, kvm, [machine(1), machine(2, "db01")])
    assert "rules-TOTAL_FORMS" in client.get(change).content.decode()
    preview = reverse("admin:policy_matches")
    query = {"tenant": world.alpha.tenant.pk, "rules-0-by": "name", "rules-0-pattern": "web*"}
    assert "web01" in client.get(preview, query).content.decode()
    assert "db01" not in client.get(preview, query).content.decode()
    assert signed_in(world.stranger).get(preview, query).status_code == 404
    fields = client.get(change).context["adminform"].form.initial
    body = {name: value for name, value in fields.items() if value is not None and value is not False}
    schedule = world.alpha.schedule
    body |= {
        "schedules-TOTAL_FORMS": 1, "schedules-INITIAL_FORMS": 1, "schedules-0-id": schedule.pk,
        "schedules-0-policy": world.alpha.policy.pk, "schedules-0-cron": schedule.cron,
        "schedules-0-mode": schedule.mode,
        "schedules-0-enabled": "on", "rules-TOTAL_FORMS": 1, "rules-INITIAL_FORMS": 0, "rules-0-by": "name",
        "rules-0-pattern": "web*", "rules-0-policy": world.alpha.policy.pk, "backup_new": "on",
    }  # fmt: skip
    saved = client.post(change, body)
    assert saved.status_code == 302, (errors(saved), [one.errors for one in saved.context["inline_admin_formsets"]])
    assert AssignmentRule.objects.get().pattern == "web*" and Policy.objects.get(pk=world.alpha.policy.pk).backup_new
    assert assignment.policy_of(workload(kvm)) == world.alpha.policy


def test_the_wizard_brings_a_machine_back_in_plain_words(client, world, kvm):
    find(world.alpha, kvm, [machine(1)])
    assignment.assign(world.admin, [workload(kvm)], world.alpha.policy)
    requests.backup_now(world.owner, workload(kvm))
    node = ActingNode(world.alpha.node)
    node.complete(node.take(), backup_result())
    point = RestorePoint.objects.get(workload=workload(kvm))
    client.get(reverse("admin:restore_new"), {"point": point.pk})
    draft = RestoreDraft.objects.get(user=world.owner)
    files = reverse("admin:restore_files", args=[draft.pk])
    assert "vda" in client.get(files).content.decode()
    assert client.post(files, {"what": "chosen", "chosen": ["/disks/vda.raw"]}).status_code == 302
    target = reverse("admin:restore_target", args=[draft.pk])
    assert "New UUID" in client.get(target).content.decode()
    form = {"where": "elsewhere", "platform": kvm.pk, "name": "copy", "networks": "default = lab", "start": "on"}
    refused = client.post(target, {**form, "networks": "nonsense", "host": "other"})
    assert refused.status_code == 200 and "networks" in refused.context["form"].errors
    assert client.post(target, {**form, "host": "evil.example"}).context["form"].errors
    assert client.post(target, {**form, "new_identity": "on"}).status_code == 302
    confirm = reverse("admin:restore_confirm", args=[draft.pk])
    text = client.get(confirm).content.decode()
    assert "1 chosen disk" in text and "copy" in text and "lab" in text and "started" in text
    assert client.post(confirm).status_code == 302
    spec = node.take().spec
    assert spec.target.machine.name == "copy" and spec.target.machine.start and spec.include == ["/disks/vda.raw"]
    assert spec.target.machine.networks == {"default": "lab"} and spec.target.machine.new_identity


def test_an_image_of_a_cluster_is_not_asked_for_networks(client, world, kvm):
    find(world.alpha, kvm, [machine(1)])
    Platform.objects.filter(pk=kvm.pk).update(kind="rbd")
    RestorePoint.objects.filter(pk=world.alpha.point.pk).update(workload=workload(kvm))
    client.get(reverse("admin:restore_new"), {"point": world.alpha.point.pk})
    draft = RestoreDraft.objects.get(user=world.owner)
    target = reverse("admin:restore_target", args=[draft.pk])
    text = client.get(target).content.decode()
    assert 'name="networks"' not in text and 'name="start"' not in text and "Pool" in text
    assert client.post(target, {"where": "elsewhere", "platform": kvm.pk, "name": "copy"}).status_code == 302
    text = client.get(reverse("admin:restore_confirm", args=[draft.pk])).content.decode()
    assert "A new image “copy”" in text and "started" not in text.split("This will happen")[1]


def test_the_job_shows_each_disk(client, world):
    parts = [
        {"name": "vda", "total_bytes": 10 << 30, "done_bytes": 1 << 30},
        {"name": "vdb", "total_bytes": 5, "done_bytes": 0},
    ]
    Task.objects.filter(pk=world.alpha.task.pk).update(
        state=State.RUNNING, phase="store", progress={"parts": parts, "total_bytes": 11 << 30, "done_bytes": 1 << 30}
    )
    Job.objects.filter(pk=world.alpha.job.pk).update(state=State.RUNNING)
    text = client.get(page(Job, "change", world.alpha.job.pk)).content.decode()
    assert "1.0 GiB / 10.0 GiB" in text and "vdb" in text
