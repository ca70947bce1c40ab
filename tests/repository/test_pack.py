from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.errors import DamagedError
from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.crypto import Key
from node_agent.repository.pack import (
    MAX_ENTRIES,
    MAX_SIZE,
    BlobKind,
    PackBuilder,
    PackedBlob,
    decode_header,
    encode_header,
    open_blob,
    pack_size,
    read_header,
)
from tests.repository.core_world import flip

KEY = Key.random()
CONTENTS = [b"one" * 100, b"two" * 5000, b"three"]


@st.composite
def headers(draw: st.DrawFn) -> list[PackedBlob]:
    sizes = st.integers(1, 2**20)
    offset, blobs = 0, []
    for _ in range(draw(st.integers(0, 20))):
        length = draw(sizes)
        blob_id = draw(st.binary(min_size=32, max_size=32))
        kind = draw(st.sampled_from(BlobKind))
        blobs.append(PackedBlob(kind, blob_id, offset, length, draw(st.one_of(st.just(0), sizes))))
        offset += length
    return blobs


@given(headers())
def test_a_header_survives(blobs: list[PackedBlob]) -> None:
    assert decode_header(encode_header(blobs)) == blobs


@given(headers(), st.integers(1, 30))
def test_a_header_that_is_cut_is_refused_or_shorter(blobs: list[PackedBlob], cut: int) -> None:
    header = encode_header(blobs)
    with contextlib.suppress(ValueError):  # refused: the usual case
        assert len(decode_header(header[:-cut])) < max(1, len(blobs))


@given(st.binary(max_size=300))
def test_garbage_never_raises_anything_but_value_error(garbage: bytes) -> None:
    with contextlib.suppress(ValueError):  # the documented answer
        decode_header(garbage)


@pytest.fixture
def pack(tmp_path: Path):
    """A stored pack: backend, name, size, its blobs and its path."""
    backend = open_backend(str(tmp_path / "repo"))
    backend.create()
    builder = PackBuilder(BlobKind.DATA)
    for content in CONTENTS:
        builder.add(hashlib.sha256(content).digest(), KEY.seal(content), 0)
    name, parts = builder.finish(KEY)
    backend.put(Kind.PACK, name, parts)
    path = tmp_path / "repo" / "data" / name[:2] / name
    return backend, name, path.stat().st_size, builder.blobs, path


def test_a_stored_pack_lists_its_blobs_and_is_named_by_its_digest(pack) -> None:
    backend, name, size, blobs, path = pack
    assert read_header(backend, KEY, name, size) == blobs
    assert hashlib.sha256(path.read_bytes()).hexdigest() == name
    assert pack_size(blobs) == size


def test_every_blob_opens_to_its_content(pack) -> None:
    backend, name, _, blobs, _ = pack
    for blob, content in zip(blobs, CONTENTS, strict=True):
        assert open_blob(KEY, name, blob, backend.get(Kind.PACK, name, blob.offset, blob.length)) == content


def test_a_flipped_blob_is_named_with_its_pack(pack) -> None:
    backend, name, _, blobs, path = pack
    flip(path, blobs[1].offset + 40)
    sealed = backend.get(Kind.PACK, name, blobs[1].offset, blobs[1].length)
    with pytest.raises(DamagedError) as caught:
        open_blob(KEY, name, blobs[1], sealed)
    assert name in caught.value.message and blobs[1].id.hex() in caught.value.message


@pytest.mark.parametrize("back", [1, 4, 5, 60])
def test_a_flipped_header_is_named(pack, back: int) -> None:
    backend, name, size, _, path = pack
    flip(path, size - back)
    with pytest.raises(DamagedError, match=name):
        read_header(backend, KEY, name, size)


@pytest.mark.parametrize("left", [0, 3, 40, 200])
def test_a_truncated_pack_is_named(pack, left: int) -> None:
    backend, name, _, _, path = pack
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DamagedError, match=name):
        read_header(backend, KEY, name, left)


def test_a_header_larger_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    backend = open_backend(str(tmp_path / "repo"))
    backend.create()
    builder = PackBuilder(BlobKind.TREE)
    for number in range(2000):
        builder.add(hashlib.sha256(b"%d" % number).digest(), KEY.seal(b"%d" % number), 0)
    name, parts = builder.finish(KEY)
    backend.put(Kind.PACK, name, parts)
    assert read_header(backend, KEY, name, sum(map(len, parts))) == builder.blobs


def test_a_pack_is_full_before_it_breaks_a_limit() -> None:
    builder = PackBuilder(BlobKind.DATA)
    assert builder.fits(MAX_SIZE // 2) and not builder.fits(MAX_SIZE)
    builder.blobs = [PackedBlob(BlobKind.DATA, bytes(32), 0, 1, 0)] * MAX_ENTRIES
    assert builder.full and not builder.fits(1)
