"""Destinations: which kinds there are, what each is told, and how its address is put together.

Addresses are restic's, without the kind in front: a folder; ``user@host:/path``; ``https://host/bucket/prefix``;
``container:/prefix``. Options and secrets carry the names that the node's stores give them (docs/destinations.md).
Secrets are sealed as one value and unsealed for a lease only; what is shown of them is their names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from apps.errors import Invalid
from apps.iam.secrets import seal, unseal
from apps.inventory import sources
from apps.inventory.models import Destination, DestinationKind, RepositoryState

COMMON = ("limit-upload", "limit-download", "limit-windows", "connections")
LOCK_MODES = ("compliance", "governance")
MAX_LOCK_DAYS = 36_500
MAX_LENGTH = 20_000  # a key file, or a chain of certificates


@dataclass(frozen=True)
class Kind:
    pattern: str  # of the address
    example: str
    options: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    DestinationKind.LOCAL: Kind(r"/.*", "/srv/backup"),
    DestinationKind.SFTP: Kind(
        r"(//)?([^@\s/]+@)?[^@\s/]+(:[^\s].*|/.+)",
        "backup@host.example:/srv/backup",
        ("host-key",),
        ("password", "private-key", "key-passphrase"),
    ),
    DestinationKind.S3: Kind(
        r"(https?://)?[^@\s/?#]+/[^@\s?#]+",
        "https://s3.example/bucket/brs",
        ("region", "bucket-lookup", "cacert", "object-lock", "object-lock-days"),
        ("access-key-id", "secret-access-key", "session-token"),
    ),
    DestinationKind.AZURE: Kind(
        r"[^:/@\s]+:(/.*)?",
        "container:/brs",
        ("account-name", "endpoint", "endpoint-suffix", "tenant-id", "client-id", "cacert"),
        ("account-key", "account-sas", "client-secret"),
    ),
    DestinationKind.GS: Kind(
        r"[^:/@\s]+:(/.*)?", "bucket:/brs", ("endpoint", "cacert"), ("service-account-key", "access-token")
    ),
    DestinationKind.REST: Kind(
        r"https?://[^@\s/?#]+(/[^\s?#]*)?", "https://host.example:8000/brs/", ("user", "cacert"), ("password",)
    ),
}

_SIZE = re.compile(r"\d+(\.\d+)?\s*[kmg]?(i?b)?(/s)?\Z", re.IGNORECASE)
_WINDOW = re.compile(r"(?:[a-z]{3}(?:-[a-z]{3})?\s+)?\d\d:\d\d-\d\d:\d\d=[^/=,]+(?:/[^/=,]+)?\Z", re.IGNORECASE)


class InvalidDestination(Invalid):
    """``field``: path, options or secrets."""

    code = "invalid-destination"

    def __init__(self, field: str, message: str, *, hint: str | None = None) -> None:
        self.field = field
        super().__init__(message, hint=hint)


def clean_address(kind: str, address: object) -> str:
    if kind == DestinationKind.LOCAL:
        return sources.clean_path(address, "path")
    example = KINDS[kind].example
    text = address.strip() if isinstance(address, str) else ""
    text = text.removeprefix(f"{kind}:") if kind != DestinationKind.SFTP or text.startswith("sftp:") else text
    if len(text) > 1000 or "\x00" in text or not re.fullmatch(KINDS[kind].pattern, text):
        raise InvalidDestination(
            "path",
            _("This is no address of this kind of destination."),
            hint=_("Write it like %(example)s, without user names and passwords of stores other than SFTP.")
            % {"example": example},
        )
    if ".." in re.split(r"[/:]", text):
        raise InvalidDestination("path", _("The address holds “..”."), hint=_("Write the path without “..”."))
    return text


def refuse_move(destination: Destination, address: str) -> None:
    """A repository that holds backups cannot be moved by a changed address: they would not be found."""
    if address != destination.path and destination.repositories.exclude(state=RepositoryState.NEW).exists():
        raise InvalidDestination(
            "path",
            _("There is a repository here: the address cannot be changed."),
            hint=_("Add another destination, and let the policies use it."),
        )


def refuse_unlock(destination: Destination, options: Mapping[str, str]) -> None:
    """What was stored to be kept is read with the same option: without it an attacker's deletes would count."""
    if "object-lock" not in destination.options or "object-lock" in options:
        return
    if destination.repositories.exclude(state=RepositoryState.NEW).exists():
        raise InvalidDestination(
            "options",
            _("There is a repository here whose backups are locked: locking cannot be switched off."),
            hint=_("Make the days fewer: what is locked already stays until its own date."),
        )


