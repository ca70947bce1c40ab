"""Addresses of the REST API, version 1. Each app brings its resources in its ``api`` module."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView
from rest_framework.routers import SimpleRouter

from apps.catalog import api as catalog
from apps.iam import api as iam
from apps.iam.api_scope import NoSuchAddress
from apps.inventory import api as inventory
from apps.jobs import api as jobs
from apps.policies import api as policies
from apps.reports import api as reports

app_name = "api"

router = SimpleRouter()
router.trailing_slash = "/?"  # a POST cannot follow a redirect to the other form
router.register("tenants", iam.TenantViewSet, "tenant")
router.register("memberships", iam.MembershipViewSet, "membership")
router.register("users", iam.UserViewSet, "user")
router.register("api-tokens", iam.ApiTokenViewSet, "apitoken")
router.register("audit-events", iam.AuditEventViewSet, "auditevent")
router.register("nodes", inventory.NodeViewSet, "node")
router.register("enrolment-codes", inventory.EnrolmentCodeViewSet, "enrolmentcode")
router.register("platforms", inventory.PlatformViewSet, "platform")
router.register("workloads", inventory.WorkloadViewSet, "workload")
router.register("destinations", inventory.DestinationViewSet, "destination")
router.register("repositories", inventory.RepositoryViewSet, "repository")
router.register("policies", policies.PolicyViewSet, "policy")
router.register("restore-points", catalog.RestorePointViewSet, "restorepoint")
router.register("kept-snapshots", catalog.TraceViewSet, "trace")
router.register("jobs", jobs.JobViewSet, "job")
router.register("downloads", jobs.DownloadViewSet, "download")

urlpatterns = [
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path("docs/", login_required(SpectacularSwaggerView.as_view(url_name="api:schema")), name="docs"),
    re_path("^overview/?$", reports.OverviewView.as_view(), name="overview"),
    path("", include(router.urls)),
    re_path("", NoSuchAddress.as_view(), name="nowhere"),
]
