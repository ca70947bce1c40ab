"""Destinations of every kind: what each is told, that secrets go in and never out, and what a lease carries."""

from __future__ import annotations

import json

import pytest
from django.test import Client
from django.urls import reverse

from apps.errors import Invalid
from apps.iam.models import AuditEvent
from apps.inventory import stores
from apps.inventory.models import Destination, DestinationKind, Repository
from apps.jobs.models import Job, Task
from apps.policies.models import Policy
from node_agent.protocol import TaskKind
from tests.api_client import person
from tests.apps.leasing import add_backup, take
from tests.world import PASSWORD

pytestmark = pytest.mark.django_db
SECRET = "a-secret-that-nobody-sees"

GOOD = {
    "sftp": ("backup@host.example:/srv/backup", {"host-key": "SHA256:abc"}, {"password": SECRET}),
    "s3": (
        "https://s3.example/bucket/brs",
        {"region": "eu-1"},
        {"access-key-id": "AKIA-visible-never", "secret-access-key": SECRET},
    ),
    "azure": ("container:/brs", {"account-name": "acc"}, {"account-key": SECRET}),
    "gs": ("bucket:/brs", {}, {"service-account-key": SECRET}),
    "rest": ("https://host.example:8000/brs/", {"user": "joe"}, {"password": SECRET}),
}
URLS = {
    "sftp": "sftp:backup@host.example:/srv/backup/alpha",
    "s3": "s3:https://s3.example/bucket/brs/alpha",
    "azure": "azure:container:/brs/alpha",
    "gs": "gs:bucket:/brs/alpha",
    "rest": "rest:https://host.example:8000/brs/alpha/",
}


def body(world, kind: str, **more) -> dict:
    path, options, secrets = GOOD[kind]
    common = {"tenant": str(world.alpha.tenant.pk), "name": f"at {kind}", "nodes": [str(world.alpha.node.pk)]}
    return common | {"kind": kind, "path": path, "options": options, "secrets": secrets} | more


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_each_kind_is_added_and_its_secrets_are_never_shown(world, kind):
    answer = person(world.admin).post("destinations/", body(world, kind))
    assert answer.status_code == 201, answer.content
    shown = answer.json()
    assert "secrets" not in shown and shown["secret_names"] == sorted(GOOD[kind][2])
    made = Destination.objects.get(pk=shown["id"])
    assert stores.secrets_of(made) == GOOD[kind][2]
    assert SECRET.encode() not in bytes(made.sealed)
    seen = [answer.content, person(world.owner).get(f"destinations/{made.pk}/").content]
    client = Client()
    client.login(username=world.owner.username, password=PASSWORD)
    for page in ("change", "history"):
        shown = client.get(reverse(f"admin:inventory_destination_{page}", args=[made.pk]))
        assert shown.status_code == 200
        seen.append(shown.content)
    seen.append(json.dumps(list(AuditEvent.objects.values("detail", "object_name"))).encode())
    for text in seen:
        assert SECRET.encode() not in text and b"AKIA-visible-never" not in text
    assert Repository(tenant=world.alpha.tenant, destination=made).url == URLS[kind]


def test_a_lease_carries_options_and_secrets_and_the_row_of_the_task_none(world):
    person(world.admin).post("destinations/", body(world, "s3"))
    store = Destination.objects.get(kind="s3")
    Repository.objects.filter(pk=world.alpha.repository.pk).update(destination=store)
    store.nodes.add(world.alpha.node)
    task = add_backup(world.alpha)
    handed = take(world.alpha.node)
    assert handed.spec.repository.options == {**GOOD["s3"][1], **GOOD["s3"][2]}
    assert handed.spec.repository.url == URLS["s3"]
    assert SECRET not in repr(handed)
    stored = Task.objects.get(pk=task.pk)
    assert SECRET not in json.dumps([stored.spec, stored.progress, stored.outcome])


def test_a_test_of_a_store_without_a_repository_carries_them_too(world):
    made = person(world.admin).post("destinations/", body(world, "sftp")).json()["id"]
    job = person(world.admin).post(f"destinations/{made}/test/").json()["id"]
    (task,) = Task.objects.filter(job=job)
    assert task.spec["path"] == URLS["sftp"] and SECRET not in json.dumps(task.spec)
    handed = take(world.alpha.node)
    assert handed.spec.kind == TaskKind.PROBE and handed.spec.options["password"] == SECRET


def test_secrets_are_replaced_by_name_and_taken_away_by_an_empty_text(world):
    admin = person(world.admin)
    made = admin.post("destinations/", body(world, "s3")).json()["id"]
    path = f"destinations/{made}/"
    assert admin.patch(path, {"name": "other"}).json()["secret_names"] == ["access-key-id", "secret-access-key"]
    assert admin.patch(path, {"secrets": {"secret-access-key": "new"}}).status_code == 200
    assert stores.secrets_of(Destination.objects.get(pk=made))["secret-access-key"] == "new"
    gone = admin.patch(path, {"secrets": {"secret-access-key": "", "access-key-id": ""}})
    assert gone.json()["secret_names"] == []
    assert Destination.objects.get(pk=made).sealed is None


