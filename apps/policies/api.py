# ruff: noqa: ARG002  the signatures are Django REST framework's
"""REST API of policies with their schedules, and what their retention would do."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.db.models import Count
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.catalog.models import CopyState, PointCopy, PointOutcome
from apps.errors import Conflict, DomainError
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.api_fields import NoBody, ScopedField, ScopedSerializer, StrictSerializer
from apps.iam.api_scope import WriteScopedViewSet
from apps.inventory.models import Workload
from apps.jobs import objectives, requests
from apps.jobs.api_job import JobSerializer
from apps.jobs.models import Job
from apps.policies import commands, retention, rules, schedule
from apps.policies.assignment import retention_of, rule_of
from apps.policies.models import AssignmentRule, Policy, RuleBy, Schedule

SCHEDULES_MOST = 20
RULES_MOST = 50
KEEP_MOST = 100_000
SIMULATED_MOST = 100  # workloads in one simulation
KEEPS = ("last", "hourly", "daily", "weekly", "monthly", "yearly", "within_days")


class ScheduleSerializer(ScopedSerializer):
    id = serializers.UUIDField(required=False, help_text="Of a schedule that stays; without it a new one is made.")
    description = serializers.SerializerMethodField(help_text="The cron line in words.")
    next_run = serializers.SerializerMethodField(help_text="When it is due next; null: never or not enabled.")

    class Meta:
        model = Schedule
        fields = ("id", "mode", "cron", "enabled", "description", "next_run")

    def get_description(self, row: Schedule) -> str:
        return str(schedule.describe(row.cron))

    def get_next_run(self, row: Schedule) -> str | None:
        if not (row.enabled and row.policy.enabled):
            return None
        moment = schedule.next_run(row.cron, row.policy.time_zone, timezone.now())
        return moment.isoformat().replace("+00:00", "Z") if moment else None

    def _refuse_strange(self, data: Any) -> None:
        # What a GET answered may come back: these two follow from the others.
        super()._refuse_strange({name: data[name] for name in data if name not in {"description", "next_run"}})


class RuleSerializer(ScopedSerializer):
    """Discovered machines that it covers by itself; ``pattern`` may hold * and ?."""

    class Meta:
        model = AssignmentRule
        fields = ("by", "pattern")


class PolicySerializer(ScopedSerializer):
    schedules = ScheduleSerializer(many=True, required=False, max_length=SCHEDULES_MOST)
    rules = RuleSerializer(
        many=True,
        required=False,
        max_length=RULES_MOST,
        help_text="Changing them takes the right to configure all of the tenant.",
    )
    workloads = serializers.SerializerMethodField(help_text="How many it covers.")

    class Meta:
        model = Policy
        fields = (
            "id",
            "tenant",
            "name",
            "enabled",
            "destination",
            "staging",
            "time_zone",
            "start_window_minutes",
            "objective_hours",
            "priority",
            "list_files",
            "bandwidth_mib_s",
            *(f"keep_{name}" for name in KEEPS),
            "backup_new",
            "freeze",
            "freeze_limit_s",
            *commands.FIELDS,
            "schedules",
            "rules",
            "workloads",
            "created_at",
        )
        extra_kwargs = {f"keep_{name}": {"max_value": KEEP_MOST} for name in KEEPS}

    def get_workloads(self, policy: Policy) -> int:
        counted = getattr(policy, "covered", None)  # in lists, by one query for all
        return policy.assignments.count() if counted is None else int(counted)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Cron lines and time zone are read as the planner will read them."""
        attrs = super().validate(attrs)
        tenant = attrs.get("tenant") or self.instance.tenant
        commands.require_right(self.context["request"].user, tenant, self.instance, attrs)
        zone = attrs.get("time_zone") or getattr(self.instance, "time_zone", "UTC")
        lines = [row.get("cron", Schedule._meta.get_field("cron").default) for row in attrs.get("schedules", ())]
        if "time_zone" in attrs:
            lines.append("0 0 * * *")
        if "time_zone" in attrs and "schedules" not in attrs and self.instance is not None:
            lines += self.instance.schedules.values_list("cron", flat=True)
        for line in lines:
            try:
                schedule.validate(line, zone)
            except DomainError as error:
                raise serializers.ValidationError({"schedules": [f"{error.message} {error.hint}"]}) from None
        return attrs

    def create(self, validated_data: dict[str, Any]) -> Policy:
        schedules, rules = validated_data.pop("schedules", []), validated_data.pop("rules", [])
        policy: Policy = super().create(validated_data)
        self._keep(policy, schedules)
        self._keep_rules(policy, rules)
        return policy

    def update(self, instance: Policy, validated_data: dict[str, Any]) -> Policy:
        schedules, rules = validated_data.pop("schedules", None), validated_data.pop("rules", None)
        policy: Policy = super().update(instance, validated_data)
        if schedules is not None:
            self._keep(policy, schedules)
        if rules is not None:
            self._keep_rules(policy, rules)
        return policy

    def _keep_rules(self, policy: Policy, wanted: list[dict[str, Any]]) -> None:
        """Makes the policy's rules those of the body, at most each once."""
        told = list(dict.fromkeys((row.get("by", RuleBy.NAME), row["pattern"].strip()) for row in wanted))
        rules.keep(self.context["request"].user, policy, told)
        policy._prefetched_objects_cache = {}

    def _keep(self, policy: Policy, wanted: list[dict[str, Any]]) -> None:
        """Makes the policy's schedules those of the body. Known ids stay, and with them the planner's cursor."""
        known = {row.pk: row for row in policy.schedules.all()}
        stay = [row["id"] for row in wanted if "id" in row]
        if len(set(stay)) != len(stay) or any(pk not in known for pk in stay):
            raise serializers.ValidationError({"schedules": [_("The id is not of a schedule of this policy.")]})
        policy.schedules.exclude(pk__in=stay).delete()
        for values in wanted:
            row = known.get(values.get("id")) or Schedule(policy=policy)
            for name, value in values.items():
                if name != "id":
                    setattr(row, name, value)
            row.save()
        policy._prefetched_objects_cache = {}


