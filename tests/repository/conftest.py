"""Property tests run without a deadline: a busy machine is no failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("brs", deadline=None)
settings.load_profile("brs")
