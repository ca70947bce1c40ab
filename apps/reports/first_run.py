"""The guide of an empty installation: three steps that tick themselves, in the order in which they can be done.

A local destination lies on a node, so the node comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.urls import reverse
from django.utils.translation import gettext as _

from apps.catalog.models import RestorePoint
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.models import Membership, Role, Tenant, User
from apps.inventory.models import Destination, Node, Workload

FIRST_TENANT = ("My organisation", "my-organisation")


@dataclass(frozen=True)
class Step:
    key: str
    title: str
    text: str
    url: str
    action: str
    done: bool
    ready: bool  # the steps before it are done
    result: str = ""


def steps(user: User) -> list[Step]:
    """Empty once the first restore point exists."""
    if access.visible(user, RestorePoint).exists():
        return []
    node = access.visible(user, Node).exclude(enrolled_at=None).first()
    destination = access.visible(user, Destination).first()
    workload = access.visible(user, Workload).first()
    return [
        Step(
            key="node",
            title=_("Enrol a node"),
            text=_("The agent that reads your data and writes the backups. One command on the machine, no open port."),
            url=reverse("admin:enrol"),
            action=_("Enrol a node"),
            done=node is not None,
            ready=True,
            result=str(node or ""),
        ),
        Step(
            key="destination",
            title=_("Add a destination"),
            text=_(
                "Where backups are kept, encrypted: a folder on another disk or a file server, "
                "SFTP, or an object store."
            ),
            url=reverse("admin:inventory_destination_add"),
            action=_("Add a destination"),
            done=destination is not None,
            ready=node is not None,
            result=str(destination or ""),
        ),
        Step(
            key="protect",
            title=_("Protect something"),
            text=_("Choose folders or a disk image; the first backup starts at once."),
            url=reverse("admin:protect"),
            action=_("Protect something"),
            done=workload is not None,
            ready=node is not None and destination is not None,
            result=str(workload or ""),
        ),
    ]


def home(user: User) -> Tenant | None:
    """The tenant that a new thing of this user belongs to; a superuser of an empty installation gets a first one."""
    mine = Tenant.objects.filter(is_active=True, memberships__user=user).first()
    found = mine or access.tenants(user, Right.CONFIGURE).first()
    if found or not user.is_superuser or Tenant.objects.exists():
        return found
    name, slug = FIRST_TENANT
    tenant, made = Tenant.objects.get_or_create(slug=slug, defaults={"name": name})
    if made:
        Membership.objects.create(user=user, tenant=tenant, role=Role.OWNER)
        audit.record(user, "tenant.added", tenant)
    return tenant
