"""Catalog: restore points, and what backups keep on platforms."""

from __future__ import annotations

from apps.catalog.admin import points, traces

__all__ = ["points", "traces"]  # these register their pages
