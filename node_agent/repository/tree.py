"""Trees: the entries of one directory, as restic's JSON. Names and link targets are bytes, times nanoseconds.

The JSON is written byte for byte as Go writes it (order of fields, left-out zero values, ``<>&`` escaped), with the
entries ordered by the raw bytes of their names, so that an unchanged directory is the same blob whoever wrote it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from node_agent.errors import DamagedError
from node_agent.repository.go_quote import decode_name, encode_name
from node_agent.repository.ids import Ids, lift, to_json
from node_agent.repository.pack import BlobKind
from node_agent.repository.rfc3339 import format_ns, parse_ns
from node_agent.repository.strict_json import parse_json

if TYPE_CHECKING:  # a process that only describes files need not load the store's half of the engine
    from node_agent.repository.repository import Repository

__all__ = [
    "EncodedNode",
    "Node",
    "decode_tree",
    "encode_node",
    "encode_tree",
    "from_go_mode",
    "go_mode",
    "load_tree",
    "node_type",
    "walk",
]

FILE, DIR, SYMLINK, DEV, CHARDEV, FIFO, SOCKET = "file", "dir", "symlink", "dev", "chardev", "fifo", "socket"

# Go's os.FileMode: permission bits as in Unix, everything else elsewhere.
_GO_DIR, _GO_SYMLINK, _GO_DEVICE, _GO_PIPE = 1 << 31, 1 << 27, 1 << 26, 1 << 25
_GO_SOCKET, _GO_SETUID, _GO_SETGID, _GO_CHAR, _GO_STICKY = 1 << 24, 1 << 23, 1 << 22, 1 << 21, 1 << 20

_TYPES: tuple[tuple[int, str, int], ...] = (  # st_mode's type, restic's name, Go's bits
    (stat.S_IFREG, FILE, 0),
    (stat.S_IFDIR, DIR, _GO_DIR),
    (stat.S_IFLNK, SYMLINK, _GO_SYMLINK),
    (stat.S_IFBLK, DEV, _GO_DEVICE),
    (stat.S_IFCHR, CHARDEV, _GO_DEVICE | _GO_CHAR),
    (stat.S_IFIFO, FIFO, _GO_PIPE),
    (stat.S_IFSOCK, SOCKET, _GO_SOCKET),
)
_SPECIAL = ((stat.S_ISUID, _GO_SETUID), (stat.S_ISGID, _GO_SETGID), (stat.S_ISVTX, _GO_STICKY))

_SIMPLE = re.compile(rb"[ !#-%'-.0-;=?-\[\]-~]+\Z")  # names that need no escape: ASCII without " & / < > and \
# What these fields must be if they are there: who uses a node need not ask again.
_NUMBERS = ("mode", "uid", "gid", "inode", "device_id", "links", "device", "size")
_BOUNDS = (*(1 << 32,) * 3, *(1 << 64,) * 4, 1 << 63)  # Go's uint32 and uint64; sizes are those that a file can have
_SMALL = 1 << 31
_TEXTS = ("type", "user", "group", "error")
_ZERO = repeat(0)
_EMPTY = repeat("")
_HERE = "\0"  # no encoded field has one
_LARGE = 256 << 10  # bytes of JSON: only a tree with a long list of ids, or very many entries, has so many
_HTML = re.compile("[<>&\u2028\u2029]")


@dataclass(slots=True)
class Node:
    """One entry of a directory. ``content`` belongs to files, ``subtree`` to directories."""

    name: bytes
    type: str  # file dir symlink dev chardev fifo socket
    mode: int = 0  # Go's FileMode, see go_mode
    mtime: int = 0  # nanoseconds since the epoch, as atime and ctime
    atime: int = 0
    ctime: int = 0
    uid: int = 0
    gid: int = 0
    user: str = ""
    group: str = ""
    inode: int = 0
    device_id: int = 0  # st_dev; with inode it joins hard links, unique within one snapshot
    size: int = 0
    links: int = 0
    linktarget: bytes = b""
    xattrs: list[tuple[str, bytes]] = field(default_factory=list)
    generic_attributes: dict[str, Any] = field(default_factory=dict)  # of other systems; kept as they are
    device: int = 0  # st_rdev of devices
    content: Sequence[bytes] = field(default_factory=list)  # of a large file they are Ids
    subtree: bytes | None = None
    error: str = ""

    @property
    def is_dir(self) -> bool:
        return self.type == DIR

    @property
    def is_file(self) -> bool:
        return self.type == FILE

    @property
    def st_mode(self) -> int:
        """The mode as Unix has it, type included."""
        return from_go_mode(self.mode)


class EncodedNode(NamedTuple):
    """An entry as it will stand in its tree: half the memory of a node, and made wherever there is time."""

    name: bytes
    json: bytes


@lru_cache(maxsize=1024)
def go_mode(st_mode: int) -> int:
    bits = st_mode & 0o777
    for unix, go in _SPECIAL:
        if st_mode & unix:
            bits |= go
    return bits | next((go for unix, _, go in _TYPES if stat.S_IFMT(st_mode) == unix), 0)


@lru_cache(maxsize=1024)
def from_go_mode(mode: int) -> int:
    bits = mode & 0o777
    for unix, go in _SPECIAL:
        if mode & go:
            bits |= unix
    kind = mode & (_GO_DIR | _GO_SYMLINK | _GO_DEVICE | _GO_CHAR | _GO_PIPE | _GO_SOCKET)
    return bits | next((unix for unix, _, go in _TYPES if go == kind), 0)


@lru_cache(maxsize=1024)
def node_type(st_mode: int) -> str:
    """restic's name of a file type; empty for one it does not know."""
    return next((name for unix, name, _ in _TYPES if stat.S_IFMT(st_mode) == unix), "")


