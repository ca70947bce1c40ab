"""Connection test of a remote store: may this node use it, does it answer, can it be written, read, listed, deleted.

A repository that is there is tested with one of its own locks; where there is none yet, with an object made for it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping

from node_agent.drivers.base import Finding
from node_agent.errors import BrsError, LockRefused, RefusedError, RepositoryMissing
from node_agent.repository.backend import Backend, Kind
from node_agent.repository.backend.base import ObjectLock
from node_agent.repository.repository import Repository
from node_agent.tasks.context import TaskContext
from node_agent.tasks.opening import open_store


def probe_store(context: TaskContext, url: str, options: Mapping[str, str], password: str) -> list[Finding]:
    """Ends with the first check that fails: those after it would fail for the same reason."""
    allowed = "This node may keep repositories there"
    try:
        backend = open_store(context, url, options)
    except RefusedError as error:
        return [Finding.of(allowed, error)]
    except BrsError as error:
        return [Finding(allowed, ok=True), Finding.of("The settings are understood", error)]
    findings = [Finding(allowed, ok=True), Finding("The settings are understood", ok=True, detail=backend.url)]
    try:
        if backend.object_lock is not None:
            findings.append(_keeps_what_it_locks(backend.object_lock))
            if not findings[-1].ok:
                return findings
        if password:
            findings += _with_repository(context, backend, password)
        if not password or not findings[-1].ok or findings[-1].name == _NONE_YET:
            findings += _with_object(backend) if findings[-1].ok else []
    finally:
        backend.close()
    return findings


_NONE_YET = "A repository is there"


def _with_repository(context: TaskContext, backend: Backend, password: str) -> list[Finding]:
    name = "The repository opens"
    try:
        repo = Repository.open(backend, password, holder=context.holder, clock=context.now)
    except RepositoryMissing as error:
        if "bucket" in error.message:
            return [Finding.of("The destination answers", error)]
        return [Finding(_NONE_YET, ok=True, detail="There is none yet; it will be made.")]
    except BrsError as error:
        return [Finding.of(name, error)]
    found = [Finding(name, ok=True, detail=f"Repository {repo.id[:8]}.")]
    lock = "A lock can be written, read and removed"
    try:
        with repo.lock(exclusive=False):
            pass
        found.append(Finding(lock, ok=True))
    except BrsError as error:
        found.append(Finding.of(lock, error))
    return found


def _keeps_what_it_locks(lock: ObjectLock) -> Finding:
    """Tried against the node's own credentials."""
    name = "What is locked there stays until its time, also against this node"
    try:
        found = lock.probe()
    except BrsError as error:
        return Finding.of(name, error)
    if found.problem:
        return Finding(name, ok=False, detail=found.problem, hint=LockRefused.default_hint)
    return Finding(name, ok=True, detail=f"Seen: {'; '.join(found.checks)}.")


def _with_object(backend: Backend) -> list[Finding]:
    content = b"BRS connection test " + secrets.token_hex(16).encode()
    name = hashlib.sha256(content).hexdigest()
    steps: list[tuple[str, Callable[[], None]]] = [
        ("The destination answers", backend.create),
        ("An object can be written", lambda: backend.put(Kind.LOCK, name, [content])),
        ("It reads back as it was written", lambda: _same(backend, name, content)),
        ("It is listed", lambda: _listed(backend, name)),
        ("It can be deleted", lambda: backend.delete(Kind.LOCK, name)),
    ]
    findings: list[Finding] = []
    for words, step in steps:
        try:
            step()
        except BrsError as error:
            findings.append(Finding.of(words, error))
            break
        findings.append(Finding(words, ok=True))
    return findings


def _same(backend: Backend, name: str, content: bytes) -> None:
    if backend.get(Kind.LOCK, name) != content:
        raise BrsError("What was read is not what was written.", hint="Do not use this store; tell its operator.")


def _listed(backend: Backend, name: str) -> None:
    if name not in {info.name for info in backend.list(Kind.LOCK)}:
        raise BrsError("The object is not in the list.", hint="Check that the account may list the folder.")
