"""How a node joins: an operator issues a one-time code, the node redeems it for its own token.

The code goes from the operator to the node's command line as ``<code>.<fingerprint>``. The fingerprint (SHA-256 of
the CA certificate in DER form) lets the node check the CA that it fetched over an unproven connection, so that
nobody in between can take the server's place. The code is 192 random bits, kept by hash, good for 15 minutes
and for one node.
"""

from __future__ import annotations

import hashlib
import secrets
import ssl
from datetime import datetime, timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone

from apps.errors import Conflict, Denied, Unavailable
from apps.iam import access, audit, throttle
from apps.iam.models import Tenant, User
from apps.iam.tokens import digest
from apps.inventory import presence
from apps.inventory.models import EnrolmentCode, Node
from node_agent.protocol import EnrolReply, EnrolRequest

LIFETIME = timedelta(minutes=15)
TRIES = 10  # wrong codes from one address …
TRIES_PERIOD = timedelta(minutes=10)  # … in this time


class BadCode(Denied):
    """One error for wrong, used and expired, so that guessing learns nothing."""

    code = "bad-code"
    default_message = "The enrolment code is wrong, was used already or has expired."
    default_hint = "Issue a new code on the server and enrol within 15 minutes."


def issue_code(by: User | str, tenant: Tenant | None, node_name: str = "") -> tuple[EnrolmentCode, str]:
    """A new code and its clear text, seen this once. ``tenant`` None makes a node that serves every tenant, which
    only superusers may. ``node_name`` fixes the node's name; that of an existing node enrols it anew."""
    _may_issue(by, tenant)
    clear = secrets.token_hex(16)  # a "-" in front would make it an option of the command line
    code = EnrolmentCode.objects.create(
        tenant=tenant,
        node_name=node_name,
        code_hash=digest(clear),
        created_by=by if isinstance(by, User) else None,
        expires_at=timezone.now() + LIFETIME,
    )
    audit.record(by, "enrolment.code-issued", code, detail={"node": node_name})
    return code, f"{clear}.{ca_fingerprint()}"


def redeem(request: EnrolRequest, remote_addr: str) -> EnrolReply:
    """Makes the node and its token. A repetition by the same start of the node, whose first answer was lost, gets
    a fresh token as long as the first was never used. Raises BadCode, TooMany, Conflict (name taken)."""
    throttle.take("enrol", remote_addr, limit=TRIES, period=TRIES_PERIOD)
    now = timezone.now()
    with transaction.atomic():
        code = _use(request, now)
        node = _node(code, request)
        token = secrets.token_urlsafe(32)
        _admit(node, digest(token), now)
        presence.restarted(node, request.incarnation)
        presence.seen(node, now, node_time=request.node_time, capabilities=request.capabilities, draining=False)
        EnrolmentCode.objects.filter(pk=code.pk).update(node=node)
        audit.record(f"node {node.name}", "node.enrolled", node, detail={"address": remote_addr})
    throttle.give_back("enrol", remote_addr)
    return EnrolReply(node_id=node.pk, name=node.name, token=token, server_time=now)


def ca_pem() -> str:
    """The CA's certificate. Raises Unavailable when there is none yet."""
    try:
        return (settings.PKI_DIR / "ca.pem").read_text("ascii")
    except FileNotFoundError:
        raise Unavailable(
            "The server has no certificate authority yet.", hint="Run: python manage.py renew_certificates"
        ) from None


def ca_fingerprint() -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca_pem())).hexdigest()


def _may_issue(by: User | str, tenant: Tenant | None) -> None:
    if not isinstance(by, User):
        return  # the command line on the server itself
    if tenant is not None:
        access.require(by, access.Right.CONFIGURE, tenant)
    elif not (by.is_active and by.is_superuser):
        raise Denied(hint="A node that serves every tenant is added by a superuser.")


def _use(request: EnrolRequest, now: datetime) -> EnrolmentCode:
    code_hash = digest(request.code.strip().partition(".")[0])
    same = EnrolmentCode.objects.filter(code_hash=code_hash, expires_at__gt=now)
    # Not seen since it enrolled: then the answer may have been lost on the way.
    unheard = same.filter(
        node__incarnation=request.incarnation,
        node__last_seen_at=F("used_at"),
        node__token_changed_at=F("used_at"),
        node__quarantined_at=None,
    )
    if same.filter(used_at=None).update(used_at=now) or same.filter(pk__in=unheard.values("pk")).update(used_at=now):
        return EnrolmentCode.objects.select_related("node", "tenant").get(code_hash=code_hash)
    raise BadCode


def _node(code: EnrolmentCode, request: EnrolRequest) -> Node:
    if code.node is not None:
        return code.node
    name = code.node_name or request.name.strip() or request.capabilities.hostname
    try:
        with transaction.atomic():
            return Node.objects.create(name=name[:100], tenant=code.tenant)
    except IntegrityError:
        existing = Node.objects.filter(name=name[:100], tenant=code.tenant).first()
        if existing is None or not code.node_name:
            raise _name_taken(name) from None
        return existing


def _admit(node: Node, token_hash: str, now: datetime) -> None:
    """A clean slate: the new token alone is valid, and a quarantine is over."""
    Node.objects.filter(pk=node.pk).update(
        token_hash=token_hash,
        next_token_hash="",
        old_token_hash="",
        token_changed_at=now,
        enrolled_at=now,
        last_seen_at=None,
        quarantined_at=None,
        quarantine_reason="",
    )
    node.refresh_from_db()


def _name_taken(name: str) -> Conflict:
    return Conflict(
        f"There is a node named “{name}” already.",
        hint="Enrol with another --name, or issue a code for exactly this node to enrol it anew.",
        code="name-taken",
    )
