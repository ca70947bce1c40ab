"""A repository with one of everything, and the ways to hurt it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from node_agent.progress import Progress
from node_agent.repository.backend import open_backend
from node_agent.repository.backend.base import Kind
from node_agent.repository.check import check
from node_agent.repository.index_file import encode_index, load_index_file
from node_agent.repository.keys import add_key, open_master_key
from node_agent.repository.known_objects import KnownObjects
from node_agent.repository.maintenance import forget_ids
from node_agent.repository.pack import BlobKind, PackedBlob, read_header
from node_agent.repository.repository import Lock, Repository
from node_agent.repository.snapshot import list_snapshots, new_snapshot, save_snapshot
from node_agent.repository.tree import Node, encode_tree, go_mode
from tests.repository.core_world import FAST, NOON, PASSWORD, file_node, new_repo, open_repo, store, stored

RNG = random.Random(3)
SHARED, ONLY_FIRST, ONLY_SECOND, TWICE = (RNG.randbytes(size) for size in (30_000, 20_000, 25_000, 15_000))
SECRET = ("data", "salt", "N", "r", "p", "kdf")  # fields of a key without which it does not open
BESIDE = b"stored with the second copy, needed by nobody"
ORPHAN = RNG.randbytes(5_000)


@dataclass(frozen=True)
class Place:
    """Some bytes of one stored file."""

    path: Path
    begin: int
    end: int


@dataclass
class World:
    """``files`` is what each snapshot must restore to: path to content."""

    folder: Path
    cache: Path
    places: dict[str, list[Place]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)  # of a check while nothing is hurt
    replays: dict[str, list[tuple[Path, bytes]]] = field(default_factory=dict)  # older versions of objects

    def open(self) -> Repository:
        return open_repo(self.folder, cache_dir=self.cache)

    def copy(self, folder: Path) -> World:
        """The same once more, to be hurt."""
        shutil.copytree(self.folder, folder / "repo")
        shutil.copytree(self.cache, folder / "cache")

        def there(path: Path) -> Path:
            return folder / "repo" / path.relative_to(self.folder)

        places = {
            name: [Place(there(place.path), place.begin, place.end) for place in found]
            for name, found in self.places.items()
        }
        replays = {name: [(there(path), old) for path, old in found] for name, found in self.replays.items()}
        return World(folder / "repo", folder / "cache", places, self.files, self.notes, replays)


def make_world(folder: Path) -> World:
    world = World(folder / "repo", folder / "cache")
    repo = new_repo(world.folder, cache_dir=world.cache)
    with repo.lock() as lock:
        add_key(repo.backend, repo.files.key, "another password", FAST)
        _back_up(world, repo, lock, "second", {"shared": [SHARED]}, hours=0)
        forgotten = _back_up(world, repo, lock, "first", {"shared": [SHARED], "gone": [b"forgotten"]}, hours=0)
        _back_up(world, repo, lock, "first", {"shared": [SHARED, ONLY_FIRST], "small": [b"1"]}, hours=1)
        _back_up(world, repo, lock, "second", {"shared": [SHARED], "own": [ONLY_SECOND, TWICE]}, hours=2)
    _store_twice(world)
    _remember_old(world, forgotten)
    with repo.lock(exclusive=True):
        forget_ids(repo, [forgotten])
    del world.files[forgotten]
    repo.close()
    _orphan(world)
    _stale_lock(world)
    _newest(world)
    _find_places(world)
    with world.open() as again, again.lock(), KnownObjects(again.cache_path("known")) as known:
        report = check(again, read_data=True, known=known)
        assert report.ok
        world.notes = set(report.notes)
    return world


def _back_up(
    world: World, repo: Repository, lock: Lock, host: str, files: dict[str, list[bytes]], *, hours: int
) -> str:
    with repo.writer(Progress()) as writer:
        nodes = [
            file_node(name.encode(), parts, [writer.save(BlobKind.DATA, part).id for part in parts])
            for name, parts in files.items()
        ]
        folder = writer.save(BlobKind.TREE, encode_tree(nodes))
        link = Node(b"link", "symlink", mode=go_mode(0o120777), linktarget=b"data")
        top = Node(b"data", "dir", mode=1 << 31 | 0o755, subtree=folder.id)
        root = writer.save(BlobKind.TREE, encode_tree([top, link]))
    made = save_snapshot(
        repo,
        lock,
        new_snapshot(time=NOON + timedelta(hours=hours), tree=root.id.hex(), hostname=host, paths=["/data"]),
    )
    world.files[made.id] = {f"data/{name}": b"".join(parts) for name, parts in files.items()}
    return made.id


def _store_twice(world: World) -> None:
    """A second copy of a blob, as two backups at the same time make it."""
    first, second = open_repo(world.folder), open_repo(world.folder)
    with first.lock(), second.lock():
        second.load_index()
        second.index.drop_packs([place.pack for place in second.index.locations(BlobKind.DATA, _id(TWICE))])
        store(second, [TWICE, BESIDE])
    first.close()
    second.close()


def _remember_old(world: World, forgotten: str) -> None:
    """What lay there once and may be put back: a snapshot that is forgotten, a key that is removed, an index."""
    path = world.folder / "snapshots" / forgotten
    world.replays["snapshot"] = [(path, path.read_bytes())]
    repo = world.open()
    with repo.lock(exclusive=True):
        name = add_key(repo.backend, repo.files.key, "a password that was taken back", FAST)
        path = world.folder / "keys" / name
        world.replays["key"] = [(path, path.read_bytes())]
        repo.backend.delete(Kind.KEY, name)
        packs = [("cd" * 32, [PackedBlob(BlobKind.DATA, b"\xcd" * 32, 0, 100, 0)])]  # a pack that was pruned
        name, sealed = repo.files.seal(Kind.INDEX, encode_index(packs))
        world.replays["index"] = [(world.folder / "index" / name, bytes(sealed))]
    repo.close()


def _stale_lock(world: World) -> None:
    """Somebody else's, long dead; nobody respects it."""
    repo = open_repo(world.folder)
    said = {"exclusive": False, "hostname": "h", "username": "u", "pid": 1, "time": "2020-01-01T00:00:00Z"}
    name, sealed = repo.files.seal(Kind.LOCK, json.dumps(said).encode())
    path = world.folder / "locks" / name
    write(path, bytes(sealed))
    os.utime(path, (0, 0))
    world.places["lock"] = [_whole(path)]
    repo.close()


