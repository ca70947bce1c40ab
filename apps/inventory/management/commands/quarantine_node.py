"""Shuts a node out."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.inventory import node_auth
from apps.inventory.models import Node


class Command(BaseCommand):
    help = "Refuses a node's token from now on. A code issued for its name (enrolment_code) lets it in again."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--reason", required=True)

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002  Django's signature
        node = Node.objects.filter(name=options["name"]).first()
        if node is None:
            raise CommandError(f"There is no node “{options['name']}”.")
        node_auth.quarantine(node, "command line", options["reason"])
        self.stdout.write(f"{node.name} is quarantined.")
