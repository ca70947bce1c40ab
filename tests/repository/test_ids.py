"""Lists of ids in one piece of memory, and how they are lifted out of a tree's JSON."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.errors import DamagedError
from node_agent.repository.ids import LARGE, Ids, lift
from node_agent.repository.reachable import references
from node_agent.repository.tree import Node, decode_tree, encode_tree

MANY = [hashlib.sha256(b"%d" % number).digest() for number in range(LARGE + 5)]


def test_ids_are_a_sequence_like_a_list() -> None:
    ids = Ids.of(MANY)
    assert len(ids) == len(MANY)
    assert list(ids) == MANY
    assert ids == MANY
    assert ids == Ids.of(list(MANY))
    assert ids != MANY[:-1]
    assert ids != "x"
    assert (ids[0], ids[-1]) == (MANY[0], MANY[-1])
    assert ids[3:7] == MANY[3:7]
    assert ids[::1000] == MANY[::1000]
    assert (ids.find(MANY[9]), ids.find(MANY[9], 10), ids.find(MANY[9], 0, 9)) == (9, -1, -1)
    assert not Ids()
    with pytest.raises(IndexError):
        ids[len(MANY)]
    with pytest.raises(ValueError):
        Ids(b"x")


def test_an_id_is_found_at_its_own_place_only() -> None:
    assert Ids(bytes(16) + b"\1" * 32 + bytes(16)).find(b"\1" * 32) == -1
    assert Ids(bytes(16) + b"\1" * 32 + bytes(16) + b"\1" * 32).find(b"\1" * 32) == 2


@pytest.mark.parametrize("content", [MANY, Ids.of(MANY)])
def test_a_long_list_comes_back_as_it_was(content: list[bytes] | Ids) -> None:
    nodes = [Node(b"a", "file", content=[b"\1" * 32]), Node(b"b", "file", content=content), Node(b"c", "dir")]
    blob = encode_tree(nodes)
    again = decode_tree(blob)
    assert isinstance(again[1].content, Ids)
    assert [list(node.content) for node in again] == [[b"\1" * 32], MANY, []]
    assert encode_tree(again) == blob
    assert json.loads(blob)["nodes"][1]["content"] == [blob_id.hex() for blob_id in MANY]


@pytest.mark.parametrize("more", [1, 2047, 2048, 2049])
def test_lists_end_anywhere_in_a_piece(more: int) -> None:
    ids = (MANY + MANY)[: LARGE + more]
    blob = encode_tree([Node(b"n", "file", content=Ids.of(ids))])
    assert blob == encode_tree([Node(b"n", "file", content=ids)])
    assert decode_tree(blob)[0].content == ids


@given(st.integers(0, 67 * LARGE + 67), st.sampled_from([b"x", b"A", b" ", b'"', b"\\", b"]"]))
def test_a_list_that_is_not_quite_one_is_judged_as_json_is(place: int, byte: bytes) -> None:
    text = bytearray(
        json.dumps({"nodes": [{"name": "n", "content": [i.hex() for i in MANY]}]}, separators=(",", ":")), "utf8"
    )
    begin = text.index(b'"content":["') + 12
    text[begin + place : begin + place + 1] = byte
    try:
        wanted = [bytes.fromhex(i) for i in json.loads(text)["nodes"][0]["content"]]
        assert all(len(blob_id) == 32 for blob_id in wanted)
    except (ValueError, AssertionError):
        with pytest.raises(ValueError):
            decode_tree(bytes(text))
    else:
        assert decode_tree(bytes(text))[0].content == wanted


@pytest.mark.parametrize("last", ["00" * 32, "00" * 31, "00" * 64, ""])
def test_what_a_tree_refers_to_is_the_same_by_both_ways(last: str) -> None:
    long = {"name": "a", "content": [blob_id.hex() for blob_id in MANY]}
    short = {"name": "b", "content": [last], "subtree": MANY[1].hex()}
    text = json.dumps({"nodes": [long, short]}, separators=(",", ":")).encode()
    if len(last) != 64:
        with pytest.raises(DamagedError):
            references(MANY[0], text)
        return
    data, trees = references(MANY[0], text)
    assert isinstance(data, Ids)
    assert set(data) == {*MANY, bytes(32)}
    assert trees == [MANY[1]]


def test_a_name_that_looks_like_a_list_is_a_name() -> None:
    name = b'"content":["' + MANY[0].hex().encode() + b'"]'
    nodes = [Node(name, "file", content=Ids.of(MANY))]
    assert decode_tree(encode_tree(nodes))[0].name == name
    small, lists = lift(encode_tree(nodes))
    assert (len(lists), len(small) < 1000) == (1, True)
