"""Files by name over all workloads that somebody may see: the wizard's first question, when only the file is known."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import OuterRef, Subquery

from apps.catalog import browse
from apps.catalog.models import CopyState, PointCopy
from apps.iam import access
from apps.iam.models import User
from apps.inventory.models import Workload

LEAST = 3  # letters: fewer are in every name
WORKLOADS = 50
MATCHES = 50
DIRECTORIES = 10_000  # looked into over all; some two seconds


@dataclass(frozen=True)
class FoundFiles:
    """``entries``: copies of newest points, each with an item found in it; ``complete``: nothing was passed over."""

    entries: list[tuple[PointCopy, browse.Item]]
    complete: bool


def find_files(user: User, term: str) -> FoundFiles:
    """In the newest point of each workload that can be restored and whose list of files the server has."""
    if len(term) < LEAST:
        return FoundFiles([], True)
    newest = PointCopy.objects.filter(point__workload=OuterRef("pk"), state=CopyState.PRESENT)
    rows = access.visible(user, Workload).annotate(
        newest=Subquery(newest.order_by("-point__taken_at", "created_at").values("pk")[:1])
    )
    keys = list(rows.exclude(newest=None).order_by("name").values_list("newest", flat=True)[: WORKLOADS + 1])
    copies = PointCopy.objects.select_related("point__workload").in_bulk(keys[:WORKLOADS])
    found: list[tuple[PointCopy, browse.Item]] = []
    complete, left = len(keys) <= WORKLOADS, DIRECTORIES
    for key in keys[:WORKLOADS]:
        if left <= 0 or len(found) == MATCHES:
            return FoundFiles(found, False)
        listing = browse.search(copies[key], term, limit=MATCHES - len(found), directories=left)
        found += [(copies[key], item) for item in listing.entries]
        complete, left = complete and listing.complete, left - listing.visited
    return FoundFiles(found, complete)
