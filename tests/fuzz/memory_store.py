"""A store in memory: quick, and hostile if wanted, since nobody proves names against contents here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from node_agent.errors import ObjectMissing
from node_agent.repository.backend.base import Backend, Buffer, Kind, ObjectInfo


class MemoryStore(Backend):
    url = "memory:"

    def __init__(self) -> None:
        self.objects: dict[tuple[Kind, str], bytes] = {}

    def create(self) -> None:
        return

    def put(self, kind: Kind, name: str, parts: Sequence[Buffer]) -> None:
        self.objects[kind, name] = b"".join(parts)

    def get(self, kind: Kind, name: str, offset: int = 0, length: int | None = None) -> bytes:
        content = self._content(kind, name)
        return content[offset : None if length is None else offset + length]

    def list(self, kind: Kind) -> Iterator[ObjectInfo]:
        found = [ObjectInfo(name, len(content), 0.0) for (k, name), content in self.objects.items() if k is kind]
        return iter(found)

    def stat(self, kind: Kind, name: str) -> ObjectInfo:
        return ObjectInfo(name, len(self._content(kind, name)), 0.0)

    def delete(self, kind: Kind, name: str) -> None:
        self.objects.pop((kind, name), None)

    def now(self) -> float:
        return time.time()

    def _content(self, kind: Kind, name: str) -> bytes:
        try:
            return self.objects[kind, name]
        except KeyError:
            raise ObjectMissing(f"{kind.name.lower()} {name} is missing from {self.url}.") from None
