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
        parser.add_argument("--tenant", help="slug, where several tenants have a node of this name")
        parser.add_argument("--reason", required=True)

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002  Django's signature
        found = Node.objects.filter(name=options["name"])
        if options["tenant"]:
            found = found.filter(tenant__slug=options["tenant"])
        nodes = list(found[:2])
        if not nodes:
            raise CommandError(f"There is no node “{options['name']}”.")
        if len(nodes) > 1:
            raise CommandError(f"Several tenants have a node “{options['name']}”: say which with --tenant SLUG.")
        node = nodes[0]
        node_auth.quarantine(node, "command line", options["reason"])
        self.stdout.write(f"{node.name} is quarantined.")
