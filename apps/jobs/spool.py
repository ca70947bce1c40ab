"""Files on their way from a node to a user: pieces in SPOOL_DIR, under the id of their download.

Pieces come in order. A repeated or restarted upload begins anywhere at or before what is there; what follows that
place is cut off. Nothing is readable before its length and SHA-256 were proven, and then by its owner only.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Sum
from django.utils.translation import gettext as _

from apps.errors import Conflict, Invalid, NotFound, TooLarge
from apps.iam.models import User
from apps.jobs.models import ENDED, Download, Task
from node_agent.protocol import PIECE_BYTES, DownloadResult, TaskKind

KEEP = timedelta(hours=1)


def write(task: Task, offset: int, piece: bytes) -> None:
    """Keep one piece; the task's lease has been checked."""
    download = _of(task)
    if offset < 0 or len(piece) > PIECE_BYTES:
        raise Invalid(_("A piece has at most %(n)d bytes and no negative offset.") % {"n": PIECE_BYTES})
    if offset > download.received_bytes:
        raise Conflict(
            _("The next piece begins at %(offset)d.") % {"offset": download.received_bytes}, code="wrong-offset"
        )
    end = offset + len(piece)
    if end > int(task.spec.get("max_bytes", 0)):
        raise TooLarge(_("The file is larger than was announced."))
    _within_quota(download, end)
    file = path_of(download.pk)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file.open("r+b" if file.exists() else "w+b") as out:
        file.chmod(0o600)
        out.truncate(offset)
        out.seek(offset)
        out.write(piece)
    Download.objects.filter(pk=download.pk).update(received_bytes=end)


def prove(task: Task, result: DownloadResult) -> None:
    """Read it all back before it counts: length and digest are what the node sent."""
    download = _of(task)
    if download.ready_at is not None:
        return
    digest = hashlib.sha256()
    size = 0
    file = path_of(download.pk)
    if file.exists():
        with file.open("rb") as read:
            while part := read.read(1024 * 1024):
                digest.update(part)
                size += len(part)
    if size != result.size_bytes or digest.hexdigest() != result.sha256.lower():
        raise Invalid(
            _("What arrived of the file is not what was sent (%(got)d of %(all)d bytes).")
            % {"got": size, "all": result.size_bytes},
            hint=_("Start the download again."),
            code="upload-damaged",
        )


def finish(task: Task, result: DownloadResult, now: datetime) -> None:
    """The file may be fetched from now on, for an hour."""
    file = path_of(_of(task).pk)
    if not file.exists():  # an empty file has no pieces
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
    Download.objects.filter(job_id=task.job_id).update(
        ready_at=now, expires_at=now + KEEP, size_bytes=result.size_bytes, sha256=result.sha256.lower()
    )


def open_for(user: User, download_id: UUID | str, now: datetime) -> tuple[Download, BinaryIO]:
    """The file, for the one who asked for it. NotFound for everybody else and when its hour is over."""
    try:
        wanted = UUID(str(download_id))
    except ValueError:
        raise NotFound() from None
    download = Download.objects.filter(pk=wanted, user=user.pk, tenant__is_active=True).first()
    if download is None or download.expires_at <= now:
        raise NotFound()
    if download.ready_at is None:
        raise Conflict(_("The file is still on its way."), hint=_("Wait until the job is finished."))
    try:
        return download, path_of(download.pk).open("rb")
    except FileNotFoundError:
        raise NotFound() from None


def purge(now: datetime) -> int:
    """Remove what has expired, and files that belong to nothing. Returns how many downloads went."""
    gone = Download.objects.filter(expires_at__lte=now, job__state__in=ENDED)
    count = 0
    for pk in list(gone.values_list("pk", flat=True)):
        path_of(pk).unlink(missing_ok=True)
        with transaction.atomic():
            Download.objects.filter(pk=pk).delete()
        count += 1
    _remove_strays(now)
    return count


def path_of(download_id: UUID) -> Path:
    return Path(settings.SPOOL_DIR) / str(download_id)


def _of(task: Task) -> Download:
    if task.kind != TaskKind.DOWNLOAD:
        raise Invalid(_("This task sends no file."))
    download = Download.objects.filter(job_id=task.job_id).first()
    if download is None:
        raise NotFound(_("The download has expired."))
    return download


def _within_quota(download: Download, end: int) -> None:
    others = Download.objects.exclude(pk=download.pk).aggregate(all=Sum("received_bytes"))["all"] or 0
    if others + end > settings.BRS_SPOOL_QUOTA_BYTES:
        raise TooLarge(
            _("The server's space for downloads is full."),
            hint=_("Restore the file to a folder, or wait an hour until other downloads have expired."),
            code="spool-full",
        )


def _remove_strays(now: datetime) -> None:
    """Files whose download is gone (its tenant or job was deleted); fresh ones may still be on their way."""
    folder = Path(settings.SPOOL_DIR)
    if not folder.is_dir():
        return
    known = {str(pk) for pk in Download.objects.values_list("pk", flat=True)}
    for file in folder.iterdir():
        if file.name not in known and now.timestamp() - file.stat().st_mtime > KEEP.total_seconds():
            file.unlink(missing_ok=True)
