"""A one-time code for a new node, on standard output."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.errors import DomainError
from apps.iam.models import Tenant
from apps.inventory import enrolment


class Command(BaseCommand):
    help = "Issues a one-time code for a node and prints it, and nothing else. Good for 15 minutes."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        whose = parser.add_mutually_exclusive_group(required=True)
        whose.add_argument("--tenant", metavar="SLUG", help="the tenant that the node serves")
        whose.add_argument("--shared", action="store_true", help="a node that serves every tenant")
        parser.add_argument("--node-name", default="", help="fixes the node's name; an existing one is enrolled anew")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002  Django's signature
        tenant = None
        if options["tenant"]:
            tenant = Tenant.objects.filter(slug=options["tenant"]).first()
            if tenant is None:
                known = ", ".join(Tenant.objects.values_list("slug", flat=True)) or "none yet"
                raise CommandError(f"There is no tenant “{options['tenant']}” (known: {known}).")
        try:
            _, clear = enrolment.issue_code("command line", tenant, options["node_name"])
        except DomainError as error:
            raise CommandError(f"{error.message} {error.hint}") from error
        self.stdout.write(clear)