@pytest.mark.parametrize(
    ("kind", "change", "word"),
    [
        ("s3", {"path": "bucket"}, "no address"),
        ("s3", {"path": "https://key:secret@s3.example/bucket"}, "no address"),
        ("s3", {"path": "https://s3.example/bucket/../other"}, ".."),
        ("sftp", {"path": "/srv/backup"}, "no address"),
        ("azure", {"options": {}}, "storage account"),
        ("azure", {"path": "a/b"}, "no address"),
        ("rest", {"path": "https://joe:secret@host/"}, "no address"),
        ("rest", {"options": {"region": "x"}}, "region"),
        ("s3", {"options": {"proxy": "http://evil"}}, "proxy"),
        ("s3", {"options": {"credentials-file": "/etc/shadow"}}, "credentials-file"),
        ("s3", {"options": {"cacert": "/etc/shadow"}}, "certificate itself"),
        ("s3", {"options": {"limit-upload": "fast"}}, "bandwidth"),
        ("s3", {"options": {"limit-windows": "noon=1M"}}, "window"),
        ("s3", {"options": {"connections": "0"}}, "connections"),
        ("s3", {"secrets": {"password": "x"}}, "password"),
        ("s3", {"secrets": {"session-token": 7}}, "text"),
        ("local", {"path": "relative"}, "absolute"),
    ],
)
def test_what_a_kind_does_not_know_is_refused_in_words(world, kind, change, word):
    told = body(world, "s3") if kind == "local" else body(world, kind)
    if kind == "local":
        told |= {"kind": "local", "options": {}, "secrets": {}}
    answer = person(world.admin).post("destinations/", {**told, **change})
    assert answer.status_code == 400, answer.content
    assert word in answer.json()["message"] and answer.json()["hint"]
    assert SECRET not in answer.content.decode()
    assert not Destination.objects.filter(name=told["name"]).exists()


def test_the_stranger_and_the_viewer_add_and_change_nothing(world):
    told = body(world, "s3")
    for other, status in ((world.stranger, 400), (world.viewer, 403), (world.nobody, 400)):
        assert person(other).post("destinations/", told).status_code == status
    made = person(world.admin).post("destinations/", told).json()["id"]
    path = f"destinations/{made}/"
    for other, status in ((world.stranger, 404), (world.viewer, 403), (world.nobody, 404)):
        assert person(other).patch(path, {"secrets": {"secret-access-key": "mine"}}).status_code == status
        assert person(other).post(f"{path}test/").status_code == status
    assert stores.secrets_of(Destination.objects.get(pk=made))["secret-access-key"] == SECRET
    assert person(world.viewer).get(path).json()["secret_names"]  # that they are set, and not more


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_the_form_adds_each_kind_and_keeps_a_secret_that_is_left_empty(world, kind):
    path, options, secrets = GOOD[kind]
    client = Client()
    client.login(username=world.admin.username, password=PASSWORD)
    fields = {"store_" + name.replace("-", "_"): value for name, value in {**options, **secrets}.items()}
    told = {"tenant": str(world.alpha.tenant.pk), "name": "at the store", "kind": kind, "path": path}
    told |= {"nodes": [str(world.alpha.node.pk)], **fields}
    answer = client.post(reverse("admin:inventory_destination_add"), told)
    assert answer.status_code == 302, answer.content.decode()[-3000:]
    made = Destination.objects.get(name="at the store")
    assert (made.kind, made.path, made.options, stores.secrets_of(made)) == (kind, path, options, secrets)
    assert Job.objects.filter(destination=made, kind="probe").exists()

    again = {**told, "store_connections": "2", **dict.fromkeys(fields.keys() & _of_secrets(secrets), "")}
    answer = client.post(reverse("admin:inventory_destination_change", args=[made.pk]), again)
    assert answer.status_code == 302, answer.content.decode()[-3000:]
    made.refresh_from_db()
    assert made.options == {**options, "connections": "2"} and stores.secrets_of(made) == secrets


def _of_secrets(secrets) -> set[str]:
    return {"store_" + name.replace("-", "_") for name in secrets}


def test_the_form_says_what_is_wrong_with_an_address(world):
    client = Client()
    client.login(username=world.admin.username, password=PASSWORD)
    told = {"tenant": str(world.alpha.tenant.pk), "name": "x", "kind": "s3", "path": "nonsense"}
    told |= {"nodes": [str(world.alpha.node.pk)], "store_limit_upload": "fast"}
    page = client.post(reverse("admin:inventory_destination_add"), told)
    assert page.status_code == 200
    assert "no address of this kind" in page.content.decode() and "no bandwidth" in page.content.decode()


