from __future__ import annotations

import os

import pytest
import zstandard

from node_agent.errors import ConfigError
from node_agent.repository.compression import LEVELS, NotCompressed, compress, decompress, level_of


@pytest.mark.parametrize("level", [level for level in LEVELS.values() if level is not None])
def test_every_level_gives_the_content_back(level: int) -> None:
    content = b"abc" * 10_000 + os.urandom(1000)
    assert decompress(compress(content, level), length=len(content)) == content


def test_a_length_that_lies_is_noticed_either_way() -> None:
    packed = compress(b"x" * 1000, 1)
    for length in (999, 1001):
        with pytest.raises(NotCompressed):
            decompress(packed, length=length)


def test_a_bomb_that_says_its_size_is_not_unpacked() -> None:
    bomb = compress(bytes(64 << 20), 1)
    with pytest.raises(NotCompressed, match="claims"):
        decompress(bomb, length=1000)


def test_a_bomb_that_hides_its_size_stops_at_the_limit() -> None:
    packer = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    bomb = packer.compress(bytes(64 << 20)) + packer.flush()
    with pytest.raises(NotCompressed, match="more than"):
        decompress(bomb, limit=1 << 20)


def test_a_frame_without_its_size_is_read_as_well() -> None:
    packer = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    assert decompress(packer.compress(b"hello" * 99) + packer.flush()) == b"hello" * 99


@pytest.mark.parametrize("content", [b"", b"hello", compress(b"hello", 1)[:-1], compress(b"hello", 1) + b"x"])
def test_what_is_not_exactly_one_frame_is_refused(content: bytes) -> None:
    with pytest.raises(NotCompressed):
        decompress(content)


def test_an_unknown_level_names_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        level_of("ultra")
    assert "auto" in caught.value.hint
