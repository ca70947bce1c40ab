# ruff: noqa: ARG002  the signatures are Django REST framework's
"""REST API of platforms: the systems that hold what is protected, how they are reached, and what was found there."""

from __future__ import annotations

from typing import Any, ClassVar

from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.errors import Invalid
from apps.iam.api_fields import NoBody, PlainObjectField, ScopedSerializer, StrictSerializer
from apps.iam.api_scope import WriteScopedViewSet
from apps.inventory import platforms
from apps.inventory.models import MACHINES, Platform
from apps.jobs import requests
from apps.jobs.api_job import long_work, start

TOLD = ("addresses", "login", "options", "secrets")  # of platforms of machines only


class PlatformSerializer(ScopedSerializer):
    addresses = serializers.ListField(
        child=serializers.CharField(max_length=300),
        required=False,
        max_length=platforms.MOST_ADDRESSES,
        help_text="Of machines: the hosts (or monitors), each host or host:port.",
    )
    login = serializers.CharField(
        max_length=100,
        required=False,
        allow_blank=True,
        help_text="Of machines: who logs in; empty: the usual.",
    )
    options = PlainObjectField(required=False, help_text="Settings that are no secret.")
    secrets = PlainObjectField(
        required=False,
        write_only=True,
        help_text="Credentials: sealed, never answered. Those named are replaced; an empty text takes one away.",
    )
    host_keys = serializers.JSONField(read_only=True, help_text="By address: the key that it is believed by.")
    unconfirmed_keys = serializers.SerializerMethodField(
        help_text="By address: keys that the last test met and nobody has confirmed."
    )

    class Meta:
        model = Platform
        fields = (
            "id",
            "tenant",
            "kind",
            "name",
            "node",
            "addresses",
            "login",
            "options",
            "secrets",
            "secret_names",
            "host_keys",
            "unconfirmed_keys",
            "problem",
            "tested_at",
            "discover_every_hours",
            "max_jobs",
            "bandwidth_mib_s",
            "discovered_at",
            "discovery_problem",
            "created_at",
        )
        read_only_fields = ("secret_names", "problem", "tested_at", "discovered_at", "discovery_problem", "created_at")

    def get_unconfirmed_keys(self, platform: Platform) -> dict[str, str]:
        return platforms.unconfirmed(platform)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs = super().validate(attrs)
        kind = attrs.get("kind") or self.instance.kind
        if kind not in MACHINES:
            if any(attrs.get(name) for name in TOLD):
                raise Invalid(_("A platform of this kind is a place on its node and is told nothing."))
            return {name: value for name, value in attrs.items() if name not in TOLD}
        before = self.instance
        if "addresses" in attrs or before is None:
            attrs["addresses"] = platforms.clean_addresses(kind, attrs.get("addresses"))
        if "login" in attrs or before is None:
            attrs["login"] = platforms.clean_login(kind, attrs.get("login", ""))
        if "options" in attrs or before is None:
            attrs["options"] = platforms.clean_options(kind, attrs.get("options", {}))
        if "secrets" in attrs:
            attrs["secrets"] = platforms.clean_secrets(kind, attrs["secrets"])
        if before is not None:
            platforms.refuse_theft(before, attrs.get("addresses", before.addresses), attrs.get("secrets", {}))
        return attrs

    def create(self, validated_data: dict[str, Any]) -> Platform:
        secrets = validated_data.pop("secrets", {})
        made: Platform = super().create(validated_data)
        return self._sealed(made, secrets)

    def update(self, instance: Platform, validated_data: dict[str, Any]) -> Platform:
        secrets = validated_data.pop("secrets", {})
        changed: Platform = super().update(instance, validated_data)
        return self._sealed(changed, secrets)

    @staticmethod
    def _sealed(platform: Platform, secrets: dict[str, str]) -> Platform:
        if secrets:
            platforms.set_secrets(platform, secrets)
            platform.save(update_fields=["sealed", "secret_names"])
        return platform


class DiscoverSerializer(StrictSerializer):
    thorough = serializers.BooleanField(
        default=False,
        help_text="Ask running machines what they hold, too; libvirt then notes “tainted: custom-monitor” of them.",
    )


class KeysSerializer(StrictSerializer):
    keys = PlainObjectField(help_text="By address: the key as the test met it, to be sure that it is this one.")


class PlatformViewSet(WriteScopedViewSet):
    """Platforms: the systems that hold workloads. For files and disk images it is a place on one node; machines lie on
    hosts that the node logs in to, and are discovered."""

    queryset = Platform.objects.all()
    serializer_class = PlatformSerializer
    filterset_fields = ("tenant", "kind", "node", "name")
    search_fields = ("name",)
    ordering_fields = ("name", "kind", "created_at")
    ordering = ("name", "pk")
    fixed: ClassVar[tuple[str, ...]] = ("tenant", "kind")

    @long_work(NoBody)
    @action(detail=True, methods=["post"])
    def test(self, request: Request, pk: str) -> Response:
        """Tests the connection, as a job on the platform's node."""
        platform = self.get_object()
        self.body(NoBody)
        return start(request, lambda: requests.test_platform(request.user, platform))

    @long_work(DiscoverSerializer)
    @action(detail=True, methods=["post"])
    def discover(self, request: Request, pk: str) -> Response:
        """Looks for machines, as a job on the platform's node. They become workloads; what backups keep at them is
        shown at kept-snapshots/."""
        platform = self.get_object()
        thorough = self.body(DiscoverSerializer)["thorough"]
        return start(request, lambda: requests.discover(request.user, platform, thorough=thorough))

    @extend_schema(request=KeysSerializer, responses=PlatformSerializer)
    @action(detail=True, methods=["post"], url_path="confirm-keys")
    def confirm_keys(self, request: Request, pk: str) -> Response:
        """Believes hosts by the keys that the last test met. Nothing is logged in to before."""
        platform = self.get_object()
        keys = self.body(KeysSerializer)["keys"]
        if not all(isinstance(value, str) for value in keys.values()):
            raise Invalid(_("A key is a text."))
        platforms.confirm_keys(request.user, platform, keys)
        return Response(self.get_serializer(self.get_object()).data)
