# ruff: noqa: ARG002  the signatures are Django REST framework's
"""How the REST API reads requests: JSON only, known query names only, bounded pages, counted strangers.

What DRF lets pass in silence (an unknown filter, a mistyped ordering, limit=abc) is refused here with the
name of what was wrong: a program that asks for ``?polcy=…`` must not be shown everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import IO, Any

from django.db import models
from django.db.models import QuerySet
from django.utils.translation import gettext as _
from django_filters import rest_framework as filters
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework.exceptions import ParseError, Throttled
from rest_framework.filters import OrderingFilter, SearchFilter
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.pagination import LimitOffsetPagination
from rest_framework.parsers import JSONParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle, UserRateThrottle
from rest_framework.utils.json import strict_constant
from rest_framework.views import APIView

from apps.errors import Invalid

LIMIT_DEFAULT = 50
LIMIT_MOST = 200
OFFSET_MOST = 10_000_000  # beyond, a database would count for minutes (or overflow)


class JsonOnly(JSONParser):
    """UTF-8 JSON as RFC 8259 wants it; nesting too deep for Python's parser is bad input, not a crash."""

    def parse(
        self, stream: IO[bytes], media_type: str | None = None, parser_context: dict[str, Any] | None = None
    ) -> Any:
        try:
            return json.loads(stream.read().decode("utf-8"), parse_constant=strict_constant)
        except RecursionError:
            raise ParseError(_("The JSON is nested too deeply.")) from None
        except ValueError as error:
            raise ParseError(_("The body is not JSON: %(why)s") % {"why": error}) from None


class JsonAlways(DefaultContentNegotiation):
    """Answers JSON whatever ``Accept`` says: programs send odd ones, and there is one form only."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        first = next(iter(renderers))
        return first, first.media_type


def whole_number(request: Request, name: str, default: int, *, least: int, most: int) -> int:
    """The query parameter ``name`` as a number within its bounds; refused with its name otherwise."""
    text = request.query_params.get(name)
    if text is None or text == "":
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and least <= int(text) <= most):
        raise Invalid(
            _("%(name)s is not a whole number from %(least)d to %(most)d.")
            % {"name": name, "least": least, "most": most}
        )
    return int(text)


class Pages(LimitOffsetPagination):
    """``?limit=`` (at most 200) and ``?offset=``; what is out of bounds is refused, not bent."""

    default_limit = LIMIT_DEFAULT
    max_limit = LIMIT_MOST

    def get_limit(self, request: Request) -> int:
        return whole_number(request, "limit", LIMIT_DEFAULT, least=1, most=LIMIT_MOST)

    def get_offset(self, request: Request) -> int:
        return whole_number(request, "offset", 0, least=0, most=OFFSET_MOST)


class KnownOrdering(OrderingFilter):
    """``?ordering=name,-created_at``; a name that cannot be ordered by is refused, and ties are broken by id."""

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: APIView) -> list[str] | None:
        asked = [term.strip() for term in request.query_params.get(self.ordering_param, "").split(",") if term.strip()]
        if not asked:
            return self.get_default_ordering(view)
        known = [name for name, _label in self.get_valid_fields(queryset, view, {"request": request})]
        for term in asked:
            if term.removeprefix("-") not in known:
                raise Invalid(
                    _("“%(term)s” is no field to order by.") % {"term": term[:80]},
                    hint=_("Use one of: %(names)s.") % {"names": ", ".join(known)},
                )
        return [*asked, "pk"]

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        return super().get_schema_operation_parameters(view) if getattr(view, "ordering_fields", ()) else []


@extend_schema_field(OpenApiTypes.BOOL)
class TrueFalse(filters.TypedChoiceFilter):
    """``true`` or ``false``; django-filter's own takes every other word for “both”."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        choices = (("true", "true"), ("false", "false"))
        super().__init__(*args, **{**kwargs, "choices": choices, "coerce": lambda word: word == "true"})


class ApiFilters(filters.FilterSet):
    """Filters by foreign key take any UUID: a stranger's id finds nothing, as one that does not exist."""

    class Meta:
        filter_overrides = {
            models.ForeignKey: {"filter_class": filters.UUIDFilter},
            models.OneToOneField: {"filter_class": filters.UUIDFilter},
            models.BooleanField: {"filter_class": TrueFalse},
        }


class FilterNames(filters.DjangoFilterBackend):
    """Builds the filters of ``filterset_fields`` in the ways of :class:`ApiFilters`."""

    filterset_base = ApiFilters


class Search(SearchFilter):
    """``?search=`` over the viewset's ``search_fields``; every word must be found."""

    def get_search_terms(self, request: Request) -> list[str]:
        text = request.query_params.get(self.search_param, "")
        if "\x00" in text:
            raise Invalid(_("search holds a NUL character."))
        return text.split()  # DRF's own reading of quotation marks turns a lone one into “everything”

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        return super().get_schema_operation_parameters(view) if getattr(view, "search_fields", ()) else []


class AnonymousThrottle(SimpleRateThrottle):
    """Counts the requests of an address that did not say who it is, or said it wrongly."""

    scope = "anon"

    def get_cache_key(self, request: Request, view: APIView) -> str:
        return self.cache_format % {"scope": self.scope, "ident": self.get_ident(request)}

    def refuse_when_many(self, request: Request, view: APIView) -> None:
        if not self.allow_request(request, view):
            raise Throttled(self.wait())


class UserThrottle(UserRateThrottle):
    """Counts the requests of one user, over all of his tokens."""


def refuse_unknown_names(request: Request, known: Iterable[str]) -> None:
    """400 for a query parameter that nothing reads."""
    for name in request.query_params:
        if name not in known:
            names = ", ".join(sorted(known)) or _("none")
            raise Invalid(
                _("There is no filter or parameter “%(name)s” here.") % {"name": name[:80]},
                hint=_("Known here: %(names)s.") % {"names": names},
            )
