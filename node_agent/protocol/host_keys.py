"""Keys by which hosts prove themselves, as people compare them."""

from __future__ import annotations

import base64
import hashlib


def fingerprint(key: str) -> str:
    """``SHA256:…`` of a line ``ssh-ed25519 AAAA…``, as ssh-keygen shows it; what is none is shown as it is."""
    words = key.split()
    try:
        raw = base64.b64decode(words[1], validate=True)
    except (IndexError, ValueError):
        return key[:200]
    digest = base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
    return f"{words[0]} SHA256:{digest}"
