"""Proving a repository: that everything its snapshots need is there, and with ``read_data`` that it is what it was.

What is proven without reading the data: names of keys, index files and snapshots are the SHA-256 of their content and
open with the key; every pack that an index names is there with the right size and a header that says the same; every
tree of every snapshot opens, decodes and names only blobs that are indexed. With ``read_data`` also: every pack's name
is the SHA-256 of the file; every blob is authenticated, decompressed and has the content its id says.

What no check of a repository alone can see: objects that were deleted together with all that named them, and a store
that was rolled back. So it is compared with what this machine has seen there before (:mod:`.known_objects`); the
catalogue compares its points with the snapshots that are there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any

from node_agent.errors import BrsError, DamagedError, ObjectMissing, SnapshotNotFound
from node_agent.items import printable
from node_agent.progress import Progress
from node_agent.repository.backend.base import Kind
from node_agent.repository.check_choice import ReadChoice, VerifiedPacks
from node_agent.repository.check_known import compare_keys, compare_snapshots, describe_vanished
from node_agent.repository.check_packs import Finding, PackCheck
from node_agent.repository.id_set import IdSet
from node_agent.repository.index import Index
from node_agent.repository.known_objects import KnownObjects
from node_agent.repository.polynomial import is_irreducible
from node_agent.repository.prover import Prover
from node_agent.repository.reader import BlobReader
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import Snapshot, load_snapshot
from node_agent.repository.tree import Node, decode_tree

_BlobKey = tuple[BlobKind, bytes]
_PACKS_END, _DATA_END = 0.3, 0.85  # of the whole: what headers take, and data where it is read
_PATHS = 20  # are named of each problem; 'repair snapshots' names all


@dataclass(slots=True)
class Problem:
    """One damaged or missing object. ``snapshots`` are the ids of all that cannot be restored wholly because of it,
    ``paths`` the first files and folders that are hurt in the first of them."""

    kind: str  # config, key, index, snapshot, gone (a snapshot), pack, tree, data
    name: str
    message: str  # names the object itself
    snapshots: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    blobs: frozenset[_BlobKey] = field(default=frozenset(), repr=False)

    def to_json(self) -> dict[str, Any]:
        hurt = {"snapshots": list(self.snapshots), "paths": list(self.paths)}
        return {"kind": self.kind, "name": self.name, "message": self.message} | hurt


@dataclass(slots=True)
class CheckReport:
    errors: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth telling, nothing is lost
    lost: set[_BlobKey] = field(default_factory=set, repr=False)  # of which no good copy was found
    snapshots: int = 0
    trees: int = 0
    packs: int = 0
    blobs: int = 0
    read_bytes: int = 0
    read_packs: int = 0
    chosen_packs: int | None = None  # that were to be read; more than read_packs if the time ran out
    never_read_packs: int | None = None  # of the index, as far as this machine remembers; None if that was not asked
    oldest_proof_s: float | None = None  # how long ago the least recently read pack was found whole

    @property
    def vanished(self) -> list[Problem]:
        """Snapshots that this machine has seen and that are gone."""
        return [problem for problem in self.errors if problem.kind == "gone"]

    @property
    def unread_packs(self) -> int:
        """Chosen, but the time ran out."""
        return 0 if self.chosen_packs is None else self.chosen_packs - self.read_packs

    @property
    def ok(self) -> bool:
        return not self.errors

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "errors": [error.to_json() for error in self.errors],
            "notes": self.notes,
            "snapshots": self.snapshots,
            "trees": self.trees,
            "packs": self.packs,
            "blobs": self.blobs,
            "read_bytes": self.read_bytes,
            "read_packs": self.read_packs,
            "unread_packs": self.unread_packs,
            "never_read_packs": self.never_read_packs,
            "oldest_proof_s": self.oldest_proof_s,
        }


def check(
    repo: Repository,
    *,
    read_data: bool = False,
    choice: ReadChoice | None = None,
    verified: VerifiedPacks | None = None,
    known: KnownObjects | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Under a lock, shared or exclusive; backups may go on meanwhile. Damage is reported, never raised.

    With ``read_data`` every pack is read, or those of ``choice``; ``verified`` remembers which were found whole,
    ``known`` what was here before. Trusts no cache: the index is read anew.
    """
    run = _Check(repo, progress or Progress())
    run.keys_and_config(known)
    run.locks()
    names = sorted(info.name for info in repo.backend.list(Kind.SNAPSHOT))  # before the index, which then covers them
    run.index_files()
    try:
        if choice is None or not read_data:
            run.packs(read_data, verified)
        else:
            run.chosen_packs(choice, verified or VerifiedPacks(None))
        run.snapshots(names)
        if known is not None:
            run.compare(known, names)
        run.name_victims()
    finally:
        run.close()
    return run.report


