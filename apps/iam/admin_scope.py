# ruff: noqa: ARG002  the signatures are Django's
"""What every page of the admin has in common: one sees one's tenants' things, may do what the role says, no more.

Django's model permissions and guardian's pages alone leak (filters, choices, POSTed ids, history, bulk actions), so
every ModelAdmin of BRS is a ``ScopedAdmin``. It decides nothing itself: ``iam.access`` does.

A *verb* is an act on one object ("Back up now"): a dialog on GET, one call on POST. Declare it in ``verbs``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from django import forms
from django.contrib import messages
from django.contrib.admin.filters import AllValuesFieldListFilter, RelatedFieldListFilter
from django.contrib.admin.utils import get_fields_from_path, unquote
from django.core.exceptions import BadRequest, ImproperlyConfigured, PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db.models import Field, ForeignKey, Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.admin import ModelAdmin, TabularInline
from unfold.widgets import UnfoldAdminTextInputWidget

from apps.errors import DomainError
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.models import AuditEvent

Words = str | Promise


def choices_for(request: HttpRequest, model: type[Model], right: Right = Right.VIEW) -> QuerySet:
    """What may be chosen in a form: nothing of a model that has no tenant, unless one is a superuser."""
    if hasattr(model, "tenant_path"):
        return access.visible(request.user, model, right)
    manager = model._default_manager
    return manager.all() if request.user.is_superuser else manager.none()


def address(obj: Model, page: str = "change") -> str:
    """Of an object's page in the admin."""
    return reverse(f"admin:{obj._meta.app_label}_{obj._meta.model_name}_{page}", args=[obj.pk])


class ScopedRelatedFilter(RelatedFieldListFilter):
    """Offers only what the user may see; Django's own offers every tenant's objects."""

    def field_choices(self, field: Field, request: HttpRequest, model_admin: ModelAdmin) -> list[tuple[Any, str]]:
        return [(row.pk, str(row)) for row in choices_for(request, field.remote_field.model)[:200]]


def scoped_filter(model: type[Model], given: Any) -> Any:
    """A filter that cannot show strangers' values; refuses those that would."""
    if isinstance(given, tuple):
        name, kind = given
        if issubclass(kind, (AllValuesFieldListFilter,)) or (
            issubclass(kind, RelatedFieldListFilter) and not issubclass(kind, ScopedRelatedFilter)
        ):
            raise ImproperlyConfigured(f"The filter {kind.__name__} on {name} shows values of every tenant.")
        return given
    if not isinstance(given, str):
        return given  # a SimpleListFilter brings its own, fixed choices
    field = get_fields_from_path(model, given)[-1]
    if field.is_relation:
        return given, ScopedRelatedFilter
    if field.choices or field.get_internal_type() in {"BooleanField", "DateTimeField", "DateField"}:
        return given
    raise ImproperlyConfigured(f"A filter on {given} would list the values of every tenant.")


class ScopedFields:
    """Choices of foreign keys in forms and inlines; a POSTed id that is not among them is a form error."""

    choice_rights: ClassVar[dict[str, Right]] = {}

    def formfield_for_foreignkey(self, db_field: ForeignKey, request: HttpRequest, **kwargs: Any) -> forms.Field:
        right = self.choice_rights.get(db_field.name, Right.VIEW)
        kwargs["queryset"] = choices_for(request, db_field.remote_field.model, right)
        field = super().formfield_for_foreignkey(db_field, request, **kwargs)
        if db_field.name == "tenant" and field is not None:
            only = list(field.queryset[:2])
            if len(only) == 1:
                field.initial, field.widget = only[0].pk, forms.HiddenInput()
        return field

    def formfield_for_manytomany(self, db_field: Field, request: HttpRequest, **kwargs: Any) -> forms.Field | None:
        kwargs["queryset"] = choices_for(request, db_field.remote_field.model)
        return super().formfield_for_manytomany(db_field, request, **kwargs)


