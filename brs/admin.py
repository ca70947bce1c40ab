"""Pages of what belongs to no app: groups and the scheduler's ticks. For superusers only; the ticks are looked at,
never edited (an editor of periodic tasks may call any task with any arguments)."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as BaseGroupAdmin
from django.contrib.auth.models import Group
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)
from unfold.admin import ModelAdmin

from apps.iam.admin_scope import ReadOnlyAdmin, ScopedAdmin

for _theirs in (Group, PeriodicTask, ClockedSchedule, CrontabSchedule, IntervalSchedule, SolarSchedule):
    if admin.site.is_registered(_theirs):
        admin.site.unregister(_theirs)


@admin.register(Group)
class GroupAdmin(BaseGroupAdmin, ScopedAdmin):
    superuser_only = True
    form = ModelAdmin.form


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(ReadOnlyAdmin):
    superuser_only = True
    form = ModelAdmin.form
    list_display: ClassVar = ["name", "task", "enabled", "last_run_at", "total_run_count"]
    list_filter: ClassVar = ["enabled"]
    search_fields: ClassVar = ["name", "task"]

    def get_queryset(self, request: Any) -> Any:
        return super().get_queryset(request).order_by("name")


@admin.register(ClockedSchedule, CrontabSchedule, IntervalSchedule, SolarSchedule)
class TickAdmin(ReadOnlyAdmin):
    superuser_only = True
    form = ModelAdmin.form
