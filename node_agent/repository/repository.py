"""A repository: one face over store, keys, locks, index and blobs.

Typical use::

    repo = Repository.open(open_backend("/srv/backup"), password, cache_dir=Path("/var/cache/brs"))
    with repo.lock() as lock:
        repo.load_index()
        with repo.writer(progress) as writer:
            saved = writer.save(BlobKind.DATA, content)
        save_snapshot(repo, lock, snapshot)

Every write needs a lock that is held and fresh; without one it is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from node_agent.errors import (
    BackendFull,
    BackendReadOnly,
    ConfigError,
    DamagedError,
    ObjectMissing,
    RepositoryError,
    RepositoryExists,
    RepositoryMissing,
    RepositoryUnsupported,
)
from node_agent.progress import Progress
from node_agent.repository.backend.base import CONFIG_NAME, Backend, Kind
from node_agent.repository.chunking import Chunker
from node_agent.repository.crypto import OWN_SCRYPT, Key, ScryptParams, Unauthenticated
from node_agent.repository.index import Index
from node_agent.repository.keys import OpenedKey, add_key, lock_keys, open_master_key
from node_agent.repository.lock import Lock, LockHolder, Locks, NoLock, Pause, sleeping
from node_agent.repository.lock_others import OtherLock
from node_agent.repository.pack import BlobKind
from node_agent.repository.polynomial import random_polynomial
from node_agent.repository.reader import BlobReader
from node_agent.repository.sealed import SealedFiles
from node_agent.repository.strict_json import parse_json
from node_agent.repository.writer import BlobWriter, CountingWriter, Saved

__all__ = ["BlobKind", "BlobWriter", "Config", "Lock", "LockHolder", "Repository", "Saved"]

_ID = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Config:
    version: int
    id: str
    polynomial: int

    def to_json(self) -> bytes:
        value = {"version": self.version, "id": self.id, "chunker_polynomial": f"{self.polynomial:x}"}
        return json.dumps(value, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, plain: bytes) -> Config:
        """Raises DamagedError, RepositoryUnsupported."""
        try:
            value = parse_json(plain)
            config = cls(value["version"], value["id"], int(value["chunker_polynomial"], 16))
            if type(config.version) is not int or not _ID.match(config.id) or not 0 < config.polynomial < 1 << 64:
                raise ValueError("version, id or polynomial is impossible")
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"config is damaged: {error!r}.") from error
        if config.version not in (1, 2):
            raise RepositoryUnsupported(f"The repository has format version {config.version}; known are 1 and 2.")
        return config


class Repository:
    def __init__(
        self,
        files: SealedFiles,
        config: Config,
        holder: LockHolder,
        cache: Path | None,
        binding: str,
        opened_by: OpenedKey,
        clock: Callable[[], float],
    ) -> None:
        self.files = files
        self.config = config
        self.id = config.id
        self.read_only = config.version < 2
        self.clock = clock
        self.opened_by = opened_by
        self.pack_size = 0  # 0: as usual; of packs that are written from now on
        self.lockless = False  # whether reading does without a lock; writing is refused then
        self._locks = Locks(files, holder, config.id, clock)
        self.binding = binding
        self._cache = cache
        self._index: Index | None = None
        self._held: list[Lock] = []
        self._loaded_early = False  # the index, before a lock's second look: somebody may have pruned meanwhile

    @classmethod
    def init(
        cls, backend: Backend, password: str, *, repository_id: str | None = None, scrypt: ScryptParams = OWN_SCRYPT
    ) -> Repository:
        """Make a repository. Raises RepositoryExists; a forerunner killed half-way is no obstacle.

        Of several at the same time the one whose config is stored first has made it: nobody removes a key of others
        before his own config is there.
        """
        if repository_id is not None and not _ID.match(repository_id):
            raise ValueError("a repository's id is 64 hex digits")
        backend.create()
        _must_be_free(backend)
        config = Config(2, repository_id or secrets.token_hex(32), random_polynomial())
        master = Key.random()
        key_name = add_key(backend, master, password, scrypt)
        others = {info.name for info in backend.list(Kind.KEY)} - {key_name}  # of no repository, or of one not to be
        try:
            SealedFiles(backend, master).save(Kind.CONFIG, config.to_json())  # last: from here on it is a repository
        except RepositoryExists:
            backend.delete(Kind.KEY, key_name)
            raise
        for name in others:
            backend.delete(Kind.KEY, name)
        lock_keys(backend, [key_name])
        return cls.open(backend, password, key_hint=key_name)

    @classmethod
    def open(
        cls,
        backend: Backend,
        password: str,
        *,
        cache_dir: Path | None = None,
        holder: LockHolder | None = None,
        clock: Callable[[], float] = time.time,
        key_hint: str = "",
    ) -> Repository:
        """Raises RepositoryMissing, WrongPassword, DamagedError, RepositoryUnsupported.

        ``cache_dir`` keeps the index between runs; without ``holder`` it keeps the journal of locks too.
        ``key_hint``: the beginning of the name of the key to try first.
        """
        try:
            sealed = backend.get(Kind.CONFIG, CONFIG_NAME)
        except ObjectMissing as error:
            raise RepositoryMissing(f"There is no repository at {backend.url}: it has no config.") from error

        def fits(master: Key) -> bool:
            with contextlib.suppress(Unauthenticated):
                return bool(master.open(sealed))
            return False

        opened = open_master_key(backend, password, key_hint, fits)
        config = Config.from_json(SealedFiles(backend, opened.master).unseal(Kind.CONFIG, CONFIG_NAME, sealed))
        files = SealedFiles(backend, opened.master, config.version)
        if holder is None:
            holder = LockHolder.for_command_line(cache_dir / "locks" if cache_dir else None)
        binding = f"{config.id} {hashlib.sha256(sealed).hexdigest()}"
        return cls(files, config, holder, cache_dir, binding, opened, clock)

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None

    @property
    def backend(self) -> Backend:
        return self.files.backend

    def cache_path(self, topic: str) -> Path | None:
        """Where this machine keeps a database about this repository; to be bound to :attr:`binding`."""
        return self._cache / f"{self.id[:32]}.{topic}.sqlite" if self._cache is not None else None

    @contextlib.contextmanager
    def lock(
        self,
        *,
        exclusive: bool = False,
        wait_s: float = 0,
        read_only_ok: bool = False,
        early: bool = False,
        pause: Pause = sleeping,
    ) -> Iterator[Lock]:
        """Hold a lock, refreshed in the background. Raises RepositoryLocked, an ``early`` one perhaps when it settles.

        With ``read_only_ok`` a store that cannot be written, or is full, is read without a lock: a full destination
        must not keep anybody from restoring. Where :attr:`lockless`, so is every store.
        """
        if self.lockless and (exclusive or not read_only_ok):
            raise ConfigError(
                "What changes a repository needs a lock.",
                hint="Leave out --no-lock: it is for reading, and for backup, forget, prune and repair with --dry-run.",
            )
        try:
            lock: Lock = NoLock()
            if not self.lockless:
                lock = self._locks.acquire(exclusive=exclusive, wait_s=wait_s, early=early, pause=pause)
        except (BackendFull, BackendReadOnly):
            if not read_only_ok or exclusive:
                raise
            lock = NoLock()
        self._held.append(lock)
        try:
            yield lock
        finally:
            self._held.remove(lock)
            lock.release()

    def clear_dead_locks(self) -> int:
        """Remove locks of our own killed processes; :meth:`lock` does so by itself."""
        return self._locks.clear_dead()

    def unlock(self, *, everything: bool = False) -> list[OtherLock]:
        """Remove locks that were left behind; with ``everything`` all, which is dangerous while somebody works."""
        return self._locks.clear_stale(everything=everything)

    def guard(self, *, prove: bool = False) -> None:
        """Raises unless this repository may be written now: version 2, and a lock held and fresh.

        With ``prove`` the lock's file must still be in the store, too: before what cannot be taken back.
        """
        if self.read_only:
            raise RepositoryUnsupported("A repository of format version 1 is only read.")
        if not self._held:
            raise RepositoryError("Writing needs a lock, and none is held.")
        for lock in self._held:
            lock.prove() if prove else lock.check()

    @property
    def index(self) -> Index:
        if self._index is None:
            self.load_index()
        assert self._index is not None
        return self._index

    @property
    def index_is_open(self) -> bool:
        """Whether somebody in this process uses the index; if not, it need not be kept up to date."""
        return self._index is not None

    def load_index(self) -> None:
        """Bring the index up to date with the store; to be called after the lock was taken. Raises DamagedError."""
        if self._index is None:
            self._index = Index(self.files, self.binding, self.cache_path("index"))
        self._loaded_early = any(lock.settles_in_s is not None for lock in self._held)
        self._index.refresh()

    def settle(self) -> None:
        """End the time of an early lock; the index is brought up to date again. Raises as :meth:`guard` does."""
        self.guard()
        if self._loaded_early:
            self.load_index()

    def has(self, kind: BlobKind, blob_id: bytes) -> bool:
        return self.index.has(kind, blob_id)

    def missing(self, kind: BlobKind, ids: Iterable[bytes]) -> set[bytes]:
        """Those of ``ids`` that the index does not list; much quicker than asking one by one."""
        return self.index.missing(kind, ids)

    def blob_size(self, kind: BlobKind, blob_id: bytes) -> int | None:
        """Uncompressed length; None for a blob that is not there."""
        locations = self.index.locations(kind, blob_id)
        return locations[0].blob.size if locations else None

    def blob_sizes(self, kind: BlobKind, ids: Iterable[bytes]) -> dict[bytes, int]:
        """Uncompressed lengths of many blobs; those that are not there are left out."""
        found = self.index.locate(kind, list(dict.fromkeys(ids)))
        return {blob_id: places[0].blob.size for blob_id, places in found.items()}

    def load_blob(self, kind: BlobKind, blob_id: bytes) -> bytes:
        """Authenticated, decompressed, hash proven; other copies are tried. Raises DamagedError (pack and blob)."""
        return BlobReader(self.files, self.index).load(kind, blob_id)

    def load_blobs(self, kind: BlobKind, ids: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Each id once with its content, in no order; grouped by pack, decoded on threads ahead of the caller."""
        return BlobReader(self.files, self.index).load_many(kind, ids)

    def load_together(self, kind: BlobKind, ids: Iterable[bytes]) -> dict[bytes, bytes]:
        """A few small blobs, those that lie beside each other read at once, by the calling thread."""
        return BlobReader(self.files, self.index).load_together(kind, ids)

    def load_fitting(self, kind: BlobKind, ids: Iterable[bytes], room: int) -> dict[bytes, bytes]:
        """As load_together, but without those that are not there, and those for which ``room`` bytes are not enough."""
        return BlobReader(self.files, self.index).load_fitting(kind, ids, room)

    def writer(
        self,
        progress: Progress,
        *,
        compression: str = "auto",
        workers: int | None = None,
        verify_write: bool = False,
        dry_run: bool = False,
    ) -> BlobWriter:
        """A context manager; see :class:`BlobWriter`. Raises at once if nothing may be written.

        With ``dry_run`` nothing is, and no lock is needed.
        """
        if not dry_run:
            self.settle()
        return (CountingWriter if dry_run else BlobWriter)(
            self.files,
            self.index,
            self.guard,
            progress,
            compression=compression,
            workers=workers,
            verify_write=verify_write,
            pack_size=self.pack_size,
        )

    @cached_property
    def chunker(self) -> Chunker:
        return Chunker(self.files.key.derive("brs fastcdc gear"))

    def add_key(self, password: str) -> str:
        """Let another password open this repository. Returns the key's name."""
        self.guard()
        name = add_key(self.backend, self.files.key, password)
        lock_keys(self.backend)
        return name


def _must_be_free(backend: Backend) -> None:
    """Keys without a config are left by a killed init, if nothing else is there; otherwise hands off."""
    if backend.exists(Kind.CONFIG, CONFIG_NAME):
        raise RepositoryExists(f"There is already a repository at {backend.url}.")
    if any(next(iter(backend.list(kind)), None) for kind in (Kind.SNAPSHOT, Kind.INDEX, Kind.PACK)):
        raise RepositoryExists(
            f"At {backend.url} are data of a repository whose config is missing.",
            hint="Put the config from the recovery kit back in place, or choose an empty folder.",
        )
