"""How long a restore will take, by what the last ones from the same repository took. A guess that names its basis."""

from __future__ import annotations

from collections.abc import Iterable

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from apps import display
from apps.catalog import browse
from apps.catalog.models import CopyState
from apps.errors import DomainError
from apps.jobs.models import JobKind, RestoreDraft, State, Task
from node_agent.protocol import TaskKind

LOOKED_AT = 5
START_S = 3.0  # of every restore: until a node has it, and opens the repository


def sentence(draft: RestoreDraft) -> str:
    size = chosen_bytes(draft)
    if size is None:
        return _("How long it takes is not known: the sizes of what was chosen are not on the server.")
    runs = _runs(draft)
    took = seconds(size, runs)
    if took is None:
        return _("How long it takes is not known yet: nothing was restored from this repository before.")
    basis = ngettext(
        "by the last restore from this repository", "by the last %(n)d restores from this repository", len(runs)
    ) % {"n": len(runs)}
    words = {"size": display.size_text(size), "took": display.duration(took), "basis": basis}
    return _("%(size)s will take about %(took)s, %(basis)s.") % words


def seconds(size: int, runs: Iterable[tuple[int, float]]) -> float | None:
    """``runs``: bytes written and seconds of each, taken together, so that small ones count little.

    None without a run to go by."""
    found = [(count, took) for count, took in runs if count > 0 and took > 0]
    if not found:
        return None
    moving = sum(max(took - START_S, took / 10) for _count, took in found)
    return START_S + size * moving / sum(count for count, _took in found)


def chosen_bytes(draft: RestoreDraft) -> int | None:
    """Of everything, or of the chosen files; None when a folder is among them, or the server has no list."""
    if not draft.chosen:
        return int(draft.point.size_bytes)
    copy = draft.point.copies.filter(state=CopyState.PRESENT).order_by("created_at").first()
    total = 0
    for path in draft.chosen:
        try:
            item = browse.find(copy, path) if copy else None
        except DomainError:  # the restore itself will say that it is not there
            return None
        if item is None or item.is_directory:
            return None
        total += item.size
    return total


def _runs(draft: RestoreDraft) -> list[tuple[int, float]]:
    done = Task.objects.filter(
        kind=TaskKind.RESTORE,
        state=State.SUCCEEDED,
        job__kind=JobKind.RESTORE,
        repository__in=draft.point.copies.filter(state=CopyState.PRESENT).values("repository"),
    ).exclude(started_at=None)
    return [
        (int(task.outcome.get("bytes_written", 0)), (task.finished_at - task.started_at).total_seconds())
        for task in done.order_by("-finished_at")[:LOOKED_AT]
        if task.finished_at
    ]
