# ruff: noqa: ARG002  the signatures are Django's
"""Access: users, tenants, memberships, tokens and the audit trail."""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin as BaseUserAdmin
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from unfold.decorators import display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminSelectWidget

from apps import display as look
from apps.errors import Conflict, DomainError
from apps.iam import access, members, tokens
from apps.iam.access import Right
from apps.iam.admin_scope import Empty, ReadOnlyAdmin, ScopedAdmin, ScopedInline, Verb
from apps.iam.models import ApiToken, AuditEvent, Membership, Role, Tenant, User


class AddUserForm(UserCreationForm):
    """A new person is a member of a tenant from the first moment; otherwise nobody but superusers would see him."""

    tenant = forms.ModelChoiceField(Tenant.objects.none(), label=_("Tenant"), widget=UnfoldAdminSelectWidget)
    role = forms.ChoiceField(label=_("Role"), choices=Role.choices, initial=Role.VIEWER, widget=UnfoldAdminSelectWidget)

    class Meta(UserCreationForm.Meta):
        model = User
        fields = ("username",)


class MembershipInline(ScopedInline):
    model = Membership
    change_right = Right.MEMBERS
    choice_rights = {"tenant": Right.MEMBERS}
    fields = ["user", "tenant", "role"]
    verbose_name = _("member")
    verbose_name_plural = _("members")
    show_change_link = True

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # memberships are changed on their own page, by iam.members

    has_change_permission = has_delete_permission = has_add_permission


