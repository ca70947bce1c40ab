"""Platforms that machines lie on: which kinds there are, what each is told, and whom its node may believe.

Secrets are sealed as one value and unsealed for a lease only; what is shown of them is their names. A host is logged in
to only when the key it shows is the one that a user has confirmed: a test shows the key first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.utils.translation import gettext as _

from apps.errors import Conflict, Invalid
from apps.iam import access, audit
from apps.iam.access import Right
from apps.iam.models import User
from apps.iam.secrets import seal, unseal
from apps.inventory.models import Node, Platform, PlatformKind
from node_agent.protocol import PlatformAccess, burdened

MOST_ADDRESSES = 50
MAX_LENGTH = 20_000  # a key file


@dataclass(frozen=True)
class Kind:
    example: str
    login: str  # the usual one
    options: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    PlatformKind.KVM: Kind(
        "kvm1.example",
        "root",
        ("uri", "scratch", "rbd-snapshots"),
        ("private-key", "key-passphrase", "password"),
    ),
    PlatformKind.RBD: Kind("mon1.example:6789", "admin", ("fsid", "pools"), ("key",)),
}
_ADDRESS = re.compile(r"(?!-)[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?\Z|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?\Z")
_LOGIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\Z")


class InvalidPlatform(Invalid):
    """``field``: addresses, login, options or secrets."""

    code = "invalid-platform"

    def __init__(self, field: str, message: str, *, hint: str | None = None) -> None:
        self.field = field
        super().__init__(message, hint=hint)


def offered(nodes: Iterable[Node]) -> list[str]:
    """The kinds that at least one of the nodes can use."""
    drivers = {driver for node in nodes for driver in node.drivers}
    return [kind for kind in KINDS if kind in drivers]


def clean_addresses(kind: str, given: object) -> list[str]:
    lines = [line.strip() for line in given if isinstance(line, str)] if isinstance(given, list) else []
    found = list(dict.fromkeys(line for line in lines if line))
    if not found:
        raise InvalidPlatform("addresses", _("An address is missing."), hint=_hint(kind))
    if len(found) > MOST_ADDRESSES:
        raise InvalidPlatform("addresses", _("There may be at most %(most)s of them.") % {"most": MOST_ADDRESSES})
    for line in found:
        if not _ADDRESS.match(line):
            raise InvalidPlatform("addresses", _("“%(line)s” is no address.") % {"line": line[:100]}, hint=_hint(kind))
    return found


def _hint(kind: str) -> str:
    return _("Write a host, or host:port, such as %(example)s.") % {"example": KINDS[kind].example}


def clean_login(kind: str, given: object) -> str:
    text = given.strip() if isinstance(given, str) else ""
    if text and not _LOGIN.match(text):
        raise InvalidPlatform("login", _("This is no user's name."))
    return text or KINDS[kind].login


def clean_options(kind: str, given: Mapping[str, Any]) -> dict[str, str]:
    """What is empty is left out."""
    found = _texts("options", given, KINDS[kind].options)
    if "scratch" in found and not re.fullmatch(r"/[^\x00\n]*", found["scratch"]):
        raise InvalidPlatform("options", _("The scratch folder must be an absolute path on the host."))
    if found.get("rbd-snapshots", "yes") != "yes":
        raise InvalidPlatform("options", _("Write “yes” for snapshots in Ceph, or leave it empty."))
    if kind == PlatformKind.RBD:
        _require_cluster(found)
    return found


def _require_cluster(found: Mapping[str, str]) -> None:
    """Which cluster is meant, and what of it may be touched: neither is guessed."""
    try:
        UUID(found.get("fsid", ""))
    except ValueError:
        raise InvalidPlatform(
            "options", _("The cluster's fsid is missing, or is none."), hint=_("“ceph fsid” prints it.")
        ) from None
    if not [pool for pool in found.get("pools", "").split(",") if pool.strip()]:
        raise InvalidPlatform("options", _("The pools are missing."), hint=_("Name at least one, such as vms."))


def clean_secrets(kind: str, given: Mapping[str, Any]) -> dict[str, str]:
    """An empty text takes a secret away; it stays in the answer."""
    return _texts("secrets", given, KINDS[kind].secrets, keep_empty=True)


def refuse_theft(platform: Platform, addresses: list[str], secrets: Mapping[str, str]) -> None:
    """A password that was given for one host is not sent to another that somebody writes into the form later."""
    new = set(addresses) - set(platform.addresses)
    if new and "password" in platform.secret_names and "password" not in secrets:
        raise InvalidPlatform(
            "secrets",
            _("The password would be sent to another host than it was given for (%(host)s).") % {"host": min(new)},
            hint=_("Give the password again."),
        )


def set_secrets(platform: Platform, secrets: Mapping[str, str]) -> None:
    """Put these secrets beside those that are there already; not saved yet."""
    kept = {name: value for name, value in {**secrets_of(platform), **secrets}.items() if value}
    platform.sealed = seal(json.dumps(kept)) if kept else None
    platform.secret_names = sorted(kept)


def secrets_of(platform: Platform) -> dict[str, str]:
    """In clear: for a lease only."""
    found: dict[str, str] = json.loads(unseal(bytes(platform.sealed))) if platform.sealed else {}
    return found


def told(platform: Platform) -> PlatformAccess:
    """As a lease carries it."""
    return PlatformAccess(
        kind=platform.kind,
        addresses=platform.addresses,
        user=platform.login,
        options=platform.options,
        secrets=secrets_of(platform),
        host_keys={one: key for one, key in platform.host_keys.items() if one in platform.addresses},
        bandwidth_bytes_s=platform.bandwidth_mib_s << 20,
    )


def loaded(platform: Platform, host: str = "") -> str:
    """What work on a machine loads: a hypervisor, or a cluster, by whichever platform of whichever tenant."""
    return burdened(platform.kind, platform.addresses, platform.options, host)


# --- whom to believe ----------------------------------------------------------------------------------


def unconfirmed(platform: Platform) -> dict[str, str]:
    """The keys that the last test met and that nobody has confirmed, by address."""
    return {
        one: key
        for one, key in platform.offered_keys.items()
        if one in platform.addresses and platform.host_keys.get(one) != key
    }


def confirm_keys(user: User, platform: Platform, keys: Mapping[str, str]) -> None:
    """Believe these hosts by these keys from now on. Each must be what the last test met: what a user was shown."""
    access.require(user, Right.CONFIGURE, platform)
    waiting = unconfirmed(platform)
    if not keys or any(waiting.get(one) != key for one, key in keys.items()):
        raise Conflict(
            _("These are not the keys that the last connection test met."),
            hint=_("Test the connection again, and compare the keys anew."),
        )
    before = {one: platform.host_keys.get(one, "") for one in keys}
    platform.host_keys = {**platform.host_keys, **keys}
    platform.save(update_fields=["host_keys"])
    audit.record(user, "platform.keys-confirmed", platform, detail={"before": before, "after": dict(keys)})


def _texts(field: str, given: Mapping[str, Any], known: tuple[str, ...], *, keep_empty: bool = False) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in given.items():
        if name not in known:
            raise InvalidPlatform(
                field,
                _("Platforms of this kind have no “%(name)s” here.") % {"name": str(name)[:80]},
                hint=_("There are: %(names)s.") % {"names": ", ".join(known) or "–"},
            )
        text = value.strip() if isinstance(value, str) else "" if value is None else None
        if text is None or len(text) > MAX_LENGTH or "\x00" in text:
            raise InvalidPlatform(field, _("%(name)s must be a text of at most 20,000 characters.") % {"name": name})
        if name == "private-key" and text:
            # Browsers send CR LF, and the last line unended: OpenSSH's client reads neither.
            text = text.replace("\r\n", "\n") + "\n"
        if text or keep_empty:
            found[name] = text
    return found
