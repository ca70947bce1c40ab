"""REST API of nodes, and of the codes by which they join."""

from __future__ import annotations

from typing import Any, ClassVar

from django.conf import settings
from django.utils import timezone
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from apps.iam.api_fields import ScopedField, ScopedSerializer, StrictSerializer
from apps.iam.api_scope import ReadScopedViewSet, UpdateScoped
from apps.iam.models import Tenant
from apps.inventory import enrolment, presence
from apps.inventory.models import EnrolmentCode, Node

SLOTS_MOST = 64


class NodeSerializer(ScopedSerializer):
    """Of a shared node others than superusers learn what they need to choose it, not how its host is made."""

    PUBLIC: ClassVar[frozenset[str]] = frozenset(
        {"id", "tenant", "name", "state", "shared", "kinds", "drivers", "roots", "paused", "last_seen_at"}
    )

    state = serializers.SerializerMethodField()
    shared = serializers.SerializerMethodField(help_text="Serves every tenant; only superusers configure it.")
    labels = serializers.ListField(child=serializers.CharField(max_length=100), max_length=50, required=False)
    slots = serializers.IntegerField(min_value=1, max_value=SLOTS_MOST, required=False)
    kinds = serializers.ListField(child=serializers.CharField(), read_only=True)
    drivers = serializers.ListField(child=serializers.CharField(), read_only=True)
    roots = serializers.DictField(
        child=serializers.ListField(child=serializers.CharField()),
        read_only=True,
        help_text="What the node's own configuration allows: read, write, repositories.",
    )

    class Meta:
        model = Node
        fields = (
            "id",
            "tenant",
            "name",
            "state",
            "shared",
            "version",
            "hostname",
            "system",
            "kinds",
            "drivers",
            "labels",
            "roots",
            "slots",
            "staging_bytes",
            "last_seen_at",
            "clock_offset_s",
            "paused",
            "draining",
            "quarantined_at",
            "quarantine_reason",
            "enrolled_at",
            "created_at",
        )
        read_only_fields = tuple(name for name in fields if name not in {"name", "labels", "slots", "paused"})

    @extend_schema_field(serializers.ChoiceField(presence.NodeState.choices))
    def get_state(self, node: Node) -> str:
        return presence.state(node, timezone.now()).value

    def get_shared(self, node: Node) -> bool:
        return node.tenant_id is None

    def to_representation(self, instance: Node) -> dict[str, Any]:
        shown: dict[str, Any] = super().to_representation(instance)
        request = self.context.get("request")
        if instance.tenant_id is None and not (request and request.user.is_superuser):
            return {name: value if name in self.PUBLIC else None for name, value in shown.items()}
        return shown


class NodeViewSet(UpdateScoped, ReadScopedViewSet):
    """Nodes: the machines that move data. They come by enrolment; here they are named, labelled and paused."""

    queryset = Node.objects.all()
    serializer_class = NodeSerializer
    filterset_fields = ("tenant", "paused", "name")
    search_fields = ("name",)
    ordering_fields = ("name", "last_seen_at", "created_at")
    ordering = ("name", "pk")
    http_method_names: ClassVar[list[str]] = ["get", "patch", "post", "head", "options"]
    fixed: ClassVar[tuple[str, ...]] = ()


class EnrolmentCodeSerializer(ScopedSerializer):
    class Meta:
        model = EnrolmentCode
        fields = ("id", "tenant", "node_name", "node", "created_at", "expires_at", "used_at")
        read_only_fields = ("node", "created_at", "expires_at", "used_at")


class NewEnrolmentCodeSerializer(EnrolmentCodeSerializer):
    code = serializers.CharField(read_only=True, help_text="Shown this once; good for 15 minutes and one node.")
    command = serializers.CharField(read_only=True, help_text="What to run on the new node.")

    class Meta(EnrolmentCodeSerializer.Meta):
        fields = (*EnrolmentCodeSerializer.Meta.fields, "code", "command")


class EnrolmentCodeRequest(StrictSerializer):
    tenant = ScopedField(
        queryset=Tenant.objects.all(), allow_null=True, help_text="null: a node for every tenant (superusers only)."
    )
    node_name = serializers.CharField(max_length=100, required=False, default="", allow_blank=True)


class EnrolmentCodeViewSet(ReadScopedViewSet):
    """One-time codes by which nodes join. Creating one answers the code and the command, once."""

    queryset = EnrolmentCode.objects.order_by("-created_at", "pk")
    serializer_class = EnrolmentCodeSerializer
    filterset_fields = ("tenant",)
    ordering_fields = ("created_at", "expires_at")

    @extend_schema(request=EnrolmentCodeRequest, responses={201: NewEnrolmentCodeSerializer})
    def create(self, request: Request) -> Response:
        values = self.body(EnrolmentCodeRequest)
        row, code = enrolment.issue_code(request.user, values["tenant"], values["node_name"])
        row.code = code
        row.command = f"python -m node_agent enroll --server {settings.BRS_PUBLIC_URL} --code {code}"
        shown = NewEnrolmentCodeSerializer(row, context=self.get_serializer_context()).data
        return Response(shown, status.HTTP_201_CREATED, headers={"Cache-Control": "no-store"})
