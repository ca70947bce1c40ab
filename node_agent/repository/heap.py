"""The C library's heaps: by default each thread may get one of its own, and each keeps what its large blobs left."""

from __future__ import annotations

import ctypes
from functools import cache

_M_ARENA_MAX = -8  # malloc.h
_HEAPS = 2


@cache
def share_heaps() -> bool:
    """Let all threads share two heaps: a backup of 77,000 files then peaks at 257 instead of 321 MiB, at equal speed.

    False where the C library knows no such thing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_ARENA_MAX, _HEAPS) == 1
