"""Logging in with a password: guessing is slowed down, and each success and failure is in the audit trail."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.core.exceptions import ValidationError
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils.translation import gettext as _

from apps.errors import TooMany
from apps.iam import audit, throttle
from apps.iam.models import User

PERIOD = timedelta(minutes=10)
TRIES_OF_NAME = 10  # for one name from one address; others cannot lock its owner out
TRIES_OF_ADDRESS = 50


class LimitedBackend(ModelBackend):
    """Django's own, with a limit on failures. Too many are told as an error of the form."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> User | None:
        address = request.META.get("REMOTE_ADDR", "") if request is not None else ""
        if not address or username is None:
            return self._checked(request, username, password, **kwargs)
        name = f"{username.lower()[:100]}@"
        try:
            throttle.take("login", address, limit=TRIES_OF_ADDRESS, period=PERIOD)
            throttle.take(f"login {name}", address, limit=TRIES_OF_NAME, period=PERIOD)
        except TooMany:
            raise ValidationError(
                _("Too many failed attempts to log in. Wait ten minutes and try again."), code="too-many"
            ) from None
        user = self._checked(request, username, password, **kwargs)
        if user is not None:
            throttle.give_back("login", address)
            throttle.give_back(f"login {name}", address)
        return user

    async def aauthenticate(self, request: HttpRequest | None, **credentials: Any) -> User | None:  # type: ignore[override]
        """Django's own would go past the limit."""
        return await sync_to_async(self.authenticate)(request, **credentials)

    def _checked(self, request: HttpRequest | None, username: str | None, password: str | None, **rest: Any) -> Any:
        return super().authenticate(request, username=username, password=password, **rest)


@receiver(user_logged_in)
def _logged_in(user: User, request: HttpRequest | None = None, **_kwargs: Any) -> None:
    audit.record(user, "login.succeeded", request=request)


@receiver(user_logged_out)
def _logged_out(user: User | None, request: HttpRequest | None = None, **_kwargs: Any) -> None:
    if user is not None:
        audit.record(user, "login.ended", request=request)


@receiver(user_login_failed)
def _failed(credentials: dict[str, Any], request: HttpRequest | None = None, **_kwargs: Any) -> None:
    audit.record(str(credentials.get("username", ""))[:150] or "?", "login.failed", request=request)
