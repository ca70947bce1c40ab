"""Google Cloud Storage: ``gs:bucket:/prefix``.

Crash model: see :mod:`.object_store`. Google limits changes of one object's name to about one a second, which
no repository comes near: names are written once.

Credentials: the key file that GOOGLE_APPLICATION_CREDENTIALS names (option ``credentials-file``), or an access
token in GOOGLE_ACCESS_TOKEN, or the key file's content in option ``service-account-key``, or the machine's
service account at Google.
"""

from __future__ import annotations

from typing import Any

from obstore.store import GCSStore

from node_agent.repository.backend.azure import split_bucket
from node_agent.repository.backend.gate import Gate
from node_agent.repository.backend.object_store import ObjectStoreBackend, client_settings, unusable
from node_agent.repository.backend.settings import Settings


def open_gcs(address: str, settings: Settings) -> ObjectStoreBackend:
    """``address`` is what follows ``gs:``."""
    bucket, prefix = split_bucket("gs", address)
    config: dict[str, Any] = {}
    endpoint = settings.text("endpoint")
    token = settings.text("access-token", "GOOGLE_ACCESS_TOKEN")
    account = settings.text("service-account-key")
    file = settings.text("credentials-file", "GOOGLE_APPLICATION_CREDENTIALS")
    if endpoint:
        config["base_url"] = endpoint
    if token:
        config["credential_provider"] = lambda: {"token": token, "expires_at": None}
    elif account:
        config["service_account_key"] = account
    elif file:
        config["application_credentials"] = file
    gate = Gate(settings.text("proxy"))
    try:
        store = GCSStore(
            bucket, **config, **client_settings(settings, gate, allow_http=(endpoint or "").startswith("http://"))
        )
    except Exception as error:  # noqa: BLE001 (the library's exceptions have no base below this one)
        raise unusable("Google", error) from None
    return ObjectStoreBackend(store, gate, url=f"gs:{bucket}:/{prefix}", bucket=bucket, prefix=prefix)