def _newest(world: World) -> None:
    """The last backup, so that the store can be put back to the state before it."""
    before = {path for path in world.folder.rglob("*") if path.is_file()}
    repo = world.open()
    with repo.lock() as lock:
        _back_up(world, repo, lock, "third", {"last": [b"last of all"]}, hours=5)
    repo.close()
    after = {path for path in world.folder.rglob("*") if path.is_file()}
    world.places["newest backup"] = [_whole(path) for path in sorted(after - before)]


def _orphan(world: World) -> None:
    """A whole pack that no index names: its backup was killed."""
    repo = open_repo(world.folder)
    before, indexes = set(stored(world.folder, "data")), set(stored(world.folder, "index"))
    with repo.lock():
        store(repo, [ORPHAN])
    repo.close()
    for path in set(stored(world.folder, "index")) - indexes:
        path.unlink()
    (path,) = set(stored(world.folder, "data")) - before
    world.places["orphan pack"] = [_whole(path)]
    temporary = world.folder / "index" / f"{'ef' * 32}-tmp-0123456789abcdef"
    temporary.write_bytes(b"half of an index file")
    world.places["temporary file"] = [_whole(temporary)]


def _find_places(world: World) -> None:
    repo = world.open()
    with repo.lock():
        repo.load_index()
        _sealed_places(world)
        _index_places(world, repo)
        _blob_places(world, repo)
        for content in (ONLY_FIRST, ONLY_SECOND, SHARED):
            (found,) = repo.index.locations(BlobKind.DATA, _id(content))
            world.places.setdefault("pack", []).append(_whole(_pack_path(world, found.pack)))
        for pack, blobs in repo.index.packs():
            _header_places(world, repo, pack, blobs)
    repo.close()


