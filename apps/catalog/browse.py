"""What is in a restore point: lists of directories, told by nodes and addressed by restic's tree ids.

A directory that did not change between two points has the same tree id and is kept once. Large ones come in parts
``0 … n``; one counts as known when the last part and all before it are there.

**Paths** are written as the tree writes names: Go-quoted, joined with "/" (see docs/format.md). A byte that is not
UTF-8 is the four characters ``\\xNN``, a quotation mark ``\\"``, a backslash ``\\\\``. These texts identify an item
and are handed to nodes unchanged; :func:`display` makes them readable.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Max, Q
from django.utils.translation import gettext as _

from apps.catalog.models import Directory, PointCopy
from apps.errors import Invalid, NotFound
from apps.inventory.models import Repository
from node_agent import protocol

_TREE_ID = re.compile(r"[0-9a-f]{64}\Z")
_AT_ONCE = 500


@dataclass(frozen=True)
class Item:
    """One name in a listing."""

    path: str  # Go-quoted; what requests take
    name: str  # for people
    type: str
    size: int
    mtime: str
    mode: int
    user: str
    target: str
    tree: str

    @property
    def is_directory(self) -> bool:
        return self.type == "dir"

    @property
    def shown(self) -> str:
        """The path for people."""
        return display(self.path)


@dataclass(frozen=True)
class Listing:
    path: str
    entries: list[Item]  # directories first, then by name
    complete: bool  # False: more matches or directories exist than are shown
    visited: int = 1  # directories that were looked into


def display(name: str) -> str:
    """A Go-quoted name or path for people: quotation marks and backslashes as they are, odd bytes as \\xNN."""
    return name.replace('\\"', '"').replace("\\\\", "\\")


def clean_path(path: str) -> str:
    """A Go-quoted path inside a point: "/" or "/a/b"; raises Invalid for what cannot be one."""
    parts = [part for part in path.split("/") if part]
    if "\x00" in path or not path.startswith("/") or any(part in {".", ".."} for part in parts):
        raise Invalid(
            _("“%(path)s” is not a path in a restore point.") % {"path": path.replace("\x00", "␀")[:200]},
            hint=_("Begin it with “/”; it may not hold “..”."),
        )
    return "/" + "/".join(parts)


# --- lists arrive ---------------------------------------------------------------------------------


def missing(repository: Repository, tree_ids: Iterable[str]) -> list[str]:
    """Those of the ids whose directory is not (wholly) known, in the order given."""
    wanted = list(dict.fromkeys(_checked(tree_id) for tree_id in tree_ids))
    known: set[str] = set()
    for start in range(0, len(wanted), _AT_ONCE):
        known |= _whole(repository, wanted[start : start + _AT_ONCE])
    return [tree_id for tree_id in wanted if tree_id not in known]


def add(repository: Repository, directories: Iterable[protocol.Directory]) -> None:
    """Keep directories; those that are there already stay as they are (equal ids mean equal content)."""
    rows = [
        Directory(
            repository=repository,
            tree_id=_checked(directory.tree_id),
            part=directory.part,
            last=directory.last,
            entries=_packed(directory.entries),
            count=len(directory.entries),
        )
        for directory in directories
    ]
    Directory.objects.bulk_create(rows, ignore_conflicts=True, batch_size=_AT_ONCE)


def _whole(repository: Repository, tree_ids: list[str]) -> set[str]:
    rows = (
        Directory.objects.filter(repository=repository, tree_id__in=tree_ids)
        .values("tree_id")
        .annotate(parts=Count("id"), end=Max("part", filter=Q(last=True)))
    )
    return {row["tree_id"] for row in rows if row["end"] is not None and row["parts"] == row["end"] + 1}


def _checked(tree_id: str) -> str:
    if not _TREE_ID.match(tree_id):
        raise Invalid("A tree id must be 64 hexadecimal digits.", hint="")
    return tree_id


def _packed(entries: Iterable[protocol.Entry]) -> bytes:
    rows = [entry.model_dump(exclude_defaults=True) for entry in entries]
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 6)


# --- lists are read -------------------------------------------------------------------------------


def listing(copy: PointCopy, path: str = "/") -> Listing | None:
    """The directory at ``path``; None when the server does not know it (then: ``jobs.requests.browse``).

    NotFound when it is known that there is no such directory.
    """
    wanted = clean_path(path)
    tree_id = copy.tree_id
    for depth, name in enumerate(_parts(wanted)):
        rows = _read(copy.repository_id, [tree_id]).get(tree_id)
        if rows is None:
            return None
        row = next((row for row in rows if row["name"] == name), None)
        if row is None or row["type"] != "dir":
            so_far = "/" + "/".join(_parts(wanted)[: depth + 1])
            raise NotFound(
                _("There is no directory “%(path)s” in this restore point.") % {"path": display(so_far)},
                hint=_("Go back to the list above it."),
            )
        tree_id = row.get("tree", "")
    rows = _read(copy.repository_id, [tree_id]).get(tree_id)
    if rows is None:
        return None
    items = [_item(wanted, row) for row in rows]
    return Listing(
        wanted, sorted(items, key=lambda item: (not item.is_directory, item.name.casefold(), item.name)), True
    )


def find(copy: PointCopy, path: str) -> Item | None:
    """The item at ``path``; None when the server does not know the lists on the way; NotFound when it is not there."""
    wanted = clean_path(path)
    if wanted == "/":
        return Item("/", "/", "dir", 0, "", 0, "", "", copy.tree_id)
    above, _slash, _name = wanted.rpartition("/")
    found = listing(copy, above or "/")
    if found is None:
        return None
    for item in found.entries:
        if item.path == wanted:
            return item
    raise NotFound(
        _("There is no “%(path)s” in this restore point.") % {"path": display(wanted)},
        hint=_("Choose it from the list of files."),
    )


def search(copy: PointCopy, text: str, *, limit: int = 200, directories: int = 20_000) -> Listing:
    """Items whose readable name holds ``text``, case apart; ``complete`` is False when the search stopped at
    ``limit`` matches or ``directories`` lists, or met a directory that the server has no list of."""
    wanted = text.casefold()
    found: list[Item] = []
    visited = 0
    whole = True
    level = [("/", copy.tree_id)]
    while level:
        level, here = [], level
        for start in range(0, len(here), _AT_ONCE):
            piece = here[start : start + _AT_ONCE]
            visited += len(piece)
            if visited > directories:
                return Listing("/", found, False, visited)
            known = _read(copy.repository_id, [tree_id for _path, tree_id in piece])
            for path, tree_id in piece:
                if tree_id not in known:
                    whole = False
                    continue
                for item in (_item(path, row) for row in known[tree_id]):
                    if wanted in item.name.casefold():
                        if len(found) == limit:
                            return Listing("/", found, False, visited)
                        found.append(item)
                    if item.is_directory and item.tree:
                        level.append((item.path, item.tree))
    return Listing("/", found, whole, visited)


def _read(repository_id: Any, tree_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The rows of those directories that are wholly known."""
    parts: dict[str, list[tuple[int, bool, bytes]]] = {}
    rows = Directory.objects.filter(repository_id=repository_id, tree_id__in=set(tree_ids)).order_by("part")
    for tree_id, part, last, entries in rows.values_list("tree_id", "part", "last", "entries").iterator():
        parts.setdefault(tree_id, []).append((part, last, bytes(entries)))
    return {
        tree_id: [row for _part, _last, entries in pieces for row in _unpacked(entries)]
        for tree_id, pieces in parts.items()
        if pieces[-1][1] and len(pieces) == pieces[-1][0] + 1
    }


