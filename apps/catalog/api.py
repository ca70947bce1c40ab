# ruff: noqa: ARG002  the signatures are Django REST framework's
"""REST API of what was kept: restore points, the files in them, and what can be done with them."""

from __future__ import annotations

from typing import Any

from django.db.models import Prefetch, QuerySet
from django.utils.translation import gettext as _
from django_filters import rest_framework as filters
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.catalog import browse
from apps.catalog.models import CopyState, PointCopy, PointOutcome, RestorePoint, Trace
from apps.errors import Conflict
from apps.iam.api_fields import NoBody, PlainObjectField, ScopedField, ScopedSerializer, StrictSerializer
from apps.iam.api_http import LIMIT_DEFAULT, LIMIT_MOST, OFFSET_MOST, ApiFilters, TrueFalse, whole_number
from apps.iam.api_scope import ReadScopedViewSet
from apps.inventory.models import Node, Platform
from apps.jobs import requests
from apps.jobs.api_job import long_work, start
from apps.policies.models import Staging
from node_agent.protocol import MachineTarget, RestoreTarget

CHOSEN_MOST = 1000
PATH_LONGEST = 4096


class PointCopySerializer(ScopedSerializer):
    class Meta:
        model = PointCopy
        fields = (
            "id",
            "repository",
            "snapshot_id",
            "stored_bytes",
            "state",
            "expire_reason",
            "verified_at",
            "damaged_paths",
            "created_at",
        )
        read_only_fields = fields


class RestorePointSerializer(ScopedSerializer):
    workload_name = serializers.CharField(source="workload.name", read_only=True)
    copies = PointCopySerializer(many=True, read_only=True)

    class Meta:
        model = RestorePoint
        fields = (
            "id",
            "tenant",
            "workload",
            "workload_name",
            "taken_at",
            "outcome",
            "incremental",
            "size_bytes",
            "read_bytes",
            "new_bytes",
            "files",
            "left_out_count",
            "hold",
            "hold_reason",
            "copies",
            "created_at",
        )
        read_only_fields = fields


class RestorePointDetailSerializer(RestorePointSerializer):
    left_out = serializers.JSONField(read_only=True, help_text="The first 1,000: path, code, message, note.")

    class Meta(RestorePointSerializer.Meta):
        fields = (*RestorePointSerializer.Meta.fields, "left_out")
        read_only_fields = fields


def shown_points(rows: QuerySet[RestorePoint]) -> QuerySet[RestorePoint]:
    copies = Prefetch("copies", PointCopy.objects.order_by("created_at", "pk"))
    return rows.select_related("workload").prefetch_related(copies).order_by("-taken_at", "pk")


class RestorePointFilters(ApiFilters):
    outcome = filters.ChoiceFilter(choices=PointOutcome.choices)
    copy = filters.ChoiceFilter(method="with_copy", choices=CopyState.choices, label="has a copy in this state")
    since = filters.IsoDateTimeFilter("taken_at", lookup_expr="gte", label="taken at or after (ISO 8601)")
    until = filters.IsoDateTimeFilter("taken_at", lookup_expr="lt", label="taken before (ISO 8601)")

    class Meta(ApiFilters.Meta):
        model = RestorePoint
        fields = ("tenant", "workload", "incremental", "hold")

    def with_copy(self, queryset: QuerySet[RestorePoint], _name: str, state: str) -> QuerySet[RestorePoint]:
        return queryset.filter(pk__in=PointCopy.objects.filter(state=state).values("point"))


class MachineTargetSerializer(StrictSerializer):
    """How a machine comes back. What is left out is as the restore point says."""

    platform = ScopedField(
        queryset=Platform.objects.all(), allow_null=True, default=None, help_text="null: where it came from."
    )
    name = serializers.CharField(
        max_length=200, default="", allow_blank=True, help_text="Empty: its name with the time of the point."
    )
    host = serializers.CharField(max_length=300, default="", allow_blank=True, help_text="One of the platform's.")
    storage = serializers.CharField(max_length=1000, default="", allow_blank=True, help_text="A folder, or a pool.")
    networks = PlainObjectField(default=dict, help_text="By the network's name in the point: the one to use.")
    new_identity = serializers.BooleanField(default=True, help_text="A new UUID and new MAC addresses.")
    start = serializers.BooleanField(default=False, help_text="Start it when it is there.")

    def validate_networks(self, networks: dict[str, Any]) -> dict[str, str]:
        if len(networks) > 64 or not all(isinstance(value, str) for value in networks.values()):
            raise serializers.ValidationError(_("It must name a network for each, for at most 64."))
        return networks


