"""What ``manage.py check`` finds wrong with an installation's settings."""

from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register


@register()
def installation(**_: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    sqlite = settings.DATABASES["default"]["ENGINE"].endswith("sqlite3")
    if settings.REDIS_URL and sqlite:
        found.append(
            Warning(
                "Redis is set, but the database is SQLite.",
                hint="Several processes need PostgreSQL: set BRS_DATABASE_URL, or take BRS_REDIS_URL away.",
                id="brs.W001",
            )
        )
    if settings.DEBUG and not sqlite:
        found.append(
            Warning(
                "BRS_DEBUG shows settings and source code to whoever causes an error.",
                hint="Take BRS_DEBUG away.",
                id="brs.W002",
            )
        )
    if not settings.BRS_PUBLIC_URL.startswith("https://"):
        found.append(
            Error(
                f"BRS_PUBLIC_URL is {settings.BRS_PUBLIC_URL!r}.",
                hint="Nodes and people reach the server by https:// only; behind a proxy, name the proxy's address.",
                id="brs.E001",
            )
        )
    if not os.access(settings.DATA_DIR, os.W_OK):
        found.append(
            Error(
                f"{settings.DATA_DIR} cannot be written.",
                hint="Give the server's user a BRS_DATA_DIR of its own.",
                id="brs.E002",
            )
        )
    return found
