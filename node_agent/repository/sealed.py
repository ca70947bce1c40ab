"""The repository's own files (config, index, snapshots, locks): sealed, named by their digest, compressed in v2.

The plain content of a version 2 file begins with the byte 2 and one zstd frame, or with ``{`` or ``[`` when it is
bare JSON, as version 1 wrote it and the config always is.
"""

from __future__ import annotations

import hashlib
from typing import Any

from node_agent.errors import DamagedError
from node_agent.repository.backend.base import CONFIG_NAME, Backend, Buffer, Kind
from node_agent.repository.compression import MAX_UNPACKED, NotCompressed, compress, decompress
from node_agent.repository.crypto import Key, Unauthenticated
from node_agent.repository.strict_json import parse_json

_ZSTD = b"\x02"
_LEVEL = 3
_MAX_SMALL = 1 << 20  # of a config or a lock, which have some hundred bytes


class SealedFiles:
    """Loads and stores whole files of one repository with its master key. Thread-safe."""

    def __init__(self, backend: Backend, key: Key, version: int = 2) -> None:
        self.backend = backend
        self.key = key
        self.version = version

    def load(self, kind: Kind, name: str) -> bytes:
        """The plain content, name and seal proven. Raises ObjectMissing, DamagedError (naming the file)."""
        sealed = self.read(kind, name)
        if kind is not Kind.CONFIG and hashlib.sha256(sealed).hexdigest() != name:
            raise DamagedError(f"{describe(kind, name)} is damaged: its name is not the SHA-256 of its content.")
        return self.unseal(kind, name, sealed)

    def read(self, kind: Kind, name: str) -> bytes:
        """The file as it is stored; one larger than any honest one is cut off, and thereby damaged."""
        limit = _MAX_SMALL if kind in (Kind.CONFIG, Kind.LOCK) else MAX_UNPACKED
        return self.backend.get(kind, name, length=limit)

    def unseal(self, kind: Kind, name: str, sealed: Buffer) -> bytes:
        try:
            return _unframe(self.key.open(sealed))
        except (Unauthenticated, NotCompressed) as error:
            raise DamagedError(f"{describe(kind, name)} is damaged: {error}.") from error

    def load_json(self, kind: Kind, name: str) -> Any:
        """Raises DamagedError also for what is no JSON."""
        plain = self.load(kind, name)
        try:
            return parse_json(plain)
        except ValueError as error:
            raise DamagedError(f"{describe(kind, name)} is damaged: it is not JSON ({error}).") from error

    def seal(self, kind: Kind, plain: bytes) -> tuple[str, bytearray]:
        """Name and sealed content, opened again and compared, so that a fault of memory is never stored."""
        framed = plain if self.version < 2 or kind is Kind.CONFIG else _ZSTD + compress(plain, _LEVEL)
        sealed = self.key.seal(framed)
        name = CONFIG_NAME if kind is Kind.CONFIG else hashlib.sha256(sealed).hexdigest()
        if self.unseal(kind, name, sealed) != plain:
            raise DamagedError(
                f"A new {kind.name.lower()} file did not read back as it was written; nothing was stored.",
                hint="The memory or processor of this machine is faulty. Test it before the next backup.",
            )
        return name, sealed

    def save(self, kind: Kind, plain: bytes) -> str:
        """Durable on return. Returns the new file's name."""
        name, sealed = self.seal(kind, plain)
        self.backend.put(kind, name, [sealed])
        return name


def describe(kind: Kind, name: str) -> str:
    """How messages name an object: ``index 0a1b…`` with the whole name, since people search for it."""
    if kind is Kind.CONFIG:
        return "config"
    return f"{kind.name.lower()} {name}"


def _unframe(plain: bytes) -> bytes:
    if plain[:1] in (b"{", b"["):
        return plain
    if plain[:1] == _ZSTD:
        return decompress(memoryview(plain)[1:])
    raise NotCompressed("its encoding is unknown")
