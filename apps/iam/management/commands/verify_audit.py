"""Whether the audit trail is as it was written."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.iam import audit
from apps.iam.models import AuditEvent


class Command(BaseCommand):
    help = "Checks the links of the audit trail; names the first event that does not fit."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002  Django's signature
        audit.link()
        broken = audit.first_broken()
        if broken is not None:
            raise CommandError(
                f"Event {broken.pk} ({broken.at:%Y-%m-%d %H:%M} UTC, {broken.verb}) does not fit: "
                "it, or one before it, was changed or removed."
            )
        last = AuditEvent.objects.exclude(chain="").order_by("-id").first()
        self.stdout.write(f"{AuditEvent.objects.exclude(chain='').count()} events, all linked.")
        if last is not None:
            self.stdout.write(f"Newest link: event {last.pk}, {last.chain}")
