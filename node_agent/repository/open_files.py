"""How many files this process may hold open: deep trees keep a descriptor for each level."""

from __future__ import annotations

import resource

WANTED = 65_536


def allow_many() -> None:
    """Raise the soft limit towards the hard one; the walk works with less, only not as deep."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
