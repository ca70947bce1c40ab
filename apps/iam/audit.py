"""The audit trail: who did what to which object. Written here only, never changed.

Each event is linked to the one before it by a hash (:func:`link`, called by a chore in batches, because a chain
inside each transaction would make all writers wait for one another); :func:`first_broken` finds tampering.
"""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db import transaction
from django.db.models import BinaryField, Model
from django.utils import timezone

from apps.iam.access import tenant_of
from apps.iam.models import AuditEvent, Secret, Tenant, User

_HIDDEN = ("password", "secret", "token", "sealed", "_hash")
_SETTLED_S = 60  # events younger than this may still be joined by earlier ones of open transactions


def record(
    actor: User | str,
    verb: str,
    obj: Model | None = None,
    *,
    tenant: Tenant | None = None,
    detail: dict[str, Any] | None = None,
    request: Any = None,
) -> AuditEvent:
    """Writes one event within the caller's transaction. ``actor`` is a user, or words such as "schedule";
    ``tenant`` is the object's when not given; ``request`` (Django's or DRF's) gives the address."""
    person = actor if isinstance(actor, User) else None
    return AuditEvent.objects.create(
        tenant=tenant or (tenant_of(obj) if obj is not None else None),
        actor=person,
        actor_name=(person.get_username() if person else str(actor))[:200],
        verb=verb,
        object_type=obj._meta.label_lower if obj is not None else "",
        object_id=str(obj.pk) if obj is not None else "",
        object_name=_clean(str(obj))[:300] if obj is not None else "",
        detail=_plain(detail or {}),
        remote_addr=str(request.META.get("REMOTE_ADDR", ""))[:64] if request is not None else "",
    )


def snapshot(obj: Model) -> dict[str, Any]:
    """The stored fields of an object as plain values, without anything secret; many-to-many as lists of names."""
    found: dict[str, Any] = {}
    for field in obj._meta.concrete_fields:
        if isinstance(field, BinaryField) or field.related_model is Secret or is_hidden(field.name):
            continue
        found[field.name] = field.value_from_object(obj)
    if not obj._state.adding:
        for many in obj._meta.many_to_many:
            found[many.name] = sorted(str(other) for other in many.value_from_object(obj))
    return dict(_plain(found))


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    """``{"field": [before, after]}`` of what differs between two snapshots."""
    names = [*before, *(name for name in after if name not in before)]
    return {name: [before.get(name), after.get(name)] for name in names if before.get(name) != after.get(name)}


def link(limit: int = 2000) -> int:
    """Chains the settled events that are not chained yet; returns how many."""
    before = timezone.now() - timedelta(seconds=_SETTLED_S)
    with transaction.atomic():
        last = AuditEvent.objects.select_for_update().exclude(chain="").order_by("-id").first()
        head = last.chain if last else ""
        events = list(AuditEvent.objects.filter(chain="", at__lt=before).order_by("id")[:limit])
        for event in events:
            event.chain = head = _chained(head, event)
        AuditEvent.objects.bulk_update(events, ["chain"], batch_size=500)
    return len(events)


def first_broken() -> AuditEvent | None:
    """The first event that does not fit the chain: it, or one before it, was changed or removed."""
    head = ""
    for event in AuditEvent.objects.exclude(chain="").order_by("id").iterator(chunk_size=2000):
        head = _chained(head, event)
        if head != event.chain:
            return event
    return None


def _chained(head: str, event: AuditEvent) -> str:
    # Not the foreign keys: deleting a user or a tenant empties them, which is no tampering.
    facts = [event.at.isoformat(), event.actor_name, event.verb, event.object_type, event.object_id, event.object_name]
    text = json.dumps([head, *facts, event.detail, event.remote_addr], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_hidden(name: str) -> bool:
    """Whether a field of this name holds something that nobody is shown, such as a hash."""
    return any(word in name.lower() for word in _HIDDEN)


def _plain(value: Any) -> Any:
    """What JSON and PostgreSQL can hold, with values under secret-sounding names left out."""
    if isinstance(value, dict):
        return {str(key): "…" if is_hidden(str(key)) else _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, str):
        return _clean(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    try:
        return json.loads(json.dumps(value, cls=DjangoJSONEncoder))
    except TypeError:
        return _clean(str(value))


def _clean(text: str) -> str:
    """Without NUL and lone surrogates, which PostgreSQL refuses (names of files may hold both)."""
    return text.replace("\x00", "␀").encode("utf-8", "backslashreplace").decode()
