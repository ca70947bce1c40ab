"""Serializers of the REST API: refuse what they do not know, and take only ids that the user may see.

They hold shapes, no rules: who may do what is ``iam.access``'s, what is valid the domain modules'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django.db.models import Model, QuerySet
from django.utils.translation import gettext_lazy as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.renderers import JSONRenderer

from apps.iam import access

DEPTH_MOST = 8  # of free-form JSON


class ScopedField(serializers.PrimaryKeyRelatedField):
    """An object by its id. One that the user may not see is refused in the words of one that does not exist."""

    default_error_messages = {"does_not_exist": _("There is no such object: {pk_value}.")}

    def __init__(self, **kwargs: Any) -> None:
        if not kwargs.get("read_only"):
            # Without it a malformed UUID is Django's ValidationError, which DRF does not catch.
            kwargs.setdefault("pk_field", serializers.UUIDField())
        super().__init__(**kwargs)

    def get_queryset(self) -> QuerySet[Any] | None:
        queryset = super().get_queryset()
        request = self.context.get("request")
        if queryset is None or request is None:
            return queryset
        return access.visible(request.user, queryset)


def check_plain(value: Any, depth: int = 0) -> None:
    """JSON that every database can keep: no NUL, no lone surrogates, no bottomless nesting."""
    if depth > DEPTH_MOST:
        raise serializers.ValidationError(_("It is nested too deeply."))
    if isinstance(value, str):
        if "\x00" in value:
            raise serializers.ValidationError(_("It holds a NUL character."))
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise serializers.ValidationError(_("It holds a character that is not Unicode."))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_plain(key, depth + 1)
            check_plain(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_plain(item, depth + 1)


@extend_schema_field(OpenApiTypes.OBJECT)
class PlainObjectField(serializers.JSONField):
    """A JSON object that a domain module looks into."""

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise serializers.ValidationError(_("An object is expected here."))
        check_plain(data)
        value: dict[str, Any] = super().to_internal_value(data)
        return value


class _Strict:
    """Refuses names that are no fields, and read-only ones with another value than the object has.

    A read-only field that repeats what GET answered passes, so that a changed answer can be sent back.
    """

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            self._refuse_strange(data)
        return super().to_internal_value(data)  # type: ignore[misc]

    def _refuse_strange(self, data: Mapping[str, Any]) -> None:
        fields: Mapping[str, serializers.Field] = self.fields  # type: ignore[attr-defined]
        errors: dict[str, list[Any]] = {
            str(name)[:80]: [_("There is no such field.")] for name in data if name not in fields
        }
        fixed = [name for name in data if name in fields and fields[name].read_only]
        now = self._as_answered() if fixed else {}
        for name in fixed:
            if name not in now or now[name] != data[name]:
                errors[name] = [_("This field cannot be set.")]
        if errors:
            raise serializers.ValidationError(errors)

    def _as_answered(self) -> Mapping[str, Any]:
        instance = getattr(self, "instance", None)
        if instance is None or getattr(self, "parent", None) is not None:
            return {}
        rendered = JSONRenderer().render(self.to_representation(instance))  # type: ignore[attr-defined]
        answered: Mapping[str, Any] = json.loads(rendered)
        return answered


class StrictSerializer(_Strict, serializers.Serializer):
    """The body of an action."""


class NoBody(StrictSerializer):
    """An action that takes nothing; the body is empty or ``{}``."""


class ScopedSerializer(_Strict, serializers.ModelSerializer):
    """A model's rows. References reach what the user may see, and only within the object's own tenant."""

    serializer_related_field = ScopedField

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        tenant = attrs.get("tenant") or getattr(self.instance, "tenant", None)
        for name, value in attrs.items():
            for one in value if isinstance(value, list) else [value]:
                other = getattr(one, "tenant_id", None) if isinstance(one, Model) else None
                if tenant is not None and other is not None and other != tenant.pk:
                    raise serializers.ValidationError({name: _("It belongs to another tenant.")})
        return attrs