class TargetSerializer(StrictSerializer):
    """Where it goes. ``path`` is a folder on the node (for a disk image the file); not needed in place, nor for a
    machine."""

    path = serializers.CharField(max_length=PATH_LONGEST, required=False, default="", allow_blank=True)
    in_place = serializers.BooleanField(default=False)
    overwrite = serializers.ChoiceField(["never", "changed", "always"], default="never")
    format = serializers.ChoiceField(
        ["raw", "qcow2"],
        default="",
        allow_blank=True,
        help_text="Of disks. Empty: raw for an image, as it was for a machine.",
    )
    machine = MachineTargetSerializer(required=False, help_text="For machines only.")


def _wire(target: dict[str, Any]) -> dict[str, Any]:
    machine = target.get("machine")
    if machine is None:
        return target
    platform = machine["platform"]
    return {**target, "machine": MachineTarget(**{**machine, "platform": platform.pk if platform else None})}


class RestoreSerializer(StrictSerializer):
    chosen = serializers.ListField(
        child=serializers.CharField(max_length=PATH_LONGEST, trim_whitespace=False),
        max_length=CHOSEN_MOST,
        default=list,
        help_text="Paths as the list of files names them; empty: everything.",
    )
    target = TargetSerializer()
    node = ScopedField(
        queryset=Node.objects.all(), allow_null=True, default=None, help_text="null: the node of the workload."
    )
    verify = serializers.BooleanField(default=False, help_text="Read back and compare after writing.")
    staging = serializers.ChoiceField(Staging.choices, default=Staging.STREAM)


class PathSerializer(StrictSerializer):
    path = serializers.CharField(max_length=PATH_LONGEST, trim_whitespace=False)


class HoldSerializer(StrictSerializer):
    reason = serializers.CharField(max_length=300)


class DeletePointSerializer(StrictSerializer):
    typed_name = serializers.CharField(max_length=300, help_text="The workload's name, typed as a confirmation.")


class FileSerializer(serializers.Serializer):
    path = serializers.CharField(help_text="What requests take; bytes that are not UTF-8 are \\xNN.")
    name = serializers.CharField(help_text="For people.")
    type = serializers.CharField(help_text="file, dir, symlink, fifo, dev, chardev or socket")
    size = serializers.IntegerField()
    mtime = serializers.CharField()
    mode = serializers.IntegerField()
    user = serializers.CharField()
    target = serializers.CharField(help_text="Of a symlink.")


class FilesSerializer(serializers.Serializer):
    path = serializers.CharField()
    count = serializers.IntegerField()
    complete = serializers.BooleanField(help_text="false: there is more than was searched or is known here.")
    entries = FileSerializer(many=True)


