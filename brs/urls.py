"""Where everything is found. What Django does not serve (nodes, WebSockets) is in brs/asgi.py."""

from __future__ import annotations

from django.contrib import admin
from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from django.views.generic import RedirectView

from apps.jobs import downloads

handler400 = "brs.api_errors.bad_request"
handler403 = "brs.api_errors.permission_denied"
handler404 = "brs.api_errors.page_not_found"
handler500 = "brs.api_errors.server_error"


def health(_request: HttpRequest) -> JsonResponse:
    """For load balancers: 200 as long as this process reaches its database."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return JsonResponse({"status": "ok"})


urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index"), name="home"),
    path("admin/", admin.site.urls),
    path("api/v1/", include("brs.api_urls")),
    path("downloads/<uuid:download>/", downloads.content, name="download-content"),
    path("healthz", health, name="health"),
]
