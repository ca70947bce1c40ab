"""Sealing of what must be kept but not read from the database: repository passwords.

A sealed value is ``version (1) | key id (4) | nonce (12) | AES-256-GCM ciphertext and tag``. The key is derived
from the server's SECRET_KEY with HKDF; the key id is a piece of another derivation, so that a changed key is told
apart from a damaged value. Keys in SECRET_KEY_FALLBACKS still open what they sealed.
"""

from __future__ import annotations

import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from apps.errors import Unsealable
from apps.iam.models import Secret, Tenant

_VERSION = b"\x01"
_KEY_ID = slice(1, 5)
_NONCE = slice(5, 17)


def seal(value: str) -> bytes:
    key_id, key = _keys(settings.SECRET_KEY)
    nonce = os.urandom(12)
    head = _VERSION + key_id
    return head + nonce + AESGCM(key).encrypt(nonce, value.encode(), head)


def unseal(sealed: bytes) -> str:
    """Raises Unsealable for another key and for a damaged value."""
    sealed = bytes(sealed)  # PostgreSQL's driver hands out memoryviews
    for secret_key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
        key_id, key = _keys(secret_key)
        if sealed[:1] == _VERSION and sealed[_KEY_ID] == key_id:
            break
    else:
        raise Unsealable
    try:
        return AESGCM(key).decrypt(sealed[_NONCE], sealed[_NONCE.stop :], sealed[: _KEY_ID.stop]).decode()
    except InvalidTag:
        raise Unsealable(
            "A stored secret is damaged.", hint="Restore the database from its own backup.", code="secret-damaged"
        ) from None


def keep(tenant: Tenant | None, name: str, value: str) -> Secret:
    return Secret.objects.create(tenant=tenant, name=name, sealed=seal(value))


def reveal(secret: Secret) -> str:
    """The clear text. For leases and the recovery kit only; never put it into a row, a log or a message."""
    return unseal(secret.sealed)


def derive(purpose: str) -> bytes:
    """A 256-bit key for ``purpose`` that only this server knows."""
    return _hkdf(settings.SECRET_KEY, purpose)


@lru_cache(maxsize=8)
def _keys(secret_key: str) -> tuple[bytes, bytes]:
    return _hkdf(secret_key, "brs seal id")[:4], _hkdf(secret_key, "brs seal")


@lru_cache(maxsize=32)
def _hkdf(secret_key: str, purpose: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode()).derive(secret_key.encode())
