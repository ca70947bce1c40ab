"""S3 and what speaks like it: ``s3:https://host/bucket/prefix``, ``s3:host/bucket``, ``s3:s3.amazonaws.com/bucket``.

Crash model: see :mod:`.object_store`. In a bucket with versioning a delete leaves a marker, and a replaced
object its older version. With the option ``object-lock`` see :mod:`.object_lock`.

Credentials: options ``access-key-id``, ``secret-access-key``, ``session-token``, or AWS_ACCESS_KEY_ID and its
companions, or the profile (AWS_PROFILE) in AWS_SHARED_CREDENTIALS_FILE, or the machine's role at Amazon.
"""

from __future__ import annotations

import configparser
import contextlib
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from obstore.store import S3Store

from node_agent.errors import BackendUnavailable, ConfigError, RepositoryExists
from node_agent.repository.backend.base import CONFIG_NAME, Buffer, Kind
from node_agent.repository.backend.gate import Gate
from node_agent.repository.backend.lock_rule import LOCK_MODES, LockRule
from node_agent.repository.backend.object_store import FOREIGN, ObjectStoreBackend, client_settings, unusable
from node_agent.repository.backend.settings import Settings, redacted

_AMAZON = re.compile(r"s3[.-](?:dualstack\.)?(?:([a-z0-9-]+)\.)?amazonaws\.com(?:\.cn)?\Z")
_DEFAULT_REGION = "us-east-1"
CLAIM_S = 600.0  # longer than one attempt to put a config can last
_LOCK_HINT = "Write for example: --option object-lock=compliance --option object-lock-days=30."


class S3Backend(ObjectStoreBackend):
    """Not every store keeps the condition on which a ``config`` is put (radosgw 16.2 does not, in buckets with
    versions), so whoever puts one claims it first.

    Put a claim, list the claims, look for a config, put it, take the claim away. Of two who put their claims, the
    later one sees the other's claim, or, where that has gone already, the config that was put before. Who sees a claim
    gives up and tries again after a random pause (RetryingBackend), so two may hinder each other for a moment, and
    never both succeed.
    """

    def _put_once(self, path: str, content: Buffer) -> None:
        with self._claimed():
            if self.exists(Kind.CONFIG, CONFIG_NAME):
                raise RepositoryExists(f"There is already a repository at {self.url}.")
            super()._put_once(path, content)

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        mine = f"{self._prefix}{Kind.LOCK.value}/init-tmp-{secrets.token_hex(8)}"
        try:
            self._put(mine, b"")
        except FOREIGN as error:
            self._raise(error, "written", Kind.LOCK, "claim", writing=True)
        try:
            self._must_be_alone(mine)
            yield
        finally:
            self._discard(mine)

    def _must_be_alone(self, mine: str) -> None:
        """By the store's clock; what a killed program left counts for some minutes."""
        claims = {
            meta["path"]: meta["last_modified"].timestamp()
            for page in self._pages(Kind.LOCK)
            for meta in page
            if "/init-tmp-" in meta["path"]
        }
        now = claims.pop(mine, max(claims.values(), default=0.0))
        if any(at > now - CLAIM_S for at in claims.values()):
            raise BackendUnavailable(
                f"Another program is making a repository at {self.url}.",
                hint="Look again in a moment. If it was killed, this can be done anew after ten minutes.",
            )


