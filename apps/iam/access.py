"""Who may see and do what. The only place that decides: admin, API, WebSocket and downloads all ask here.

The rule is membership of a tenant with a role; guardian's object grants are the exception for single objects.
Models lie above this module, so they declare what it needs to know:

* ``tenant_path``   lookup to the tenant they belong to; ``""`` = the system's own, for superusers only
* ``grant_path``    lookup to the object whose grants count for them (``"pk"`` = their own); none: no grants
* ``owner_path``    lookup to the one user who sees them, such as an API token
* ``change_needs``  right that changing or deleting them takes instead of CONFIGURE and DELETE
* ``shared_without_tenant``  rows without a tenant serve everybody: every member of any tenant sees them

What one may not see does not exist (:class:`~apps.errors.NotFound`); what one sees but may not do is
:class:`~apps.errors.Denied`. Inactive users see nothing, members of an inactive tenant nothing of it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeVar
from uuid import UUID

from django.contrib.auth.models import AnonymousUser
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db.models import Model, Q, QuerySet
from guardian.models import GroupObjectPermission, UserObjectPermission

from apps.errors import Denied, NotFound
from apps.iam.models import Role, Tenant, User

Row = TypeVar("Row", bound=Model)
Person = User | AnonymousUser


class Right(StrEnum):
    VIEW = "view"
    OPERATE = "operate"  # start, cancel and repeat backups, verify, hold points
    CONFIGURE = "configure"  # add and change nodes, workloads, policies, destinations
    RESTORE_ELSEWHERE = "restore-elsewhere"
    RESTORE_IN_PLACE = "restore-in-place"
    DOWNLOAD = "download"
    DELETE = "delete"
    MEMBERS = "members"
    READ_KIT = "read-kit"
    COMMANDS = "commands"  # say what a backup runs on hypervisors and nodes


_VIEWER = frozenset({Right.VIEW})
_OPERATOR = _VIEWER | {Right.OPERATE, Right.RESTORE_ELSEWHERE, Right.DOWNLOAD}
_ADMIN = _OPERATOR | {Right.CONFIGURE, Right.RESTORE_IN_PLACE, Right.DELETE}
RIGHTS: dict[str, frozenset[Right]] = {
    Role.VIEWER: _VIEWER,
    Role.OPERATOR: _OPERATOR,
    Role.ADMIN: _ADMIN,
    Role.OWNER: frozenset(Right),
}

# Which object grant ("<word>_<model>") gives which rights. Any grant makes the object visible.
GRANTS: dict[str, frozenset[Right]] = {
    "view": _VIEWER,
    "change": _VIEWER | {Right.CONFIGURE},
    "delete": _VIEWER | {Right.DELETE},
    "operate": _OPERATOR,
}


def tenants(user: Person, right: Right = Right.VIEW) -> QuerySet[Tenant]:
    """The tenants in which ``user`` has ``right`` by membership (superusers: all of them)."""
    if not user.is_active:
        return Tenant.objects.none()
    if user.is_superuser:
        return Tenant.objects.all()
    roles = [role for role, rights in RIGHTS.items() if right in rights]
    return Tenant.objects.filter(is_active=True, memberships__user=user, memberships__role__in=roles)


def visible(user: Person, of: type[Row] | QuerySet[Row], right: Right = Right.VIEW) -> QuerySet[Row]:
    """The rows of a model, or of a queryset of it, for which ``user`` has ``right``."""
    rows: QuerySet[Row] = of if isinstance(of, QuerySet) else of._default_manager.all()
    model = rows.model
    if not user.is_active:
        return rows.none()
    if user.is_superuser:
        return rows
    path = tenant_path(model)
    owner = getattr(model, "owner_path", "")
    if owner:
        return rows.filter(**{owner: user})
    if not path:
        return rows.none()
    return rows.filter(_by_tenant(user, model, path, right) | _by_grant(user, model, path, right))


def can(user: Person, right: Right, obj: Model) -> bool:
    """Whether ``user`` has ``right`` on ``obj``: as it is stored, and as it would be if it were saved now."""
    if not user.is_active:
        return False
    if user.is_superuser:
        return True
    if obj._state.adding:
        return _can_add(user, right, obj)
    stored = visible(user, type(obj), right).filter(pk=obj.pk)
    if tenant_path(type(obj)) != "tenant":
        return stored.exists()
    row = stored.values_list("tenant_id").first()
    if row is None:
        return False
    new_tenant = obj.__dict__.get("tenant_id", row[0])
    return new_tenant == row[0] or tenants(user, _effective(type(obj), right)).filter(pk=new_tenant).exists()


def require(user: Person, right: Right, obj: Model) -> None:
    """Raises NotFound when ``user`` may not see ``obj``, Denied when he sees it but lacks ``right``."""
    if can(user, right, obj):
        return
    if right is not Right.VIEW and can(user, Right.VIEW, obj):
        raise Denied
    raise NotFound


def fetch(user: Person, of: type[Row] | QuerySet[Row], pk: object, right: Right = Right.VIEW) -> Row:
    """The object with key ``pk``; NotFound for what is foreign, absent or no key at all; Denied as in require."""
    try:
        found = visible(user, of).filter(pk=pk).first()
    except (ValueError, TypeError, ValidationError, OverflowError):
        found = None
    if found is None:
        raise NotFound
    if right is not Right.VIEW and not can(user, right, found):
        raise Denied
    return found


def change_right(model: type[Model]) -> Right:
    """What changing rows of ``model`` takes; for a tenant's own record it is MEMBERS."""
    return Right(getattr(model, "change_needs", Right.CONFIGURE))