def encode_tree(nodes: Iterable[Node | EncodedNode]) -> bytes:
    """The tree blob's content. Raises ValueError for duplicate names and names no directory can hold."""
    ordered = sorted(nodes, key=lambda node: node.name)
    for before, after in pairwise(ordered):
        if before.name == after.name:
            raise ValueError(f"the name {before.name!r} occurs twice")
    out = BytesIO()  # gives what it has gathered without a copy
    out.write(b'{"nodes":[')
    for number, node in enumerate(ordered):
        if number:
            out.write(b",")
        out.writelines((node.json,) if isinstance(node, EncodedNode) else _encoded(node))
    out.write(b"]}\n")
    return out.getvalue()


def encode_node(node: Node) -> bytes:
    """One entry as it stands in a tree. Raises ValueError for a name that no directory can hold."""
    return b"".join(_encoded(node))


def _encoded(node: Node) -> Iterable[bytes]:
    if node.type == FILE and type(node.content) is Ids:  # isinstance would ask an abstract class
        return _encode_large(node, node.content)
    return (_encode_node(node, _encode_content(node)).encode("utf-8", "replace"),)


def _encode_large(node: Node, ids: Ids) -> Iterator[bytes]:
    before, _, after = _encode_node(node, _HERE).partition(_HERE)
    yield before.encode("utf-8", "replace")
    yield from to_json(ids)
    yield after.encode("utf-8", "replace")


def decode_tree(content: bytes) -> list[Node]:
    """The entries in the order they have. Raises ValueError. Names are not judged: who restores must do so."""
    try:
        small, lists = lift(content) if len(content) > _LARGE else (content, [])
        return [_decode_node(node, lists) for node in parse_json(small)["nodes"] or ()]
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"not a tree: {error!r}") from error


def load_tree(repo: Repository, tree_id: bytes) -> list[Node]:
    """Raises DamagedError (naming the tree)."""
    content = repo.load_blob(BlobKind.TREE, tree_id)
    try:
        return decode_tree(content)
    except ValueError as error:
        raise DamagedError(f"tree {tree_id.hex()} is damaged: {error}.") from error


