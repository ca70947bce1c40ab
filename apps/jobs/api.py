# ruff: noqa: ARG002  the signatures are Django REST framework's
"""REST API of what happens: jobs with their progress and log, and files on their way to a user."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from django.http import HttpResponseBase
from django_filters import rest_framework as filters
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from apps.iam.api_fields import NoBody, ScopedSerializer
from apps.iam.api_http import LIMIT_MOST, ApiFilters, TrueFalse, whole_number
from apps.iam.api_scope import ReadScopedViewSet
from apps.jobs import downloads, requests
from apps.jobs.api_job import JobDetailSerializer, JobSerializer, TaskSerializer, long_work, start
from apps.jobs.models import OPEN, Download, Job, JobKind, LogLine, State

LOG_LINES = 1000  # at most in one answer


class JobFilters(ApiFilters):
    state = filters.MultipleChoiceFilter(choices=State.choices, help_text="Repeat it for several.")
    kind = filters.MultipleChoiceFilter(choices=JobKind.choices, help_text="Repeat it for several.")
    open = TrueFalse(method="only_open", label="neither ended nor cancelled")
    since = filters.IsoDateTimeFilter("created_at", lookup_expr="gte", label="created at or after (ISO 8601)")
    until = filters.IsoDateTimeFilter("created_at", lookup_expr="lt", label="created before (ISO 8601)")

    class Meta(ApiFilters.Meta):
        model = Job
        fields = (
            "tenant",
            "trigger",
            "workload",
            "platform",
            "destination",
            "repository",
            "restore_point",
            "policy",
            "retry_of",
        )

    def only_open(self, queryset: QuerySet[Job], _name: str, value: bool) -> QuerySet[Job]:
        return queryset.filter(state__in=OPEN) if value else queryset.exclude(state__in=OPEN)


class LogLineSerializer(ScopedSerializer):
    class Meta:
        model = LogLine
        fields = ("id", "at", "task", "attempt", "level", "message")
        read_only_fields = fields


class LogSerializer(serializers.Serializer):
    lines = LogLineSerializer(many=True)
    last = serializers.IntegerField(help_text="Send it as after= to get what came since.")
    more = serializers.BooleanField(help_text="Whether there are more lines already.")
    ended = serializers.BooleanField(help_text="Whether the job has ended, so that no line will follow.")


class ProgressSerializer(serializers.Serializer):
    id = serializers.UUIDField()
    state = serializers.ChoiceField(State.choices)
    waiting_for = serializers.CharField()
    tasks = TaskSerializer(many=True)


class JobViewSet(ReadScopedViewSet):
    """Jobs: backups, restores, downloads, verifications, tests; running, waiting and ended ones."""

    queryset = (
        Job.objects.select_related("requested_by", "download")
        .prefetch_related("tasks__node")
        .order_by("-created_at", "pk")
    )
    serializer_class = JobDetailSerializer
    filterset_class = JobFilters
    search_fields = ("title", "workload__name", "error_message")
    ordering_fields = ("created_at", "due_at", "started_at", "finished_at", "priority")

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        return JobSerializer if self.action == "list" else JobDetailSerializer

    @extend_schema(responses=ProgressSerializer)
    @action(detail=True)
    def progress(self, request: Request, pk: str) -> Response:
        """State and figures of the job's tasks. Figures in the database are up to ten seconds old."""
        return Response(ProgressSerializer(self.get_object()).data)

    @extend_schema(
        responses=LogSerializer,
        parameters=[
            OpenApiParameter("after", OpenApiTypes.INT, description="Only lines after this one."),
            OpenApiParameter("limit", OpenApiTypes.INT, description=f"At most {LOG_LINES} (default 200)."),
        ],
    )
    @action(detail=True, query=frozenset({"after", "limit"}))
    def log(self, request: Request, pk: str) -> Response:
        """The job's log, oldest first, in pieces."""
        job = self.get_object()
        after = whole_number(request, "after", 0, least=0, most=2**62)
        limit = whole_number(request, "limit", LIMIT_MOST, least=1, most=LOG_LINES)
        found = list(job.log.filter(pk__gt=after).order_by("pk")[: limit + 1])
        lines = found[:limit]
        more = len(found) > limit
        last = lines[-1].pk if lines else after
        ended = job.state not in OPEN
        return Response(LogSerializer({"lines": lines, "last": last, "more": more, "ended": ended}).data)

    @extend_schema(request=NoBody, responses=JobDetailSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Asks the job to stop. A running one ends when its node has heard of it; look at its state."""
        job = self.get_object()
        self.body(NoBody)
        requests.cancel(request.user, job)
        return Response(self.get_serializer(self.get_object()).data)

    @long_work(NoBody)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """Runs an ended job again, as a new job."""
        job = self.get_object()
        self.body(NoBody)
        return start(request, lambda: requests.retry(request.user, job))


class DownloadSerializer(ScopedSerializer):
    content = serializers.SerializerMethodField(help_text="Where the file is, once it is ready; null before.")

    class Meta:
        model = Download
        fields = (
            "id",
            "job",
            "file_name",
            "size_bytes",
            "received_bytes",
            "sha256",
            "ready_at",
            "expires_at",
            "content",
        )
        read_only_fields = fields

    @extend_schema_field(OpenApiTypes.URI)
    def get_content(self, download: Download) -> str | None:
        if download.ready_at is None:
            return None
        return reverse("api:download-content", kwargs={"pk": download.pk}, request=self.context.get("request"))


class DownloadViewSet(ReadScopedViewSet):
    """One's own downloads. Start one at a restore point; the file is here for an hour once it is ready."""

    queryset = Download.objects.select_related("job").order_by("-expires_at", "pk")
    serializer_class = DownloadSerializer
    filterset_fields = ("job",)
    search_fields = ("file_name",)

    def get_queryset(self) -> QuerySet[Download]:
        rows = super().get_queryset()
        # Not even a superuser fetches what another one asked for: the link is bound to him.
        return rows if getattr(self, "swagger_fake_view", False) else rows.filter(user=self.request.user)

    @extend_schema(responses={(200, "application/octet-stream"): OpenApiResponse(OpenApiTypes.BINARY)})
    @action(detail=True)
    def content(self, request: Request, pk: str) -> HttpResponseBase:
        """The file."""
        return downloads.answer(request._request, request.user, self.get_object().pk)
