"""The first person."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from apps.iam import audit
from apps.iam.models import User


class Command(BaseCommand):
    help = "Makes a superuser if there is none of that name; an existing one keeps its password."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--username", required=True)
        how = parser.add_mutually_exclusive_group(required=True)
        how.add_argument("--password-file", type=Path, help="file whose first line is the password")
        how.add_argument("--generate", action="store_true", help="make a password and print it once")

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002  Django's signature
        username = options["username"]
        if User.objects.filter(username=username).exists():
            self.stdout.write(f"{username} exists.")
            return
        password = secrets.token_urlsafe(16) if options["generate"] else _read(options["password_file"])
        user = User(username=username, is_staff=True, is_superuser=True)
        try:
            validate_password(password, user)
            user.set_password(password)
            user.full_clean()
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        user.save()
        audit.record("command line", "user.created", user, detail={"superuser": True})
        self.stdout.write(f"{username} created.")
        if options["generate"]:
            self.stdout.write(password)


def _read(file: Path) -> str:
    try:
        password = file.read_text().partition("\n")[0]
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}") from error
    if not password:
        raise CommandError(f"{file} holds no password.")
    return password
