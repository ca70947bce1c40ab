"""Makes or renews the server's certificate; servers that run take it up by themselves."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from brs import pki


class Command(BaseCommand):
    help = "Makes or renews the server's certificate. Running servers take it up within seconds."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--force", action="store_true", help="even when it is good for a while yet")
        parser.add_argument("--new-ca", action="store_true", help="a new authority, too: every node must enrol anew")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002  Django's signature
        made = pki.ensure(force=options["force"], new_ca=options["new_ca"])
        until = pki.server_certificate().not_valid_after_utc
        self.stdout.write(f"{'Made' if made else 'Kept'}: valid until {until:%Y-%m-%d %H:%M} UTC")
        self.stdout.write(f"CA fingerprint (SHA-256): {pki.ca_fingerprint()}")
