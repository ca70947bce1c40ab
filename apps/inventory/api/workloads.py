# ruff: noqa: ARG002  the signatures are Django REST framework's
"""REST API of workloads: the things that are protected, and the acts on them."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.catalog.api import RestorePointSerializer, shown_points
from apps.catalog.models import Protection, ProtectionState
from apps.errors import Invalid
from apps.iam.api_fields import NoBody, PlainObjectField, ScopedField, ScopedSerializer, StrictSerializer
from apps.iam.api_http import ApiFilters, TrueFalse
from apps.iam.api_scope import WriteScopedViewSet
from apps.inventory import exclusion, sources
from apps.inventory.models import Platform, PlatformKind, Workload
from apps.jobs import objectives, requests, traces
from apps.jobs.api_job import long_work, start
from apps.policies import assignment
from apps.policies.models import Policy

BULK_MOST = 200


class ProtectionSerializer(ScopedSerializer):
    class Meta:
        model = Protection
        fields = (
            "state",
            "reason",
            "last_good",
            "last_good_at",
            "last_run_at",
            "last_run_outcome",
            "last_run_message",
            "next_run_at",
            "objective_hours",
            "points",
            "size_bytes",
        )
        read_only_fields = fields


class WorkloadSerializer(ScopedSerializer):
    source = PlainObjectField(
        help_text='Of files: {"paths": […], "excludes": […]}; of a disk image: {"path": "/…", "disk": "…"}; of a '
        'machine: {"known_as": "…", "leave_out": [disks], "freeze": "no", "try" or "require", "freeze_limit_s": 10}.'
    )
    kind = serializers.ChoiceField(PlatformKind.choices, source="platform.kind", read_only=True)
    policy = serializers.UUIDField(source="assignment.policy_id", read_only=True, default=None)
    policy_name = serializers.CharField(source="assignment.policy.name", read_only=True, default=None)
    protection = ProtectionSerializer(read_only=True, default=None)

    class Meta:
        model = Workload
        fields = (
            "id",
            "tenant",
            "platform",
            "kind",
            "name",
            "source",
            "external_id",
            "facts",
            "seen_at",
            "gone_at",
            "excluded",
            "excluded_reason",
            "policy",
            "policy_name",
            "protection",
            "created_at",
        )
        read_only_fields = (
            "external_id", "facts", "seen_at", "gone_at", "excluded", "excluded_reason", "created_at",
        )  # fmt: skip

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        attrs = super().validate(attrs)
        if "source" in attrs or "platform" in attrs:
            platform = attrs.get("platform") or self.instance.platform
            self._refuse_by_hand(platform, attrs)
            attrs["source"] = sources.clean(platform.kind, attrs.get("source", getattr(self.instance, "source", None)))
        return attrs

    def _refuse_by_hand(self, platform: Platform, attrs: dict[str, Any]) -> None:
        """Machines are found, not written; and the name that a machine's points bear cannot be changed."""
        before = self.instance
        if platform.holds_machines and (before is None or before.platform_id != platform.pk):
            raise Invalid(
                _("Machines are discovered, not added by hand."), hint=_("Let the platform look for machines.")
            )
        if before is not None and before.external_id and before.platform_id != platform.pk:
            raise Invalid(_("A machine stays on the platform that it was discovered on."))
        if before is not None and before.external_id and isinstance(attrs.get("source"), dict):
            attrs["source"] = {**attrs["source"], "known_as": before.source["known_as"]}


class BackupSerializer(StrictSerializer):
    full = serializers.BooleanField(default=False, help_text="Read everything again, trust nothing remembered.")


class ExcludeSerializer(StrictSerializer):
    reason = serializers.CharField(max_length=exclusion.REASON_LONGEST)


class AssignSerializer(StrictSerializer):
    policy = ScopedField(queryset=Policy.objects.all(), allow_null=True, help_text="null: no policy.")


class AssignManySerializer(AssignSerializer):
    workloads = ScopedField(queryset=Workload.objects.all(), many=True, allow_empty=False)

    def validate_workloads(self, workloads: list[Workload]) -> list[Workload]:
        if len(workloads) > BULK_MOST:
            raise serializers.ValidationError(_("At most %d at once.") % BULK_MOST)
        return workloads


class AssignedSerializer(serializers.Serializer):
    changed = serializers.IntegerField()


