"""Where a machine is restored to: its own platform or another of the tenant, under which name, replacing what.

"In place" puts the machine back as it was: its name, its identity, over what is there. Everything else makes another
one beside it. Replacing is replacing, whatever it is called, and takes that right.
"""

from __future__ import annotations

from django.utils.translation import gettext as _

from apps.catalog.models import PointCopy, RestorePoint
from apps.errors import Conflict, Invalid
from apps.iam import access
from apps.iam.access import Right
from apps.iam.models import User
from apps.inventory import sources
from apps.inventory.models import Node, Platform
from node_agent.protocol import MachineTarget, RestoreTarget

FORMATS = ("", "raw", "qcow2")
LONGEST = 200


def clean(user: User, point: RestorePoint, target: RestoreTarget) -> tuple[RestoreTarget, Platform]:
    """The order in full, and the platform that it goes to. Raises Invalid, NotFound, Denied."""
    own = point.workload.platform
    told = target.machine or MachineTarget()
    if target.format not in FORMATS:
        raise Invalid(_("The format must be raw or qcow2, or empty to keep it."))
    if target.overwrite == "changed":
        raise Invalid(_("A machine is replaced as a whole, or not at all."), hint=_("Choose “never” or “always”."))
    platform = own
    if told.platform is not None and told.platform != own.pk:
        platform = access.fetch(user, Platform.objects.filter(tenant=point.tenant_id), told.platform)
        access.require(user, Right.RESTORE_ELSEWHERE, platform)
    if platform.kind != own.kind:
        raise Invalid(
            _("“%(name)s” is a platform of another kind.") % {"name": platform}, hint=_("Choose one of the same kind.")
        )
    if target.in_place:
        return _in_place(point, target, own), own
    machine = told.model_copy(
        update={
            "platform": platform.pk,
            "name": _clean_name(told.name or default_name(point)),
            "host": _clean_host(platform, told.host),
            "storage": _clean_storage(told.storage),
            "networks": {_clean_name(one): _clean_name(other) for one, other in told.networks.items()},
        }
    )
    return target.model_copy(update={"path": machine.name, "machine": machine}), platform


def _in_place(point: RestorePoint, target: RestoreTarget, own: Platform) -> RestoreTarget:
    facts = point.workload.facts
    told = target.machine or MachineTarget()
    machine = MachineTarget(
        platform=own.pk,
        name=facts.get("name", ""),
        host=facts.get("host", "") if facts.get("host") in own.addresses else "",
        new_identity=False,
        start=told.start,
    )
    return target.model_copy(update={"path": machine.name, "machine": machine, "overwrite": "always", "format": ""})


def right(target: RestoreTarget) -> Right:
    replaces = target.in_place or target.overwrite == "always"
    return Right.RESTORE_IN_PLACE if replaces else Right.RESTORE_ELSEWHERE


def node_of(platform: Platform, copy: PointCopy) -> Node:
    """The platform's node, if it can do it. Conflict with the reason."""
    node = platform.node
    names = {"node": node.name, "destination": copy.repository.destination.name}
    if not copy.repository.destination.nodes.filter(pk=node.pk).exists():
        raise Conflict(
            _("The node %(node)s does not reach the destination “%(destination)s”.") % names,
            hint=_("Add the node to the destination."),
            code="unreachable-destination",
        )
    if platform.kind not in node.drivers and node.last_seen_at is not None:
        raise Conflict(
            _("The node %(node)s cannot restore this kind of point.") % names, hint=_("Choose another platform.")
        )
    return node


def default_name(point: RestorePoint) -> str:
    name = point.workload.facts.get("name") or point.workload.name
    return f"{name[:150]}-{point.taken_at:%Y%m%d-%H%M}"


def _clean_name(text: str) -> str:
    name = text.strip()
    if not name or len(name) > LONGEST or "/" in name or any(ord(sign) < 32 or ord(sign) == 127 for sign in name):
        raise Invalid(_("“%(name)s” cannot be the name of a machine or a network.") % {"name": name[:100]})
    return name


def _clean_host(platform: Platform, host: str) -> str:
    if host and host not in platform.addresses:
        raise Invalid(
            _("“%(host)s” is no host of “%(platform)s”.") % {"host": host[:100], "platform": platform},
            hint=_("It has: %(hosts)s") % {"hosts": ", ".join(platform.addresses)},
        )
    return host


def _clean_storage(text: str) -> str:
    storage = text.strip()
    if storage.startswith("/"):
        return sources.clean_path(storage, "storage")
    if any(ord(sign) < 33 or ord(sign) == 127 for sign in storage) or "/" in storage or len(storage) > LONGEST:
        raise Invalid(
            _("“%(name)s” is neither a folder nor a pool.") % {"name": storage[:100]},
            hint=_("A folder begins with “/”; a pool's name has no spaces."),
        )
    return storage