@admin.register(User)
class UserAdmin(BaseUserAdmin, ScopedAdmin):
    """An owner sees and adds people of his tenants; only superusers change them (they may be others' members too)."""

    form = UserChangeForm
    add_form = AddUserForm
    change_password_form = AdminPasswordChangeForm
    add_right = Right.MEMBERS
    change_right = Right.MEMBERS
    delete_right = Right.MEMBERS
    list_display: ClassVar = ["username", "full_name", "roles", "last_seen", "is_active"]
    list_filter: ClassVar = ["is_active"]
    search_fields: ClassVar = ["username", "first_name", "last_name", "email"]
    ordering: ClassVar = ["username"]
    readonly_fields: ClassVar = ["last_login", "date_joined"]
    filter_horizontal: ClassVar = []
    inlines: ClassVar = [MembershipInline]
    fieldsets = (
        (None, {"fields": ("username", "password", "first_name", "last_name", "email", "time_zone")}),
        (_("Access"), {"fields": ("is_active", "is_superuser", "groups")}),
        (_("Dates"), {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = ((None, {"fields": ("username", "tenant", "role", "password1", "password2")}),)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("memberships__tenant")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is not None and not request.user.is_superuser:
            return ((None, {"fields": ("username", "first_name", "last_name", "email", "is_active", "last_login")}),)
        return super().get_fieldsets(request, obj)

    def get_inlines(self, request: HttpRequest, obj: Any) -> list[Any]:
        return list(self.inlines) if obj is not None and request.user.is_superuser else []

    def get_form(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> type[forms.ModelForm]:
        form = super().get_form(request, obj, **kwargs)
        if obj is None:
            form.base_fields["tenant"].queryset = access.tenants(request.user, Right.MEMBERS)
            form.base_fields["tenant"].initial = access.tenants(request.user, Right.MEMBERS).first()
        return form

    def save_model(self, request: HttpRequest, obj: Any, form: forms.Form, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if not change:
            data = form.cleaned_data
            members.add(request.user, data["tenant"], obj, data["role"], request=request)

    @display(description=_("name"))
    def full_name(self, user: User) -> str:
        return user.get_full_name() or "–"

    @display(description=_("member of"))
    def roles(self, user: User) -> str:
        if user.is_superuser:
            return str(_("Everything (superuser)"))
        mine = access.tenants(self.request.user).values_list("pk", flat=True)
        shown = [one for one in user.memberships.all() if one.tenant_id in set(mine)]
        return ", ".join(f"{one.tenant} ({Role(one.role).name.lower()})" for one in shown) or "–"

    @display(description=_("last login"), ordering="last_login")
    def last_seen(self, user: User) -> SafeString:
        return look.ago(user.last_login)


@admin.register(Tenant)
class TenantAdmin(ScopedAdmin):
    add_right = None  # superusers only, see has_add_permission
    change_right = Right.MEMBERS
    delete_right = None
    list_display: ClassVar = ["name", "slug", "members", "is_active", "created"]
    search_fields: ClassVar = ["name", "slug"]
    fields: ClassVar = ["name", "slug", "is_active"]
    inlines: ClassVar = [MembershipInline]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_superuser)

    def get_prepopulated_fields(self, request: HttpRequest, obj: Any = None) -> dict[str, Any]:
        return {} if obj else {"slug": ("name",)}

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        # The short name is the repository's folder: changed, its backups would not be found.
        fixed = ["slug"] if obj else []
        return fixed if request.user.is_superuser else [*fixed, "is_active"]

    @display(description=_("members"))
    def members(self, tenant: Tenant) -> int:
        return tenant.memberships.count()

    @display(description=_("created"), ordering="created_at")
    def created(self, tenant: Tenant) -> SafeString:
        return look.ago(tenant.created_at)


@admin.register(Membership)
class MembershipAdmin(ScopedAdmin):
    add_right = change_right = delete_right = Right.MEMBERS
    choice_rights = {"tenant": Right.MEMBERS}
    hide_single_tenant = False
    list_title = _("Members and roles")
    list_display: ClassVar = ["user", "tenant", "role", "since"]
    list_filter: ClassVar = ["role", "tenant"]
    list_select_related: ClassVar = ["user", "tenant"]
    search_fields: ClassVar = ["user__username", "user__last_name", "tenant__name"]
    fields: ClassVar = ["user", "tenant", "role"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["user", "tenant"] if obj else []

    def save_model(self, request: HttpRequest, obj: Any, form: forms.Form, change: bool) -> None:
        """``iam.members`` is the writer, and has recorded it."""
        if change:
            kept = Membership.objects.select_related("tenant", "user").get(pk=obj.pk)
            members.change(request.user, kept, obj.role, request=request)
        else:
            obj.pk = members.add(request.user, obj.tenant, obj.user, obj.role, request=request).pk

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        members.remove(request.user, obj, request=request)

    def log_deletions(self, request: HttpRequest, queryset: Any) -> None:
        """Recorded by ``iam.members``."""

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> None:
        """Recorded by ``iam.members``."""

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> None:
        """Recorded by ``iam.members``."""

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().changeform_view(request, *args, **kwargs)
        except Conflict as error:
            self.message_user(request, f"{error.message} {error.hint}", "error")
            return HttpResponseRedirect(request.path)

    @display(description=_("since"), ordering="created_at")
    def since(self, membership: Membership) -> SafeString:
        return look.ago(membership.created_at)


class TokenForm(forms.ModelForm):
    class Meta:
        model = ApiToken
        fields = ["name", "expires_at"]


def _revoke(request: HttpRequest, token: ApiToken, _data: dict[str, Any]) -> None:
    tokens.revoke(token, request.user)


@admin.register(ApiToken)
class ApiTokenAdmin(ScopedAdmin):
    """One's own keys for programs; the clear text is shown once, right after it was made."""

    form = TokenForm
    add_form_template = "admin/change_form.html"
    empty = Empty(
        icon="key",
        text=_("You have no API token. A program that uses the REST API shows one in place of a login."),
        action=_("Make a token"),
        url="admin:iam_apitoken_add",
    )
    add_right = Right.VIEW
    change_right = delete_right = None
    list_display: ClassVar = ["name", "starts", "owner", "state", "used", "expires"]
    list_select_related: ClassVar = ["user"]
    search_fields: ClassVar = ["name", "prefix", "user__username"]
    verbs: ClassVar = {
        "revoke": Verb(
            label=_("Revoke"),
            icon="key_off",
            right=Right.VIEW,
            danger=True,
            run=_revoke,
            question=_("Programs that use this token are refused from now on. This cannot be undone."),
            done=_("The token was revoked."),
            when=lambda token: token.revoked_at is None,
        )
    }
    change_form_template = "brs/facts_page.html"

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["name", "starts", "owner", "state", "used", "expires"] if obj else ["name", "expires_at"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return ["starts", "owner", "state", "used", "expires"] if obj else []

    def save_model(self, request: HttpRequest, obj: Any, form: forms.Form, change: bool) -> None:
        made, request.brs_clear = tokens.issue(request.user, obj.name, obj.expires_at)
        obj.pk, obj.user, obj.prefix = made.pk, made.user, made.prefix

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> None:
        """``tokens.issue`` has recorded it."""

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": _("Your new token"),
            "subtitle": obj.name,
            "opts": self.opts,
            "clear": request.brs_clear,
        }
        return TemplateResponse(request, "brs/token.html", context, headers={"Cache-Control": "no-store"})

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().changeform_view(request, *args, **kwargs)
        except DomainError as error:
            self.message_user(request, f"{error.message} {error.hint}", "error")
            return self.response_post_save_add(request, ApiToken())

    @display(description=_("begins with"))
    def starts(self, token: ApiToken) -> SafeString:
        return format_html("<code>{}…</code>", token.prefix)

    @display(description=_("acts as"), ordering="user__username")
    def owner(self, token: ApiToken) -> str:
        return token.user.get_username()

    @display(description=_("state"))
    def state(self, token: ApiToken) -> SafeString:
        if token.revoked_at:
            return look.badge("cancelled", _("Revoked"))
        if token.expires_at and timezone.now() >= token.expires_at:
            return look.badge("cancelled", _("Expired"))
        return look.badge("succeeded", _("Valid"))

    @display(description=_("last used"), ordering="last_used_at")
    def used(self, token: ApiToken) -> SafeString:
        return look.ago(token.last_used_at)

    @display(description=_("expires"), ordering="expires_at")
    def expires(self, token: ApiToken) -> SafeString | str:
        return look.moment(token.expires_at) if token.expires_at else _("never")


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_title = _("Audit trail")
    list_display: ClassVar = ["when", "actor_name", "what", "object_kind", "object_name", "tenant", "remote_addr"]
    list_display_links: ClassVar = ["what"]
    list_filter: ClassVar = ["at", "tenant"]
    list_select_related: ClassVar = ["tenant"]
    search_fields: ClassVar = ["actor_name", "verb", "object_name", "object_id"]
    change_form_template = "brs/audit_event.html"
    fields: ClassVar = ["when", "actor_name", "what", "verb", "object_kind", "object_name", "tenant", "remote_addr"]
    readonly_fields: ClassVar = ["when", "what", "object_kind"]

    @display(description=_("what"), ordering="verb")
    def what(self, event: AuditEvent) -> str:
        return look.event(event.verb)

    @display(description=_("time"), ordering="id")
    def when(self, event: AuditEvent) -> SafeString:
        return look.moment(event.at)

    @display(description=_("kind"))
    def object_kind(self, event: AuditEvent) -> str:
        try:
            return str(apps.get_model(event.object_type)._meta.verbose_name)
        except (LookupError, ValueError):
            return event.object_type or "–"
