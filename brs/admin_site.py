# ruff: noqa: ARG002  the signatures are Django's
"""The admin site: who may enter, what the side bar holds, and how refusals look.

Staff status is not the authority: any active member of a tenant may enter and sees what ``iam.access`` lets him see.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

from django import forms
from django.apps import apps
from django.core.exceptions import FieldDoesNotExist, PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, reverse_lazy
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from unfold.dataclasses import SearchResult
from unfold.forms import AuthenticationForm
from unfold.sites import UnfoldAdminSite

from apps.errors import Denied, DomainError, NotFound
from apps.iam import access, audit, members
from apps.jobs import publish

FOUND_PER_KIND = 8
SEARCHED = ("inventory.workload", "jobs.job", "inventory.node", "inventory.destination", "policies.policy")


class LoginForm(AuthenticationForm):
    """Django's admin form lets only staff in, and says so; here a tenant's member may enter."""

    error_messages: ClassVar = {
        **AuthenticationForm.error_messages,
        "invalid_login": _("The user name or the password is wrong. Both tell capital letters from small ones."),
    }

    def confirm_login_allowed(self, user: Any) -> None:
        if not user.is_active:
            raise ValidationError(self.error_messages["invalid_login"], code="invalid_login")
        if not may_enter(user):
            raise ValidationError(_("This account belongs to no tenant yet. Ask an owner to add you as a member."))


def may_enter(user: Any) -> bool:
    return bool(user.is_active and (user.is_superuser or (user.is_authenticated and access.tenants(user).exists())))


class BrsAdminSite(UnfoldAdminSite):
    login_form: type[forms.Form] = LoginForm
    index_title = _("Overview")
    enable_nav_sidebar = True

    def has_permission(self, request: HttpRequest) -> bool:
        return may_enter(request.user)

    def admin_view(self, view: Callable[..., Any], cacheable: bool = False) -> Callable[..., Any]:
        """Turns what the domain refuses into pages: not found, denied, or a sentence with what to do."""

        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            try:
                return view(request, *args, **kwargs)
            except NotFound as error:
                raise Http404(error.message) from error
            except Denied as error:
                raise PermissionDenied(error.message) from error
            except DomainError as error:
                return self._refusal(request, error)

        return super().admin_view(guarded, cacheable)

    def _refusal(self, request: HttpRequest, error: DomainError) -> HttpResponse:
        context = {**self.each_context(request), "title": _("This did not work"), "error": error}
        return TemplateResponse(request, "brs/refusal.html", context, status=error.status)

    def extra_urls(self) -> list[URLPattern]:
        from apps.inventory import pages as inventory_pages
        from apps.jobs import pages as job_pages
        from apps.policies import pages as policy_pages
        from apps.reports import pages as report_pages

        faces = (inventory_pages, job_pages, policy_pages, report_pages)
        return [one for face in faces for one in face.urls(self)]

    def autocomplete_view(self, request: HttpRequest) -> HttpResponse:
        """Django's own fails (500) when it is asked for nothing, or for a relation that belongs to the other side."""
        label, name, wanted = (request.GET.get(key, "") for key in ("app_label", "model_name", "field_name"))
        try:
            field = apps.get_model(label, name)._meta.get_field(wanted)
        except (LookupError, ValueError, FieldDoesNotExist):
            raise Http404 from None
        if field.auto_created or field.related_model is None:
            raise Http404
        return super().autocomplete_view(request)

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """One's own password: guesses of the old one are counted, as in the API, and the change is recorded."""
        user: Any = request.user
        if request.method != "POST":
            return super().password_change(request, extra_context)
        with members.password_attempt(user) as attempt:
            response = super().password_change(request, extra_context)
            attempt.was_right = response.status_code == 302
        if attempt.was_right:
            audit.record(user, "user.password-changed", user, request=request)
        return response

    def logout(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The live streams of the session end with it, not at their next look a minute later."""
        user_id = request.user.pk
        response = super().logout(request, extra_context)
        publish.rights_changed(user_id)
        return response

    def search(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The command search. Not unfold's own, which keeps answers for five minutes, also after rights change."""
        term = request.GET.get("s", "").strip().lower()
        if not term:
            return HttpResponse()
        extended = "extended" in request.GET
        results = [*self._places(request, term), *(self._objects(request, term) if extended else [])]
        template = "unfold/helpers/command_results.html" if extended else "unfold/helpers/search_results.html"
        pages = Paginator(results, 100)
        context = {"page_obj": pages, "results": pages.page(1), "page_counter": 0, "execution_time": 0}
        return TemplateResponse(request, template, context, headers={"HX-Trigger": "search"})

    def _places(self, request: HttpRequest, term: str) -> list[SearchResult]:
        return [
            SearchResult(
                title=str(item["title"]), description=str(group["title"]), link=item["link"], icon=item["icon"]
            )
            for group in self.get_sidebar_list(request)
            for item in group["items"]
            if item["has_permission"] and term in str(item["title"]).lower()
        ]

    def _objects(self, request: HttpRequest, term: str) -> list[SearchResult]:
        found = []
        for model, admin in self._registry.items():
            if model._meta.label_lower not in SEARCHED:
                continue
            rows, _repeated = admin.get_search_results(request, admin.get_queryset(request), term)
            for row in rows[:FOUND_PER_KIND]:
                link = reverse_lazy(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[row.pk])
                kind = str(model._meta.verbose_name).capitalize()
                found.append(SearchResult(title=str(row), description=kind, link=link, icon="subdirectory_arrow_right"))
        return found


def _is_superuser(request: HttpRequest) -> bool:
    return bool(request.user.is_superuser)


def _item(
    title: Promise, icon: str, url: str, permission: Callable[[HttpRequest], bool] | None = None
) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{url}"), "permission": permission}


def navigation(_request: HttpRequest) -> list[dict[str, Any]]:
    """The side bar, in the order in which an operator asks."""
    return [
        {
            "title": _("Protection"),
            "items": [
                _item(_("Overview"), "dashboard", "index"),
                _item(_("Workloads"), "shield", "inventory_workload_changelist"),
                _item(_("Restore"), "settings_backup_restore", "restore"),
                _item(_("Jobs"), "play_circle", "jobs_job_changelist"),
                _item(_("Policies"), "event_repeat", "policies_policy_changelist"),
            ],
        },
        {
            "title": _("Inventory"),
            "items": [
                _item(_("Platforms"), "lan", "inventory_platform_changelist"),
                _item(_("Nodes"), "dns", "inventory_node_changelist"),
                _item(_("Destinations"), "hard_drive", "inventory_destination_changelist"),
                _item(_("Repositories"), "inventory_2", "inventory_repository_changelist"),
                _item(_("Restore points"), "history", "catalog_restorepoint_changelist"),
                _item(_("Kept snapshots"), "photo_camera", "catalog_trace_changelist"),
            ],
        },
        {
            "title": _("Reports"),
            "items": [
                _item(_("Activity"), "monitoring", "report_activity"),
                _item(_("Audit trail"), "policy", "iam_auditevent_changelist"),
            ],
        },
        {
            "title": _("Access"),
            "items": [
                _item(_("Users"), "person", "iam_user_changelist"),
                _item(_("Tenants"), "domain", "iam_tenant_changelist"),
                _item(_("Members and roles"), "badge", "iam_membership_changelist"),
                _item(_("API tokens"), "key", "iam_apitoken_changelist"),
            ],
        },
        {
            "title": _("Settings"),
            "items": [
                _item(_("Recovery kits"), "medical_services", "kits"),
                _item(_("Scheduler"), "timer", "django_celery_beat_periodictask_changelist", _is_superuser),
            ],
        },
    ]
