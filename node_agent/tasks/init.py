"""Make a repository at a destination. Repeating it is harmless: a crashed init is finished or adopted."""

from __future__ import annotations

from contextlib import closing

from node_agent.errors import LockRefused, RepositoryError, RepositoryMissing
from node_agent.guard import is_remote
from node_agent.items import printable
from node_agent.protocol import InitResult, InitSpec, RepositoryAccess
from node_agent.repository.backend import Backend
from node_agent.repository.repository import Repository
from node_agent.tasks.context import TaskContext
from node_agent.tasks.opening import open_store


def run(context: TaskContext, spec: InitSpec) -> InitResult:
    context.phase("init")
    access = spec.repository
    with closing(open_store(context, access.url, access.options)) as backend:
        if not is_remote(access.url):
            _must_be_mounted(context, access.url)
        return InitResult(repository_id=_made(context, access, backend))


def _made(context: TaskContext, access: RepositoryAccess, backend: Backend) -> str:
    """Its id, of one that is made now or was before."""
    try:
        repo = Repository.open(backend, access.password, holder=context.holder, clock=context.now)
    except RepositoryMissing:
        repo = Repository.init(backend, access.password, repository_id=access.repository_id or None)
        context.info("The repository was made.")
    else:
        if backend.object_lock is not None and (problem := backend.object_lock.probe().problem):
            raise LockRefused(problem)  # one that is made anew proves it itself
        context.info("The repository was there already and opens with this password.")
    if access.repository_id and repo.id != access.repository_id:
        raise RepositoryError(
            f"Another repository lies at {access.url}.",
            hint="Choose an empty folder, or check that the right file system is mounted.",
        )
    return repo.id


def _must_be_mounted(context: TaskContext, url: str) -> None:
    """Folders are made below a root, never the root: an unmounted file system must not be filled in its place."""
    root = context.guard.repository_root(url)
    if not root.is_dir():
        raise RepositoryMissing(
            f"The destination folder {printable(str(root))} is not there.",
            hint="Mount the file system it stands for, or make the folder.",
        )
