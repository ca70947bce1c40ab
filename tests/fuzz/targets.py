"""What is fuzzed: each target takes bytes to where the program takes them, and has seeds from real repositories.

A target may raise what its docstring in the program says: our own errors, ValueError where a parser says so. Anything
else is a finding.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import zstandard

from node_agent import cli_repo_list, cli_repo_read
from node_agent.cli_repo_backup import read_changes
from node_agent.cli_repo_modes import long_line
from node_agent.errors import BrsError
from node_agent.items import Issues
from node_agent.lease_reply import read_lease
from node_agent.progress import Progress
from node_agent.repository import check as check_module
from node_agent.repository import keys, maintenance
from node_agent.repository.backend.base import CONFIG_NAME, Kind
from node_agent.repository.backend.rest import RestBackend
from node_agent.repository.backend.retry import RetryingBackend
from node_agent.repository.check_choice import ReadChoice, VerifiedPacks
from node_agent.repository.check_packs import PackCheck
from node_agent.repository.compression import decompress
from node_agent.repository.crypto import Key
from node_agent.repository.files_restore import restore
from node_agent.repository.folder_cache import FolderCache
from node_agent.repository.go_quote import decode_name, encode_name
from node_agent.repository.index import Index
from node_agent.repository.lock import LockHolder, Locks
from node_agent.repository.lock_journal import LockJournal
from node_agent.repository.pack import BlobKind, PackedBlob, decode_header, encode_header, read_header
from node_agent.repository.prover import Prover
from node_agent.repository.reachable import references
from node_agent.repository.repository import Config, Repository
from node_agent.repository.retention import Duration, KeepPolicy
from node_agent.repository.rfc3339 import format_datetime, format_ns, parse_datetime, parse_ns
from node_agent.repository.sealed import SealedFiles
from node_agent.repository.snapshot import list_snapshots
from node_agent.repository.tree import Node, decode_tree, encode_tree
from tests.fuzz.memory_store import MemoryStore
from tests.repository.core_world import PASSWORD, make_snapshot, new_repo, open_repo, quick_locks, restic, stored

NAME = "ab" * 32


@dataclass
class Target:
    run: Callable[[bytes], object]
    seeds: list[bytes]
    allowed: tuple[type[BaseException], ...] = (BrsError,)
    weight: float = 1.0  # slow ones less often


@dataclass
class Seeds:
    """Real contents, opened: what the parsers see behind the seal."""

    configs: list[bytes] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    masters: list[bytes] = field(default_factory=list)
    indexes: list[bytes] = field(default_factory=list)
    snapshots: list[bytes] = field(default_factory=list)
    trees: list[bytes] = field(default_factory=list)
    headers: list[bytes] = field(default_factory=list)


def real_seeds(folder: Path) -> Seeds:
    """From a repository of ours and from those that stock restic makes, in both versions of the format."""
    source = folder / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_bytes(os.urandom(3000))
    (source / "sub" / "empty").touch()
    (source / "new\nline \xff").write_bytes(b"x")
    os.symlink("file", source / "link")
    os.mkfifo(source / "fifo")
    ours = new_repo(folder / "ours")
    with ours.lock() as lock:
        make_snapshot(ours, lock, {b"one": [b"1" * 5000, b"2"], b'\xff"\n': [b"3"]}, tags=["a", "brs.partial"])
    found = Seeds()
    _take(found, folder / "ours")
    for version in ("1", "2") if shutil.which("restic") else ():
        theirs = folder / f"restic{version}"
        restic(theirs, "init", "--repository-version", version)
        restic(theirs, "backup", str(source), "--tag", "a,b", "--exclude", "nothing")
        _take(found, theirs)
    return found


def _take(found: Seeds, folder: Path) -> None:
    repo = open_repo(folder)
    with repo.lock(read_only_ok=True):
        repo.load_index()
        found.configs.append(repo.files.load(Kind.CONFIG, CONFIG_NAME))
        found.masters.append(repo.files.key.to_json())
        found.keys += [path.read_bytes() for path in stored(folder, "keys")]
        found.indexes += [repo.files.load(Kind.INDEX, path.name) for path in stored(folder, "index")]
        found.snapshots += [repo.files.load(Kind.SNAPSHOT, path.name) for path in stored(folder, "snapshots")]
        for pack, blobs in repo.index.packs():
            found.headers.append(encode_header(blobs))
            size = repo.backend.stat(Kind.PACK, pack).size
            assert read_header(repo.backend, repo.files.key, pack, size) == blobs
            found.trees += [repo.load_blob(blob.kind, blob.id) for blob in blobs if blob.kind is BlobKind.TREE]
    repo.close()


class World:
    """A key, a store in memory and a folder that every target may use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seeds = real_seeds(folder / "seeds")
        self.key = Key.random()
        self.files = SealedFiles(MemoryStore(), self.key)
        self.holder = LockHolder("fuzz", None)

    def only(self, kind: Kind, plain: bytes, *, framed: bool = False) -> str:
        """A store that holds one file of this kind, sealed as it should be."""
        sealed = self.key.seal(plain) if framed else self.files.seal(kind, plain)[1]
        name = hashlib.sha256(sealed).hexdigest()
        store = MemoryStore()
        store.objects[kind, name] = bytes(sealed)
        self.files = SealedFiles(store, self.key)
        return name

    def repo(self) -> Repository:
        config, opened_by = Config(2, NAME, 0x3DA3358B4DC173), keys.OpenedKey(NAME, self.key)
        return Repository(self.files, config, self.holder, None, "fuzz", opened_by, time.time)

    # --- the repository's own files ---

    def config(self, data: bytes) -> None:
        Config.from_json(data).to_json()

    def key_file(self, data: bytes) -> None:
        store = MemoryStore()
        store.objects[Kind.KEY, hashlib.sha256(data).hexdigest()] = data
        keys.list_keys(store)
        keys.open_master_key(store, PASSWORD)

    def master(self, data: bytes) -> None:
        Key.from_json(data)

    def frame(self, data: bytes) -> None:
        name = self.only(Kind.SNAPSHOT, data, framed=True)
        self.files.load_json(Kind.SNAPSHOT, name)

    def zstd(self, data: bytes) -> None:
        decompress(data, limit=1 << 20)
        decompress(data, length=5000)

    def index(self, data: bytes) -> None:
        self.only(Kind.INDEX, data)
        index = Index(self.files, "fuzz")
        try:
            index.refresh()
            _use(index)
        finally:
            index.close()

    def snapshot(self, data: bytes) -> None:
        self.only(Kind.SNAPSHOT, data)
        with self.repo() as repo:
            found = list_snapshots(repo, hosts=["h"], tags=[["a"]]) + list_snapshots(repo)
            policy = KeepPolicy(daily=1, within=Duration(years=1), within_weekly=Duration(days=9), tags=[["a"]])
            now = datetime(2027, 1, 1, tzinfo=UTC)
            groups = maintenance.plan_forget(found, policy, group_by=["host", "paths", "tags"], now=now)
            for snapshot in found:
                assert snapshot.to_json()
            with contextlib.redirect_stdout(io.StringIO()):
                cli_repo_list._print_snapshots(found, compact=False)
                cli_repo_read.print_json([group.to_json() for group in groups])

    def tree(self, data: bytes) -> None:
        nodes = decode_tree(data)
        for node in nodes:
            long_line(node.name, node)
            json.dumps(cli_repo_read._entry_json(node.name, node))
        with contextlib.suppress(ValueError):  # of names that no directory can hold
            encoded = encode_tree(nodes)
            assert encode_tree(decode_tree(encoded)) == encoded

    def references(self, data: bytes) -> None:
        references(bytes(32), data)

    def lock(self, data: bytes) -> None:
        self.only(Kind.LOCK, data)
        locks = Locks(self.files, self.holder, NAME)
        for other in locks.others.read():
            assert other.who
        with contextlib.suppress(BrsError):
            locks.acquire(exclusive=True, settle_s=0).release()

    # --- packs ---

    def header(self, data: bytes) -> None:
        sealed = self.key.seal(data)
        self._pack(b"content" * 10 + sealed + len(sealed).to_bytes(4, "little"))
        decode_header(data)

    def pack(self, data: bytes) -> None:
        self._pack(data)

    def _pack(self, content: bytes) -> None:
        store = MemoryStore()
        store.objects[Kind.PACK, NAME] = content
        blobs = [PackedBlob(BlobKind.DATA, b"x" * 32, 0, 40, 0), PackedBlob(BlobKind.TREE, b"y" * 32, 40, 4000, 9999)]
        with Prover(self.key) as prover:  # a mutated header may name enough blobs for processes
            packs = PackCheck(SealedFiles(store, self.key), Progress(), True, prover)
            assert packs.judge(NAME, blobs, len(content))
            list(packs.read([(NAME, len(content))]))
        read_header(store, self.key, NAME, len(content))

    # --- the whole way: a tree that was damaged by somebody who has the key, checked and restored ---

    def restored(self, data: bytes) -> None:
        with quick_locks():
            self._restore(data)

    def _restore(self, data: bytes) -> None:
        repo, tree = self._stored_tree(data)
        snapshot = {"time": "2026-05-17T12:00:00Z", "tree": tree.hex(), "paths": ["/x"], "hostname": "h"}
        name = self.files.save(Kind.SNAPSHOT, json.dumps(snapshot).encode())
        outside = self.folder / "outside"
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir()
        (outside / "marker").write_text("untouched")
        issues = Issues()
        with repo, repo.lock():
            assert check_module.check(repo, read_data=True).snapshots == 1
            restore(repo, name, outside / "in" / "side", progress=Progress(), issues=issues)
        left = sorted(path.name for path in outside.iterdir())
        assert left == ["in", "marker"] and [p.name for p in (outside / "in").iterdir()] == ["side"], left

    def _stored_tree(self, data: bytes) -> tuple[Repository, bytes]:
        self.files = SealedFiles(MemoryStore(), self.key)
        repo = self.repo()
        with repo.lock():
            repo.load_index()
            with repo.writer(Progress()) as writer:
                for content in (b"1" * 5000, b"2", b"3"):
                    writer.save(BlobKind.DATA, content)
                tree = writer.save(BlobKind.TREE, data or b" ").id  # an empty blob is never written
        return repo, tree

    # --- small texts ---

    def name(self, data: bytes) -> None:
        name = decode_name(data.decode("utf-8", "surrogateescape"))
        assert decode_name(encode_name(name)) == name

    def time(self, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        format_ns(parse_ns(text))
        moment = parse_datetime(text)
        format_datetime(moment)
        Duration(years=1, months=5, days=400).before(moment)

    def words(self, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        ReadChoice.parse_subset(text)

    def duration(self, data: bytes) -> None:
        duration = Duration.parse(data.decode("utf-8", "replace"))
        duration.before(datetime(2026, 5, 17, tzinfo=UTC))

    def extents(self, data: bytes) -> None:
        path = self.folder / "extents.json"
        path.write_bytes(data)
        read_changes(path, 1 << 40)

    # --- databases of this machine ---

    def index_cache(self, data: bytes) -> None:
        path = self._database("index.sqlite", data)
        index = Index(self.files, "fuzz", path)
        try:
            index.refresh()
            _use(index)
        finally:
            index.close()

    def folder_cache(self, data: bytes) -> None:
        cache = FolderCache(self._database("folders.sqlite", data), "fuzz", "epoch")
        cache.find(b"t" * 32)
        cache.forget(b"t" * 32)
        cache.commit("epoch")
        cache.close()

    def verified(self, data: bytes) -> None:
        with VerifiedPacks(self._database("verified.sqlite", data)) as verified:
            verified.note(NAME, 1.0)
            verified.keep_only({NAME: 1})
            list(verified.times())
            ReadChoice(share=0.5, max_age_s=5).order({NAME: 10}, verified, 1e9)

    def journal(self, data: bytes) -> None:
        journal = LockJournal(self.folder / "journal", NAME)
        journal.folder.mkdir(parents=True, exist_ok=True)
        (journal.folder / NAME).write_bytes(data)
        list(journal.dead())

    def _database(self, name: str, data: bytes) -> Path:
        path = self.folder / "databases" / name
        path.parent.mkdir(exist_ok=True)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        path.write_bytes(data)
        return path

    # --- peers that lie ---

    def rest(self, data: bytes) -> None:
        """First byte: which status; then the body, which is also what the headers say."""
        status = (200, 206, 200, 404, 416, 500, 301, 200)[data[0] % 8] if data else 200
        body = data[1:]
        said = body[:60].translate(None, b"\r\n")
        named = (b"Last-Modified", b"Date", b"Content-Range", b"Location", *[b"Content-Length"] * (status == 206))
        headers = [(name, said) for name in named]
        answer = lambda _: httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))  # noqa: E731
        client = httpx.Client(transport=httpx.MockTransport(answer))
        store = RetryingBackend(RestBackend(client, "http://peer"), max_s=0, first_s=0)
        attempts: tuple[Callable[[], object], ...] = (
            lambda: store.get(Kind.PACK, NAME, 2, 3),
            lambda: store.get(Kind.CONFIG, CONFIG_NAME),
            lambda: store.stat(Kind.PACK, NAME),
            lambda: list(store.list(Kind.PACK)),
            lambda: list(store.list(Kind.LOCK)),
            store.now,
            lambda: store.put(Kind.PACK, NAME, [b"x"]),
            lambda: store.delete(Kind.PACK, NAME),
            store.create,
            lambda: Repository.open(store, PASSWORD),
        )
        for attempt in attempts:
            with contextlib.suppress(BrsError):
                attempt()
        with contextlib.suppress(BrsError):
            assert len(store.get(Kind.PACK, NAME, 2, 3)) <= 3

    def lease(self, data: bytes) -> None:
        read_lease(data)


