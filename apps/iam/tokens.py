"""API tokens: keys for programs. 256 random bits, kept as SHA-256 only, shown once."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta

from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from apps.errors import Invalid
from apps.iam import audit
from apps.iam.models import ApiToken, User

MARK = "brs_"
_SHOWN = len(MARK) + 6  # 36 of the 256 bits help to tell tokens apart
_USED_EVERY = timedelta(minutes=1)  # last_used_at is no more exact than this


def digest(token: str) -> str:
    """What is stored of a token. A plain hash is enough: 256 random bits cannot be guessed, slow or fast."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def issue(user: User, name: str, expires_at: datetime | None = None) -> tuple[ApiToken, str]:
    """A new token and its clear text, which nobody can see again."""
    if expires_at is not None and expires_at <= timezone.now():
        raise Invalid("The token would have expired already.", hint="Choose a later time, or none.")
    clear = MARK + secrets.token_urlsafe(32)
    token = ApiToken.objects.create(
        user=user, name=name[:100], prefix=clear[:_SHOWN], token_hash=digest(clear), expires_at=expires_at
    )
    audit.record(user, "token.issued", token)
    return token, clear


def revoke(token: ApiToken, by: User | str) -> None:
    """Ends a token at once and for ever; done twice it changes nothing."""
    if ApiToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=timezone.now()):
        token.refresh_from_db(fields=["revoked_at"])
        audit.record(by, "token.revoked", token)


def find(clear: str) -> ApiToken | None:
    """The token that is valid now, of a user who is active; marks it as used."""
    now = timezone.now()
    alive = Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=now))
    token = (
        ApiToken.objects.select_related("user").filter(alive, token_hash=digest(clear), user__is_active=True).first()
    )
    if token and (token.last_used_at is None or now - token.last_used_at > _USED_EVERY):
        ApiToken.objects.filter(pk=token.pk).update(last_used_at=now)
    return token


class TokenAuthentication(BaseAuthentication):
    """``Authorization: Bearer brs_…``; ``Token brs_…`` is understood too."""

    def authenticate(self, request: Request) -> tuple[User, ApiToken] | None:
        words = get_authorization_header(request).split()
        if not words or words[0].lower() not in {b"bearer", b"token"}:
            return None
        token = find(words[1].decode("latin-1")) if len(words) == 2 else None
        if token is None:
            raise AuthenticationFailed(_("The API token is not known, has expired or was revoked."))
        return token.user, token

    def authenticate_header(self, request: Request) -> str:  # noqa: ARG002  DRF's signature
        """Makes DRF answer 401 rather than 403."""
        return "Bearer"
