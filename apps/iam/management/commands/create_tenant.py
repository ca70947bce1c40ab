"""A tenant and its owner."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils.text import slugify

from apps.iam import audit
from apps.iam.models import Membership, Role, Tenant, User


class Command(BaseCommand):
    help = "Makes a tenant with an owner; when it exists already, only makes sure of the owner."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name")
        parser.add_argument("--slug", help="short name, part of repositories' paths (default: made from the name)")
        parser.add_argument("--owner", required=True, help="username")

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002  Django's signature
        owner = User.objects.filter(username=options["owner"]).first()
        if owner is None:
            raise CommandError(f"There is no user “{options['owner']}”. Make one with ensure_admin or in the admin.")
        slug = options["slug"] or slugify(options["name"])
        tenant = Tenant.objects.filter(slug=slug).first()
        if tenant is None:
            tenant = Tenant(name=options["name"], slug=slug)
            try:
                tenant.full_clean()
            except ValidationError as error:
                raise CommandError("; ".join(error.messages)) from error
            tenant.save()
            audit.record("command line", "tenant.created", tenant)
        membership, added = Membership.objects.get_or_create(user=owner, tenant=tenant, defaults={"role": Role.OWNER})
        if membership.role != Role.OWNER:
            membership.role = Role.OWNER
            membership.save(update_fields=["role"])
            added = True
        if added:
            audit.record("command line", "membership.granted", membership)
        self.stdout.write(tenant.slug)
