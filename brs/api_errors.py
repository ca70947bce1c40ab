"""Every error of the REST API has one form: ``{"code", "message", "hint"}`` with a fitting status.

:func:`handle` is DRF's exception handler; the four views below answer for addresses that no view of DRF serves
(and, for people, fall back to Django's pages).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from django.core.exceptions import PermissionDenied
from django.core.exceptions import ValidationError as ModelInvalid
from django.db.models import ProtectedError, RestrictedError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.utils.translation import gettext as _
from django.views import defaults
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from apps.errors import Conflict, Denied, DomainError, Invalid, NotFound, TooMany, Unauthorized

log = logging.getLogger(__name__)

# DRF's own exceptions that say no more than their status.
_PLAIN: dict[type[exceptions.APIException], tuple[str, str]] = {
    exceptions.MethodNotAllowed: ("method-not-allowed", "Look at the API's documentation under /api/v1/docs/."),
    exceptions.UnsupportedMediaType: ("unsupported-media-type", "Send JSON with Content-Type: application/json."),
    exceptions.NotAcceptable: ("not-acceptable", "Ask for application/json."),
}


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """None for what nobody expected: Django logs it and answers 500 through :func:`server_error`."""
    set_rollback()
    if isinstance(error, exceptions.APIException) and type(error) in _PLAIN:
        code, hint = _PLAIN[type(error)]
        return Response({"code": code, "message": str(error.detail), "hint": _(hint)}, error.status_code)
    known = as_domain(error)
    if known is None:
        return None
    if known.status >= 500:
        log.warning("%s: %s", context.get("view").__class__.__name__, known.message)
    return Response(known.as_dict(), known.status, headers=_headers(error))


def as_domain(error: Exception) -> DomainError | None:
    """The same error in our words; None when it is none that a request may cause."""
    match error:
        case DomainError():
            return error
        case Http404() | exceptions.NotFound():
            return NotFound()
        case exceptions.NotAuthenticated() | exceptions.AuthenticationFailed():
            return Unauthorized(str(error.detail), hint=_("Send “Authorization: Bearer <API token>”, or log in."))
        case PermissionDenied():
            return Denied()
        case exceptions.PermissionDenied() if str(error.detail).startswith("CSRF"):
            hint = _("Send the cookie csrftoken's value in the header X-CSRFToken, and a Referer; or use an API token.")
            return Denied(str(error.detail), hint=hint, code="csrf")
        case exceptions.PermissionDenied():
            return Denied(str(error.detail))
        case exceptions.Throttled():
            return TooMany(str(error.detail))
        case exceptions.ValidationError():
            return Invalid("; ".join(_sentences(error.detail)))
        case exceptions.ParseError():
            return Invalid(str(error.detail), hint=_("Send valid JSON in UTF-8."), code="malformed")
        case ModelInvalid():
            found = error.message_dict if hasattr(error, "error_dict") else error.messages
            return Invalid("; ".join(_sentences(found)))
        case ProtectedError() | RestrictedError():
            return Conflict(_("Other objects still need this one."), hint=_("Remove or change those first."))
    return None


def _sentences(detail: Any, path: str = "") -> Iterator[str]:
    """Errors of nested fields as flat sentences, each led by its field: ``source.paths: …``."""
    if isinstance(detail, dict):
        for name, inner in detail.items():
            whole = name in {"non_field_errors", "__all__"}
            yield from _sentences(inner, path if whole else f"{path}.{name}" if path else str(name))
    elif isinstance(detail, list | tuple):
        for number, inner in enumerate(detail):
            yield from _sentences(inner, f"{path}[{number}]" if isinstance(inner, dict) and inner else path)
    else:
        yield f"{path}: {detail}" if path else str(detail)


def _headers(error: Exception) -> dict[str, str]:
    if not isinstance(error, exceptions.APIException):
        return {}
    found = {}
    if challenge := getattr(error, "auth_header", None):
        found["WWW-Authenticate"] = challenge
    if wait := getattr(error, "wait", None):
        found["Retry-After"] = str(int(wait) + 1)
    return found


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    if _is_api(request):
        return _json(Invalid(_("The request cannot be understood."), hint=_("Check its address and headers.")))
    return defaults.bad_request(request, exception)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _json(Denied()) if _is_api(request) else defaults.permission_denied(request, exception)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _json(NotFound()) if _is_api(request) else defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    return _json(DomainError()) if _is_api(request) else defaults.server_error(request)


def _is_api(request: HttpRequest) -> bool:
    return request.path.startswith("/api/")


def _json(error: DomainError) -> JsonResponse:
    return JsonResponse(error.as_dict(), status=error.status)