class RestorePointViewSet(ReadScopedViewSet):
    """Restore points: recoverable states of workloads. They are made by backups."""

    queryset = shown_points(RestorePoint.objects.all())
    serializer_class = RestorePointDetailSerializer
    filterset_class = RestorePointFilters
    search_fields = ("workload__name", "hold_reason")
    ordering_fields = ("taken_at", "size_bytes", "new_bytes", "files")

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        return RestorePointSerializer if self.action == "list" else RestorePointDetailSerializer

    @extend_schema(
        responses=FilesSerializer,
        parameters=[
            OpenApiParameter("path", OpenApiTypes.STR, description="The directory (default /)."),
            OpenApiParameter("search", OpenApiTypes.STR, description="Part of a name, in the whole point instead."),
            OpenApiParameter("limit", OpenApiTypes.INT),
            OpenApiParameter("offset", OpenApiTypes.INT),
        ],
    )
    @action(detail=True, query=frozenset({"path", "search", "limit", "offset"}))
    def files(self, request: Request, pk: str) -> Response:
        """The files in it: one directory, or all whose name holds a text.

        409 with code “files-unknown” when the server has no list of it: POST to browse/ asks a node for it.
        """
        copy = requests.copy_of(self.get_object())
        limit = whole_number(request, "limit", LIMIT_DEFAULT, least=1, most=LIMIT_MOST)
        offset = whole_number(request, "offset", 0, least=0, most=OFFSET_MOST)
        if text := request.query_params.get("search", "").strip():
            found: browse.Listing | None = browse.search(copy, text)
        else:
            found = browse.listing(copy, request.query_params.get("path") or "/")
        if found is None:
            raise Conflict(
                _("The server has no list of this directory."),
                hint=_("POST to browse/ of this restore point, and ask again when the job has ended."),
                code="files-unknown",
            )
        answer = {
            "path": found.path,
            "count": len(found.entries),
            "complete": found.complete,
            "entries": found.entries[offset : offset + limit],
        }
        return Response(FilesSerializer(answer).data)

    @long_work(RestoreSerializer)
    @action(detail=True, methods=["post"])
    def restore(self, request: Request, pk: str) -> Response:
        """Restores it, or some of it, as a job."""
        point = self.get_object()
        values = self.body(RestoreSerializer)
        target = RestoreTarget(driver=point.workload.platform.kind, **_wire(values["target"]))
        return start(
            request,
            lambda: requests.restore(
                request.user,
                point,
                chosen=values["chosen"],
                target=target,
                node=values["node"],
                verify=values["verify"],
                staging=values["staging"],
            ),
        )

    @long_work(PathSerializer)
    @action(detail=True, methods=["post"])
    def download(self, request: Request, pk: str) -> Response:
        """Fetches one file for oneself, as a job; the job names the download that will hold it for an hour."""
        point = self.get_object()
        path = self.body(PathSerializer)["path"]
        return start(request, lambda: requests.download(request.user, point, path).job)

    @long_work(NoBody)
    @action(detail=True, methods=["post"])
    def browse(self, request: Request, pk: str) -> Response:
        """Has a node read the list of files, as a job."""
        point = self.get_object()
        self.body(NoBody)
        return start(request, lambda: requests.browse(request.user, point))

    @extend_schema(request=HoldSerializer, responses=RestorePointDetailSerializer)
    @action(detail=True, methods=["post"])
    def hold(self, request: Request, pk: str) -> Response:
        """Keeps it whatever retention says, until it is released."""
        point = self.get_object()
        requests.hold(request.user, point, self.body(HoldSerializer)["reason"])
        return Response(self.get_serializer(self.get_object()).data)

    @extend_schema(request=NoBody, responses=RestorePointDetailSerializer)
    @action(detail=True, methods=["post"])
    def unhold(self, request: Request, pk: str) -> Response:
        """Releases the hold; retention applies again."""
        point = self.get_object()
        self.body(NoBody)
        requests.unhold(request.user, point)
        return Response(self.get_serializer(self.get_object()).data)

    @long_work(DeletePointSerializer)
    @action(detail=True, methods=["post"], url_path="delete")
    def remove(self, request: Request, pk: str) -> Response:
        """Removes it from its repositories, as a job. There is no way back."""
        point = self.get_object()
        typed = self.body(DeletePointSerializer)["typed_name"]
        return start(request, lambda: requests.delete_point(request.user, point, typed))


class TraceSerializer(ScopedSerializer):
    workload_name = serializers.CharField(source="workload.name", read_only=True)
    platform = serializers.UUIDField(source="workload.platform_id", read_only=True)

    class Meta:
        model = Trace
        fields = (
            "id",
            "workload",
            "workload_name",
            "platform",
            "repository",
            "owner",
            "names",
            "by_backup",
            "told_at",
            "unneeded_since",
            "tried_at",
            "problem",
            "created_at",
        )
        read_only_fields = fields


class TraceFilters(ApiFilters):
    platform = filters.UUIDFilter("workload__platform", label="on this platform")
    unneeded = TrueFalse("unneeded_since", lookup_expr="isnull", exclude=True, label="no schedule needs it any more")

    class Meta(ApiFilters.Meta):
        model = Trace
        fields = ("workload", "repository", "owner", "by_backup")


class RemoveManySerializer(StrictSerializer):
    kept = ScopedField(queryset=Trace.objects.all(), many=True, allow_empty=False, help_text="Of one workload.")

    def validate_kept(self, kept: list[Trace]) -> list[Trace]:
        if len({one.workload_id for one in kept}) > 1:
            raise serializers.ValidationError(_("They must be of one workload: each is a job of its own."))
        return kept


class TraceViewSet(ReadScopedViewSet):
    """Kept snapshots: what backups of machines left on their platforms, and what was found there."""

    queryset = Trace.objects.select_related("workload")
    serializer_class = TraceSerializer
    filterset_class = TraceFilters
    search_fields = ("workload__name", "owner")
    ordering_fields = ("workload__name", "told_at", "unneeded_since")
    ordering = ("workload__name", "owner", "pk")

    @long_work(NoBody)
    @action(detail=True, methods=["post"])
    def remove(self, request: Request, pk: str) -> Response:
        """Removes it from the platform, as a job. Without a repository it may be another server's: then it takes the
        right to configure the workload."""
        trace = self.get_object()
        self.body(NoBody)
        return start(request, lambda: requests.remove_traces(request.user, trace.workload, [trace]))

    @long_work(RemoveManySerializer, operation_id="kept_snapshots_remove_many")
    @action(detail=False, methods=["post"], url_path="remove", url_name="remove-many")
    def remove_many(self, request: Request) -> Response:
        """Removes several of one workload, as one job."""
        rows = self.body(RemoveManySerializer)["kept"]
        return start(request, lambda: requests.remove_traces(request.user, rows[0].workload, rows))
