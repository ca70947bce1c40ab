"""All of BRS in one process."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser


class Command(BaseCommand):
    help = "Runs the whole server in one process: web, nodes' API, worker and beat, over TLS. Ctrl-C ends it."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")
        parser.add_argument("--port", type=int, default=8443)

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002  Django's signature
        from brs.standalone import run

        run(options["host"], options["port"], standalone=True)
