from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from apps.errors import Conflict, Denied, DomainError, NotFound, TooMany, Unavailable
from apps.iam import throttle
from apps.iam.models import Attempts, AuditEvent, Tenant, User
from apps.inventory import enrolment, node_auth
from apps.inventory.enrolment import BadCode
from apps.inventory.models import EnrolmentCode, Node
from apps.inventory.node_auth import Quarantined, UnknownNode
from brs import pki
from node_agent.protocol import Capabilities, EnrolRequest, TaskKind
from tests.world import World

ADDRESS = "192.0.2.10"


@pytest.fixture(autouse=True)
def ca(db) -> None:
    pki.ensure()


def request(code: str, name: str = "", **changes: object) -> EnrolRequest:
    told = Capabilities(version="0.1.0", hostname="host-1", kinds=[TaskKind.BACKUP], drivers=["files"])
    facts = {"incarnation": uuid.uuid4(), "node_time": datetime.now(UTC), "capabilities": told}
    return EnrolRequest(code=code, name=name, **{**facts, **changes})


def issue(world: World, node_name: str = "", by: User | str = "command line", tenant: Tenant | None = None) -> str:
    return enrolment.issue_code(by, tenant or world.alpha.tenant, node_name)[1]


def test_a_code_makes_one_node_with_a_token_that_is_kept_by_hash(world: World) -> None:
    clear = issue(world, "new-node")
    reply = enrolment.redeem(request(clear), ADDRESS)
    node = node_auth.authenticate(reply.token)
    assert (node.pk, node.name, node.tenant) == (reply.node_id, "new-node", world.alpha.tenant)
    assert (node.hostname, node.kinds, node.drivers) == ("host-1", ["backup"], ["files"])
    assert len(reply.token) >= 43
    for table in (Node, EnrolmentCode, AuditEvent):
        stored = str(list(table.objects.values()))
        assert reply.token not in stored
        assert clear.partition(".")[0] not in stored


def test_the_code_ends_with_the_cas_fingerprint_and_works_with_or_without_it(world: World) -> None:
    clear = issue(world)
    code, _, fingerprint = clear.partition(".")
    assert fingerprint == pki.ca_fingerprint()
    assert code.isalnum(), "a code that begins with - would be taken for an option of the command line"
    assert enrolment.redeem(request(code, "short"), ADDRESS).name == "short"


def test_without_a_ca_no_code_is_issued(world: World, settings, tmp_path) -> None:
    settings.PKI_DIR = tmp_path
    with pytest.raises(Unavailable):
        issue(world)


def test_a_code_is_used_once(world: World) -> None:
    clear = issue(world)
    enrolment.redeem(request(clear, "one"), ADDRESS)
    with pytest.raises(BadCode):
        enrolment.redeem(request(clear, "two"), ADDRESS)
    assert not Node.objects.filter(name="two").exists()


def test_a_repetition_whose_answer_was_lost_gets_a_token_for_the_same_node(world: World) -> None:
    same = request(issue(world), "one")
    first = enrolment.redeem(same, ADDRESS)
    again = enrolment.redeem(same, ADDRESS)
    assert again.node_id == first.node_id
    assert node_auth.authenticate(again.token).pk == first.node_id
    Node.objects.filter(pk=first.node_id).update(last_seen_at=timezone.now())  # it was heard of with its token
    with pytest.raises(BadCode):
        enrolment.redeem(same, ADDRESS)


def test_a_code_ends_after_fifteen_minutes(world: World) -> None:
    clear = issue(world)
    code = EnrolmentCode.objects.get()
    assert code.expires_at - code.created_at <= timedelta(minutes=15, seconds=1)
    EnrolmentCode.objects.update(expires_at=timezone.now())
    with pytest.raises(BadCode):
        enrolment.redeem(request(clear), ADDRESS)


