"""Jobs: the list, and the page of one that moves by itself."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display

from apps import display as look
from apps.iam import access
from apps.iam.access import Right
from apps.iam.admin_bulk import BulkActs, each
from apps.iam.admin_scope import Empty, ReadOnlyAdmin, Verb
from apps.inventory import sources
from apps.jobs import placement, requests
from apps.jobs.models import ENDED, OPEN, Download, Job, JobKind, LogLine, State
from apps.jobs.pipeline import pipeline

LOG_LINES = 500
EARLIER = 8


def _cancel(request: HttpRequest, job: Job, _data: dict[str, Any]) -> None:
    requests.cancel(request.user, job)


@admin.register(Job)
class JobAdmin(BulkActs, ReadOnlyAdmin):
    empty = Empty(
        icon="play_circle",
        text=gettext_lazy("Nothing has run yet. Jobs appear here when a policy or you start a backup."),
        action=gettext_lazy("Go to the workloads"),
        url="admin:inventory_workload_changelist",
    )
    list_display: ClassVar = ["shown_state", "title", "kind", "progress", "started", "lasted", "by", "tenant"]
    list_display_links: ClassVar = ["title"]
    list_filter: ClassVar = ["state", "kind", "trigger", "created_at", "workload", "tenant"]
    list_select_related: ClassVar = ["tenant", "requested_by", "workload"]
    search_fields: ClassVar = ["title", "workload__name", "error_message"]
    actions: ClassVar = ["retry_many", "cancel_many"]
    change_form_template = "brs/job.html"
    list_before_template = "brs/list_before.html"
    verbs: ClassVar = {
        "cancel": Verb(
            label=gettext_lazy("Cancel"),
            icon="cancel",
            right=Right.OPERATE,
            danger=True,
            run=_cancel,
            question=gettext_lazy(
                "The node stops at the next safe moment. What it has stored already is used next time."
            ),
            done=gettext_lazy("The job is being cancelled."),
            when=lambda job: job.state in OPEN and not job.cancel_requested_at,
        ),
        "retry": Verb(
            label=gettext_lazy("Run again"),
            icon="replay",
            right=Right.OPERATE,
            primary=True,
            run=lambda request, job, _data: requests.retry(request.user, job),
            question=gettext_lazy("A new job does the same again."),
            when=lambda job: job.state in ENDED and job.state != State.SUCCEEDED,
        ),
    }

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return self._may(request, Right.OPERATE)

    @admin.action(description=gettext_lazy("Run again"), permissions=["operate"])
    def retry_many(self, request: HttpRequest, queryset: QuerySet[Job]) -> HttpResponse | None:
        words = {
            "title": _("Run again"),
            "question": _("For each of these jobs a new one does the same again."),
            "done": _("Jobs started: %d"),
        }
        return self.bulk(request, queryset, "retry_many", each(requests.retry), words)

    @admin.action(description=gettext_lazy("Cancel"), permissions=["operate"])
    def cancel_many(self, request: HttpRequest, queryset: QuerySet[Job]) -> HttpResponse | None:
        words = {
            "title": _("Cancel jobs"),
            "question": _("The nodes stop at the next safe moment. What they have stored already is used next time."),
            "done": _("Jobs being cancelled: %d"),
        }
        return self.bulk(request, queryset, "cancel_many", each(requests.cancel), words)

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("tasks__node")

    def page_context(self, request: HttpRequest, obj: Job) -> dict[str, Any]:
        tasks = list(obj.tasks.select_related("node").order_by("ordinal"))
        log = list(LogLine.objects.filter(job=obj).order_by("-id")[:LOG_LINES])[::-1]
        waiting = [task for task in tasks if task.state == State.QUEUED] if obj.state == State.QUEUED else []
        return {
            "job": obj,
            "unprotectable": sources.unprotectable(obj.workload) if obj.workload and obj.kind == JobKind.BACKUP else [],
            "of_machine": obj.platform is not None and obj.platform.holds_machines,
            "tasks": tasks,
            "stages": pipeline(tasks),
            "log": log,
            "waiting_for": obj.waiting_for or (placement.why_waiting(waiting[0], timezone.now()) if waiting else ""),
            "earlier": self._earlier(request, obj),
            "is_open": obj.state in OPEN,
            "ends": obj.finished_at or timezone.now(),
            "left_out": [row for task in tasks for row in task.left_out if not row.get("note")][:200],
            "notes": [row for task in tasks for row in task.left_out if row.get("note")][:200],
            "left_out_count": sum(task.left_out_count for task in tasks),
            "checks": [check for task in tasks for check in (task.outcome or {}).get("checks", [])],
            "outcome": next((task.outcome for task in reversed(tasks) if task.outcome), {}),
            "download": Download.objects.filter(job=obj, user=request.user).first(),
            "point": self._point(request, obj),
            "subtitle": obj.get_kind_display(),
        }

    @staticmethod
    def _earlier(request: HttpRequest, job: Job) -> Any:
        """The same job's other runs, to compare with."""
        if job.workload_id is None:
            return []
        runs = access.visible(request.user, Job).filter(workload=job.workload, kind=job.kind).exclude(pk=job.pk)
        return runs.filter(created_at__lt=job.created_at).prefetch_related("tasks").order_by("-created_at")[:EARLIER]

    @staticmethod
    def _point(request: HttpRequest, job: Job) -> dict[str, Any] | None:
        point = job.restore_point
        if point is None or not access.can(request.user, Right.VIEW, point):
            return None
        may = access.can(request.user, Right.RESTORE_ELSEWHERE, point) and job.kind == JobKind.BACKUP
        return {"point": point, "restore": f"{reverse('admin:restore_new')}?point={point.pk}" if may else ""}

    @display(description=gettext_lazy("state"), ordering="state")
    def shown_state(self, job: Job) -> SafeString:
        return look.badge(job.state)

    @display(description=gettext_lazy("progress"))
    def progress(self, job: Job) -> SafeString | str:
        if job.state == State.QUEUED:
            return job.waiting_for or _("waits for a node")
        if job.state in ENDED:
            return job.error_message[:80] if job.state == State.FAILED else "–"
        stages = pipeline(list(job.tasks.all()))
        done, total = sum(stage.done_bytes for stage in stages), sum(stage.total_bytes for stage in stages)
        if len(stages) == 1 and stages[0].whole:
            done, total = stages[0].percent, 100
        return look.bar(done, total, "run", _("%d %% done") % look.percent(done, total))

    @display(description=gettext_lazy("started"), ordering="created_at")
    def started(self, job: Job) -> SafeString:
        return look.ago(job.started_at or job.created_at)

    @display(description=gettext_lazy("took"))
    def lasted(self, job: Job) -> str:
        if not job.started_at:
            return "–"
        return look.duration(((job.finished_at or timezone.now()) - job.started_at).total_seconds())

    @display(description=gettext_lazy("started by"), ordering="trigger")
    def by(self, job: Job) -> str:
        return job.requested_by.get_username() if job.requested_by else str(job.get_trigger_display())