def _use(index: Index) -> None:
    ids = [bytes(32), *islice((blob.id for _, blobs in index.packs() for blob in blobs), 100)]
    for kind in BlobKind:
        index.missing(kind, ids)
        index.locate(kind, ids)
        index.has(kind, ids[0])
    assert index.blob_count() >= 0 and index.epoch


BOUND_EXTENTS = json.dumps(
    {
        "base": {
            "repository": NAME,
            "snapshot": NAME,
            "tree": NAME,
            "size": 1 << 30,
            "block_size": 1 << 20,
            "disk": "d",
        },
        "extents": [{"offset": 0, "length": 65536}],
    }
)
LEASE = {
    "server_time": "2026-05-17T12:00:00Z",
    "poll_after_s": 5,
    "tasks": [{"task_id": "0" * 8 + "-0000-4000-8000-" + "0" * 12, "token": "t", "kind": "backup", "lease_s": 60}],
}


def make_targets(folder: Path) -> dict[str, Target]:
    """All targets by name; ``folder`` is theirs."""
    world = World(folder)
    seeds = world.seeds
    sealed_header = bytes(world.key.seal(seeds.headers[0]))
    pack = b"content" * 200 + sealed_header + len(sealed_header).to_bytes(4, "little")
    frames = [b"\x02" + zstandard.compress(text) for text in seeds.snapshots] + seeds.snapshots
    listing = json.dumps([{"name": NAME, "size": 5}, {"name": "cd" * 32, "size": 7}]).encode()
    locks = [
        json.dumps(
            {"time": "2026-05-17T12:00:00Z", "exclusive": e, "hostname": "h", "username": "u", "pid": 1}
        ).encode()
        for e in (False, True)
    ]
    old_index = json.dumps(json.loads(seeds.indexes[0])["packs"]).encode()
    parser = (BrsError, ValueError)
    return {
        "config": Target(world.config, seeds.configs),
        "key": Target(world.key_file, seeds.keys, weight=0.3),
        "master-key": Target(world.master, seeds.masters, parser),
        "frame": Target(world.frame, frames),
        "zstd": Target(world.zstd, [zstandard.compress(b"x" * 5000), _streamed(b"ab" * 2500), *bombs()], parser),
        "index": Target(world.index, [*seeds.indexes, old_index], weight=0.3),
        "snapshot": Target(world.snapshot, seeds.snapshots),
        "tree": Target(world.tree, [*seeds.trees, encode_tree(_every_field())], parser),
        "references": Target(world.references, seeds.trees, parser),
        "restore": Target(world.restored, [*seeds.trees, encode_tree(_every_field())], weight=0.3),
        "lock": Target(world.lock, locks),
        "header": Target(world.header, seeds.headers, parser),
        "pack": Target(world.pack, [pack]),
        "name": Target(world.name, [b"a\\nb", b'\\"\\\\', b"\\xff\\u00e9\\U0001f600\\377", "é".encode()], parser),
        "time": Target(world.time, [b"2026-05-17T12:00:00.123456789+02:00", b"0001-01-01T00:00:00Z"], parser),
        "subset": Target(world.words, [b"1/5", b"2.5%", b"10G"], parser),
        "duration": Target(world.duration, [b"1y5m7d2h", b"99999h"], parser),
        "extents": Target(world.extents, [b'[{"offset":1048576,"length":65536}]', BOUND_EXTENTS.encode()]),
        "index-cache": Target(world.index_cache, [_index_database(world)], weight=0.1),
        "folder-cache": Target(world.folder_cache, [_folder_database(world)], weight=0.1),
        "verified-cache": Target(world.verified, [_verified_database(world)], weight=0.1),
        "lock-journal": Target(world.journal, [b'{"boot":"x","pid":1,"started":5}']),
        "rest-server": Target(
            world.rest, [b"\x00" + listing, b"\x01Sun, 17 May 2026 12:00:00 GMT", b"\x00bytes 2-4/9"]
        ),
        "lease-reply": Target(world.lease, [json.dumps(LEASE).encode()]),
    }


