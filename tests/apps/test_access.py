from __future__ import annotations

import uuid

import pytest
from django.contrib.auth.models import AnonymousUser, Group
from guardian.shortcuts import assign_perm

from apps.catalog.models import PointCopy, RestorePoint
from apps.errors import Denied, NotFound
from apps.iam import access
from apps.iam.access import Right
from apps.iam.models import ApiToken, AuditEvent, Membership, Role, Tenant, User
from apps.iam.tokens import issue
from apps.inventory.models import Node, Workload
from apps.jobs.models import Job, Task
from tests.world import World, make_user


def test_each_role_has_its_rights_and_no_more(world: World) -> None:
    expected = {
        world.viewer: {Right.VIEW},
        world.operator: {Right.VIEW, Right.OPERATE, Right.RESTORE_ELSEWHERE, Right.DOWNLOAD},
        world.admin: set(Right) - {Right.MEMBERS, Right.READ_KIT, Right.COMMANDS},
        world.owner: set(Right),
        world.root: set(Right),
        world.stranger: set(),
        world.nobody: set(),
    }
    for user, rights in expected.items():
        assert {right for right in Right if access.can(user, right, world.alpha.workload)} == rights, user


@pytest.mark.parametrize("who", ["stranger", "nobody"])
def test_to_a_stranger_nothing_of_the_tenant_exists(world: World, who: str) -> None:
    user = getattr(world, who)
    for thing in world.alpha.things():
        assert not access.visible(user, type(thing)).filter(pk=thing.pk).exists()
        for right in Right:
            with pytest.raises(NotFound):
                access.require(user, right, thing)
            with pytest.raises(NotFound):
                access.fetch(user, type(thing), thing.pk, right)


def test_a_member_sees_everything_of_his_tenant_and_only_that(world: World) -> None:
    for thing in world.alpha.things():
        assert access.fetch(world.viewer, type(thing), thing.pk) == thing
    assert set(access.visible(world.viewer, Workload)) == {world.alpha.workload}
    assert set(access.visible(world.viewer, Task)) == {world.alpha.task}
    assert set(access.visible(world.viewer, PointCopy.objects.filter(point__files=12))) == {world.alpha.copy}


def test_what_a_colleague_sees_but_may_not_do_is_denied_rather_than_hidden(world: World) -> None:
    with pytest.raises(Denied):
        access.require(world.colleague, Right.CONFIGURE, world.alpha.policy)
    with pytest.raises(Denied):
        access.fetch(world.operator, RestorePoint, world.alpha.point.pk, Right.DELETE)


@pytest.mark.parametrize("key", ["", "x", "'; drop", "1" * 400, 10**40, None, uuid.uuid4(), "\x00", object()])
def test_a_key_that_names_nothing_is_not_found(world: World, key: object) -> None:
    for model in (Workload, AuditEvent):
        with pytest.raises(NotFound):
            access.fetch(world.root, model, key)


def test_inactive_people_and_tenants_see_nothing(world: World) -> None:
    Tenant.objects.filter(pk=world.alpha.tenant.pk).update(is_active=False)
    assert not access.visible(world.owner, Workload).exists()
    assert not access.tenants(world.owner).exists()
    world.root.is_active = False
    assert not access.visible(world.root, Workload).exists()
    assert not access.can(world.root, Right.VIEW, world.beta.workload)
    assert not access.visible(AnonymousUser(), Workload).exists()


def test_a_shared_node_is_seen_by_every_member_and_configured_by_superusers_only(world: World) -> None:
    node = world.shared_node
    for user in (world.viewer, world.owner, world.stranger):
        assert access.can(user, Right.VIEW, node)
        assert not access.can(user, Right.CONFIGURE, node)
    assert not access.can(world.nobody, Right.VIEW, node)
    assert access.can(world.root, Right.CONFIGURE, node)
    assert set(access.visible(world.viewer, Node)) == {world.alpha.node, node}


def test_a_grant_on_a_workload_reaches_its_points_copies_and_jobs_but_no_others(world: World) -> None:
    assign_perm("inventory.operate_workload", world.nobody, world.alpha.workload)
    assert set(access.visible(world.nobody, Workload)) == {world.alpha.workload}
    assert set(access.visible(world.nobody, RestorePoint)) == {world.alpha.point}
    assert set(access.visible(world.nobody, PointCopy)) == {world.alpha.copy}
    assert set(access.visible(world.nobody, Job, Right.OPERATE)) == {world.alpha.job}
    rights = {right for right in Right if access.can(world.nobody, right, world.alpha.point)}
    assert rights == {Right.VIEW, Right.OPERATE, Right.RESTORE_ELSEWHERE, Right.DOWNLOAD}
    assert not access.can(world.nobody, Right.VIEW, world.alpha.policy)
    assert not access.tenants(world.nobody).exists()