def _unpacked(entries: bytes) -> Iterator[dict[str, Any]]:
    yield from json.loads(zlib.decompress(entries))


def _item(directory: str, row: dict[str, Any]) -> Item:
    return Item(
        path=f"{directory.rstrip('/')}/{row['name']}",
        name=display(row["name"]),
        type=row["type"],
        size=row.get("size", 0),
        mtime=row.get("mtime", ""),
        mode=row.get("mode", 0),
        user=row.get("user", ""),
        target=row.get("target", ""),
        tree=row.get("tree", ""),
    )


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


# --- lists are dropped ----------------------------------------------------------------------------


def drop_unused(repository: Repository) -> int:
    """Delete the lists that no point of the repository leads to any more; how many.

    What a running backup has sent for a point to come is not led to yet: the caller sees that none is running.
    A list lost nevertheless is asked for again when somebody looks (``jobs.requests.browse``).
    """
    roots = set(PointCopy.objects.filter(repository=repository).values_list("tree_id", flat=True))
    used: set[str] = set()
    level = list(roots)
    while level:
        used |= set(level)
        below: set[str] = set()
        for start in range(0, len(level), _AT_ONCE):
            for rows in _read(repository.pk, level[start : start + _AT_ONCE]).values():
                below |= {row["tree"] for row in rows if row.get("tree")}
        level = list(below - used)
    kept = Directory.objects.filter(repository=repository).values_list("pk", "tree_id")
    unused = [pk for pk, tree_id in kept.iterator() if tree_id not in used]
    for start in range(0, len(unused), _AT_ONCE):
        Directory.objects.filter(pk__in=unused[start : start + _AT_ONCE]).delete()
    return len(unused)