class _Check:
    def __init__(self, repo: Repository, progress: Progress) -> None:
        self.repo = repo
        self.progress = progress
        self.report = CheckReport()
        self.index = Index(repo.files, "check")
        self._prover = Prover(repo.files.key)
        self._reader = BlobReader(repo.files, self.index)
        self._loaded: list[Snapshot] = []
        self._known = IdSet()  # trees that were looked at
        self._unreadable: set[bytes] = set()  # those that could not be read
        self._lost: dict[_BlobKey, list[Problem]] = {}
        self._bad_places: set[tuple[str, BlobKind, bytes]] = set()

    def close(self) -> None:
        self._prover.close()
        self.index.close()
        self._known.close()

    def keys_and_config(self, known: KnownObjects | None) -> None:
        found = list(self.repo.backend.list(Kind.KEY))
        if known is not None:
            self.report.notes += compare_keys(known, [info.name for info in found])
        for info in found:
            try:
                content = self.repo.backend.get(Kind.KEY, info.name)
            except ObjectMissing:
                continue
            if hashlib.sha256(content).hexdigest() != info.name:
                self._error("key", info.name, "its name is not the SHA-256 of its content.")
        if not is_irreducible(self.repo.config.polynomial):
            self._error("config", "config", "its chunker polynomial is not irreducible.")

    def locks(self) -> None:
        for info in list(self.repo.backend.list(Kind.LOCK)):
            try:
                self.repo.files.load_json(Kind.LOCK, info.name)
            except DamagedError as error:
                self.report.notes.append(f"{error.message} It goes stale by itself.")
            except ObjectMissing:
                continue

    def index_files(self) -> None:
        self.progress.begin("check index", (0.0, 0.05))
        self.index.refresh(lambda error: self._error("index", _named(error), error.message), self.progress)
        self.report.blobs = self.index.blob_count()

    def packs(self, read_data: bool, verified: VerifiedPacks | None = None) -> None:
        """Every pack of the index against the store; then what the store holds beyond that."""
        stored = {info.name: info.size for info in self.repo.backend.list(Kind.PACK)}
        packs = self._against_index(stored, read_data)
        if read_data:
            self.report.read_packs = len(packs.named)
        if read_data and verified is not None:
            hurt = {problem.name for problem in self.report.errors}
            for pack in packs.named - hurt:
                verified.note(pack, time.time())
            verified.keep_only(stored)

    def chosen_packs(self, choice: ReadChoice, verified: VerifiedPacks) -> None:
        """As packs; then some are read, and what was found is remembered."""
        stored = {info.name: info.size for info in self.repo.backend.list(Kind.PACK)}
        packs = self._against_index(stored, read_data=False)
        indexed = {pack: size for pack, size in stored.items() if pack in packs.named}
        verified.keep_only(stored)
        hurt = self._read_chosen(packs, choice, indexed, verified)
        if hurt:
            for pack, blobs in self.index.packs():
                if pack in hurt:
                    self._take(packs.judge(pack, blobs, stored[pack]))
        times = dict(verified.times())
        self.report.read_bytes = packs.read_bytes
        self.report.never_read_packs = sum(1 for pack in indexed if pack not in times)
        self.report.oldest_proof_s = time.time() - min(times.values()) if times else None

    def _read_chosen(
        self, packs: PackCheck, choice: ReadChoice, indexed: dict[str, int], verified: VerifiedPacks
    ) -> set[str]:
        """Returns the packs that were not found whole."""
        order = choice.order(indexed, verified, time.time())
        total = sum(indexed[pack] for pack in order)
        self.progress.begin("check data", (_PACKS_END, _DATA_END), total_bytes=total, total_files=len(order))
        deadline = choice.deadline()
        wanted = (
            (pack, indexed[pack])
            for pack in takewhile(lambda _: deadline is None or time.monotonic() < deadline, order)
        )
        hurt: set[str] = set()
        for pack, whole in packs.read(wanted):
            self.report.read_packs += 1
            if whole:
                verified.note(pack, time.time())
            else:
                verified.forget(pack)
                hurt.add(pack)
        self.report.chosen_packs = len(order)
        return hurt

    def _against_index(self, stored: dict[str, int], read_data: bool) -> PackCheck:
        packs = PackCheck(self.repo.files, self.progress, read_data, self._prover)
        total = sum(stored.values()) if read_data else 0
        if read_data:
            self._prover.expect(self.report.blobs, total)
        end = _DATA_END if read_data else _PACKS_END
        self.progress.begin("check packs", (0.05, end), total_bytes=total, total_files=len(stored))
        self._take(packs.run(self.index.packs(), stored))
        self.report.packs, self.report.read_bytes = packs.seen, packs.read_bytes
        self.report.notes += packs.notes
        return packs

    def _take(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            lost = frozenset((blob.kind, blob.id) for blob in finding.lost)
            self._bad_places.update((finding.pack, *key) for key in lost)
            self._error("pack", finding.pack, finding.message, lost)

    def snapshots(self, names: list[str]) -> None:
        begun = _PACKS_END if not self.report.read_packs else _DATA_END
        self.progress.begin("check snapshots", (begun, 0.97), total_files=len(names))
        for name in names:
            self.progress.check()
            try:
                snapshot = load_snapshot(self.repo, name)
            except SnapshotNotFound:
                continue  # forgotten since it was listed
            except DamagedError as error:
                self._error("snapshot", name, error.message)
            else:
                self._loaded.append(snapshot)
                self._walk(bytes.fromhex(snapshot.tree))
            self.progress.add(done_files=1)
        self.report.snapshots, self.report.trees = len(self._loaded), len(self._known)

    def compare(self, known: KnownObjects, names: list[str]) -> None:
        """With what this machine remembers. A snapshot that came since they were listed is not missed."""
        listed = {*names, *(info.name for info in self.repo.backend.list(Kind.SNAPSHOT))}
        result = compare_snapshots(known, listed, self._loaded)
        self.report.notes += result.notes
        for one in result.vanished:
            self._error("gone", one.id, describe_vanished(one))

    def name_victims(self) -> None:
        """Which snapshots each problem hurts; only done if there are problems, since it walks all trees again."""
        for key in [key for key in self._lost if self._has_good_copy(key)]:
            del self._lost[key]
        self.report.lost = set(self._lost)
        if not self._lost:
            return
        hurt = _Victims(self._lost, self._nodes)
        self.progress.begin("check: what is hurt", (0.97, 1.0), total_files=len(self._loaded))
        for snapshot in self._loaded:
            self.progress.check()
            root = bytes.fromhex(snapshot.tree)
            for problem in hurt.problems_of(root):
                problem.snapshots = (*problem.snapshots, snapshot.id)
                if not problem.paths:
                    problem.paths = tuple(printable(path) for path in islice(hurt.paths_of(root, problem), _PATHS))
            self.progress.add(done_files=1)

    def _walk(self, root: bytes) -> None:
        stack = [root]
        while stack:
            tree_id = stack.pop()
            if not self._known.add(tree_id):
                continue
            self.progress.check()
            try:
                nodes = self._nodes(tree_id)
            except BrsError as error:
                self._unreadable.add(tree_id)
                self._error("tree", tree_id.hex(), error.message, frozenset({(BlobKind.TREE, tree_id)}))
                continue
            self._judge(tree_id, nodes)
            stack.extend(node.subtree for node in nodes if node.subtree is not None)

    def _nodes(self, tree_id: bytes) -> list[Node]:
        content = self._reader.load(BlobKind.TREE, tree_id)
        try:
            return decode_tree(content)
        except ValueError as error:
            raise DamagedError(f"tree {tree_id.hex()} cannot be decoded: {error}.") from error

    def _judge(self, tree_id: bytes, nodes: list[Node]) -> None:
        names = [node.name for node in nodes]
        if sorted(set(names)) != names:
            self._error("tree", tree_id.hex(), "its entries are not in order, or occur twice.")
        for node in nodes:
            if node.is_dir and node.subtree is None:
                self._error("tree", tree_id.hex(), f"its directory {node.name!r} has no tree.")
        missing = self.index.missing(BlobKind.DATA, (blob_id for node in nodes for blob_id in node.content))
        if missing:
            first = min(missing).hex()
            message = f"data {first} is missing: tree {tree_id.hex()} needs {len(missing)} blobs that no index names."
            self._error("data", first, message, frozenset((BlobKind.DATA, blob_id) for blob_id in missing))

    def _has_good_copy(self, key: _BlobKey) -> bool:
        if key[0] is BlobKind.TREE and key[1] in self._unreadable:
            return False  # all its copies were tried
        return any((place.pack, *key) not in self._bad_places for place in self.index.locations(*key))

    def _error(self, kind: str, name: str, message: str, blobs: frozenset[_BlobKey] = frozenset()) -> None:
        if name not in message:
            message = f"{kind if kind == name else f'{kind} {name}'} is damaged: {message}"
        problem = Problem(kind, name, message, blobs=blobs)
        self.report.errors.append(problem)
        for key in blobs:
            self._lost.setdefault(key, []).append(problem)


class _Victims:
    """Which problems a tree suffers from, itself and everything below; each tree is looked at once."""

    def __init__(self, lost: dict[_BlobKey, list[Problem]], nodes: Any) -> None:
        self._lost = lost
        self._nodes = nodes
        self._found: dict[bytes, dict[int, Problem]] = {}

    def problems_of(self, root: bytes) -> list[Problem]:
        stack = [root]  # depth first without recursion: trees may be deeper than Python's stack
        while stack:
            tree_id = stack[-1]
            if tree_id in self._found:
                stack.pop()
                continue
            nodes = self._load(tree_id)
            below = [node.subtree for node in nodes if node.subtree is not None]
            waiting = [subtree for subtree in below if subtree not in self._found]
            if waiting:
                stack.extend(waiting)
                continue
            self._found[tree_id] = self._own(tree_id, nodes) | {
                number: problem for subtree in below for number, problem in self._found[subtree].items()
            }
            stack.pop()
        return list(self._found[root].values())

    def paths_of(self, root: bytes, problem: Problem) -> Iterator[bytes]:
        """What below a tree suffers from a problem; only after problems_of(root). Each tree is entered once."""
        seen: set[bytes] = set()
        stack = [(root, b"")]
        while stack:
            tree_id, path = stack.pop()
            if tree_id in seen or id(problem) not in self._found[tree_id]:
                continue
            seen.add(tree_id)
            if self._lost_by(problem, (BlobKind.TREE, tree_id)):
                yield path or b"/"
            for node in self._load(tree_id):
                if node.subtree is not None:
                    stack.append((node.subtree, path + b"/" + node.name))
                elif any(self._lost_by(problem, (BlobKind.DATA, blob_id)) for blob_id in node.content):
                    yield path + b"/" + node.name

    def _lost_by(self, problem: Problem, key: _BlobKey) -> bool:
        return any(one is problem for one in self._lost.get(key, ()))

    def _load(self, tree_id: bytes) -> list[Node]:
        try:
            nodes: list[Node] = self._nodes(tree_id)
        except BrsError:
            return []  # it is among the lost itself
        return nodes

    def _own(self, tree_id: bytes, nodes: list[Node]) -> dict[int, Problem]:
        keys: Iterator[_BlobKey] = ((BlobKind.DATA, blob_id) for node in nodes for blob_id in node.content)
        found = {id(problem): problem for key in keys for problem in self._lost.get(key, ())}
        return found | {id(problem): problem for problem in self._lost.get((BlobKind.TREE, tree_id), ())}


def _named(error: DamagedError) -> str:
    """The object's name from a message that begins with its kind and name, as sealed.describe makes them."""
    words = error.message.split()
    return words[1] if len(words) > 1 else ""
