"""Slows down guessing: so many attempts for one key (what is tried, and from where) in a period of time.

Counted in the database by guarded UPDATEs, so that several processes cannot be played off against one another.
Take before looking whether the guess is right; give back when it was.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta

from django.db.models import F
from django.utils import timezone

from apps.errors import TooMany
from apps.iam.models import Attempts


def take(what: str, who: str, *, limit: int, period: timedelta, now: datetime | None = None) -> None:
    """Counts one attempt; raises TooMany when ``limit`` are used up. Call it outside of a transaction that a
    failed attempt rolls back."""
    now = now or timezone.now()
    key = _key(what, who)
    Attempts.objects.filter(until__lte=now).delete()
    Attempts.objects.bulk_create([Attempts(key=key, count=0, until=now + period)], ignore_conflicts=True)
    if not Attempts.objects.filter(key=key, count__lt=limit).update(count=F("count") + 1):
        raise TooMany("Too many failed attempts from this address.", hint="Wait some minutes and try again.")


def give_back(what: str, who: str) -> None:
    """The attempt was a good one: it does not count."""
    Attempts.objects.filter(key=_key(what, who), count__gt=0).update(count=F("count") - 1)


def _key(what: str, who: str) -> str:
    return f"{what}:{_network(who)}"[:200]


def _network(address: str) -> str:
    """An IPv6 host owns a whole /64, so that is what is counted; anything else is taken as it is."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 6 and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed.ipv4_mapped if parsed.version == 6 else parsed)