def tenant_id_of(obj: object) -> Any:
    return getattr(obj, "tenant_id", None)


class ScopedForm(forms.ModelForm):
    """Refuses to join things of two tenants, even of one user's own two."""

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        values = cleaned if cleaned is not None else self.cleaned_data
        chosen = values.get("tenant")
        tenant_id = chosen.pk if chosen is not None else tenant_id_of(self.instance)
        for name, value in list(values.items()):  # add_error takes out what is wrong
            picked = value if isinstance(value, QuerySet) else [value]
            for one in picked:
                other = tenant_id_of(one) if isinstance(one, Model) else None
                if tenant_id and other and other != tenant_id:
                    self.add_error(name, ValidationError(_("“%s” belongs to another tenant.") % one))
        return cleaned


@dataclass(frozen=True, kw_only=True)
class Verb:
    """An act on one object. ``run(request, obj, data)`` calls a domain verb and gives the object whose page is
    shown next (or None: back to ``obj``). ``typed_name`` gives a name that must be typed first."""

    label: Words
    icon: str
    right: Right
    run: Callable[[HttpRequest, Any, dict[str, Any]], Model | HttpResponse | str | None]
    done: Words = ""
    question: Words = ""
    consequence: Callable[[Any], Words] | None = None
    form: Callable[[HttpRequest, Any], type[forms.Form]] | None = None
    typed_name: Callable[[Any], str] | None = None
    primary: bool = False
    danger: bool = False
    when: Callable[[Any], bool] = lambda _obj: True


@dataclass(frozen=True, kw_only=True)
class Empty:
    """What a list without rows says: what would be in it, and the next step."""

    icon: str
    text: Words
    action: Words
    url: str  # the name of a page of the admin
    dialog: bool = False


class TypedName(forms.Form):
    """Where much is lost, a click is not enough."""

    typed_name = forms.CharField(label=gettext_lazy("Type its name to confirm"), widget=UnfoldAdminTextInputWidget)

    def __init__(self, *args: Any, name: str = "", **kwargs: Any) -> None:
        self.name = name
        super().__init__(*args, **kwargs)
        self.fields["typed_name"].help_text = name

    def clean_typed_name(self) -> str:
        typed = self.cleaned_data["typed_name"].strip()
        if typed != self.name:
            raise ValidationError(_("This is not its name: “%s”.") % self.name)
        return typed


