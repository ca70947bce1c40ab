"""The file of a download, to the user who asked for it and to nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import BinaryIO
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.core.handlers.asgi import ASGIRequest
from django.http import FileResponse, Http404, HttpRequest, HttpResponseBase, StreamingHttpResponse
from django.utils import timezone
from django.utils.http import content_disposition_header
from django.views.decorators.http import require_safe

from apps.errors import NotFound
from apps.iam import access
from apps.iam.access import Right
from apps.iam.models import User
from apps.jobs import spool

PIECE_BYTES = 1024 * 1024


@require_safe
@login_required
def content(request: HttpRequest, download: UUID) -> HttpResponseBase:
    """For browsers: the address behind the button on the download's page."""
    try:
        return answer(request, request.user, download)
    except NotFound as error:
        raise Http404(error.message) from None


def answer(request: HttpRequest, user: User, download_id: UUID) -> HttpResponseBase:
    """The file as an attachment. NotFound for everybody but its user, also when he lost the right meanwhile;
    Conflict while it is on its way."""
    download, file = spool.open_for(user, download_id, timezone.now())
    if not access.can(user, Right.DOWNLOAD, download.job):
        file.close()
        raise NotFound
    response: StreamingHttpResponse
    if isinstance(request, ASGIRequest):
        # Django would read a synchronous file into memory, whole, before the first byte is sent.
        response = StreamingHttpResponse(_pieces(file) if request.method != "HEAD" else _nothing(file))
    else:
        response = FileResponse(file)
    response.headers["Content-Type"] = "application/octet-stream"  # never shown as a page of ours
    response.headers["Content-Length"] = str(download.size_bytes)
    response.headers["Content-Disposition"] = content_disposition_header(True, _plain(download.file_name))
    response.headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    response.headers["Cache-Control"] = "private, no-store"
    return response


def _plain(name: str) -> str:
    """The last part of a path, without what a header or a file system could stumble over."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    kept = "".join(
        "_" if ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 or letter in '"' else letter for letter in last
    )
    return kept.encode("utf-8", "replace").decode() or "file"


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece
    finally:
        file.close()


async def _nothing(file: BinaryIO) -> AsyncIterator[bytes]:
    file.close()
    return
    yield b""
