"""Notices that a person's rights changed, so that open streams are checked again at once and not in a minute."""

from __future__ import annotations

from typing import Any

from django.db.models.signals import m2m_changed, post_delete, post_save
from guardian.models import GroupObjectPermission, UserObjectPermission

from apps.iam.models import Membership, Tenant, User
from apps.jobs import publish


def connect() -> None:
    for signal in (post_save, post_delete):
        signal.connect(_of_user, sender=Membership, dispatch_uid=f"rights-membership-{id(signal)}")
        signal.connect(_of_user, sender=UserObjectPermission, dispatch_uid=f"rights-grant-{id(signal)}")
        signal.connect(_of_group, sender=GroupObjectPermission, dispatch_uid=f"rights-group-grant-{id(signal)}")
    post_save.connect(_user_changed, sender=User, dispatch_uid="rights-user")
    post_save.connect(_tenant_changed, sender=Tenant, dispatch_uid="rights-tenant")
    m2m_changed.connect(_groups_changed, sender=User.groups.through, dispatch_uid="rights-groups")


def _of_user(instance: Any, **_kwargs: Any) -> None:
    publish.rights_changed(instance.user_id)


def _of_group(instance: Any, **_kwargs: Any) -> None:
    for user in User.objects.filter(groups=instance.group_id).values_list("pk", flat=True):
        publish.rights_changed(user)


def _user_changed(instance: User, created: bool, update_fields: Any, **_kwargs: Any) -> None:
    if not created and set(update_fields or ()) != {"last_login"}:
        publish.rights_changed(instance.pk)


def _tenant_changed(instance: Tenant, created: bool, **_kwargs: Any) -> None:
    if not created:
        for user in instance.memberships.values_list("user_id", flat=True):
            publish.rights_changed(user)


def _groups_changed(instance: Any, action: str, **_kwargs: Any) -> None:
    if action.startswith("post_") and isinstance(instance, User):
        publish.rights_changed(instance.pk)