def walk(repo: Repository, tree_id: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """Every entry below a tree with its path (``prefix/name``), directories before their content."""
    stack: list[tuple[bytes, Iterator[Node]]] = [(prefix, iter(load_tree(repo, tree_id)))]
    while stack:
        folder, entries = stack[-1]
        node = next(entries, None)
        if node is None:
            stack.pop()
            continue
        path = folder + b"/" + node.name
        yield path, node
        if node.subtree is not None:
            stack.append((path, iter(load_tree(repo, node.subtree))))


def _encode_node(node: Node, content: str) -> str:
    """Once for each file of a backup: what many have in common is made once, what few have is looked for once."""
    mtime = format_ns(node.mtime)
    atime = mtime if node.atime == node.mtime else format_ns(node.atime)
    ctime = mtime if node.ctime == node.mtime else format_ns(node.ctime)
    rare = node.linktarget or node.xattrs or node.generic_attributes or node.device
    return (
        f'{{"name":{_encode_name(node.name)},{_type_and_mode(node.type, node.mode)}'
        f',"mtime":"{mtime}","atime":"{atime}","ctime":"{ctime}",{_owners(node.uid, node.gid, node.user, node.group)}'
        f"{_field('inode', node.inode)}{_device_id(node.device_id)}"
        f"{_field('size', node.size)}{_field('links', node.links)}"
        f'{_encode_rare(node) if rare else ""},"content":{content}{_encode_tail(node)}}}'
    )


def _encode_rare(node: Node) -> str:
    parts: list[str] = []
    if node.linktarget:
        parts += _encode_linktarget(node.linktarget)
    if node.xattrs:
        parts.append('"extended_attributes":[' + ",".join(_encode_xattr(*xattr) for xattr in node.xattrs) + "]")
    if node.generic_attributes:
        raw = json.dumps(node.generic_attributes, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
        parts.append(f'"generic_attributes":{_html_safe(raw)}')
    if node.device:
        parts.append(f'"device":{node.device}')
    return "," + ",".join(parts)


def _encode_tail(node: Node) -> str:
    tail = f',"subtree":"{node.subtree.hex()}"' if node.subtree is not None else ""
    return f'{tail},"error":{_string(node.error)}' if node.error else tail


def _encode_content(node: Node) -> str:
    if node.type != FILE:
        return "null"
    content = node.content
    return '["' + '","'.join(map(bytes.hex, content)) + '"]' if content else "[]"  # null: restic's check fails


@lru_cache(maxsize=1024)
def _type_and_mode(kind: str, mode: int) -> str:
    return f'"type":{_string(kind)}{_field("mode", mode)}'


@lru_cache(maxsize=1024)
def _owners(uid: int, gid: int, user: str, group: str) -> str:
    return f'"uid":{uid},"gid":{gid}{_text_field("user", user)}{_text_field("group", group)}'


@lru_cache(maxsize=64)
def _device_id(device: int) -> str:
    return _field("device_id", device)


def _encode_linktarget(target: bytes) -> list[str]:
    try:
        return [f'"linktarget":{_string(target.decode())}']
    except UnicodeDecodeError:
        raw = base64.b64encode(target).decode()
        return [f'"linktarget":{_string(target.decode("utf-8", "replace"))}', f'"linktarget_raw":"{raw}"']


def _encode_xattr(name: str, value: bytes) -> str:
    encoded = f'"{base64.b64encode(value).decode()}"' if value else "null" if value is None else '""'
    return f'{{"name":{_string(name)},"value":{encoded}}}'


def _encode_name(name: bytes) -> str:
    if _SIMPLE.match(name) and name not in (b".", b".."):
        return f'"{name.decode("ascii")}"'
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise ValueError(f"{name!r} cannot be the name of a file")
    return _string(encode_name(name))


def _field(name: str, value: int) -> str:
    """A field that Go leaves out when it is zero."""
    return f',"{name}":{value}' if value else ""


def _text_field(name: str, value: str) -> str:
    return f',"{name}":{_string(value)}' if value else ""


def _string(text: str) -> str:
    return _html_safe(json.dumps(text, ensure_ascii=False))


def _html_safe(text: str) -> str:
    return _HTML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _decode_node(value: dict[str, Any], lists: Sequence[Ids] = ()) -> Node:
    get = value.get
    numbers = (*map(get, _NUMBERS, _ZERO),)
    texts = (*map(get, _TEXTS, _EMPTY),)
    if {*map(type, numbers)} != {int} or {*map(type, texts)} != {str} or min(numbers) < 0 or max(numbers) >= _SMALL:
        _check(numbers, texts)
    mode, uid, gid, inode, device_id, links, device, size = numbers
    kind, user, group, problem = texts
    mtime, atime, ctime = get("mtime"), get("atime"), get("ctime")
    mtime_ns = parse_ns(mtime) if mtime is not None else 0
    content, subtree = get("content"), get("subtree")
    raw_target, xattrs = get("linktarget_raw"), get("extended_attributes")
    return Node(
        decode_name(value["name"]),
        kind,
        mode,
        mtime_ns,
        mtime_ns if atime == mtime else parse_ns(atime) if atime is not None else 0,
        mtime_ns if ctime == mtime else parse_ns(ctime) if ctime is not None else 0,
        uid,
        gid,
        user,
        group,
        inode,
        device_id,
        size,
        links,
        base64.b64decode(raw_target) if raw_target else get("linktarget", "").encode("utf-8", "replace"),
        [(x["name"], base64.b64decode(x["value"] or "")) for x in xattrs] if xattrs else [],
        get("generic_attributes") or {},
        device,
        [] if content is None else _content(content, lists),
        _ids([subtree])[0] if subtree else None,
        problem,
    )


def _check(numbers: Sequence[Any], texts: Sequence[Any]) -> None:
    """Raises ValueError, naming the field that is wrong, if one is."""
    for key, number, bound in zip(_NUMBERS, numbers, _BOUNDS, strict=True):
        if type(number) is not int or not 0 <= number < bound:
            raise ValueError(f"{key} is {number!r:.80}")
    for key, text in zip(_TEXTS, texts, strict=True):
        if type(text) is not str:
            raise ValueError(f"{key} is {text!r:.80}")


def _content(value: Any, lists: Sequence[Ids]) -> Sequence[bytes]:
    if type(value) is int and 0 <= value < len(lists):
        return lists[value]
    return _ids(value or ())


def _ids(values: Sequence[str]) -> list[bytes]:
    ids = list(map(bytes.fromhex, values))
    if any(len(blob_id) != 32 for blob_id in ids):
        raise ValueError("an id is not 32 bytes")
    return ids
