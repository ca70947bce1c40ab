# ruff: noqa: ARG002  the signatures are Django REST framework's
"""REST API of people: tenants, memberships, users, API tokens, the audit trail."""

from __future__ import annotations

from typing import Any, ClassVar
from zoneinfo import available_timezones

from django.contrib.auth import update_session_auth_hash
from django.db.models import QuerySet
from django.utils.translation import gettext_lazy as _
from django_filters import rest_framework as filters
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.errors import Denied
from apps.iam import audit, members, tokens
from apps.iam.api_fields import NoBody, ScopedField, ScopedSerializer, StrictSerializer
from apps.iam.api_http import ApiFilters
from apps.iam.api_scope import CreateScoped, ReadScopedViewSet, UpdateScoped, one_write
from apps.iam.models import ApiToken, AuditEvent, Membership, Role, Tenant, User


class TokenScheme(OpenApiAuthenticationExtension):
    """Tells the schema what TokenAuthentication takes."""

    target_class = "apps.iam.tokens.TokenAuthentication"
    name = "token"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "An API token: brs_…"}


# --- tenants --------------------------------------------------------------------------------------


class TenantSerializer(ScopedSerializer):
    class Meta:
        model = Tenant
        fields = ("id", "name", "slug", "is_active", "created_at")


class TenantViewSet(CreateScoped, UpdateScoped, ReadScopedViewSet):
    """Tenants: whose things they are. Made by superusers, renamed by owners."""

    queryset = Tenant.objects.all()
    serializer_class = TenantSerializer
    filterset_fields = ("is_active", "slug")
    search_fields = ("name", "slug")
    ordering_fields = ("name", "created_at")
    ordering = ("name", "pk")
    fixed: ClassVar[tuple[str, ...]] = ("slug",)  # it is the name of the tenant's folder at every destination

    def perform_create(self, serializer: serializers.BaseSerializer[Any]) -> None:
        if not self.request.user.is_superuser:
            raise Denied(hint="Ask an administrator of the server for a new tenant.")
        with one_write():
            tenant = serializer.save()
            audit.record(self.request.user, "tenant.added", tenant, tenant=tenant, request=self.request)

    def perform_update(self, serializer: serializers.BaseSerializer[Any]) -> None:
        active = serializer.validated_data.get("is_active", serializer.instance.is_active)
        if active != serializer.instance.is_active and not self.request.user.is_superuser:
            raise Denied(hint="Ask an administrator of the server to switch a tenant on or off.")
        super().perform_update(serializer)


# --- memberships and users ------------------------------------------------------------------------


class MembershipSerializer(ScopedSerializer):
    username = serializers.CharField(source="user.username", read_only=True)

    class Meta:
        model = Membership
        fields = ("id", "tenant", "user", "username", "role", "created_at")
        validators = ()  # that one is a member already is said by iam.members, after the right was asked


class MembershipViewSet(CreateScoped, UpdateScoped, mixins.DestroyModelMixin, ReadScopedViewSet):
    """Who belongs to which tenant, as what. Owners manage the members of their tenants."""

    queryset = Membership.objects.select_related("user", "tenant").order_by("pk")
    serializer_class = MembershipSerializer
    lookup_value_regex = "[0-9]{1,18}"
    filterset_fields = ("tenant", "user", "role")
    search_fields = ("user__username",)
    ordering_fields = ("created_at", "role")
    ordering = ("pk",)
    http_method_names: ClassVar[list[str]] = ["get", "post", "patch", "delete", "head", "options"]
    fixed: ClassVar[tuple[str, ...]] = ("tenant", "user")

    def perform_create(self, serializer: serializers.BaseSerializer[Any]) -> None:
        values = serializer.validated_data
        role = values.get("role", Role.VIEWER)
        serializer.instance = members.add(
            self.request.user, values["tenant"], values["user"], role, request=self.request
        )

    def perform_update(self, serializer: serializers.BaseSerializer[Any]) -> None:
        self.refuse_fixed(serializer)
        role = serializer.validated_data.get("role", serializer.instance.role)
        serializer.instance = members.change(self.request.user, serializer.instance, role, request=self.request)

    def perform_destroy(self, instance: Membership) -> None:
        members.remove(self.request.user, instance, request=self.request)


class UserSerializer(ScopedSerializer):
    class Meta:
        model = User
        fields = (
            "id",
            "username",
            "first_name",
            "last_name",
            "email",
            "time_zone",
            "is_active",
            "is_superuser",
            "last_login",
            "date_joined",
        )
        read_only_fields = ("username", "is_superuser", "last_login", "date_joined")

    def validate_time_zone(self, name: str) -> str:
        if name not in available_timezones():
            raise serializers.ValidationError(_("There is no such time zone: use a name such as Europe/Berlin."))
        return name


class MeSerializer(UserSerializer):
    class Meta(UserSerializer.Meta):
        read_only_fields = (*UserSerializer.Meta.read_only_fields, "is_active")


class NewUserSerializer(StrictSerializer):
    tenant = ScopedField(queryset=Tenant.objects.all())
    role = serializers.ChoiceField(Role.choices, default=Role.VIEWER)
    username = serializers.RegexField(r"^[\w.@+-]+\Z", max_length=150)
    password = serializers.CharField(max_length=200, write_only=True, trim_whitespace=False)


class PasswordSerializer(StrictSerializer):
    old = serializers.CharField(max_length=200, write_only=True, trim_whitespace=False)
    new = serializers.CharField(max_length=200, write_only=True, trim_whitespace=False)