def test_wrong_codes_are_counted_by_address_and_then_refused(world: World) -> None:
    for _ in range(enrolment.TRIES):
        with pytest.raises(BadCode):
            enrolment.redeem(request("wrong"), ADDRESS)
    good = issue(world)
    with pytest.raises(TooMany):
        enrolment.redeem(request(good), ADDRESS)
    assert enrolment.redeem(request(good, "elsewhere"), "192.0.2.11").name == "elsewhere"
    Attempts.objects.update(until=timezone.now())
    assert enrolment.redeem(request(issue(world), "later"), ADDRESS).name == "later"


def test_good_codes_do_not_count_so_that_a_fleet_can_enrol_from_one_address(world: World) -> None:
    for number in range(enrolment.TRIES + 3):
        enrolment.redeem(request(issue(world), f"node-{number}"), ADDRESS)


def test_an_ipv6_host_cannot_try_from_each_of_its_addresses(db) -> None:
    for number in range(3):
        throttle.take("x", f"2001:db8::{number}", limit=3, period=timedelta(minutes=1))
    with pytest.raises(TooMany):
        throttle.take("x", "2001:db8::ffff", limit=3, period=timedelta(minutes=1))
    throttle.take("x", "2001:db8:0:1::1", limit=3, period=timedelta(minutes=1))


def test_a_taken_name_is_refused_and_the_code_stays_good(world: World) -> None:
    clear = issue(world)
    with pytest.raises(Conflict):
        enrolment.redeem(request(clear, "alpha-node"), ADDRESS)
    assert enrolment.redeem(request(clear, "free"), ADDRESS).name == "free"


def test_a_code_for_an_existing_node_gives_it_a_new_token_and_ends_its_quarantine(world: World) -> None:
    node = world.alpha.node
    Node.objects.filter(pk=node.pk).update(quarantined_at=timezone.now(), quarantine_reason="x")
    reply = enrolment.redeem(request(issue(world, node.name)), ADDRESS)
    assert reply.node_id == node.pk
    assert node_auth.authenticate(reply.token).pk == node.pk
    with pytest.raises(UnknownNode):
        node_auth.authenticate(world.alpha.node_token)


def test_a_name_says_nothing_of_another_tenants_nodes(world: World) -> None:
    """Neither a code for it nor an enrolment under it is refused, and the other's node stays as it is."""
    beta = world.beta.node
    reply = enrolment.redeem(request(issue(world, beta.name)), ADDRESS)
    made = Node.objects.get(pk=reply.node_id)
    assert made.pk != beta.pk and (made.name, made.tenant) == (beta.name, world.alpha.tenant)
    assert node_auth.authenticate(world.beta.node_token).pk == beta.pk


def test_of_shared_nodes_one_has_the_name(world: World) -> None:
    Node.objects.create(name="proxy")
    with pytest.raises(IntegrityError), transaction.atomic():
        Node.objects.create(name="proxy")


def test_who_may_issue_codes(world: World) -> None:
    assert issue(world, by=world.admin)
    with pytest.raises(Denied):
        issue(world, by=world.operator)
    with pytest.raises(NotFound):
        issue(world, by=world.stranger)
    with pytest.raises(Denied):
        enrolment.issue_code(world.owner, None)
    assert enrolment.issue_code(world.root, None)


@pytest.mark.parametrize("token", ["", "wrong", "\udcff", "x" * 100_000])
def test_an_unknown_token_is_refused(world: World, token: str) -> None:
    with pytest.raises(UnknownNode):
        node_auth.authenticate(token)


def test_after_rotation_the_old_token_works_until_the_new_one_is_used(world: World) -> None:
    old, node = world.alpha.node_token, world.alpha.node
    new = node_auth.rotate(node_auth.authenticate(old), uuid.uuid4()).token
    assert node_auth.authenticate(old) == node
    assert node_auth.authenticate(old) == node
    assert node_auth.authenticate(new) == node
    assert node_auth.authenticate(new) == node
    node.refresh_from_db()
    assert node.next_token_hash == ""


def test_a_repeated_rotation_gives_the_same_token_and_another_one_another(world: World) -> None:
    node, first = world.alpha.node, uuid.uuid4()
    token = node_auth.rotate(node, first).token
    assert node_auth.rotate(node, first).token == token
    assert node_auth.rotate(node, uuid.uuid4()).token != token
    assert node_auth.rotate(world.beta.node, first).token != token