def test_an_address_with_a_repository_stays(world):
    made = Destination.objects.create(
        tenant=world.alpha.tenant, name="s", kind=DestinationKind.S3, path="https://s3.example/bucket"
    )
    Repository.objects.filter(pk=world.alpha.repository.pk).update(destination=made)
    with pytest.raises(Invalid, match="There is a repository here"):
        stores.refuse_move(made, "https://s3.example/other")
    assert Policy.objects.exists()


def test_the_recovery_kit_tells_how_the_store_opens(world):
    person(world.admin).post("destinations/", body(world, "s3"))
    store = Destination.objects.get(kind="s3")
    Repository.objects.filter(pk=world.alpha.repository.pk).update(destination=store)
    text = person(world.owner).post(f"repositories/{world.alpha.repository.pk}/kit/").content.decode()
    assert f"AWS_SECRET_ACCESS_KEY={SECRET}" in text and URLS["s3"] in text
    assert person(world.stranger).post(f"repositories/{world.alpha.repository.pk}/kit/").status_code == 404


def test_the_recovery_kit_of_a_google_bucket_says_that_its_key_belongs_into_a_file(world):
    key = '{"type": "service_account", "private_key": "x"}'
    person(world.admin).post("destinations/", body(world, "gs", secrets={"service-account-key": key}))
    store = Destination.objects.get(kind="gs")
    Repository.objects.filter(pk=world.alpha.repository.pk).update(destination=store)
    text = person(world.owner).post(f"repositories/{world.alpha.repository.pk}/kit/").content.decode()
    assert f"GOOGLE_APPLICATION_CREDENTIALS=google-key.json   (a file with the text that follows)\n\n{key}\n" in text
    assert URLS["gs"] in text and "service-account-key" not in text


LOCK = {"object-lock": "compliance", "object-lock-days": "30"}


def test_a_store_is_told_to_lock_by_api_and_form_and_hears_it_in_the_lease(world):
    shown = person(world.admin).post("destinations/", body(world, "s3", options=LOCK)).json()
    assert shown["options"] == LOCK
    assert stores.told(Destination.objects.get(pk=shown["id"]))["object-lock-days"] == "30"
    client = Client()
    client.login(username=world.admin.username, password=PASSWORD)
    page = client.get(reverse("admin:inventory_destination_change", args=[shown["id"]])).content.decode()
    assert "Lock for (days)" in page and "Nobody can delete it before its time" in page
    told = {"tenant": str(world.alpha.tenant.pk), "name": "by form", "kind": "s3", "path": "https://s3.example/b/c"}
    told |= {"nodes": [str(world.alpha.node.pk)], "store_object_lock": "governance", "store_object_lock_days": "7"}
    assert client.post(reverse("admin:inventory_destination_add"), told).status_code == 302
    made = Destination.objects.get(name="by form")
    assert made.options == {"object-lock": "governance", "object-lock-days": "7"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"object-lock": "compliance"}, "object-lock-days must be"),
        ({"object-lock": "compliance", "object-lock-days": "0"}, "object-lock-days must be"),
        ({"object-lock-days": "30"}, "object-lock must be compliance or governance"),
        ({"object-lock": "perhaps", "object-lock-days": "30"}, "object-lock must be compliance or governance"),
    ],
)
def test_half_a_lock_is_refused_in_words(world, options, word):
    answer = person(world.admin).post("destinations/", body(world, "s3", options=options))
    assert answer.status_code == 400 and word in answer.content.decode()


def test_only_s3_offers_to_lock(world):
    answer = person(world.admin).post("destinations/", body(world, "rest", options=LOCK))
    assert answer.status_code == 400 and "object-lock" in answer.content.decode()


def test_locking_cannot_be_switched_off_where_backups_are_locked_but_the_days_may_change(world):
    made = person(world.admin).post("destinations/", body(world, "s3", options=LOCK)).json()
    path = f"destinations/{made['id']}/"
    Repository.objects.filter(pk=world.alpha.repository.pk).update(destination=made["id"])
    answer = person(world.admin).patch(path, {"options": {}})
    assert answer.status_code == 400 and "cannot be switched off" in answer.content.decode()
    assert person(world.admin).patch(path, {"options": {**LOCK, "object-lock-days": "7"}}).status_code == 200
    client = Client()
    client.login(username=world.admin.username, password=PASSWORD)
    told = {"tenant": str(world.alpha.tenant.pk), "name": "x", "path": GOOD["s3"][0], "nodes": [world.alpha.node.pk]}
    page = client.post(reverse("admin:inventory_destination_change", args=[made["id"]]), told)
    assert page.status_code == 200 and "cannot be switched off" in page.content.decode()


def test_the_recovery_kit_of_a_locked_repository_names_the_options_and_what_restic_may_do_there(world):
    person(world.admin).post("destinations/", body(world, "s3", options=LOCK))
    store = Destination.objects.get(kind="s3")
    Repository.objects.filter(pk=world.alpha.repository.pk).update(destination=store)
    text = person(world.owner).post(f"repositories/{world.alpha.repository.pk}/kit/").content.decode()
    assert "--option object-lock=compliance --option object-lock-days=30" in text
    assert "repair undelete" in text and "do not use its forget" in text