def bombs() -> list[bytes]:
    """64 MiB of zeros in a few KiB: with the size in the frame, and without."""
    zeros = bytes(64 << 20)
    return [zstandard.compress(zeros), _streamed(zeros)]


def _streamed(content: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return compressor.compress(content) + compressor.flush()


def _every_field() -> list[Node]:
    content = [hashlib.sha256(part).digest() for part in (b"1" * 5000, b"2")]
    common: dict[str, Any] = {"mtime": 1_600_000_000_000_000_001, "uid": 1, "gid": 2, "user": "u", "group": "g"}
    return [
        Node(b"file", "file", mode=0o4644, size=5001, links=2, inode=5, device_id=6, content=content, **common),
        Node(b"hard", "file", mode=0o644, size=5001, links=2, inode=5, device_id=6, content=content, **common),
        Node(b"link", "symlink", mode=1 << 27 | 0o777, linktarget=b"to\xff", **common),
        Node(b"null", "chardev", mode=1 << 26 | 1 << 21 | 0o666, device=259, **common),
        Node(b"pipe", "fifo", mode=1 << 25 | 0o600, xattrs=[("user.a", b"\0v")], **common),
        Node(b"sock", "socket", mode=1 << 24, error="e", generic_attributes={"a": 1}, **common),
    ]


def _index_database(world: World) -> bytes:
    path = world.folder / "made.index.sqlite"
    world.only(Kind.INDEX, world.seeds.indexes[0])
    index = Index(world.files, "fuzz", path)
    index.refresh()
    index.close()
    return _closed(path)


def _folder_database(world: World) -> bytes:
    path = world.folder / "made.folders.sqlite"
    FolderCache(path, "fuzz", "epoch").close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO folders VALUES (?, ?, 'epoch', ?, 5)", (b"t" * 32, b"d" * 32, b"s" * 64))
    return _closed(path)


def _verified_database(world: World) -> bytes:
    path = world.folder / "made.verified.sqlite"
    with VerifiedPacks(path) as verified:
        verified.note(NAME, 5.0)
    return _closed(path)


def _closed(path: Path) -> bytes:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()