def open_s3(address: str, settings: Settings) -> ObjectStoreBackend:
    """``address`` is what follows ``s3:``."""
    scheme, host, bucket, prefix = _parse(address)
    amazon = _AMAZON.match(host)
    region = settings.text("region", "AWS_REGION", "AWS_DEFAULT_REGION") or (amazon and amazon[1]) or _DEFAULT_REGION
    lookup = settings.text("bucket-lookup") or ("dns" if amazon else "path")
    if lookup not in ("dns", "path"):
        raise ConfigError("The option bucket-lookup must be dns or path.", hint="Most stores but Amazon's want path.")
    host_of_region = f"s3.{region}.amazonaws.com" + (".cn" if host.endswith(".cn") else "") if amazon else host
    endpoint = f"{scheme}://{bucket}.{host_of_region}" if lookup == "dns" else f"{scheme}://{host_of_region}"
    credential = _credentials(settings)
    # Through a provider: what is given here must not be mixed with what the library finds in the environment.
    provider: dict[str, Any] = {} if credential is None else {"credential_provider": lambda: credential}
    rule = _lock_rule(settings)
    gate = Gate(settings.text("proxy"))
    try:
        store = S3Store(
            bucket,
            region=region,
            endpoint=endpoint,
            virtual_hosted_style_request=lookup == "dns",
            disable_bulk_delete=True,  # one object a request, which every store understands
            **provider,
            **client_settings(settings, gate, allow_http=scheme == "http"),
        )
    except Exception as error:  # noqa: BLE001 (the library's exceptions have no base below this one)
        raise unusable("S3", error) from None
    url = _url(scheme, host, bucket, prefix)
    if rule is None:
        return S3Backend(store, gate, url=url, bucket=bucket, prefix=prefix)
    from node_agent.repository.backend.object_lock import ObjectLockBackend, S3ObjectLock
    from node_agent.repository.backend.s3_versions import VersionedBucket, open_client

    client = open_client(
        endpoint=f"{scheme}://{host_of_region}",
        region=region,
        virtual_hosted=lookup == "dns",
        credential=credential,
        timeout_s=settings.number("timeout", 300, least=1),
        connections=settings.number("connections", 8, least=1),
        verify=not settings.flag("insecure-tls") and (settings.text("cacert", "RESTIC_CACERT") or True),
        gate=gate,
    )
    lock = S3ObjectLock(VersionedBucket(client, gate, bucket, url), f"{prefix}/" if prefix else "", rule)
    return ObjectLockBackend(store, gate, lock, url=url, bucket=bucket, prefix=prefix)


def _lock_rule(settings: Settings) -> LockRule | None:
    """From ``object-lock`` and ``object-lock-days``."""
    mode, days = settings.text("object-lock"), settings.number("object-lock-days", 0, least=1)
    if mode is None:
        if days:
            raise ConfigError("The option object-lock-days needs object-lock.", hint=_LOCK_HINT)
        return None
    if mode not in LOCK_MODES:
        raise ConfigError(f"The option object-lock must be compliance or governance, not {mode!r}.", hint=_LOCK_HINT)
    if not days:
        raise ConfigError("The option object-lock needs object-lock-days.", hint=_LOCK_HINT)
    return LockRule(LOCK_MODES[mode], days * 86400.0)


def _parse(address: str) -> tuple[str, str, str, str]:
    """Scheme, host with port, bucket, prefix."""
    if address.startswith("//"):
        address = address[2:]
    if "://" not in address:
        address = f"https://{address}"
    parts = urlsplit(address)
    bucket, _, prefix = parts.path.lstrip("/").partition("/")
    if parts.scheme not in ("http", "https") or not parts.hostname or not bucket:
        raise ConfigError(
            f"The address s3:{redacted(address)} is incomplete.", hint="Write s3:https://host/bucket/prefix."
        )
    if "@" in parts.netloc or parts.query:
        raise ConfigError(
            "Credentials do not belong into an S3 address.",
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give them as options.",
        )
    return parts.scheme, parts.netloc, bucket, prefix.strip("/")


def _url(scheme: str, host: str, bucket: str, prefix: str) -> str:
    return f"s3:{scheme}://{host}/{bucket}" + (f"/{prefix}" if prefix else "")


def _credentials(settings: Settings) -> dict[str, Any] | None:
    """None when nothing is set: then the library asks for the machine's role."""
    key = settings.text("access-key-id", "AWS_ACCESS_KEY_ID")
    secret = settings.text("secret-access-key", "AWS_SECRET_ACCESS_KEY")
    token = settings.text("session-token", "AWS_SESSION_TOKEN")
    if not key and not secret:
        key, secret, token = _profile(settings)
    if bool(key) != bool(secret):
        raise ConfigError(
            "Only half of the S3 credentials is given.", hint="Both the key's id and its secret are needed."
        )
    if not key:
        return None
    return {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": None}


def _profile(settings: Settings) -> tuple[str | None, str | None, str | None]:
    path = settings.text("credentials-file", "AWS_SHARED_CREDENTIALS_FILE")
    home = settings.env.get("HOME")
    file = Path(path) if path else Path(home) / ".aws" / "credentials" if home else None
    if file is None or not file.is_file():
        return None, None, None
    parser = configparser.RawConfigParser()
    try:
        parser.read(file, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError):
        # Not the parser's words: they quote the line, which may be the secret.
        raise ConfigError(f"The credentials file {file} cannot be read.", hint="Correct it.") from None
    name = settings.text("profile", "AWS_PROFILE") or "default"
    if not parser.has_section(name):
        return None, None, None
    section = parser[name]
    return (
        section.get("aws_access_key_id"),
        section.get("aws_secret_access_key"),
        section.get("aws_session_token"),
    )