def test_a_superseded_token_quarantines_the_node(world: World) -> None:
    old = world.alpha.node_token
    new = node_auth.rotate(world.alpha.node, uuid.uuid4()).token
    node_auth.authenticate(new)
    changed = timezone.now() - timedelta(seconds=node_auth.LATE_S + 1)
    Node.objects.filter(pk=world.alpha.node.pk).update(token_changed_at=changed)
    with pytest.raises(Quarantined):
        node_auth.authenticate(old)
    with pytest.raises(Quarantined):
        node_auth.authenticate(new)
    world.alpha.node.refresh_from_db()
    assert world.alpha.node.quarantine_reason
    event = AuditEvent.objects.get(verb="node.quarantined")
    assert event.tenant == world.alpha.tenant


def test_a_request_that_was_on_its_way_when_the_token_changed_is_only_refused(world: World) -> None:
    old = world.alpha.node_token
    new = node_auth.rotate(world.alpha.node, uuid.uuid4()).token
    node_auth.authenticate(new)
    with pytest.raises(UnknownNode):
        node_auth.authenticate(old)
    assert node_auth.authenticate(new).quarantined_at is None


def test_nodes_of_an_inactive_tenant_are_not_known(world: World) -> None:
    Tenant.objects.filter(pk=world.alpha.tenant.pk).update(is_active=False)
    with pytest.raises(UnknownNode):
        node_auth.authenticate(world.alpha.node_token)


def test_authenticating_is_one_query(world: World, django_assert_num_queries) -> None:
    with django_assert_num_queries(1):
        node_auth.authenticate(world.alpha.node_token)


def test_an_operator_can_shut_a_node_out_at_once(world: World) -> None:
    with pytest.raises(Denied):
        node_auth.quarantine(world.alpha.node, world.operator, "lost laptop")
    with pytest.raises(NotFound):
        node_auth.quarantine(world.alpha.node, world.stranger, "mischief")
    node_auth.authenticate(world.alpha.node_token)
    node_auth.quarantine(world.alpha.node, world.admin, "lost laptop")
    node_auth.quarantine(world.alpha.node, world.admin, "again")
    with pytest.raises(Quarantined):
        node_auth.authenticate(world.alpha.node_token)
    event = AuditEvent.objects.get(verb="node.quarantined")
    assert (event.actor, event.detail) == (world.admin, {"reason": "lost laptop"})


def _at_once(count: int, act: Callable[[int], object]) -> tuple[list[object], list[BaseException]]:
    """Results and errors of ``count`` threads, each with a connection of its own."""
    results: list[object] = []
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            results.append(act(number))
        except DomainError as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) + len(errors) == count
    return results, errors


@pytest.mark.django_db(transaction=True)
def test_of_several_that_redeem_one_code_at_once_one_gets_in(world: World) -> None:
    clear = issue(world)
    results, errors = _at_once(6, lambda number: enrolment.redeem(request(clear, f"n{number}"), f"192.0.2.{number}"))
    assert len(results) == 1
    assert {type(error) for error in errors} == {BadCode}
    assert Node.objects.filter(name__startswith="n", tenant=world.alpha.tenant).count() == 1


@pytest.mark.django_db(transaction=True)
def test_attempts_made_at_once_are_all_counted(world: World) -> None:
    results, errors = _at_once(12, lambda _: throttle.take("x", ADDRESS, limit=5, period=timedelta(minutes=1)))
    assert (len(results), {type(error) for error in errors}) == (5, {TooMany})


@pytest.mark.django_db(transaction=True)
def test_requests_that_bring_the_new_token_at_once_all_pass(world: World) -> None:
    new = node_auth.rotate(world.alpha.node, uuid.uuid4()).token
    results, errors = _at_once(6, lambda _: node_auth.authenticate(new))
    assert (len(results), errors) == (6, [])
    world.alpha.node.refresh_from_db()
    assert world.alpha.node.quarantined_at is None
    assert node_auth.authenticate(new) == world.alpha.node