class UserViewSet(UpdateScoped, ReadScopedViewSet):
    """People of one's tenants; ``users/me/`` is oneself. An owner makes new ones as members of his tenant."""

    queryset = User.objects.order_by("username")
    serializer_class = UserSerializer
    filterset_fields = ("username", "is_active")
    search_fields = ("username", "first_name", "last_name", "email")
    ordering_fields = ("username", "date_joined", "last_login")
    fixed: ClassVar[tuple[str, ...]] = ()

    @extend_schema(request=NewUserSerializer, responses={201: UserSerializer})
    def create(self, request: Request) -> Response:
        values = self.body(NewUserSerializer)
        membership = members.invite(
            request.user,
            values["tenant"],
            values["role"],
            username=values["username"],
            password=values["password"],
            request=request,
        )
        return Response(self.get_serializer(membership.user).data, status.HTTP_201_CREATED)

    @extend_schema(methods=["GET"], responses=MeSerializer)
    @extend_schema(methods=["PATCH"], request=MeSerializer(partial=True), responses=MeSerializer)
    @action(detail=False, methods=["get", "patch"])
    def me(self, request: Request) -> Response:
        """Oneself. Username, rights and whether one is active are changed by others."""
        user = request.user
        if request.method == "PATCH":
            serializer = MeSerializer(user, data=request.data, partial=True, context=self.get_serializer_context())
            serializer.is_valid(raise_exception=True)
            before = audit.snapshot(user)
            with one_write():
                serializer.save()
                audit.record(
                    user, "user.changed", user, detail=audit.changes(before, audit.snapshot(user)), request=request
                )
        return Response(MeSerializer(user, context=self.get_serializer_context()).data)

    @extend_schema(request=PasswordSerializer, responses={204: None})
    @action(detail=False, methods=["post"], url_path="me/password", url_name="me-password")
    def password(self, request: Request) -> Response:
        """Changes one's own password. Other sessions of oneself end; API tokens stay."""
        values = self.body(PasswordSerializer)
        members.change_password(request.user, values["old"], values["new"], request=request)
        update_session_auth_hash(request._request, request.user)
        return Response(status=status.HTTP_204_NO_CONTENT)


# --- tokens ---------------------------------------------------------------------------------------


class ApiTokenSerializer(ScopedSerializer):
    class Meta:
        model = ApiToken
        fields = ("id", "name", "prefix", "created_at", "expires_at", "last_used_at", "revoked_at")


class NewApiTokenSerializer(ApiTokenSerializer):
    token = serializers.CharField(read_only=True, help_text="The token itself. It is shown this once.")

    class Meta(ApiTokenSerializer.Meta):
        fields = (*ApiTokenSerializer.Meta.fields, "token")


class ApiTokenViewSet(mixins.DestroyModelMixin, ReadScopedViewSet):
    """One's own API tokens. Creating one answers its text, once; a revoked one stays in the list."""

    queryset = ApiToken.objects.order_by("-created_at", "pk")
    serializer_class = ApiTokenSerializer
    search_fields = ("name",)
    ordering_fields = ("name", "created_at", "last_used_at", "expires_at")

    def get_queryset(self) -> QuerySet[ApiToken]:
        rows = super().get_queryset()
        return rows if getattr(self, "swagger_fake_view", False) else rows.filter(user=self.request.user)

    @extend_schema(request=ApiTokenSerializer, responses={201: NewApiTokenSerializer})
    def create(self, request: Request) -> Response:
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        values = serializer.validated_data
        row, clear = tokens.issue(request.user, values["name"], values.get("expires_at"))
        row.token = clear
        return Response(NewApiTokenSerializer(row).data, status.HTTP_201_CREATED, headers={"Cache-Control": "no-store"})

    @extend_schema(request=NoBody, responses=ApiTokenSerializer)
    @action(detail=True, methods=["post"])
    def revoke(self, request: Request, pk: str) -> Response:
        """Ends the token at once and for ever; the same as DELETE."""
        row = self.get_object()
        self.body(NoBody)
        tokens.revoke(row, request.user)
        return Response(self.get_serializer(row).data)

    def perform_destroy(self, instance: ApiToken) -> None:
        tokens.revoke(instance, self.request.user)


# --- audit ----------------------------------------------------------------------------------------


class AuditEventSerializer(ScopedSerializer):
    class Meta:
        model = AuditEvent
        fields = (
            "id",
            "at",
            "tenant",
            "actor",
            "actor_name",
            "verb",
            "object_type",
            "object_id",
            "object_name",
            "detail",
            "remote_addr",
        )
        read_only_fields = fields


class AuditEventFilters(ApiFilters):
    since = filters.IsoDateTimeFilter("at", lookup_expr="gte", label="at or after this time (ISO 8601)")
    until = filters.IsoDateTimeFilter("at", lookup_expr="lt", label="before this time (ISO 8601)")

    class Meta(ApiFilters.Meta):
        model = AuditEvent
        fields = ("tenant", "actor", "verb", "object_type", "object_id")


class AuditEventViewSet(ReadScopedViewSet):
    """The audit trail of one's tenants, newest first."""

    queryset = AuditEvent.objects.order_by("-id")
    serializer_class = AuditEventSerializer
    filterset_class = AuditEventFilters
    lookup_value_regex = "[0-9]{1,18}"
    search_fields = ("actor_name", "verb", "object_name")
    ordering_fields = ("at",)


__all__ = ["ApiTokenViewSet", "AuditEventViewSet", "MembershipViewSet", "TenantViewSet", "UserViewSet"]
