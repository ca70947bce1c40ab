"""Kept snapshots in the admin and the REST API: shown where they are looked for, removed by those who may."""

from __future__ import annotations

import pytest
from django.utils import timezone

from apps.catalog.models import Trace
from apps.inventory.models import Platform, Workload
from apps.jobs import requests, traces
from apps.jobs.models import Job
from apps.policies import assignment
from tests.api_client import person
from tests.apps.acting import ActingNode, backup_result
from tests.apps.clouds import find, machine, workload
from tests.apps.test_admin_scope import page, signed_in
from tests.apps.test_traces import bears, kvm, later, leaves, mark, removals

__all__ = ["kvm", "mark"]  # fixtures
pytestmark = pytest.mark.django_db


@pytest.fixture
def rows(world, kvm, mark):
    """One that nothing needs, one whose mark nobody knows, one that the next backup needs."""
    find(world.alpha, kvm, [machine(1), machine(2, traces=[bears("feedbeef", "brs-feedbeef-3 (vda)")]), machine(3)])
    assignment.assign(world.admin, [workload(kvm, 3)], world.alpha.policy)
    for number in (1, 3):
        requests.backup_now(world.admin, workload(kvm, number))
        node = ActingNode(world.alpha.node)
        node.complete(node.take(), backup_result(kept=[f"brs-{mark}-{number} (vda)"]))
    leaves(world, kvm, "unprotected")
    traces.plan(later(0))
    return {number: Trace.objects.get(workload=workload(kvm, number)) for number in (1, 2, 3)}


def test_a_platforms_page_lists_what_nothing_needs_each_with_its_removal(world, kvm, rows, mark):
    client = signed_in(world.operator)
    text = client.get(page(Platform, "change", kvm.pk)).content.decode()
    card = text[text.index('id="kept"') :].split("brs-card")[0]
    assert f"brs-{mark}-1 (vda)" in card and "No schedule needs it any more" in card
    assert "brs-feedbeef-3" in card and "not known here" in card and f"brs-{mark}-3" not in card
    # He may remove what is ours; what may be another server's takes who configures.
    assert page(Trace, "do", rows[1].pk, "remove") in card and "remove-unknown" not in card
    assert (
        page(Trace, "do", rows[2].pk, "remove-unknown")
        in signed_in(world.admin).get(page(Platform, "change", kvm.pk)).content.decode()
    )
    Trace.objects.all().delete()
    assert "None. What backups keep there" in client.get(page(Platform, "change", kvm.pk)).content.decode()


def test_removal_is_a_dialog_then_a_post_and_a_get_removes_nothing(world, kvm, rows):
    client, address = signed_in(world.operator), page(Trace, "do", rows[1].pk, "remove")
    assert "next backup reads everything" in client.get(address).content.decode() and not removals()
    answer = client.post(address)
    assert answer.status_code == 302 and answer.url == page(Job, "change", removals()[0].pk)
    admin, unknown = signed_in(world.admin), page(Trace, "do", rows[2].pk, "remove-unknown")
    assert "No other BRS server" in admin.get(unknown).content.decode()
    assert admin.post(unknown).status_code == 200 and len(removals()) == 1, "first it must be said"
    assert admin.post(unknown, {"nobody_else": "on"}).status_code == 302 and len(removals()) == 2
    for verb in ("remove", "remove-unknown"):  # by whichever door
        assert client.post(page(Trace, "do", rows[2].pk, verb), {"nobody_else": "on"}).status_code in (200, 403)
    assert len(removals()) == 2


def test_many_at_once_one_job_each_and_those_that_refuse_are_named(world, kvm, rows):
    chosen = {"action": "remove_many", "_selected_action": [str(row.pk) for row in rows.values()]}
    client = signed_in(world.operator)
    assert "Remove kept snapshots" in client.post(page(Trace, "changelist"), chosen).content.decode()
    assert not removals()
    told = client.post(page(Trace, "changelist"), {**chosen, "apply": "1"}, follow=True).content.decode()
    assert "Removals started: 2" in told and "web02" in told
    assert {job.workload for job in removals()} == {workload(kvm, 1), workload(kvm, 3)}


