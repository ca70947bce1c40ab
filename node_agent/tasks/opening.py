"""Opening a repository for a task: inside the roots, the right one, locked, with its index."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager

from node_agent.errors import RepositoryError
from node_agent.protocol import RepositoryAccess
from node_agent.repository.backend import Backend, open_backend
from node_agent.repository.lock import Lock, waiting
from node_agent.repository.repository import Repository
from node_agent.tasks.context import TaskContext
from node_agent.tasks.throttle import ThrottledBackend

LOCK_WAIT_S = 300.0
_CREDENTIALS = {
    "access-key-id", "secret-access-key", "session-token", "password", "private-key", "account-key", "account-sas",
    "client-secret", "access-token", "service-account-key",
}  # fmt: skip


@contextmanager
def open_repository(
    context: TaskContext,
    access: RepositoryAccess,
    *,
    exclusive: bool = False,
    bandwidth_bytes_s: int = 0,
    early: bool = False,
) -> Iterator[tuple[Repository, Lock]]:
    """For writing (append, or ``exclusive`` for removing). The index is loaded under the lock.

    ``early``: the lock settles while the source is opened, at the latest before the first write.
    """
    with ExitStack() as stack:
        repo = stack.enter_context(opened(context, access, bandwidth_bytes_s))
        lock = _locked(context, repo, stack, exclusive=exclusive, early=early)
        repo.load_index()
        yield repo, lock


@contextmanager
def open_for_reading(context: TaskContext, access: RepositoryAccess, *, index: bool = True) -> Iterator[Repository]:
    """A destination that cannot be written can still be restored from: then without a lock."""
    with ExitStack() as stack:
        repo = stack.enter_context(opened(context, access, 0))
        _locked(context, repo, stack, exclusive=False, read_only_ok=True)
        if index:
            repo.load_index()
        yield repo


def open_store(context: TaskContext, url: str, options: Mapping[str, str]) -> Backend:
    """The store behind an address that the server gave. A destination without credentials is opened with the node's
    own (its environment, its user's keys); one with credentials never mixes them with these."""
    own = not _CREDENTIALS.intersection(options)
    env = os.environ if own else {"HOME": "/nonexistent"}
    return open_backend(context.guard.repository(url, options), options, env)


@contextmanager
def opened(context: TaskContext, access: RepositoryAccess, bandwidth_bytes_s: int = 0) -> Iterator[Repository]:
    """The right repository, without a lock; its store is closed with it."""
    with ExitStack() as stack:
        backend = stack.enter_context(closing(open_store(context, access.url, access.options)))
        if bandwidth_bytes_s:
            backend = ThrottledBackend(backend, bandwidth_bytes_s, context.progress.check)
        repo = stack.enter_context(
            Repository.open(
                backend, access.password, cache_dir=context.cache_dir, holder=context.holder, clock=context.now
            )
        )
        if access.repository_id and repo.id != access.repository_id:
            raise RepositoryError(
                f"Another repository lies at {access.url} ({repo.id[:8]} instead of {access.repository_id[:8]}).",
                hint="Check that the right file system is mounted at the destination.",
            )
        yield repo


def _locked(
    context: TaskContext,
    repo: Repository,
    stack: ExitStack,
    *,
    exclusive: bool,
    read_only_ok: bool = False,
    early: bool = False,
) -> Lock:
    """Waits for other users of the repository, but never past a wish to stop."""
    context.progress.check()
    pause = waiting(context.progress, context.info)
    return stack.enter_context(
        repo.lock(exclusive=exclusive, wait_s=LOCK_WAIT_S, read_only_ok=read_only_ok, early=early, pause=pause)
    )