@pytest.mark.parametrize(
    ("word", "right"), [("view", Right.VIEW), ("change", Right.CONFIGURE), ("delete", Right.DELETE)]
)
def test_a_grant_to_a_group_gives_its_right_and_sight(world: World, word: str, right: Right) -> None:
    group = Group.objects.create(name="helpers of Alpha")
    world.nobody.groups.add(group)
    assign_perm(f"policies.{word}_policy", group, world.alpha.policy)
    allowed = {one for one in Right if access.can(world.nobody, one, world.alpha.policy)}
    assert allowed == {Right.VIEW, right}


def test_a_grant_ends_with_the_tenants_activity(world: World) -> None:
    assign_perm("inventory.view_workload", world.nobody, world.alpha.workload)
    Tenant.objects.filter(pk=world.alpha.tenant.pk).update(is_active=False)
    assert not access.visible(world.nobody, Workload).exists()


def test_a_member_of_two_tenants_sees_each_user_once_and_changes_none(world: World) -> None:
    for user in (world.owner, world.colleague):
        Membership.objects.create(user=user, tenant=world.beta.tenant, role=Role.VIEWER)
    seen = list(access.visible(world.owner, User))
    assert len(seen) == len(set(seen))
    assert world.stranger in seen
    assert world.nobody not in seen
    assert not access.can(world.owner, Right.CONFIGURE, world.colleague)
    assert not access.can(world.owner, Right.DELETE, world.colleague)


def test_an_administrator_cannot_make_himself_an_owner(world: World) -> None:
    mine = Membership.objects.get(user=world.admin)
    with pytest.raises(Denied):
        access.require(world.admin, Right.CONFIGURE, mine)
    new = Membership(user=world.nobody, tenant=world.alpha.tenant, role=Role.OWNER)
    assert not access.can(world.admin, Right.CONFIGURE, new)
    assert access.can(world.owner, Right.CONFIGURE, new)
    assert access.can(world.owner, Right.CONFIGURE, mine)


def test_a_new_object_is_judged_by_the_tenant_it_would_belong_to(world: World) -> None:
    here = Workload(tenant=world.alpha.tenant, platform=world.alpha.platform, name="new")
    there = Workload(tenant=world.beta.tenant, platform=world.beta.platform, name="new")
    assert access.can(world.admin, Right.CONFIGURE, here)
    assert not access.can(world.admin, Right.CONFIGURE, there)
    assert not access.can(world.operator, Right.CONFIGURE, here)
    assert not access.can(world.admin, Right.CONFIGURE, Node(name="shared"))


def test_an_object_cannot_be_moved_to_a_foreign_tenant(world: World) -> None:
    moved = access.fetch(world.admin, Workload, world.alpha.workload.pk)
    moved.tenant = world.beta.tenant
    assert not access.can(world.admin, Right.CONFIGURE, moved)
    moved = access.fetch(world.admin, Node, world.alpha.node.pk)
    moved.tenant = None
    assert not access.can(world.admin, Right.CONFIGURE, moved)


def test_an_api_token_is_seen_by_its_user_alone(world: World) -> None:
    token, _ = issue(world.viewer, "mine")
    assert set(access.visible(world.viewer, ApiToken, Right.DELETE)) == {token}
    assert not access.visible(world.owner, ApiToken).exists()


def test_events_of_the_whole_system_are_for_superusers(world: World) -> None:
    from apps.iam import audit

    event = audit.record("server", "server.started")
    assert not access.can(world.owner, Right.VIEW, event)
    assert access.can(world.root, Right.VIEW, event)


def test_looking_up_one_object_takes_at_most_three_queries(world: World, django_assert_max_num_queries) -> None:
    user = make_user("fresh")
    Membership.objects.create(user=user, tenant=world.alpha.tenant, role=Role.VIEWER)
    access.fetch(user, Job, world.alpha.job.pk)  # warms the content types
    with django_assert_max_num_queries(3):
        access.fetch(user, Job, world.alpha.job.pk)
