"""A job as the REST API shows it, and how long work is started: 202, the job's address, the job.

A caller who may have to repeat himself sends ``Idempotency-Key``: the same user, address, body and key start one
job only, and a repetition is answered with it. The key ends up in ``Job.dedupe_key``, so the database keeps the
promise, for two requests at once too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from apps.catalog.models import RestorePoint
from apps.errors import Invalid
from apps.iam import access
from apps.iam.api_fields import ScopedSerializer
from apps.jobs.models import Job, Task

KEY_HEADER = "Idempotency-Key"
KEY_LONGEST = 200


class TaskSerializer(ScopedSerializer):
    node_name = serializers.CharField(source="node.name", read_only=True, default=None)
    progress = serializers.JSONField(read_only=True, help_text="Figures as the node tells them; bytes and files.")
    left_out = serializers.JSONField(read_only=True, help_text="The first 1,000 items that were left out.")

    class Meta:
        model = Task
        fields = (
            "id",
            "ordinal",
            "kind",
            "state",
            "node",
            "node_name",
            "attempt",
            "max_attempts",
            "phase",
            "progress",
            "progress_at",
            "available_at",
            "started_at",
            "finished_at",
            "outcome",
            "left_out",
            "left_out_count",
            "error_code",
            "error_message",
            "error_hint",
        )
        read_only_fields = fields


class JobSerializer(ScopedSerializer):
    """Without the tasks, for lists."""

    url = serializers.SerializerMethodField()
    requested_by = serializers.CharField(source="requested_by.username", read_only=True, default=None)
    restore_point = serializers.SerializerMethodField(help_text="The one it used, or made.")
    download = serializers.SerializerMethodField(help_text="Of a download: where the file can be fetched from.")

    class Meta:
        model = Job
        fields = (
            "id",
            "url",
            "tenant",
            "kind",
            "state",
            "trigger",
            "title",
            "workload",
            "platform",
            "destination",
            "repository",
            "restore_point",
            "policy",
            "requested_by",
            "retry_of",
            "priority",
            "full",
            "due_at",
            "start_before",
            "created_at",
            "started_at",
            "finished_at",
            "cancel_requested_at",
            "error_code",
            "error_message",
            "error_hint",
            "waiting_for",
            "download",
        )
        read_only_fields = fields

    def get_url(self, job: Job) -> str:
        return job_url(job, self.context.get("request"))

    @extend_schema_field(OpenApiTypes.UUID)
    def get_restore_point(self, job: Job) -> str | None:
        if job.restore_point_id:
            return str(job.restore_point_id)
        if job.kind != "backup" or job.state not in {"succeeded", "partial"}:
            return None
        # A backup's point points at the task that made it; jobs lie above points.
        made = RestorePoint.objects.filter(task__in=[task.pk for task in job.tasks.all()]).values_list("pk", flat=True)
        return next((str(pk) for pk in made), None)

    @extend_schema_field(OpenApiTypes.UUID)
    def get_download(self, job: Job) -> str | None:
        request = self.context.get("request")
        download = getattr(job, "download", None) if job.kind == "download" else None
        return str(download.pk) if download and request and download.user_id == request.user.pk else None


class JobDetailSerializer(JobSerializer):
    tasks = TaskSerializer(many=True, read_only=True)
    rule = serializers.JSONField(read_only=True, help_text="The policy as it was when the job was made.")

    class Meta(JobSerializer.Meta):
        fields = (*JobSerializer.Meta.fields, "rule", "tasks")
        read_only_fields = fields


def job_url(job: Job, request: Request | None) -> str:
    return reverse("api:job-detail", kwargs={"pk": job.pk}, request=request)


def start(request: Request, verb: Callable[[], Job]) -> Response:
    """Calls the verb, at most once per Idempotency-Key, and answers 202 with its job."""
    key = request.headers.get(KEY_HEADER)
    job = verb() if key is None else _once(request, key, verb)
    body = JobDetailSerializer(job, context={"request": request}).data
    return Response(body, status.HTTP_202_ACCEPTED, headers={"Location": job_url(job, request)})


def _once(request: Request, key: str, verb: Callable[[], Job]) -> Job:
    name = _dedupe_key(request, key)
    mine = access.visible(request.user, Job).filter(dedupe_key=name)
    job = mine.first()
    if job is not None:
        return job
    try:
        with transaction.atomic():
            job = verb()
            Job.objects.filter(pk=job.pk, dedupe_key=None).update(dedupe_key=name)
    except IntegrityError:
        # The same request came twice at once and the other one won; what this one did is rolled back.
        winner = mine.first()
        if winner is None:
            raise
        return winner
    return job


def _dedupe_key(request: Request, key: str) -> str:
    if not (0 < len(key) <= KEY_LONGEST and key.isascii() and key.isprintable()):
        raise Invalid(
            _("%(name)s must be 1 to %(most)d printable characters.") % {"name": KEY_HEADER, "most": KEY_LONGEST},
            hint=_("A UUID is a good one."),
        )
    said = json.dumps([request.path.rstrip("/"), key, request.data], sort_keys=True, default=str)
    return f"api:{request.user.pk}:{hashlib.sha256(said.encode('utf-8', 'surrogatepass')).hexdigest()}"


def long_work(body: Any, **schema: Any) -> Callable[[Any], Any]:
    """The schema of an action that answers 202 with its job."""
    return extend_schema(
        request=body,
        **schema,
        responses={202: OpenApiResponse(JobDetailSerializer, description="Accepted; Location names the job.")},
        parameters=[
            OpenApiParameter(
                KEY_HEADER,
                OpenApiTypes.STR,
                OpenApiParameter.HEADER,
                description="Repeating the same request with the same key does not start it again.",
            )
        ],
    )