class SimulationSerializer(StrictSerializer):
    """Rules to try; those left out are the policy's own."""

    workload = ScopedField(queryset=Workload.objects.all(), required=False, allow_null=True, default=None)
    keep_last = serializers.IntegerField(required=False, min_value=0, max_value=KEEP_MOST)
    keep_hourly = serializers.IntegerField(required=False, min_value=0, max_value=KEEP_MOST)
    keep_daily = serializers.IntegerField(required=False, min_value=0, max_value=KEEP_MOST)
    keep_weekly = serializers.IntegerField(required=False, min_value=0, max_value=KEEP_MOST)
    keep_monthly = serializers.IntegerField(required=False, min_value=0, max_value=KEEP_MOST)
    keep_yearly = serializers.IntegerField(required=False, min_value=0, max_value=KEEP_MOST)
    keep_within_days = serializers.IntegerField(required=False, min_value=0, max_value=KEEP_MOST)


class MatchesSerializer(StrictSerializer):
    """Rules to try; left out: the policy's own."""

    rules = RuleSerializer(many=True, required=False, max_length=RULES_MOST)


class MatchSerializer(serializers.Serializer):
    workload = serializers.UUIDField()
    name = serializers.CharField()
    policy = serializers.UUIDField(allow_null=True, help_text="That covers it now.")
    policy_name = serializers.CharField(allow_null=True)
    by_hand = serializers.BooleanField(help_text="A person assigned it: no rule changes that.")


class MatchesAnswerSerializer(serializers.Serializer):
    count = serializers.IntegerField()
    matches = MatchSerializer(many=True, help_text=f"The first {rules.SHOWN}.")


class SimulatedPointSerializer(serializers.Serializer):
    point = serializers.UUIDField()
    workload = serializers.UUIDField()
    taken_at = serializers.DateTimeField()
    keep = serializers.BooleanField()
    reasons = serializers.ListField(child=serializers.CharField())


class SimulationAnswerSerializer(serializers.Serializer):
    kept = serializers.IntegerField()
    removed = serializers.IntegerField()
    complete = serializers.BooleanField(help_text="false: there are more workloads; ask for them one by one.")
    points = SimulatedPointSerializer(many=True)


class RefusedSerializer(serializers.Serializer):
    workload = serializers.UUIDField()
    code = serializers.CharField()
    message = serializers.CharField()
    hint = serializers.CharField()


class StartedSerializer(serializers.Serializer):
    """Several jobs at once."""

    jobs = JobSerializer(many=True)
    refused = RefusedSerializer(many=True)


