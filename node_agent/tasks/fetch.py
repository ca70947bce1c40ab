"""Restore into the node's staging space (staging: disk); Import follows as a task of its own."""

from __future__ import annotations

import json
from pathlib import Path

from node_agent.drivers.image_write import check_target
from node_agent.errors import RefusedError
from node_agent.protocol import RestoreResult, RestoreSpec
from node_agent.repository.files_restore import restore
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import Snapshot, load_snapshot
from node_agent.repository.tree import walk
from node_agent.tasks.context import TaskContext
from node_agent.tasks.opening import open_for_reading
from node_agent.tasks.restore import image_target, placements, restore_disk, shown, the_disk
from node_agent.tasks.staging import Facts, Staged, require_space

PLAN = "plan.json"


def run(context: TaskContext, spec: RestoreSpec) -> RestoreResult:
    context.phase("restore")
    if spec.repository is None:
        raise RefusedError("A restore without a repository makes no sense.", hint="This is an error of the server.")
    staged = Staged(context.staging_dir, spec.staging)
    with open_for_reading(context, spec.repository) as repo:
        snapshot = load_snapshot(repo, spec.snapshot_id)
        require_space(staged.folder.parent, _size(context, repo, snapshot, spec), context.staging_max_bytes)
        facts = Facts(str(context.task_id), spec.target.driver, list(snapshot.paths), context.now())
        with staged.filling():
            if spec.target.driver == "image":
                written = _image(context, spec, repo, snapshot, staged, facts)
            else:
                written = _files(context, spec, repo, snapshot, staged, facts)
            facts.take(context.issues)
            staged.finish(facts)
    return RestoreResult(files=facts.files, bytes_written=written, target=shown(spec, snapshot.paths))


def _files(
    context: TaskContext, spec: RestoreSpec, repo: Repository, snapshot: Snapshot, staged: Staged, facts: Facts
) -> int:
    """Each placement becomes a folder of its own; ``plan.json`` says where it goes."""
    plan, written = [], 0
    for number, placed in enumerate(placements(context, spec, repo, snapshot)):
        folder = staged.data / str(number)
        done = restore(
            repo,
            snapshot.id,
            folder,
            include=placed.include,
            strip=placed.strip,
            overwrite="always",
            progress=context.progress,
            issues=context.issues,
            verify=spec.verify,
        )
        facts.files += done.files
        written += done.bytes_written
        plan.append(str(placed.target))
    (staged.folder / PLAN).write_text(json.dumps(plan))
    return written


def _image(
    context: TaskContext, spec: RestoreSpec, repo: Repository, snapshot: Snapshot, staged: Staged, facts: Facts
) -> int:
    disk = the_disk(repo, snapshot, spec.include)
    target = image_target(context, spec.target, disk, snapshot.paths)
    check_target(target, format=spec.target.format, overwrite=spec.target.overwrite)
    facts.files = 1
    written = restore_disk(context, repo, snapshot, disk, staged.data, verify=spec.verify)
    (staged.folder / PLAN).write_text(json.dumps([str(target)]))
    return written


def _size(context: TaskContext, repo: Repository, snapshot: Snapshot, spec: RestoreSpec) -> int:
    """At most what the chosen part takes; holes are counted as if they were data."""
    chosen: list[bytes] = []
    if spec.target.driver != "image":
        chosen = [path for placed in placements(context, spec, repo, snapshot) for path in placed.include]
    total = 0
    for path, node in walk(repo, bytes.fromhex(snapshot.tree)):
        context.progress.check()
        if not chosen or any(path == root or path.startswith(root.rstrip(b"/") + b"/") for root in chosen):
            total += node.size
    return total


def plan_of(staged: Staged) -> list[Path]:
    return [Path(target) for target in json.loads((staged.folder / PLAN).read_text())]
