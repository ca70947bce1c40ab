"""Who a node is: its token, 256 random bits looked up by SHA-256.

Tokens rotate. The new one is valid from the answer on, the old one until the new one is used for the first time.
A superseded token that shows up later was copied: the node is quarantined (the server cannot know which of the two is
the thief) until an operator enrols it anew. Within LATE_S of the change it is only refused: a request that the node
gave up waiting for may still have been on its way.
"""

from __future__ import annotations

import base64
import hmac
import logging
from uuid import UUID

from django.db.models import Q
from django.utils import timezone

from apps.errors import Denied, Unauthorized
from apps.iam import access, audit
from apps.iam.models import User
from apps.iam.secrets import derive
from apps.iam.tokens import digest
from apps.inventory.models import Node
from node_agent.protocol import TokenReply

log = logging.getLogger(__name__)
LATE_S = 120


class Quarantined(Denied):
    code = "quarantined"
    default_message = "This node is quarantined: its token was copied, or an operator shut it out."
    default_hint = "Find out why on the server, then enrol the node anew with a code issued for its name."


class UnknownNode(Unauthorized):
    code = "unknown-node"
    default_message = "The node's token is missing or not known."
    default_hint = "Enrol the node: python -m node_agent enroll"


def authenticate(token: str) -> Node:
    """The node with this token. Raises UnknownNode (401) and Quarantined (403)."""
    if not token:
        raise UnknownNode
    hashed = digest(token)
    node = (
        Node.objects.select_related("tenant")
        .filter(Q(token_hash=hashed) | Q(next_token_hash=hashed) | Q(old_token_hash=hashed))
        .first()
    )
    if node is None or (node.tenant is not None and not node.tenant.is_active):
        raise UnknownNode
    if node.quarantined_at is not None:
        raise Quarantined
    if hmac.compare_digest(hashed, node.token_hash):
        return node
    if hmac.compare_digest(hashed, node.next_token_hash):
        return _promote(node, hashed)
    if node.token_changed_at is not None and (timezone.now() - node.token_changed_at).total_seconds() < LATE_S:
        log.warning("Node %s: a token that was just replaced was used again; the request is refused", node.name)
        raise UnknownNode
    quarantine(node, "server", "A replaced token was used again.")
    raise Quarantined


def rotate(node: Node, request_id: UUID) -> TokenReply:
    """The node's next token. The same request gets the same token again: it is computed from the server's key, the
    node, its present token and the request, so that it need not be stored in clear."""
    words = f"{node.pk}|{node.token_hash}|{request_id}".encode()
    token = base64.urlsafe_b64encode(hmac.digest(derive("brs node token"), words, "sha256")).decode().rstrip("=")
    Node.objects.filter(pk=node.pk, token_hash=node.token_hash, quarantined_at=None).update(
        next_token_hash=digest(token)
    )
    return TokenReply(token=token)


def _promote(node: Node, hashed: str) -> Node:
    """The new token arrived for the first time: the old one ends. Two requests at once promote once."""
    now = timezone.now()
    Node.objects.filter(pk=node.pk, next_token_hash=hashed).update(
        token_hash=hashed, next_token_hash="", old_token_hash=node.token_hash, token_changed_at=now
    )
    node.old_token_hash, node.token_hash, node.next_token_hash, node.token_changed_at = node.token_hash, hashed, "", now
    return node


def quarantine(node: Node, by: User | str, reason: str) -> None:
    """Refuses every token of the node from now on, until it is enrolled anew. Done twice it changes nothing."""
    if isinstance(by, User):
        access.require(by, access.Right.CONFIGURE, node)
    now = timezone.now()
    if Node.objects.filter(pk=node.pk, quarantined_at=None).update(quarantined_at=now, quarantine_reason=reason[:300]):
        log.warning("Node %s is quarantined: %s", node.name, reason)
        audit.record(by, "node.quarantined", node, detail={"reason": reason})