def tenant_path(model: type[Model]) -> str:
    """The declared way to the tenant; models of other packages (groups, sessions) are the system's own."""
    return str(getattr(model, "tenant_path", ""))


def tenant_of(obj: Model) -> Tenant | None:
    """The one tenant of an object; None for the system's own and for what may belong to several."""
    path = tenant_path(type(obj))
    if isinstance(obj, Tenant):
        return obj
    if not path or _is_many(type(obj), path):
        return None
    value: Any = obj
    for step in path.split("__"):
        value = getattr(value, step, None)
    return value if isinstance(value, Tenant) else None


def is_single(user: Person, obj: Model) -> bool:
    """Whether all that happened to ``obj`` happened within one tenant, or to ``user`` himself: then who sees it may see
    its whole history. A person may be a member of several tenants, a shared node serves all."""
    owner = getattr(type(obj), "owner_path", "")
    return tenant_of(obj) is not None or obj == user or bool(owner and getattr(obj, owner, None) == user)


def _by_tenant(user: User, model: type[Model], path: str, right: Right) -> Q:
    mine = tenants(user, _effective(model, right))
    if _is_many(model, path):
        # Belongs to several tenants (a user): seen through each, but changed through none of them, since that
        # would reach into the others. Through a subquery, because the join would repeat rows.
        if right is not Right.VIEW:
            return Q(pk__in=[])
        return Q(pk__in=model._base_manager.filter(**{f"{path}__in": mine}).values("pk"))
    found = Q(**{f"{path}__in": mine})
    if right is Right.VIEW and getattr(model, "shared_without_tenant", False) and mine.exists():
        found |= Q(**{f"{path}__isnull": True})
    return found


def _by_grant(user: User, model: type[Model], path: str, right: Right) -> Q:
    way = getattr(model, "grant_path", "")
    if not way:
        return Q(pk__in=[])
    granted = _granted_keys(user, model if way == "pk" else _target(model, way), right)
    if not granted:
        return Q(pk__in=[])
    lives = Q(**{f"{path}__is_active": True}) | Q(**{f"{path}__isnull": True})
    return Q(**{f"{way}__in": granted}) & lives


def _granted_keys(user: User, model: type[Model], right: Right) -> list[UUID]:
    """Keys of the objects with a grant. As a list: guardian keeps keys as text, which the database would have to
    cast row by row; grants are exceptions and few."""
    words = [word for word, rights in GRANTS.items() if right in rights]
    wanted = {
        "content_type": ContentType.objects.get_for_model(model),
        "permission__codename__in": [f"{word}_{model._meta.model_name}" for word in words],
    }
    own = UserObjectPermission.objects.filter(user=user, **wanted).values_list("object_pk")
    group = GroupObjectPermission.objects.filter(group__user=user, **wanted).values_list("object_pk")
    return [UUID(key) for (key,) in own.union(group)]


def _can_add(user: User, right: Right, obj: Model) -> bool:
    owner = getattr(type(obj), "owner_path", "")
    if owner and getattr(obj, owner, None) != user:
        return False
    tenant = tenant_of(obj)
    if tenant is None:
        return bool(owner) and _is_many(type(obj), tenant_path(type(obj)))
    return tenants(user, _effective(type(obj), right)).filter(pk=tenant.pk).exists()


def _effective(model: type[Model], right: Right) -> Right:
    # can(CONFIGURE, tenant) asks for the right *in* the tenant, so a tenant's own rule is left to change_right().
    if model is not Tenant and right in (Right.CONFIGURE, Right.DELETE) and hasattr(model, "change_needs"):
        return change_right(model)
    return right


def _target(model: type[Model], path: str) -> type[Model]:
    for step in path.split("__"):
        model = model._meta.get_field(step).related_model  # type: ignore[assignment]
    return model


def _is_many(model: type[Model], path: str) -> bool:
    """Whether the way crosses a relation with several ends."""
    for step in path.split("__"):
        try:
            field = model._meta.get_field(step)
        except FieldDoesNotExist:
            raise TypeError(f"{model.__name__}.tenant_path names “{step}”, which is no field") from None
        if field.one_to_many or field.many_to_many:
            return True
        if field.related_model is None:
            return False
        model = field.related_model
    return False
