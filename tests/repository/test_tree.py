from __future__ import annotations

import json
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.repository.tree import Node, decode_tree, encode_tree, from_go_mode, go_mode, node_type

TIMES = st.integers(-62167219200 * 10**9, 253402300799 * 10**9)
IDS = st.binary(min_size=32, max_size=32)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.binary(min_size=1, max_size=20).filter(lambda n: n not in (b".", b"..") and not set(n) & {0, 47})


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    kind = draw(st.sampled_from(["file", "dir", "symlink", "dev", "chardev", "fifo", "socket"]))
    node = Node(
        name=draw(NAMES),
        type=kind,
        mode=draw(st.integers(0, 2**32 - 1)),
        mtime=draw(TIMES),
        atime=draw(TIMES),
        ctime=draw(TIMES),
        uid=draw(st.integers(0, 2**32 - 1)),
        gid=draw(st.integers(0, 2**32 - 1)),
        user=draw(TEXT),
        group=draw(TEXT),
        inode=draw(st.integers(0, 2**64 - 1)),
        device_id=draw(st.integers(0, 2**64 - 1)),
        links=draw(st.integers(0, 9)),
        xattrs=draw(st.lists(st.tuples(TEXT, st.binary(max_size=30)), max_size=3)),
        error=draw(TEXT),
    )
    if kind == "file":
        node.content = draw(st.lists(IDS, max_size=4))
        node.size = draw(st.integers(0, 2**63 - 1))
    elif kind == "dir":
        node.subtree = draw(IDS)
        node.generic_attributes = draw(st.dictionaries(TEXT, st.integers(), max_size=2))
    elif kind == "symlink":
        node.linktarget = draw(st.binary(max_size=30))
    elif kind in ("dev", "chardev"):
        node.device = draw(st.integers(0, 2**64 - 1))
    return node


@given(st.lists(nodes(), max_size=5, unique_by=lambda node: node.name))
def test_a_tree_survives_in_order_of_raw_names(entries: list[Node]) -> None:
    assert decode_tree(encode_tree(entries)) == sorted(entries, key=lambda node: node.name)


def test_a_tree_looks_byte_for_byte_as_go_writes_it() -> None:
    file = Node(b"a<b>&\xff", "file", mode=0o644, mtime=1_500_000_000, size=3, links=1, content=[b"\x11" * 32])
    assert encode_tree([file]).decode() == (
        '{"nodes":[{"name":"a\\u003cb\\u003e\\u0026\\\\xff","type":"file","mode":420,'
        '"mtime":"1970-01-01T00:00:01.5Z","atime":"1970-01-01T00:00:00Z","ctime":"1970-01-01T00:00:00Z",'
        '"uid":0,"gid":0,"size":3,"links":1,"content":["' + "11" * 32 + '"]}]}\n'
    )


def test_an_empty_file_has_an_empty_list_and_a_directory_null() -> None:
    tree = json.loads(encode_tree([Node(b"f", "file"), Node(b"d", "dir", subtree=bytes(32))]))
    assert [(node["name"], node["content"]) for node in tree["nodes"]] == [("d", None), ("f", [])]


def test_an_empty_tree_can_be_written_and_read() -> None:
    assert encode_tree([]) == b'{"nodes":[]}\n'
    assert decode_tree(b'{"nodes":null}') == decode_tree(encode_tree([])) == []


def test_names_are_ordered_by_bytes_not_by_text() -> None:
    # As text U+FFFD sorts before U+10000, as UTF-8 too; a raw byte 0xff sorts after both only as a byte.
    names = [b"\xff", "\U00010000".encode(), "\ufffd".encode(), b"a", b"B"]
    order = [node.name for node in decode_tree(encode_tree([Node(name, "file") for name in names]))]
    assert order == sorted(names)


def test_a_name_that_occurs_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        encode_tree([Node(b"x", "file"), Node(b"x", "dir")])


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b"])
def test_a_name_that_no_directory_can_hold_is_never_written(name: bytes) -> None:
    with pytest.raises(ValueError):
        encode_tree([Node(name, "file")])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"nodes":1}',
        b'{"nodes":[{}]}',
        b'{"nodes":[{"name":"a\\\\"}]}',
        b'{"nodes":[{"name":"a","content":["zz"]}]}',
        b'{"nodes":[{"name":"a","subtree":"00"}]}',
        b'{"nodes":[{"name":"a","mtime":"yesterday"}]}',
        b'{"nodes":[{"name":"a","mode":"0644"}]}',
        b'{"nodes":[{"name":"a","size":1.5}]}',
        b'{"nodes":[{"name":"a","uid":null}]}',
        b'{"nodes":[{"name":"a","links":true}]}',
        b'{"nodes":[{"name":"a","type":["file"]}]}',
        b'{"nodes":[{"name":"a","user":0}]}',
        b'{"nodes":' + b"[" * 100_000,
    ],
)
def test_what_is_no_tree_raises_value_error(content: bytes) -> None:
    with pytest.raises(ValueError):
        decode_tree(content)


def test_a_link_target_that_is_not_utf8_is_kept_beside_a_readable_one() -> None:
    raw = json.loads(encode_tree([Node(b"l", "symlink", linktarget=b"x\xff")]))["nodes"][0]
    assert (raw["linktarget"], raw["linktarget_raw"]) == ("x\ufffd", "eP8=")


@pytest.mark.parametrize(
    ("unix", "go", "kind"),
    [
        (stat.S_IFREG | 0o4755, 0o755 | 1 << 23, "file"),
        (stat.S_IFDIR | 0o1777, 0o777 | 1 << 31 | 1 << 20, "dir"),
        (stat.S_IFDIR | 0o2750, 0o750 | 1 << 31 | 1 << 22, "dir"),
        (stat.S_IFLNK | 0o777, 0o777 | 1 << 27, "symlink"),
        (stat.S_IFBLK | 0o660, 0o660 | 1 << 26, "dev"),
        (stat.S_IFCHR | 0o666, 0o666 | 1 << 26 | 1 << 21, "chardev"),
        (stat.S_IFIFO | 0o600, 0o600 | 1 << 25, "fifo"),
        (stat.S_IFSOCK | 0o600, 0o600 | 1 << 24, "socket"),
    ],
)
def test_modes_are_go_modes_and_back(unix: int, go: int, kind: str) -> None:
    assert go_mode(unix) == go
    assert from_go_mode(go) == unix
    assert node_type(unix) == kind


def test_a_hostile_type_stays_a_text_when_its_tree_is_written_again() -> None:
    node = Node(b"f", 'fi","subtree":"x\\', mode=0o600)
    assert decode_tree(encode_tree([node])) == [node]
