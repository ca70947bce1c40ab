"""What has to be there before the first process starts."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Migrates the database, loads the beat's ticks, makes keys and certificates. May be repeated at any time."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002  Django's signature
        from brs.standalone import prepare

        prepare()
        self.stdout.write("Ready.")
