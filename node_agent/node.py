"""Puts a node together: configuration, state, client, guard and the verbs become a worker."""

from __future__ import annotations

import logging
import os
import platform
import shutil
from pathlib import Path

from node_agent import __version__
from node_agent.client import ServerClient, trust
from node_agent.clock import Clock
from node_agent.config import NodeConfig
from node_agent.guard import Guard
from node_agent.items import Issues
from node_agent.protocol import Capabilities, Result, Roots
from node_agent.repository.lock import LockHolder
from node_agent.state import CA_FILE, NODE_FILE, TOKEN_FILE, Identity, State
from node_agent.task_run import Run, RunOutlet
from node_agent.tasks import sources
from node_agent.tasks.context import TaskContext
from node_agent.tasks.dispatch import VERBS, perform
from node_agent.tasks.staging import sweep
from node_agent.worker import Worker

log = logging.getLogger("brs.node")


def capabilities(config: NodeConfig, identity_labels: list[str]) -> Capabilities:
    return Capabilities(
        version=__version__,
        hostname=platform.node(),
        system=_system(),
        kinds=list(VERBS),
        drivers=sources.names(),
        labels=list(dict.fromkeys([*config.labels, *identity_labels])),
        roots=Roots(**config.roots.model_dump()),
        slots=config.slots,
        staging_bytes=_free(Path(config.staging)),
    )


def build_worker(config: NodeConfig, state: State) -> Worker:
    """Ready to run. Raises NotEnrolled, ConfigError."""
    identity = state.identity()
    clock = Clock()
    client = ServerClient(identity.server, trust(state.ca_pem()), token=state.token(), clock=clock)
    guard = Guard(config.roots, own=[state.folder], commands=config.commands)

    def do(run: Run) -> tuple[Result, Issues]:
        context = task_context(run, config, state, identity, client, clock, guard)
        return perform(context, run.task.spec), context.issues

    return Worker(
        client=client,
        clock=clock,
        state=state,
        capabilities=lambda: capabilities(config, identity.labels),
        perform=do,
        slots=config.slots,
        grace_s=config.drain_grace_s,
        away_limit_s=config.server_away_h * 3600,
        chore=lambda: tidy(config),
    )


def tidy(config: NodeConfig) -> None:
    """Remove staged copies that nobody will come back for. Only while no task runs."""
    removed = sweep(Path(config.staging))
    if removed:
        log.info("staging leftovers removed: %d", removed)


def task_context(
    run: Run, config: NodeConfig, state: State, identity: Identity, client: ServerClient, clock: Clock, guard: Guard
) -> TaskContext:
    return TaskContext(
        task_id=run.task.task_id,
        guard=guard,
        progress=run.progress,
        outlet=RunOutlet(run, client),
        holder=LockHolder.for_node(identity.node_id, state.folder / "holder"),
        cache_dir=Path(config.cache),
        staging_dir=Path(config.staging),
        state_dir=state.folder / "platforms",
        staging_max_bytes=config.staging_max_bytes,
        private=tuple(state.folder / name for name in (TOKEN_FILE, NODE_FILE, CA_FILE)),
        now=clock.now,
    )


def _system() -> str:
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        name = platform.system()
    return f"{name}, {os.uname().machine}"


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
