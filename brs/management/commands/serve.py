"""One web process of several."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection


class Command(BaseCommand):
    help = (
        "Runs one web process of a large installation (web and nodes' API over TLS). Needs PostgreSQL and Redis; "
        "workers and beat are processes of Celery: see docs/install.md."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")
        parser.add_argument("--port", type=int, default=8443)

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002  Django's signature
        if connection.vendor != "postgresql" or not settings.REDIS_URL:
            raise CommandError(
                "Several processes need BRS_DATABASE_URL (PostgreSQL) and BRS_REDIS_URL. "
                "For one process use: manage.py standalone"
            )
        from brs.standalone import run

        run(options["host"], options["port"], standalone=False)
