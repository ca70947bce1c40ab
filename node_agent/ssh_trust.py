"""Keys of SSH, as a person writes them down, and the ciphers that are quick: for stores and for hypervisors.

A host key is always known beforehand: pinned as a line ``ssh-ed25519 AAAA…`` or as a fingerprint ``SHA256:…``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import logging
from typing import Any

import paramiko
from paramiko.pkey import UnknownKeyType

from node_agent.errors import ConfigError

QUICK_CIPHERS = (
    "aes128-gcm@openssh.com",  # one pass instead of two: half as much again as with a separate MAC
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
SILENT = "node_agent.paramiko"
logging.getLogger(SILENT).setLevel(logging.CRITICAL)  # it logs a traceback of all that it raises, too
_KEEPALIVE_S = 30


class _Transport(paramiko.Transport):
    _preferred_ciphers = QUICK_CIPHERS


def quick_transport(*args: Any, **kwargs: Any) -> paramiko.Transport:
    """For ``transport_factory``; an answer is asked for now and then, so that a dead peer is noticed."""
    transport = _Transport(*args, **kwargs)
    transport.set_keepalive(_KEEPALIVE_S)
    return transport


def fingerprint(key: paramiko.PKey) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def is_pinned(pinned: str, key: paramiko.PKey) -> bool:
    """Whether ``key`` is the one that was written down. ConfigError if what is written down is no key."""
    if pinned.startswith("SHA256:"):
        return pinned.rstrip("=") == fingerprint(key)
    return parse_host_key(pinned) == key


def parse_host_key(line: str) -> paramiko.PKey:
    try:
        kind, data = line.split()[:2]
        return paramiko.PKey.from_type_string(kind, base64.b64decode(data, validate=True))
    except (ValueError, binascii.Error, paramiko.SSHException, UnknownKeyType) as error:
        raise ConfigError(
            "The option host-key is no host key.", hint="Write “ssh-ed25519 AAAA…” or “SHA256:…”."
        ) from error


def parse_private_key(text: str, passphrase: str | None) -> paramiko.PKey:
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key(io.StringIO(text.strip() + "\n"), passphrase)
        except paramiko.PasswordRequiredException as error:
            raise ConfigError("The private key is locked.", hint="Give its passphrase, too.") from error
        except (paramiko.SSHException, ValueError):
            continue
    raise ConfigError(
        "The private key is not understood.",
        hint="Give the whole file of an Ed25519, ECDSA or RSA key, and its passphrase if it has one.",
    )
