"""Object grants (guardian): an owner may let a member see or operate a single node, platform, workload …

guardian's own pages let everybody with the model's change permission grant anything to anybody; here it takes the
right to manage members, and only people of one's own tenants can be named.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django import forms
from django.contrib.admin.utils import unquote
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from guardian.admin import GuardedModelAdminMixin, UserManage

from apps.errors import Denied
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.admin_scope import ScopedAdmin
from apps.iam.models import Tenant, User


class GrantedAdmin(GuardedModelAdminMixin, ScopedAdmin):
    change_form_template: ClassVar[str] = "brs/object_page.html"

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        obj = self.get_object(request, unquote(object_id))
        may_grant = obj is not None and self._may_grant(request, obj)
        return super().change_view(request, object_id, form_url, {"may_grant": may_grant, **(extra_context or {})})

    @staticmethod
    def _may_grant(request: HttpRequest, obj: Any) -> bool:
        tenant: Tenant | None = access.tenant_of(obj)
        return bool(request.user.is_superuser or (tenant and access.can(request.user, Right.MEMBERS, tenant)))

    def _granting(self, request: HttpRequest, object_pk: str) -> Any:
        obj = self.get_object(request, unquote(object_pk))
        if obj is None:
            raise Http404
        if not self._may_grant(request, obj):
            raise Denied
        return obj

    def obj_perms_manage_view(self, request: HttpRequest, object_pk: str) -> HttpResponse:
        self._granting(request, object_pk)
        return super().obj_perms_manage_view(request, object_pk)

    def obj_perms_manage_user_view(self, request: HttpRequest, object_pk: str, user_id: str) -> HttpResponse:
        obj = self._granting(request, object_pk)
        person = access.fetch(request.user, User, user_id)
        response = super().obj_perms_manage_user_view(request, object_pk, str(person.pk))
        if request.method == "POST" and response.status_code == 302:
            audit.record(request.user, "grant.changed", obj, detail={"user": person.username}, request=request)
        return response

    def obj_perms_manage_group_view(self, request: HttpRequest, object_pk: str, group_id: str) -> HttpResponse:
        obj = self._granting(request, object_pk)
        if not request.user.is_superuser:  # groups reach over tenants
            raise Denied
        response = super().obj_perms_manage_group_view(request, object_pk, group_id)
        if request.method == "POST" and response.status_code == 302:
            audit.record(request.user, "grant.changed", obj, detail={"group": group_id}, request=request)
        return response

    def get_obj_perms_user_select_form(self, request: HttpRequest) -> type[forms.Form]:
        class OwnPeople(UserManage):
            def clean_user(self) -> User:
                person = super().clean_user()
                if not access.can(request.user, Right.VIEW, person):
                    raise forms.ValidationError(_("There is no such user."))
                return person

        return OwnPeople
