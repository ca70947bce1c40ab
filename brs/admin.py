"""Pages of what belongs to no app: groups and the scheduler's ticks. For superusers only; the ticks are looked at,
never edited (an editor of periodic tasks may call any task with any arguments)."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as BaseGroupAdmin
from django.contrib.auth.models import Group
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)
from unfold.admin import ModelAdmin
from unfold.decorators import display

from apps import display as look
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
    list_title = gettext_lazy("Scheduler")
    list_display: ClassVar = ["name", "every", "enabled", "last_run", "runs"]
    list_filter: ClassVar = ["enabled"]
    search_fields: ClassVar = ["name", "task"]

    def get_queryset(self, request: Any) -> Any:
        """Without Celery's own, which clears a store of results that is not used."""
        own = super().get_queryset(request).exclude(name__startswith="celery.")
        return own.select_related("interval", "crontab").order_by("name")

    @display(description=gettext_lazy("runs"))
    def every(self, tick: PeriodicTask) -> str:
        interval = tick.interval
        if interval is None:
            return str(tick.scheduler)
        return _("every %s") % look.duration(interval.schedule.run_every.total_seconds())

    @display(description=gettext_lazy("last run"), ordering="last_run_at")
    def last_run(self, tick: PeriodicTask) -> SafeString:
        return look.ago(tick.last_run_at)

    @display(description=gettext_lazy("times"), ordering="total_run_count")
    def runs(self, tick: PeriodicTask) -> int:
        return tick.total_run_count


@admin.register(ClockedSchedule, CrontabSchedule, IntervalSchedule, SolarSchedule)
class TickAdmin(ReadOnlyAdmin):
    superuser_only = True
    form = ModelAdmin.form