class VerbViews:
    """The pages ``<object>/do/<verb>/``: a dialog on GET, the act on POST, 404 for what one may not see."""

    verbs: ClassVar[Mapping[str, Verb]] = {}

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_do"
        own = path("<path:object_id>/do/<slug:verb>/", self.admin_site.admin_view(self.verb_view), name=name)
        return [own, *super().get_urls()]

    def verbs_for(self, request: HttpRequest, obj: Any) -> list[dict[str, Any]]:
        """The buttons of an object's page: what the user may do and its state allows."""
        return [
            {"verb": verb, "url": reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_do", args=[obj.pk, key])}
            for key, verb in self.verbs.items()
            if verb.when(obj) and access.can(request.user, verb.right, obj)
        ]

    def verb_form(self, verb: Verb, request: HttpRequest, obj: Any, data: Any) -> forms.Form:
        if verb.typed_name:
            return TypedName(data, name=verb.typed_name(obj))
        return (verb.form(request, obj) if verb.form else forms.Form)(data)

    def verb_view(self, request: HttpRequest, object_id: str, verb: str) -> HttpResponse:
        obj = self.get_object(request, unquote(object_id))
        act = self.verbs.get(verb)
        if obj is None or act is None:
            raise Http404
        access.require(request.user, act.right, obj)
        form = self.verb_form(act, request, obj, request.POST if request.method == "POST" else None)
        if request.method == "POST" and form.is_valid():
            try:
                result = act.run(request, obj, form.cleaned_data)
            except DomainError as error:
                form.add_error(None, " ".join(filter(None, [str(error.message), str(error.hint)])))
            else:
                if isinstance(result, HttpResponse):
                    return result
                if act.done:
                    messages.success(request, act.done)
                return HttpResponseRedirect(result if isinstance(result, str) else address(result or obj))
        context = {
            **self.admin_site.each_context(request),
            "title": act.label,
            "subtitle": str(obj),
            "opts": self.opts,
            "object": obj,
            "verb": act,
            "consequence": act.consequence(obj) if act.consequence else "",
            "form": form,
            "back": address(obj),
        }
        return TemplateResponse(request, "brs/verb.html", context)


# One primary button a page: Save.
QUIET = {"show_save_and_add_another": False, "show_save_and_continue": False}


class ScopedAdmin(VerbViews, ScopedFields, ModelAdmin):
    """The base of every page: scoped lists, choices, filters, history; rights by ``iam.access``; one audit trail."""

    form = ScopedForm
    view_right: ClassVar[Right] = Right.VIEW
    add_right: ClassVar[Right | None] = Right.CONFIGURE
    change_right: ClassVar[Right | None] = Right.CONFIGURE
    delete_right: ClassVar[Right | None] = Right.DELETE
    superuser_only: ClassVar[bool] = False
    choice_rights: ClassVar[dict[str, Right]] = {"tenant": Right.CONFIGURE}
    list_per_page = 50
    list_title: ClassVar[Words] = ""  # where the side bar's word for it is not the plural of one row
    empty: ClassVar[Empty | None] = None
    hide_single_tenant: ClassVar[bool] = True

    def get_queryset(self, request: HttpRequest) -> QuerySet:
        if self.superuser_only:
            queryset = super().get_queryset(request)
            return queryset if request.user.is_superuser else queryset.none()
        return access.visible(request.user, super().get_queryset(request), self.view_right)

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        """Whose it is goes without saying for a member of one tenant."""
        columns = list(super().get_list_display(request))
        single = access.tenants(request.user).count() < 2
        return [one for one in columns if one != "tenant"] if single and self.hide_single_tenant else columns

    def get_list_filter(self, request: HttpRequest) -> list[Any]:
        return [scoped_filter(self.model, given) for given in super().get_list_filter(request)]

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        """``?token_hash__startswith=a`` would tell a hash letter by letter to everybody who sees the list."""
        return not audit.is_hidden(lookup) and super().lookup_allowed(lookup, value, request)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        request.brs_list = self.list_title  # the header's first part, see unfold/helpers/header_title.html
        title = {"title": self.list_title} if self.list_title else {}
        try:
            return super().changelist_view(request, {**title, **(extra_context or {})})
        except OverflowError as error:  # a key in the address that no database could hold
            raise BadRequest(str(error)) from error

    # --- rights ---

    def _may(self, request: HttpRequest, right: Right | None, obj: Any = None) -> bool:
        user = request.user
        if right is None or not user.is_active:
            return False
        if self.superuser_only or not hasattr(self.model, "tenant_path"):
            return bool(user.is_superuser)
        if obj is not None and not isinstance(obj, Model):
            obj = self.get_object(request, unquote(str(obj)))  # unfold's actions pass an id
        if obj is None or obj._state.adding:
            return bool(user.is_superuser or access.tenants(user, right).exists())
        return access.can(user, right, obj)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self._may(request, self.view_right)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, self.view_right, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self._may(request, self.add_right)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, self.change_right, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, self.delete_right, obj)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Bulk deletion is left out: deleting is a dialog on the object's page that says what is lost."""
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def _get_obj_does_not_exist_redirect(self, request: HttpRequest, opts: Any, object_id: str) -> HttpResponse:
        raise Http404

    def page_context(self, request: HttpRequest, obj: Any) -> dict[str, Any]:
        """What the object's page shows beside its form."""
        return {}

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            raise Http404
        request.brs_list = self.list_title
        shown = {"title": str(obj), "subtitle": None, "verbs": self.verbs_for(request, obj)}
        shown["has_settings"] = self.change_right is not None
        extra = {**QUIET, **shown, **self.page_context(request, obj), **(extra_context or {})}
        return super().change_view(request, object_id, form_url, extra)

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        return super().add_view(request, form_url, {**QUIET, **(extra_context or {})})

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        if self.get_object(request, unquote(object_id)) is None:
            raise Http404
        return super().delete_view(request, object_id, extra_context)

    def _changeform_view(self, request: HttpRequest, object_id: str | None, form_url: str, extra: Any) -> HttpResponse:
        if object_id is not None and self.get_object(request, unquote(object_id)) is None:
            raise Http404  # before Django's 403, which would tell that it exists
        return super()._changeform_view(request, object_id, form_url, extra)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Iterable[str]:
        fixed = list(super().get_readonly_fields(request, obj))
        has_tenant = any(field.name == "tenant" for field in self.opts.fields)
        return [*fixed, "tenant"] if obj is not None and has_tenant and "tenant" not in fixed else fixed

    # --- the audit trail ---

    def save_model(self, request: HttpRequest, obj: Any, form: forms.Form, change: bool) -> None:
        if change:
            request.brs_before = audit.snapshot(self.model._base_manager.get(pk=obj.pk))
        elif tenant_id_of(obj) and not access.tenants(request.user, self.add_right).filter(pk=obj.tenant_id).exists():
            raise PermissionDenied
        super().save_model(request, obj, form, change)

    def _record(self, request: HttpRequest, verb: str, obj: Any, detail: dict[str, Any]) -> None:
        audit.record(request.user, f"{self.opts.model_name}.{verb}", obj, detail=detail, request=request)

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> None:
        self._record(request, "added", obj, {"after": audit.snapshot(obj)})

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> None:
        before = getattr(request, "brs_before", None)
        if before is None:  # a page of its own that saves without save_model, such as a person's password
            self._record(request, "changed", obj, {"said": message})
            return
        detail = {"changes": audit.changes(before, audit.snapshot(obj))}
        related = [one for one in message if isinstance(one, dict) and "name" in next(iter(one.values()), {})]
        if related:
            detail["related"] = related
        self._record(request, "changed", obj, detail)

    def log_deletions(self, request: HttpRequest, queryset: Iterable[Any]) -> None:
        for obj in queryset:
            self._record(request, "deleted", obj, {"before": audit.snapshot(obj)})

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            raise Http404
        events = AuditEvent.objects.filter(object_type=self.opts.label_lower, object_id=str(obj.pk))
        if not access.is_single(request.user, obj):
            events = access.visible(request.user, events)  # the others' doings with it are theirs
        context = {
            **self.admin_site.each_context(request),
            "title": _("History"),
            "subtitle": str(obj),
            "events": Paginator(events, 100).get_page(request.GET.get("p", 1)),
            "object": obj,
            "opts": self.opts,
        }
        return TemplateResponse(request, "admin/object_history.html", context)


class ReadOnlyAdmin(ScopedAdmin):
    """Facts that the system writes: looked at, never edited by hand."""

    add_right = change_right = delete_right = None


class ScopedInline(ScopedFields, TabularInline):
    """Rows below their parent: who may change the parent may change them."""

    extra = 0
    form = ScopedForm

    def _may(self, request: HttpRequest, obj: Any, right: Right) -> bool:
        if obj is None or obj._state.adding:
            return bool(request.user.is_superuser or access.tenants(request.user, right).exists())
        return access.can(request.user, right, obj)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, obj, Right.VIEW)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, obj, self.change_right)

    has_change_permission = has_delete_permission = has_add_permission
    change_right: ClassVar[Right] = Right.CONFIGURE
