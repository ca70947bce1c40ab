"""Who belongs to a tenant, and as what. A tenant always keeps an owner, or nobody could let anybody in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib.auth import password_validation
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from apps.errors import Conflict, Invalid
from apps.iam import access, audit, throttle
from apps.iam.access import Right
from apps.iam.models import Membership, Role, Tenant, User

PASSWORD_TRIES = 10
PASSWORD_PERIOD = timedelta(minutes=10)


@transaction.atomic
def add(by: User, tenant: Tenant, user: User, role: str, *, request: Any = None) -> Membership:
    """Makes ``user`` a member of ``tenant``; 409 if he is one already."""
    access.require(by, Right.MEMBERS, tenant)
    membership, made = Membership.objects.get_or_create(tenant=tenant, user=user, defaults={"role": role})
    if not made:
        raise Conflict(
            _("%(user)s is a member of %(tenant)s already.") % {"user": user, "tenant": tenant},
            hint=_("Change the role of the membership instead."),
        )
    detail = {"user": user.get_username(), "role": [None, role]}
    audit.record(by, "membership.added", membership, tenant=tenant, detail=detail, request=request)
    return membership


@transaction.atomic
def change(by: User, membership: Membership, role: str, *, request: Any = None) -> Membership:
    access.require(by, Right.MEMBERS, membership.tenant)
    if role == membership.role:
        return membership
    _keep_an_owner(membership)
    before, membership.role = membership.role, role
    membership.save(update_fields=["role"])
    detail = {"user": membership.user.get_username(), "role": [before, role]}
    audit.record(by, "membership.changed", membership, tenant=membership.tenant, detail=detail, request=request)
    return membership


@transaction.atomic
def remove(by: User, membership: Membership, *, request: Any = None) -> None:
    access.require(by, Right.MEMBERS, membership.tenant)
    _keep_an_owner(membership)
    detail = {"user": membership.user.get_username(), "role": [membership.role, None]}
    audit.record(by, "membership.removed", membership, tenant=membership.tenant, detail=detail, request=request)
    membership.delete()


@transaction.atomic
def invite(by: User, tenant: Tenant, role: str, *, username: str, password: str, request: Any = None) -> Membership:
    """A new user who is a member of ``tenant``. The password has to satisfy the installation's rules."""
    access.require(by, Right.MEMBERS, tenant)
    user = User(username=username)
    _require_strong(password, user)
    if User.objects.filter(username__iexact=username).exists():
        raise Conflict(_("The user name is taken."), hint=_("Choose another one."))
    user.set_password(password)
    try:
        with transaction.atomic():
            user.save()
    except IntegrityError:  # somebody else was quicker
        raise Conflict(_("The user name is taken."), hint=_("Choose another one.")) from None
    audit.record(by, "user.added", user, tenant=tenant, detail={"username": username}, request=request)
    return add(by, tenant, user, role, request=request)


@dataclass
class Attempt:
    was_right: bool = False


@contextmanager
def password_attempt(user: User) -> Iterator[Attempt]:
    """Counts a guess of one's present password unless it ``was_right``; TooMany when there were too many."""
    throttle.take("password", str(user.pk), limit=PASSWORD_TRIES, period=PASSWORD_PERIOD)
    attempt = Attempt()
    yield attempt
    if attempt.was_right:
        throttle.give_back("password", str(user.pk))


def change_password(user: User, old: str, new: str, *, request: Any = None) -> None:
    """One's own. The old one is asked for, so that a token or an open browser is not enough to take an account."""
    with password_attempt(user) as attempt:
        attempt.was_right = user.check_password(old)
    if not attempt.was_right:
        raise Invalid(_("old: this is not your password."), hint=_("Ask an administrator if you have lost it."))
    _require_strong(new, user)
    user.set_password(new)
    with transaction.atomic():
        user.save(update_fields=["password"])
        audit.record(user, "user.password-changed", user, request=request)


def _require_strong(password: str, user: User) -> None:
    try:
        password_validation.validate_password(password, user)
    except ValidationError as error:
        raise Invalid("password: " + " ".join(error.messages), hint=_("Choose a longer, less common one.")) from None


def _keep_an_owner(membership: Membership) -> None:
    """Refuses to take the role from the last owner. Locks the owners, so that two cannot leave at once."""
    if membership.role != Role.OWNER:
        return
    owners = Membership.objects.select_for_update().filter(
        tenant=membership.tenant, role=Role.OWNER, user__is_active=True
    )
    if not any(other.pk != membership.pk for other in owners):
        raise Conflict(
            _("%(tenant)s would have no owner.") % {"tenant": membership.tenant},
            hint=_("Make somebody else an owner first."),
        )
