"""restic's cryptography: AES-256 in counter mode, authenticated by Poly1305-AES, keys from scrypt.

A sealed message is ``nonce (16) || ciphertext || tag (16)``. The tag's one-time key is ``r || AES-128_k(nonce)``
(D. J. Bernstein, "The Poly1305-AES message-authentication code", 2005), the nonce is random for each message.
Nothing is decrypted before its tag is proven.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

from node_agent.repository.backend.base import Buffer
from node_agent.repository.strict_json import parse_json

NONCE_SIZE = 16
TAG_SIZE = 16
OVERHEAD = NONCE_SIZE + TAG_SIZE
SALT_SIZE = 64

# What a key file may ask of us: restic's own calibration stays far below, a hostile file would take hours.
MAX_SCRYPT_MEMORY = 512 << 20  # 128 * N * r bytes
MAX_SCRYPT_WORK = 1 << 25  # N * r * p; about fifteen seconds


class Unauthenticated(Exception):
    """The message was not sealed with this key, or is damaged."""


class _Contexts(threading.local):
    """A thread's own cipher contexts of one key: making them costs more than sealing a small message."""

    def __init__(self, key: Key) -> None:
        self.stream = Cipher(algorithms.AES(key.encrypt), modes.CTR(bytes(NONCE_SIZE))).encryptor()
        self.block = Cipher(algorithms.AES(key.mac_k), modes.ECB()).encryptor()


@dataclass(frozen=True, slots=True)
class Key:
    """One pair of keys: the repository's master key, or the user key that a password yields."""

    encrypt: bytes = field(repr=False)  # 32, AES-256
    mac_k: bytes = field(repr=False)  # 16, AES-128
    mac_r: bytes = field(repr=False)  # 16, Poly1305 (clamped by the library)
    _contexts: _Contexts = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (len(self.encrypt), len(self.mac_k), len(self.mac_r)) != (32, 16, 16):
            raise ValueError("a key has 32 + 16 + 16 bytes")
        if not (any(self.encrypt) and any(self.mac_k) and any(self.mac_r)):
            raise ValueError("a key of zeros is no key")
        object.__setattr__(self, "_contexts", _Contexts(self))

    @classmethod
    def random(cls) -> Key:
        return cls(os.urandom(32), os.urandom(16), os.urandom(16))

    def seal(self, plain: Buffer) -> bytearray:
        """Safe from many threads at once."""
        return self.seal_each([plain])

    def seal_each(self, plains: Sequence[Buffer]) -> bytearray:
        """Several messages, each sealed for itself, one after the other in one piece of memory.

        Nonces are drawn together: each system call gives the interpreter away, and waits to get it back.
        """
        sealed = bytearray(sum(map(len, plains)) + OVERHEAD * len(plains))
        nonces = os.urandom(NONCE_SIZE * len(plains))
        view = memoryview(sealed)
        stream = self._contexts.stream
        at = 0
        for number, plain in enumerate(plains):
            nonce = nonces[number * NONCE_SIZE : (number + 1) * NONCE_SIZE]
            begin = at + NONCE_SIZE
            end = begin + len(plain)
            view[at:begin] = nonce
            stream.reset_nonce(nonce)
            stream.update_into(plain, view[begin:])
            at = end + TAG_SIZE
            view[end:at] = Poly1305.generate_tag(self._one_time_key(nonce), view[begin:end])
        return sealed

    def open(self, sealed: Buffer) -> bytes:
        """The plain message. Raises Unauthenticated."""
        if len(sealed) < OVERHEAD:
            raise Unauthenticated("too short")
        view = memoryview(sealed)
        nonce, body, tag = bytes(view[:NONCE_SIZE]), view[NONCE_SIZE:-TAG_SIZE], bytes(view[-TAG_SIZE:])
        try:
            Poly1305.verify_tag(self._one_time_key(nonce), body, tag)
        except InvalidSignature:
            raise Unauthenticated("the tag does not match") from None
        stream = self._contexts.stream  # in counter mode decrypting is encrypting
        stream.reset_nonce(nonce)
        return stream.update(body)

    def derive(self, purpose: str) -> bytes:
        """32 secret bytes for another purpose, from which the key cannot be found."""
        return hmac.digest(self.encrypt + self.mac_k + self.mac_r, purpose.encode(), "sha256")

    def to_json(self) -> bytes:
        k, r, encrypt = (base64.b64encode(part).decode() for part in (self.mac_k, self.mac_r, self.encrypt))
        return json.dumps({"mac": {"k": k, "r": r}, "encrypt": encrypt}, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Key:
        """Raises ValueError for anything that is not a key."""
        try:
            value: dict[str, Any] = parse_json(data)
            parts = (value["encrypt"], value["mac"]["k"], value["mac"]["r"])
            return cls(*(base64.b64decode(part, validate=True) for part in parts))
        except (KeyError, TypeError) as error:
            raise ValueError("not a key") from error

    def _one_time_key(self, nonce: bytes) -> bytes:
        return self.mac_r + self._contexts.block.update(nonce)


@dataclass(frozen=True, slots=True)
class ScryptParams:
    n: int
    r: int
    p: int

    def check(self) -> None:
        """Raises ValueError for parameters that are not scrypt's, or that ask for more than we give."""
        if self.n < 2 or self.n & (self.n - 1) or self.r < 1 or self.p < 1:
            raise ValueError(f"scrypt parameters N={self.n} r={self.r} p={self.p} are invalid")
        if 128 * self.n * self.r > MAX_SCRYPT_MEMORY or self.n * self.r * self.p > MAX_SCRYPT_WORK:
            raise ValueError(f"scrypt parameters N={self.n} r={self.r} p={self.p} ask for too much")


# For keys of our own. Fixed, so that a key made on a fast machine opens on a small one; p=3 because with 32 MiB of
# memory that is the least OWASP's password storage cheat sheet accepts, at a third of a second for each opening.
OWN_SCRYPT = ScryptParams(n=1 << 15, r=8, p=3)


def key_from_password(password: str, salt: bytes, params: ScryptParams) -> Key:
    """The user key. Raises ValueError for parameters beyond the caps."""
    params.check()
    derived = hashlib.scrypt(
        password.encode("utf-8", "surrogateescape"),
        salt=salt,
        n=params.n,
        r=params.r,
        p=params.p,
        maxmem=2 * MAX_SCRYPT_MEMORY,
        dklen=64,
    )
    return Key(encrypt=derived[:32], mac_k=derived[32:48], mac_r=derived[48:])
