# ruff: noqa: ARG002  the signatures are Django REST framework's
"""REST API of destinations and repositories: where backups are kept."""

from __future__ import annotations

from typing import Any, ClassVar

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.iam.api_fields import NoBody, PlainObjectField, ScopedSerializer, StrictSerializer
from apps.iam.api_scope import ReadScopedViewSet, WriteScopedViewSet
from apps.inventory import repositories, stores
from apps.inventory.models import Destination, DestinationKind, Repository
from apps.jobs import requests
from apps.jobs.api_job import long_work, start

# --- destinations -------------------------------------------------------------------


class DestinationSerializer(ScopedSerializer):
    path = serializers.CharField(
        max_length=1000, help_text="A folder on the nodes, or the address as restic writes it, without the kind."
    )
    options = PlainObjectField(required=False, help_text="Settings of the store that are no secret.")
    secrets = PlainObjectField(
        required=False,
        write_only=True,
        help_text="Credentials: sealed, never answered. Those named are replaced; an empty text takes one away.",
    )

    class Meta:
        model = Destination
        fields = (
            "id",
            "tenant",
            "kind",
            "name",
            "path",
            "options",
            "secrets",
            "secret_names",
            "nodes",
            "verify_every_days",
            "verify_cycle_days",
            "prune_every_days",
            "prune_max_minutes",
            "maintenance_from",
            "maintenance_until",
            "total_bytes",
            "free_bytes",
            "problem",
            "tested_at",
            "created_at",
        )
        read_only_fields = ("secret_names", "total_bytes", "free_bytes", "problem", "tested_at", "created_at")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs = super().validate(attrs)
        kind = attrs.get("kind") or getattr(self.instance, "kind", DestinationKind.LOCAL)
        if "path" in attrs:
            attrs["path"] = stores.clean_address(kind, attrs["path"])
        if "options" in attrs or self.instance is None:
            attrs["options"] = stores.clean_options(kind, attrs.get("options", {}))
        if "secrets" in attrs:
            attrs["secrets"] = stores.clean_secrets(kind, attrs["secrets"])
        if self.instance is not None:
            stores.refuse_move(self.instance, attrs.get("path", self.instance.path))
            stores.refuse_unlock(self.instance, attrs.get("options", self.instance.options))
        return attrs

    def create(self, validated_data: dict[str, Any]) -> Destination:
        secrets = validated_data.pop("secrets", {})
        made: Destination = super().create(validated_data)
        return self._sealed(made, secrets)

    def update(self, instance: Destination, validated_data: dict[str, Any]) -> Destination:
        secrets = validated_data.pop("secrets", {})
        changed: Destination = super().update(instance, validated_data)
        return self._sealed(changed, secrets)

    @staticmethod
    def _sealed(destination: Destination, secrets: dict[str, str]) -> Destination:
        if secrets:
            stores.set_secrets(destination, secrets)
            destination.save(update_fields=["sealed", "secret_names"])
        return destination


class DestinationViewSet(WriteScopedViewSet):
    """Destinations: where backups are kept."""

    queryset = Destination.objects.prefetch_related("nodes")
    serializer_class = DestinationSerializer
    filterset_fields = ("tenant", "kind", "name")
    search_fields = ("name", "path")
    ordering_fields = ("name", "total_bytes", "free_bytes", "tested_at", "created_at")
    ordering = ("name", "pk")
    fixed: ClassVar[tuple[str, ...]] = ("tenant", "kind")

    @long_work(NoBody)
    @action(detail=True, methods=["post"])
    def test(self, request: Request, pk: str) -> Response:
        """Tests that the destination can be reached and written, as a job on one of its nodes."""
        destination = self.get_object()
        self.body(NoBody)
        return start(request, lambda: requests.test_destination(request.user, destination))


# --- repositories ---------------------------------------------------------------------------------


class RepositorySerializer(ScopedSerializer):
    url = serializers.CharField(read_only=True, help_text="Its address, as restic writes it.")

    class Meta:
        model = Repository
        fields = (
            "id",
            "tenant",
            "destination",
            "url",
            "repository_id",
            "state",
            "problem",
            "stored_bytes",
            "verified_at",
            "debt_bytes",
            "pruned_at",
            "unused_bytes",
            "kit_saved_at",
            "created_at",
        )
        read_only_fields = fields


class VerifySerializer(StrictSerializer):
    read_data = serializers.BooleanField(
        default=False, help_text="Read and decrypt every byte, not the structure only."
    )


class RepositoryViewSet(ReadScopedViewSet):
    """Repositories: what a tenant keeps at a destination, in restic's format. They are made by the first backup."""

    queryset = Repository.objects.select_related("tenant", "destination").order_by("created_at", "pk")
    serializer_class = RepositorySerializer
    filterset_fields = ("tenant", "destination", "state")
    ordering_fields = ("created_at", "stored_bytes", "verified_at")

    @long_work(VerifySerializer)
    @action(detail=True, methods=["post"])
    def verify(self, request: Request, pk: str) -> Response:
        """Checks the repository, as a job."""
        repository = self.get_object()
        values = self.body(VerifySerializer)
        return start(request, lambda: requests.verify(request.user, repository, read_data=values["read_data"]))

    @long_work(NoBody)
    @action(detail=True, methods=["post"])
    def prune(self, request: Request, pk: str) -> Response:
        """Gives back the space of removed points, as a job that has the repository for itself."""
        repository = self.get_object()
        self.body(NoBody)
        return start(request, lambda: requests.prune(request.user, repository))

    @extend_schema(request=NoBody, responses={(200, "text/plain"): OpenApiResponse(OpenApiTypes.STR)})
    @action(detail=True, methods=["post"])
    def kit(self, request: Request, pk: str) -> HttpResponse:
        """The recovery kit as text: address, password and commands that restore without BRS.

        Reading it takes the right for it, and is audited; hence POST.
        """
        repository = self.get_object()
        self.body(NoBody)
        text = repositories.kit(request.user, repository)
        headers = {
            "Cache-Control": "no-store",
            "Content-Disposition": f'attachment; filename="kit-{repository.pk}.txt"',
        }
        return HttpResponse(text, content_type="text/plain; charset=utf-8", headers=headers)
