"""Acts on many rows of a list at once: a page that says what will happen, then one POST."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import helpers
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _

from apps.errors import DomainError

Act = Callable[[HttpRequest, Sequence[Any], dict[str, Any]], int]


class BulkActs:
    """For a ``ScopedAdmin``: its list hands over only rows that the user sees, so foreign ids in a POST are nothing."""

    def bulk(
        self,
        request: HttpRequest,
        queryset: QuerySet[Any],
        name: str,
        act: Act,
        words: dict[str, Any],
        form_class: type[forms.Form] = forms.Form,
    ) -> HttpResponse | None:
        """``act`` gives how many it changed. ``words``: title, question, done (with %d)."""
        rows = list(queryset)
        form = form_class(request.POST if "apply" in request.POST else None)
        if "apply" in request.POST and form.is_valid():
            try:
                changed = act(request, rows, form.cleaned_data)
            except DomainError as error:
                form.add_error(None, f"{error.message} {error.hint}")
            else:
                self.message_user(request, words["done"] % changed, messages.SUCCESS)  # type: ignore[attr-defined]
                return None
        context = {
            **self.admin_site.each_context(request),  # type: ignore[attr-defined]
            "title": words["title"],
            "question": words["question"],
            "opts": self.opts,  # type: ignore[attr-defined]
            "rows": rows,
            "form": form,
            "action": name,
            "checkbox_name": helpers.ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "brs/bulk.html", context)


def each(verb: Callable[[Any, Any], object]) -> Act:
    """An act out of a verb on one: those that refuse are left and named, the others are done."""

    def act(request: HttpRequest, rows: Sequence[Model], _data: dict[str, Any]) -> int:
        done = 0
        for row in rows:
            try:
                verb(request.user, row)
            except DomainError as error:
                messages.warning(request, _("%(name)s: %(why)s") % {"name": row, "why": error.message})
            else:
                done += 1
        return done

    return act
