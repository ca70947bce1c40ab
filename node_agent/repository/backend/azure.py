"""Azure Blob Storage: ``azure:container:/prefix``.

Crash model: see :mod:`.object_store`. With soft delete or versioning switched on, deleted blobs stay for the
account's time; a container under an immutability policy refuses deletes, locks included.

Credentials: AZURE_ACCOUNT_NAME with AZURE_ACCOUNT_KEY or AZURE_ACCOUNT_SAS, or a service principal
(AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_CLIENT_SECRET), or the machine's managed identity; all as options too.
"""

from __future__ import annotations

from typing import Any

from obstore.store import AzureStore

from node_agent.errors import ConfigError
from node_agent.repository.backend.gate import Gate
from node_agent.repository.backend.object_store import ObjectStoreBackend, client_settings, unusable
from node_agent.repository.backend.settings import Settings


class AzureBackend(ObjectStoreBackend):
    strict_listings = True


def open_azure(address: str, settings: Settings) -> ObjectStoreBackend:
    """``address`` is what follows ``azure:``."""
    container, prefix = split_bucket("azure", address)
    account = settings.text("account-name", "AZURE_ACCOUNT_NAME")
    if not account:
        raise ConfigError("The Azure storage account is not named.", hint="Set AZURE_ACCOUNT_NAME.")
    endpoint = settings.text("endpoint")
    if endpoint is None:
        suffix = settings.text("endpoint-suffix", "AZURE_ENDPOINT_SUFFIX") or "core.windows.net"
        endpoint = f"https://{account}.blob.{suffix}"
    key = settings.text("account-key", "AZURE_ACCOUNT_KEY")
    signature = settings.text("account-sas", "AZURE_ACCOUNT_SAS")
    given: dict[str, Any] = {
        "tenant_id": settings.text("tenant-id", "AZURE_TENANT_ID"),
        "client_id": settings.text("client-id", "AZURE_CLIENT_ID"),
        "client_secret": settings.text("client-secret", "AZURE_CLIENT_SECRET"),
    }
    # Through a provider: what is given here must not be mixed with what the library finds in the environment.
    if key:
        given["credential_provider"] = lambda: {"access_key": key, "expires_at": None}
    elif signature:
        given["credential_provider"] = lambda: {"sas_token": signature.removeprefix("?"), "expires_at": None}
    gate = Gate(settings.text("proxy"))
    try:
        store = AzureStore(
            container,
            account_name=account,
            endpoint=endpoint,
            **{name: value for name, value in given.items() if value},
            **client_settings(settings, gate, allow_http=endpoint.startswith("http://")),
        )
    except Exception as error:  # noqa: BLE001 (the library's exceptions have no base below this one)
        raise unusable("Azure", error) from None
    return AzureBackend(store, gate, url=f"azure:{container}:/{prefix}", bucket=container, prefix=prefix)


def split_bucket(scheme: str, address: str) -> tuple[str, str]:
    """``bucket:/prefix`` as its two parts."""
    bucket, colon, prefix = address.partition(":")
    if not bucket or not colon or "/" in bucket:
        raise ConfigError(f"The address {scheme}:{address} is incomplete.", hint=f"Write {scheme}:bucket:/prefix.")
    return bucket, prefix.strip("/")