def clean_options(kind: str, options: Mapping[str, Any]) -> dict[str, str]:
    """What is empty is left out."""
    given = _texts("options", options, (*COMMON, *KINDS[kind].options))
    for name in ("limit-upload", "limit-download"):
        if name in given and not _SIZE.match(given[name]):
            raise InvalidDestination(
                "options",
                _("%(name)s: “%(value)s” is no bandwidth.") % {"name": name, "value": given[name]},
                hint=_("Write for example 500K, 20M or 1G: bytes a second."),
            )
    for window in filter(None, (part.strip() for part in given.get("limit-windows", "").split(","))):
        if not _WINDOW.match(window):
            raise InvalidDestination(
                "options",
                _("limit-windows: “%(value)s” is no window.") % {"value": window},
                hint=_("Write for example: mon-fri 08:00-18:00=2M/10M, 22:00-06:00=0"),
            )
    if "connections" in given and not (given["connections"].isdecimal() and 1 <= int(given["connections"]) <= 64):
        raise InvalidDestination("options", _("connections must be a whole number from 1 to 64."))
    if "cacert" in given and not given["cacert"].startswith("-----BEGIN CERTIFICATE-----"):
        raise InvalidDestination("options", _("cacert must be the certificate itself, in PEM form."))
    _check_lock(given)
    if kind == DestinationKind.AZURE and "account-name" not in given:
        raise InvalidDestination("options", _("The storage account is missing."), hint=_("Give account-name."))
    return given


def _check_lock(given: Mapping[str, str]) -> None:
    mode, days = given.get("object-lock"), given.get("object-lock-days")
    if mode is None and days is None:
        return
    if mode not in LOCK_MODES:
        raise InvalidDestination(
            "options",
            _("object-lock must be compliance or governance."),
            hint=_("Choose what the lock means, or leave the days empty: then nothing is locked."),
        )
    if days is None or not (days.isdecimal() and 1 <= int(days) <= MAX_LOCK_DAYS):
        raise InvalidDestination("options", _("object-lock-days must be a whole number of days, 1 or more."))


def clean_secrets(kind: str, secrets: Mapping[str, Any]) -> dict[str, str]:
    """An empty text takes a secret away; it stays in the answer."""
    return _texts("secrets", secrets, KINDS[kind].secrets, keep_empty=True)


def set_secrets(destination: Destination, secrets: Mapping[str, str]) -> None:
    """Put these secrets beside those that are there already; not saved yet."""
    kept = {name: value for name, value in {**secrets_of(destination), **secrets}.items() if value}
    destination.sealed = seal(json.dumps(kept)) if kept else None
    destination.secret_names = sorted(kept)


def secrets_of(destination: Destination) -> dict[str, str]:
    """In clear: for a lease and the recovery kit only."""
    found: dict[str, str] = json.loads(unseal(bytes(destination.sealed))) if destination.sealed else {}
    return found


def told(destination: Destination) -> dict[str, str]:
    """Options and secrets together, as a lease carries them."""
    return {**destination.options, **secrets_of(destination)}


def url(destination: Destination, folder: str = "") -> str:
    """restic's address of a folder below the destination."""
    if destination.kind == DestinationKind.LOCAL:
        return f"{destination.path.rstrip('/')}/{folder}" if folder else destination.path
    base = destination.path.rstrip("/")
    below = f"{base}/{folder}" if folder else base
    end = "/" if destination.kind == DestinationKind.REST else ""
    return f"{destination.kind}:{below}{end}"


def _texts(field: str, given: Mapping[str, Any], known: tuple[str, ...], *, keep_empty: bool = False) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in given.items():
        if name not in known:
            raise InvalidDestination(
                field,
                _("Destinations of this kind have no “%(name)s” here.") % {"name": str(name)[:80]},
                hint=_("There are: %(names)s.") % {"names": ", ".join(known) or "–"},
            )
        if value is None:
            value = ""
        if not isinstance(value, str) or len(value) > MAX_LENGTH or "\x00" in value:
            raise InvalidDestination(field, _("%(name)s must be a text of at most 20,000 characters.") % {"name": name})
        text = value.strip()
        if text or keep_empty:
            found[name] = text
    return found
