# ruff: noqa: ARG002  the signatures are Django REST framework's
"""What every resource of the REST API is made of: querysets through ``iam.access``, writes with audit.

A viewset names its ``queryset`` and serializer; lists, objects and actions then show only what the user may
see, and everything else is 404, in every method. An action fetches its object with ``get_object``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from django.db import IntegrityError, models, transaction
from django.db.models import ProtectedError, QuerySet
from django.utils.translation import gettext as _
from rest_framework import mixins
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from apps.errors import Conflict, Invalid, NotFound
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.api_http import (
    AnonymousThrottle,
    FilterNames,
    JsonAlways,
    JsonOnly,
    KnownOrdering,
    Pages,
    Search,
    UserThrottle,
    refuse_unknown_names,
)

UUID_PATTERN = "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"


class ApiView(APIView):
    """The edge: authentication first, strangers counted, query names known."""

    parser_classes = [JsonOnly]
    content_negotiation_class = JsonAlways
    throttle_classes = [UserThrottle]
    query: ClassVar[frozenset[str]] = frozenset()  # query parameters of an action beside a list's filters

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        try:
            super().initial(request, *args, **kwargs)
        except (NotAuthenticated, AuthenticationFailed):
            AnonymousThrottle().refuse_when_many(request, self)
            raise
        refuse_unknown_names(request, self.query_names())

    def query_names(self) -> set[str]:
        return set(self.query)

    def options(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return Response({"methods": self.allowed_methods})


class NoSuchAddress(ApiView):
    """Whatever address of the API leads nowhere: 404 as JSON (401 before that)."""

    schema = None

    def query_names(self) -> set[str]:
        return set(self.request.query_params)

    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        raise NotFound(_("There is no such address in the API."), hint=_("See /api/v1/docs/ for those there are."))

    post = put = patch = delete = options = get


class ScopedViewSet(ApiView, GenericViewSet):
    """Rows that the user may see. ``read_right`` is what seeing takes."""

    pagination_class = Pages
    filter_backends = [FilterNames, Search, KnownOrdering]
    lookup_value_regex = UUID_PATTERN
    read_right: ClassVar[Right] = Right.VIEW
    filterset_fields: Any = None
    search_fields: ClassVar[tuple[str, ...]] = ()
    ordering_fields: Any = ()

    def get_queryset(self) -> QuerySet[Any]:
        queryset = super().get_queryset()
        if getattr(self, "swagger_fake_view", False):
            return queryset.none()
        return access.visible(self.request.user, queryset, self.read_right)

    def get_object(self) -> Any:
        """The object of the address; what may not be seen does not exist."""
        found = self.get_queryset().filter(pk=self.kwargs["pk"]).first()
        if found is None:
            raise NotFound
        return found

    def query_names(self) -> set[str]:
        names = super().query_names()
        if getattr(self, "action", None) != "list":
            return names
        names |= {"limit", "offset"}
        names |= {"search"} if self.search_fields else set()
        names |= {"ordering"} if self.ordering_fields else set()
        for backend in self.filter_backends:
            if hasattr(backend, "get_filterset_class"):
                filterset = backend().get_filterset_class(self, self.queryset)
                names |= set(filterset.base_filters) if filterset else set()
        return names

    def options(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        if "pk" in kwargs:
            self.get_object()
        return super().options(request, *args, **kwargs)

    def body(self, serializer: type[BaseSerializer[Any]]) -> dict[str, Any]:
        """The validated body of an action."""
        data = serializer(data=self.request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        values: dict[str, Any] = data.validated_data
        return values

    def paged(self, queryset: QuerySet[Any], serializer: type[BaseSerializer[Any]]) -> Response:
        page = self.paginate_queryset(queryset)
        return self.get_paginated_response(serializer(page, many=True, context=self.get_serializer_context()).data)


class ReadScopedViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, ScopedViewSet):
    """List and one."""


@contextmanager
def one_write() -> Iterator[None]:
    """A write with its audit event in one transaction; what the database refuses becomes a plain 409."""
    try:
        with transaction.atomic():
            yield
    except ProtectedError as error:
        raise Conflict(
            _("It is still used by %(users)s.") % {"users": _users(error)},
            hint=_("Remove these first."),
        ) from None
    except IntegrityError:
        raise Conflict(
            _("Another object has the same name, or one it refers to is gone."),
            hint=_("Reload it, and choose another name."),
        ) from None


def _users(error: ProtectedError) -> str:
    """“3 × workload, 1 × job”."""
    counts: dict[str, int] = {}
    for row in error.protected_objects:
        name = str(row._meta.verbose_name)
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} × {name}" for name, count in counts.items())


def verb(row: models.Model, what: str) -> str:
    """The audit trail's word, such as ``policy.changed``."""
    return f"{row._meta.model_name}.{what}"


class Audited:
    """How the audit trail sees an object before and after."""

    request: Request

    def picture(self, row: models.Model) -> dict[str, Any]:
        return audit.snapshot(row)

    def after_write(self, row: Any) -> None:
        """What must follow within the same transaction."""


class CreateScoped(Audited, mixins.CreateModelMixin):
    """POST to a list. The right is asked of the tenant that the object will belong to."""

    queryset: QuerySet[Any]

    def owner_of(self, values: dict[str, Any]) -> models.Model:
        tenant: models.Model = values["tenant"]
        return tenant

    def perform_create(self, serializer: BaseSerializer[Any]) -> None:
        owner = self.owner_of(serializer.validated_data)
        access.require(self.request.user, access.change_right(self.queryset.model), owner)
        with one_write():
            row = serializer.save()
            self.after_write(row)
            detail = {"after": self.picture(row)}
            audit.record(self.request.user, verb(row, "added"), row, detail=detail, request=self.request)


class UpdateScoped(Audited, mixins.UpdateModelMixin):
    """PATCH and PUT of one. What is ``fixed`` never changes once it is made; repeating it is no change."""

    fixed: ClassVar[tuple[str, ...]] = ("tenant",)

    def perform_update(self, serializer: BaseSerializer[Any]) -> None:
        row = serializer.instance
        access.require(self.request.user, access.change_right(type(row)), row)
        self.refuse_fixed(serializer)
        before = self.picture(row)
        with one_write():
            row = serializer.save()
            self.after_write(row)
            detail = audit.changes(before, self.picture(row))
            audit.record(self.request.user, verb(row, "changed"), row, detail=detail, request=self.request)

    def refuse_fixed(self, serializer: BaseSerializer[Any]) -> None:
        for name in self.fixed:
            if name in serializer.validated_data and serializer.validated_data[name] != getattr(
                serializer.instance, name
            ):
                raise Invalid(_("%(name)s cannot be changed.") % {"name": name}, hint=_("Make a new one instead."))


class DestroyScoped(Audited, mixins.DestroyModelMixin):
    """DELETE of one; 409 while others need it."""

    def perform_destroy(self, instance: Any) -> None:
        access.require(self.request.user, Right.DELETE, instance)
        with one_write():
            detail = {"before": self.picture(instance)}
            audit.record(self.request.user, verb(instance, "removed"), instance, detail=detail, request=self.request)
            instance.delete()


class WriteScopedViewSet(CreateScoped, UpdateScoped, DestroyScoped, ReadScopedViewSet):
    """List, one, create, change, delete."""
