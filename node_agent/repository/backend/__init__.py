"""Stores for repositories: one contract (:mod:`.base`), one module for each kind of store.

``open_backend`` chooses by the address and puts around the store what it does not care for itself: limits of
bandwidth and connections (:mod:`.limits`), and new attempts (:mod:`.retry`). The libraries behind the remote
kinds are loaded only when such an address is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from node_agent.errors import ConfigError
from node_agent.repository.backend.base import Backend, Kind, ObjectInfo
from node_agent.repository.backend.limits import LimitedBackend, bandwidth_of
from node_agent.repository.backend.local import LocalBackend
from node_agent.repository.backend.retry import MAX_S, RetryingBackend
from node_agent.repository.backend.settings import Settings, redacted

__all__ = ["Backend", "Kind", "ObjectInfo", "open_backend", "redacted"]

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):")
_CONNECTIONS = {"local": 16, "sftp": 4}
_CONNECTIONS_ELSEWHERE = 8


def open_backend(
    url_or_path: str,
    options: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    *,
    shared: Mapping[str, str] | None = None,
) -> Backend:
    """The store behind an address. Nothing is touched yet. ConfigError names what is wrong with the address.

    A plain path or ``local:/path``, ``sftp:…``, ``s3:…``, ``azure:…``, ``gs:…``, ``rest:…``, each as restic
    writes it. ``options`` go before ``shared`` (options that only some kinds of store have a use for), and these
    before the variables of ``env`` (the process's own when None).
    """
    if not url_or_path:
        raise ConfigError("The repository's address is empty.", hint="Give a folder, for example /srv/backup.")
    scheme, address = _split(url_or_path)
    settings = Settings(scheme, options or {}, os.environ if env is None else env, shared or {})
    if scheme != "s3" and settings.given("object-lock", "object-lock-days"):
        raise ConfigError(
            f"Immutability (object-lock) is not offered on stores of the kind {scheme}.",
            hint="Use an S3 bucket with Object Lock, or leave out the option. docs/destinations.md says why.",
        )
    store = _OPENERS[scheme](address, settings)
    bandwidth = bandwidth_of(settings)
    connections = settings.number("connections", _CONNECTIONS.get(scheme, _CONNECTIONS_ELSEWHERE), least=1)
    max_s = settings.number("retry-seconds", int(MAX_S))
    settings.must_be_known()
    if scheme != "local" or not bandwidth.unlimited:
        store = LimitedBackend(store, connections=connections, bandwidth=bandwidth)
    return RetryingBackend(store, max_s=max_s)


def _split(url_or_path: str) -> tuple[str, str]:
    match = _SCHEME.match(url_or_path)
    if match is None or url_or_path.startswith("/"):
        return "local", url_or_path
    if match[1] not in _OPENERS:
        raise ConfigError(
            f"Addresses that begin with {match[0]!r} are not supported.",
            hint="Supported are folders (/path or local:/path) and sftp:, s3:, azure:, gs: and rest: addresses.",
        )
    return match[1], url_or_path[len(match[0]) :]


def _open_local(address: str, settings: Settings) -> Backend:  # noqa: ARG001
    return LocalBackend(Path(address))


def _open_sftp(address: str, settings: Settings) -> Backend:
    from node_agent.repository.backend.sftp import open_sftp

    return open_sftp(address, settings)


def _open_s3(address: str, settings: Settings) -> Backend:
    from node_agent.repository.backend.s3 import open_s3

    return open_s3(address, settings)


def _open_azure(address: str, settings: Settings) -> Backend:
    from node_agent.repository.backend.azure import open_azure

    return open_azure(address, settings)


def _open_gcs(address: str, settings: Settings) -> Backend:
    from node_agent.repository.backend.gcs import open_gcs

    return open_gcs(address, settings)


def _open_rest(address: str, settings: Settings) -> Backend:
    from node_agent.repository.backend.rest import open_rest

    return open_rest(address, settings)


_OPENERS: dict[str, Callable[[str, Settings], Backend]] = {
    "local": _open_local,
    "sftp": _open_sftp,
    "s3": _open_s3,
    "azure": _open_azure,
    "gs": _open_gcs,
    "rest": _open_rest,
}