def _sealed_places(world: World) -> None:
    config = world.folder / "config"
    world.places["config"] = [_whole(config)]
    older = next(iter(world.files))
    found = [_whole(path) for path in stored(world.folder, "snapshots")]
    world.places["snapshot"] = [place for place in found if place.path.name != older]
    world.places["older snapshot"] = [place for place in found if place.path.name == older]
    current = _current_key(world)
    world.places["key"] = [_whole(current)]
    world.places["another key"] = [_whole(path) for path in stored(world.folder, "keys") if path != current]
    world.places["keys"] = world.places["key"] + world.places["another key"]
    content = current.read_bytes()
    world.places["key: punctuation"] = [
        Place(current, at, at + 1) for at in (0, content.index(b'":"'), len(content) - 1)
    ]
    for field_name in ("data", "salt", "N", "r", "p", "created", "username", "hostname", "kdf"):
        begin = content.index(f'"{field_name}":'.encode()) + len(field_name) + 3
        end = next(at for at in range(begin + 1, len(content)) if content[at : at + 1] in (b",", b"}"))
        quoted = content[begin : begin + 1] == b'"'
        topic = f"key: {field_name}" if field_name in SECRET else "key: comments"
        world.places.setdefault(topic, []).append(Place(current, begin + quoted, end - quoted))


def _current_key(world: World) -> Path:
    return world.folder / "keys" / open_master_key(open_backend(str(world.folder)), PASSWORD).name


def _blob_places(world: World, repo: Repository) -> None:
    for name, content in (("data blob", ONLY_FIRST), ("shared data blob", SHARED)):
        (found,) = repo.index.locations(BlobKind.DATA, _id(content))
        _parts(world, name, found.pack, found.blob)
    copies = repo.index.locations(BlobKind.DATA, _id(TWICE))
    assert len(copies) == 2
    for name, place in zip(("copy that is read", "copy that is not read"), copies, strict=True):
        path = _pack_path(world, place.pack)
        world.places[name] = [Place(path, place.blob.offset, place.blob.offset + place.blob.length)]
    for snapshot in list_snapshots(repo)[:3]:
        (found,) = repo.index.locations(BlobKind.TREE, bytes.fromhex(snapshot.tree))
        _parts(world, "tree blob", found.pack, found.blob)


def _index_places(world: World, repo: Repository) -> None:
    """Those that name a snapshot's tree; and those of a second copy, and of what was forgotten."""
    trees = [bytes.fromhex(snapshot.tree) for snapshot in list_snapshots(repo)]
    needed = {place.pack for places in repo.index.locate(BlobKind.TREE, trees).values() for place in places}
    for path in stored(world.folder, "index"):
        if "-tmp-" in path.name:
            continue
        packs = {pack for pack, _ in load_index_file(repo.files, path.name)}
        world.places.setdefault("index" if packs & needed else "unneeded index", []).append(_whole(path))


def _parts(world: World, name: str, pack: str, blob: PackedBlob) -> None:
    path, begin, end = _pack_path(world, pack), blob.offset, blob.offset + blob.length
    for part, first, last in (("nonce", begin, begin + 16), ("text", begin + 16, end - 16), ("tag", end - 16, end)):
        world.places.setdefault(f"{name}: {part}", []).append(Place(path, first, last))


def _header_places(world: World, repo: Repository, pack: str, blobs: list[PackedBlob]) -> None:
    path = _pack_path(world, pack)
    size = path.stat().st_size
    assert read_header(repo.backend, repo.files.key, pack, size) == blobs
    begin = sum(blob.length for blob in blobs)
    for part, first, last in (
        ("nonce", begin, begin + 16),
        ("text", begin + 16, size - 20),
        ("tag", size - 20, size - 4),
        ("length", size - 4, size),
    ):
        world.places.setdefault(f"pack header: {part}", []).append(Place(path, first, last))


def _pack_path(world: World, pack: str) -> Path:
    return world.folder / "data" / pack[:2] / pack


def _whole(path: Path) -> Place:
    return Place(path, 0, path.stat().st_size)


def _id(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


# --- harm ---


def write(path: Path, content: bytes) -> None:
    """Stored files are read-only."""
    if path.exists():
        path.chmod(0o600)
    path.write_bytes(content)