def test_a_stranger_removes_nothing_in_bulk_and_a_viewer_is_not_offered_it(world, kvm, rows):
    chosen = {"action": "remove_many", "_selected_action": [str(row.pk) for row in rows.values()], "apply": "1"}
    for who in (world.stranger, world.viewer):
        signed_in(who).post(page(Trace, "changelist"), chosen)
        assert not removals()
    assert "remove_many" not in signed_in(world.viewer).get(page(Trace, "changelist")).content.decode()
    assert "web01" not in signed_in(world.stranger).get(page(Trace, "changelist")).content.decode()


def test_the_list_tells_what_is_needed_from_what_is_not(world, kvm, rows):
    client = signed_in(world.owner)
    for needed, expected in (("no", {"web01", "web02"}), ("yes", {"web03"})):
        text = client.get(page(Trace, "changelist"), {"needed": needed}).content.decode()
        assert {name for name in ("web01", "web02", "web03") if f">{name}<" in text} == expected
    assert client.get(page(Trace, "change", rows[3].pk)).status_code == 200


def test_a_workloads_page_shows_what_is_kept_and_removes_it(world, kvm, rows):
    client = signed_in(world.operator)
    address = page(Workload, "do", rows[3].workload_id, "remove-traces")
    text = client.get(page(Workload, "change", rows[3].workload_id)).content.decode()
    assert rows[3].names[0] in text and address in text
    assert "next backup reads everything" in client.get(address).content.decode()
    assert client.post(address).status_code == 302 and removals()[0].workload == rows[3].workload
    unknown = page(Workload, "do", rows[2].workload_id, "remove-traces")
    assert unknown not in client.get(page(Workload, "change", rows[2].workload_id)).content.decode()


def test_running_machines_are_asked_only_when_somebody_says_so(world, kvm):
    type(kvm).objects.filter(pk=kvm.pk).update(tested_at=timezone.now())
    client, address = signed_in(world.operator), page(Platform, "do", kvm.pk, "traces")
    assert "tainted: custom-monitor" in client.get(address).content.decode()
    client.post(address)
    task = ActingNode(world.alpha.node).take()
    assert task is not None and task.spec.kind == "discover" and task.spec.thorough


def test_the_api_lists_and_removes_as_the_pages_do(world, kvm, rows):
    operator = person(world.operator)
    found = operator.get(f"kept-snapshots/?platform={kvm.pk}&unneeded=true").json()["results"]
    assert [(row["workload_name"], row["names"]) for row in found] == [("web01", rows[1].names)]
    assert operator.post(f"kept-snapshots/{rows[2].pk}/remove/").status_code == 403
    assert person(world.stranger).post(f"kept-snapshots/{rows[1].pk}/remove/").status_code == 404
    many = {"kept": [str(rows[1].pk), str(rows[3].pk)]}
    assert operator.post("kept-snapshots/remove/", many).status_code == 400  # two workloads
    assert person(world.stranger).post("kept-snapshots/remove/", {"kept": [str(rows[1].pk)]}).status_code == 400
    assert person(world.viewer).post("kept-snapshots/remove/", {"kept": [str(rows[1].pk)]}).status_code == 403
    answer = operator.post("kept-snapshots/remove/", {"kept": [str(rows[1].pk)]})
    assert answer.status_code == 202 and answer.json()["kind"] == "remove-traces"
    path = f"workloads/{rows[3].workload_id}/remove-kept-snapshots/"
    assert person(world.viewer).post(path).status_code == 403
    assert operator.post(path).status_code == 202 and operator.post(path).status_code == 409
    look = operator.post(f"platforms/{kvm.pk}/discover/", {"thorough": True})
    assert look.status_code == 202
