"""REST API of the overview: the figures of the dashboard, and what needs attention."""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.iam.api_scope import ApiView
from apps.jobs.api_job import JobSerializer
from apps.reports import alerts, figures


class HourSerializer(serializers.Serializer):
    begins = serializers.DateTimeField()
    succeeded = serializers.IntegerField()
    partial = serializers.IntegerField()
    failed = serializers.IntegerField()


class FillSerializer(serializers.Serializer):
    destination = serializers.UUIDField(source="destination.pk")
    name = serializers.CharField(source="destination.name")
    total_bytes = serializers.IntegerField(source="destination.total_bytes")
    used_bytes = serializers.IntegerField()
    percent = serializers.IntegerField()
    days_to_full = serializers.IntegerField(allow_null=True)


class StandingSerializer(serializers.Serializer):
    workload = serializers.UUIDField(source="workload_id")
    name = serializers.CharField(source="workload.name")
    state = serializers.CharField()
    last_good_at = serializers.DateTimeField(allow_null=True)
    next_run_at = serializers.DateTimeField(allow_null=True)
    objective_hours = serializers.IntegerField(allow_null=True)


class AlertSerializer(serializers.Serializer):
    tone = serializers.ChoiceField(["bad", "warn"])
    title = serializers.CharField()
    detail = serializers.CharField()
    action = serializers.CharField(help_text="What to do, in a few words.")
    url = serializers.CharField(help_text="The page of the user interface that helps.")


class OverviewSerializer(serializers.Serializer):
    workloads = serializers.IntegerField()
    counts = serializers.DictField(child=serializers.IntegerField(), help_text="Workloads by state of protection.")
    missed_count = serializers.IntegerField(help_text="Workloads whose last good backup is too old.")
    missed = StandingSerializer(many=True)
    running_count = serializers.IntegerField()
    waiting_count = serializers.IntegerField()
    running = JobSerializer(many=True)
    hours = HourSerializer(many=True, help_text="Runs that ended in the last 24 hours, by hour.")
    runs = serializers.DictField(child=serializers.IntegerField(), help_text="Their sums.")
    protected_bytes = serializers.IntegerField()
    stored_bytes = serializers.IntegerField()
    saved_percent = serializers.IntegerField()
    points = serializers.IntegerField()
    fills = FillSerializer(many=True)
    next_runs = StandingSerializer(many=True)
    alerts = AlertSerializer(many=True)


class OverviewView(ApiView):
    """The overview: is everything protected, is something wrong, what is happening now."""

    @extend_schema(responses=OverviewSerializer, operation_id="overview", tags=["overview"])
    def get(self, request: Request) -> Response:
        now = timezone.now()
        found = figures.overview(request.user, now)
        shown: dict[str, Any] = {**vars(found), "alerts": alerts.alerts(request.user, now)}
        return Response(OverviewSerializer(shown, context={"request": request}).data)
