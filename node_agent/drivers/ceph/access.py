"""Where a cluster is and as whom it is spoken to."""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from node_agent.errors import ConfigError

# One address, host or name with or without a port, or a group such as [v2:10.0.0.1:3300,v1:10.0.0.1:6789].
_MON = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]*|\[[A-Za-z0-9.:,/\[\]-]+\]")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class CephAccess:
    """Given to a run, never stored on the node: the key is handed to librados through a pipe.

    ``user`` is the name without ``client.``. ``pools`` are those that may be touched, each ``pool`` or
    ``pool/namespace``. ``fsid``: the cluster that is meant; another one that answers there is refused.
    ``any_cluster``: whichever answers is meant, because a machine's description names it by its monitors alone.
    """

    mon_hosts: Sequence[str]
    fsid: str
    user: str
    key: str = field(repr=False)
    pools: Sequence[str] = ()
    any_cluster: bool = False

    def check(self) -> None:
        """Raises ConfigError, which names the field, for what can be no access."""
        if not self.mon_hosts or not all(_MON.fullmatch(host) for host in self.mon_hosts):
            raise _wrong("The monitors' addresses", "Give host names or addresses, such as 10.0.0.1 or 10.0.0.1:3300.")
        if not _USER.fullmatch(self.user) or self.user.startswith("client."):
            raise _wrong("The user's name", "Give it without “client.”, such as brs for client.brs.")
        try:
            if not self.any_cluster:
                uuid.UUID(self.fsid)
        except ValueError:
            raise _wrong("The cluster's fsid", "It is what “ceph fsid” prints, a UUID.") from None
        try:
            plain = base64.b64decode(self.key, validate=True)
        except (binascii.Error, ValueError):
            plain = b""
        if len(plain) < 16:
            raise _wrong("The user's key", "It is what “ceph auth get-key client.NAME” prints.")
        if not self.pools or not all(self.pools):
            raise _wrong("The list of pools", "Name at least one pool.")


def _wrong(what: str, hint: str) -> ConfigError:
    return ConfigError(f"{what} for Ceph cannot be used.", hint=hint)
