from __future__ import annotations

import io
import random

from node_agent.repository.chunking import MAX_SIZE, MIN_SIZE, Chunker

CONTENT = random.Random(7).randbytes(20 << 20)


def _cut(secret: bytes, content: bytes) -> list[bytes]:
    return list(Chunker(secret).cut(io.BytesIO(content)))


def test_the_chunks_are_the_content_and_within_the_bounds() -> None:
    chunks = _cut(b"k" * 32, CONTENT)
    assert b"".join(chunks) == CONTENT
    assert len(chunks) > 5
    assert all(MIN_SIZE <= len(chunk) <= MAX_SIZE for chunk in chunks[:-1])


def test_one_repository_always_cuts_alike() -> None:
    assert _cut(b"k" * 32, CONTENT) == _cut(b"k" * 32, CONTENT)


def test_another_repository_cuts_elsewhere() -> None:
    assert [len(c) for c in _cut(b"k" * 32, CONTENT)] != [len(c) for c in _cut(b"j" * 32, CONTENT)]


def test_an_insertion_changes_few_chunks() -> None:
    before = set(_cut(b"k" * 32, CONTENT))
    after = _cut(b"k" * 32, CONTENT[: 5 << 20] + b"inserted" + CONTENT[5 << 20 :])
    assert sum(chunk not in before for chunk in after) <= 3


def test_a_short_content_is_one_chunk_and_an_empty_one_is_none() -> None:
    assert _cut(b"k" * 32, b"short") == [b"short"]
    assert _cut(b"k" * 32, b"") == []