class PolicyViewSet(WriteScopedViewSet):
    """Policies: when backups run, where they go, how long they stay. Nested schedules replace those there are."""

    queryset = Policy.objects.annotate(covered=Count("assignments")).prefetch_related("schedules__policy", "rules")
    serializer_class = PolicySerializer
    filterset_fields = ("tenant", "enabled", "destination", "name")
    search_fields = ("name",)
    ordering_fields = ("name", "priority", "created_at")
    ordering = ("name", "pk")

    def after_write(self, row: Policy) -> None:
        objectives.refresh_policy(row)
        objectives.refresh(rules.apply(row.tenant))

    def picture(self, row: Policy) -> dict[str, Any]:
        return {**audit.snapshot(row), "schedules": rule_of(row)["schedules"], "rules": rules.told(row)}

    def perform_destroy(self, instance: Policy) -> None:
        access.require(self.request.user, Right.DELETE, instance)
        if covers := instance.assignments.count():
            raise Conflict(
                ngettext("It covers %d workload.", "It covers %d workloads.", covers) % covers,
                hint=_("Assign another policy to these, or none, first."),
            )
        super().perform_destroy(instance)

    @extend_schema(request=NoBody, responses={202: StartedSerializer})
    @action(detail=True, methods=["post"])
    def run(self, request: Request, pk: str) -> Response:
        """Backs up every workload that it covers now. Those that cannot be started are told with the reason."""
        policy = self.get_object()
        self.body(NoBody)
        access.require(request.user, Right.OPERATE, policy)
        jobs, refused = [], []
        for workload in access.visible(request.user, Workload).filter(assignment__policy=policy, excluded=False):
            try:
                jobs.append(requests.backup_now(request.user, workload))
            except DomainError as error:
                refused.append({"workload": workload.pk, **error.as_dict()})
        return self._started(jobs, refused)

    @extend_schema(request=NoBody, responses={202: StartedSerializer})
    @action(detail=True, methods=["post"])
    def expire(self, request: Request, pk: str) -> Response:
        """Removes now what its retention does not keep, as one job a repository; it also happens every hour."""
        policy = self.get_object()
        self.body(NoBody)
        return self._started(requests.apply_retention(request.user, policy), [])

    def _started(self, jobs: list[Job], refused: list[dict[str, Any]]) -> Response:
        answer = StartedSerializer({"jobs": jobs, "refused": refused}, context=self.get_serializer_context())
        return Response(answer.data, status.HTTP_202_ACCEPTED)

    @extend_schema(request=MatchesSerializer, responses=MatchesAnswerSerializer)
    @action(detail=True, methods=["post"])
    def matches(self, request: Request, pk: str) -> Response:
        """Which discovered machines rules match now. Nothing is changed."""
        policy = self.get_object()
        values = self.body(MatchesSerializer)
        tried = values.get("rules")
        told = [(row.get("by", RuleBy.NAME), row["pattern"]) for row in tried] if tried is not None else None
        found = rules.preview(request.user, policy.tenant, told if told is not None else rules.told(policy))
        return Response(MatchesAnswerSerializer({"count": len(found), "matches": found[: rules.SHOWN]}).data)

    @extend_schema(request=SimulationSerializer, responses=SimulationAnswerSerializer)
    @action(detail=True, methods=["post"])
    def simulate(self, request: Request, pk: str) -> Response:
        """What retention would keep and remove now, with the reasons. Nothing is changed."""
        policy = self.get_object()
        values = self.body(SimulationSerializer)
        tried = {name: values[f"keep_{name}"] for name in KEEPS if f"keep_{name}" in values}
        rule = retention.Rule(**{**asdict(retention_of(policy)), **tried})
        workloads = access.visible(request.user, Workload).filter(assignment__policy=policy)
        if values["workload"] is not None:
            workloads = access.visible(request.user, Workload).filter(pk=values["workload"].pk)
        chosen = list(workloads.order_by("name")[: SIMULATED_MOST + 1])
        points = [row for workload in chosen[:SIMULATED_MOST] for row in self._simulated(workload, policy, rule)]
        kept = sum(row["keep"] for row in points)
        complete = len(chosen) <= SIMULATED_MOST
        answer = {"kept": kept, "removed": len(points) - kept, "complete": complete, "points": points}
        return Response(SimulationAnswerSerializer(answer).data)

    def _simulated(self, workload: Workload, policy: Policy, rule: retention.Rule) -> list[dict[str, Any]]:
        copies = access.visible(self.request.user, PointCopy).filter(
            point__workload=workload, repository__destination=policy.destination, state=CopyState.PRESENT
        )
        taken = {copy.point_id: copy.point for copy in copies.select_related("point")}
        facts = [
            retention.Fact(point.pk, point.taken_at, point.outcome == PointOutcome.COMPLETE, point.hold)
            for point in taken.values()
        ]
        decisions = retention.decide(facts, rule, timezone.now(), schedule.zone(policy.time_zone))
        return [
            {
                "point": one.id,
                "workload": workload.pk,
                "taken_at": taken[one.id].taken_at,
                "keep": one.keep,
                "reasons": one.reasons,
            }
            for one in decisions
        ]