class WorkloadFilters(ApiFilters):
    kind = filters.ChoiceFilter("platform__kind", choices=PlatformKind.choices)
    policy = filters.UUIDFilter("assignment__policy", label="covered by this policy")
    gone = TrueFalse("gone_at", lookup_expr="isnull", exclude=True, label="a machine that is gone")
    covered = TrueFalse("assignment", lookup_expr="isnull", exclude=True, label="covered by any policy")
    state = filters.MultipleChoiceFilter("protection__state", choices=ProtectionState.choices)

    class Meta(ApiFilters.Meta):
        model = Workload
        fields = ("tenant", "platform", "excluded", "name")


class WorkloadViewSet(WriteScopedViewSet):
    """Workloads: the things that are protected."""

    queryset = Workload.objects.select_related("platform", "protection", "assignment__policy")
    serializer_class = WorkloadSerializer
    filterset_class = WorkloadFilters
    search_fields = ("name", "platform__name")
    ordering_fields = (
        "name",
        "created_at",
        "protection__state",
        "protection__last_good_at",
        "protection__next_run_at",
        "protection__size_bytes",
    )
    ordering = ("name", "pk")

    def after_write(self, row: Workload) -> None:
        objectives.refresh([row.pk])

    @long_work(BackupSerializer)
    @action(detail=True, methods=["post"])
    def backup(self, request: Request, pk: str) -> Response:
        """Backs it up now, as a job."""
        workload = self.get_object()
        values = self.body(BackupSerializer)
        return start(request, lambda: requests.backup_now(request.user, workload, full=values["full"]))

    @long_work(NoBody)
    @action(detail=True, methods=["post"])
    def probe(self, request: Request, pk: str) -> Response:
        """Tests that the source can be read, as a job."""
        workload = self.get_object()
        self.body(NoBody)
        return start(request, lambda: requests.probe_workload(request.user, workload))

    @long_work(NoBody)
    @action(detail=True, methods=["post"], url_path="remove-kept-snapshots")
    def remove_kept_snapshots(self, request: Request, pk: str) -> Response:
        """Removes what backups keep on its platform for the next one, as a job. The next backup reads everything."""
        workload = self.get_object()
        self.body(NoBody)
        return start(request, lambda: requests.remove_traces(request.user, workload, traces.of_backups(workload)))

    @extend_schema(request=ExcludeSerializer, responses=WorkloadSerializer)
    @action(detail=True, methods=["post"])
    def exclude(self, request: Request, pk: str) -> Response:
        """Leaves it out on purpose, with a reason."""
        workload = self.get_object()
        exclusion.exclude(request.user, [workload], self.body(ExcludeSerializer)["reason"], request=request)
        return self._refreshed(workload)

    @extend_schema(request=NoBody, responses=WorkloadSerializer)
    @action(detail=True, methods=["post"])
    def include(self, request: Request, pk: str) -> Response:
        """Takes the exclusion back."""
        workload = self.get_object()
        self.body(NoBody)
        exclusion.include(request.user, [workload], request=request)
        return self._refreshed(workload)

    @extend_schema(request=AssignSerializer, responses=WorkloadSerializer)
    @action(detail=True, methods=["post"])
    def assign(self, request: Request, pk: str) -> Response:
        """Covers it with a policy, or with none."""
        workload = self.get_object()
        assignment.assign(request.user, [workload], self.body(AssignSerializer)["policy"])
        return self._refreshed(workload)

    @extend_schema(request=AssignManySerializer, responses=AssignedSerializer, operation_id="workloads_assign_many")
    @action(detail=False, methods=["post"], url_path="assign", url_name="assign-many")
    def assign_many(self, request: Request) -> Response:
        """Covers several with a policy, or with none: all of them, or nothing happens."""
        values = self.body(AssignManySerializer)
        changed = assignment.assign(request.user, values["workloads"], values["policy"])
        objectives.refresh([workload.pk for workload in values["workloads"]])
        return Response(AssignedSerializer({"changed": changed}).data)

    @extend_schema(responses=RestorePointSerializer(many=True))
    @action(detail=True, query=frozenset({"limit", "offset"}), filter_backends=[])
    def points(self, request: Request, pk: str) -> Response:
        """Its restore points, newest first."""
        workload = self.get_object()
        return self.paged(shown_points(workload.points.all()), RestorePointSerializer)

    def _refreshed(self, workload: Workload) -> Response:
        objectives.refresh([workload.pk])
        return Response(self.get_serializer(self.get_object()).data)
