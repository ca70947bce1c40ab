"""What backups keep on platforms for the next of them (checkpoints, bitmaps, snapshots), as rows: their only writer.

A row is there before a run makes anything (``begun``), so that what a run that died left is not forgotten; it goes when
a node has removed what it stands for. Looks for machines add what nobody here knows of (``found``), and take away again
what is no longer there. Whether a row is still needed, ``jobs.traces`` says.

What bears the mark of another tenant's repository is that tenant's: it is never shown to this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db.models import Q, QuerySet

from apps.catalog.models import Trace
from apps.inventory.models import Repository, Workload
from node_agent.protocol import TraceFacts, owner_of

_NO_TROUBLE = {"tried_at": None, "problem": ""}


def mark(repository: Repository) -> str:
    """What stands in the names of what backups into it leave."""
    return repository.repository_id[:8]


def not_needed() -> Q:
    """Rows for people to look at: what nothing will be built upon, and what should have gone."""
    return Q(by_backup=False) | Q(unneeded_since__isnull=False) | ~Q(problem="")


# --- runs ---------------------------------------------------------------------------------------------


def begun(workload: Workload, repository: Repository, *, in_cluster: bool) -> None:
    """A run starts, and may make things from now on."""
    facts = {"repository": repository, "by_backup": True, **({"in_cluster": True} if in_cluster else {})}
    Trace.objects.update_or_create(workload=workload, owner=mark(repository), defaults=facts)


def kept(workload: Workload, repository: Repository, names: Sequence[str] | None, now: datetime) -> None:
    """A run's point is stored, and this stays for the next one. None: the node does not say."""
    row = Trace.objects.filter(workload=workload, owner=mark(repository)).first()
    if names is None or row is None:
        return
    if not names and row.told_at is None:
        row.delete()  # its first run keeps nothing: neither will those after it
        return
    row.names, row.told_at = _plain(names), now
    row.save(update_fields=["names", "told_at"])


# --- looks --------------------------------------------------------------------------------------------


def found(workloads: Iterable[Workload], told: Mapping[str, Sequence[TraceFacts]], now: datetime) -> None:
    """``told``: by the machine's id, all that it bears. A machine that is not among them was not looked at."""
    looked = {workload.pk: workload for workload in workloads if workload.external_id in told}
    rows = {(row.workload_id, row.owner): row for row in Trace.objects.filter(workload__in=looked)}
    here = {(pk, fact.owner): fact for pk, one in looked.items() for fact in told[one.external_id]}
    went = [row.pk for key, row in rows.items() if key not in here and not row.by_backup]
    Trace.objects.filter(pk__in=went, by_backup=False).delete()
    for key in rows.keys() & here.keys():
        row = rows[key]
        facts: dict[str, Any] = {"told_at": now}
        if not row.by_backup or not row.names:  # a run has told all; a look may not see all of it
            facts["names"] = _plain(here[key].names)
        Trace.objects.filter(pk=row.pk).update(**facts)
    new = [(looked[pk], fact) for (pk, owner), fact in here.items() if (pk, owner) not in rows]
    if new:
        _add(new, now)


def _add(new: Sequence[tuple[Workload, TraceFacts]], now: datetime) -> None:
    known = _known()
    owners = {mark(one): one for one in Repository.objects.exclude(repository_id="")}
    for workload, fact in new:
        repository = owners.get(fact.owner)
        elsewhere = repository is not None and repository.tenant_id != workload.tenant_id
        if elsewhere or (workload.external_id, fact.owner) in known or ("", fact.owner) in known:
            continue
        facts = {"repository": repository, "names": _plain(fact.names), "told_at": now}
        Trace.objects.get_or_create(workload=workload, owner=fact.owner, defaults=facts)  # a run may begin just now


def _known() -> set[tuple[str, str]]:
    """What runs of any tenant keep: at the machine itself under its mark, by whichever platform it was reached; and, at
    images that belong to a machine or a group, under a hash of both (the machine is then not the image: "")."""
    rows = Trace.objects.filter(by_backup=True).values_list("workload__external_id", "owner")
    return {pair for machine, owner in rows for pair in ((machine, owner), ("", owner_of(owner, machine)))}


def _plain(names: Sequence[str]) -> list[str]:
    """Without NUL, which PostgreSQL cannot hold."""
    return [name.replace("\x00", "\\0") for name in names]


# --- whether it is needed, and its end ------------------------------------------------------------------


def needed(rows: QuerySet[Trace]) -> int:
    """Again, or still; how many were not."""
    return rows.exclude(unneeded_since=None).update(unneeded_since=None, **_NO_TROUBLE)


def unneeded(rows: QuerySet[Trace], now: datetime) -> int:
    """From now on, if they were needed until now; how many."""
    return rows.filter(unneeded_since=None).update(unneeded_since=now)


def removed(workload: Workload, owners: Sequence[str], *, bitmaps: bool) -> None:
    rows = Trace.objects.filter(workload=workload, owner__in=owners)
    if bitmaps:
        rows.delete()
    else:  # the snapshots in a cluster alone: the rest is still needed
        rows.update(in_cluster=False, **_NO_TROUBLE)


def withdrawn(rows: QuerySet[Trace]) -> None:
    """Their removal was taken back: that it came to nothing is no trouble."""
    rows.update(**_NO_TROUBLE)


def not_removed(workload: Workload, owners: Sequence[str], why: str, now: datetime) -> None:
    """Tried again after a while, and said until then."""
    Trace.objects.filter(workload=workload, owner__in=owners).update(tried_at=now, problem=why[:500])
