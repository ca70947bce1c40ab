"""Export alone (staging: disk): copy the source to the node's staging space; Store follows as a task of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from node_agent.drivers.base import Disk, FileTree
from node_agent.drivers.files_copy import Skip, TreeCopy
from node_agent.errors import SourceError
from node_agent.items import Extent, Issue
from node_agent.protocol import ExportResult, ExportSpec
from node_agent.repository.excludes import Excludes
from node_agent.tasks.commands import around
from node_agent.tasks.context import TaskContext
from node_agent.tasks.sources import driver_for
from node_agent.tasks.staging import Facts, Staged, require_space, used_bytes

RAW = "disk.raw"
CHUNK = 4 * 1024 * 1024


def run(context: TaskContext, spec: ExportSpec) -> ExportResult:
    context.phase("export")
    staged = Staged(context.staging_dir, spec.staging)
    facts = staged.facts()
    if facts is not None and facts.task_id == str(context.task_id):
        context.info("An earlier attempt had finished the copy: it is taken over.")
        facts.give(context.issues)
    else:
        facts = _export(context, spec, staged)
    return ExportResult(
        size_bytes=facts.size_bytes, files=facts.files, started_age_s=max(0.0, context.now() - facts.started_at)
    )


def _export(context: TaskContext, spec: ExportSpec, staged: Staged) -> Facts:
    driver = driver_for(spec.source.driver, context.guard)
    with around(context, spec), driver.open(spec.source.paths, format=spec.source.format) as source:
        facts = Facts(str(context.task_id), driver.name, list(spec.source.paths), context.now())
        with staged.filling():
            if isinstance(source, Disk):
                _copy_disk(context, source, staged, facts)
            else:
                _copy_files(context, spec, source, staged, facts)
            facts.take(context.issues)
            staged.finish(facts)
    return facts


def staged_root(staged: Staged, number: int) -> Path:
    return staged.data / str(number)


def _copy_files(context: TaskContext, spec: ExportSpec, source: FileTree, staged: Staged, facts: Facts) -> None:
    rules = Excludes(spec.source.excludes)
    skips = [_skip(rules, real, known, context.private) for real, known in source.roots]
    needed = sum(used_bytes(real, skip) for (real, _), skip in zip(source.roots, skips, strict=True))
    require_space(staged.folder.parent, needed, context.staging_max_bytes)
    context.progress.set(total_bytes=needed)
    owners: dict[bytes, tuple[int, int]] = {}
    for number, (real, known) in enumerate(source.roots):
        copy = TreeCopy(
            context.progress,
            context.issues,
            skip=skips[number],
            one_file_system=spec.source.one_file_system,
            owners=owners,
        )
        done = copy.run(real, staged_root(staged, number), known)
        facts.files += done.files
        facts.size_bytes += done.size_bytes
    staged.keep_owners(owners)


def _skip(rules: Excludes, real: Path, known: str, private: Sequence[Path]) -> Skip:
    """What to leave out of one root, asked with the path where it really lies."""
    below, name = os.fsencode(real), os.fsencode(known)
    secrets = {os.fsencode(path.resolve()) for path in private}

    def skip(path: bytes, is_dir: bool) -> bool:
        return path in secrets or rules.match(name + path[len(below) :], name, is_dir)

    return skip


def _copy_disk(context: TaskContext, source: Disk, staged: Staged, facts: Facts) -> None:
    extents = list(source.content.extents())
    needed = sum(extent.length for extent in extents if not extent.zero)
    require_space(staged.folder.parent, needed, context.staging_max_bytes)
    context.progress.set(total_bytes=source.content.size, total_files=1, current=source.path)
    with (staged.data / RAW).open("wb") as out:
        for extent in extents:
            if not extent.zero:
                _copy_extent(context, source, extent, out.fileno())
            context.progress.add(done_bytes=extent.length)
        out.truncate(source.content.size)
        out.flush()
        os.fsync(out.fileno())
    if source.content.damage:
        context.issues.add(Issue(source.path, "image-damaged", source.content.damage))
    if source.content.changed():
        context.issues.add(Issue(source.path, "changed", "The image was written while it was read: it may be mixed."))
    facts.files, facts.size_bytes, facts.format = 1, source.content.size, source.content.format


def _copy_extent(context: TaskContext, source: Disk, extent: Extent, out: int) -> None:
    position = extent.offset
    while position < extent.end:
        context.progress.check()
        piece = source.content.read(position, min(CHUNK, extent.end - position))
        if any(piece):
            written = os.pwrite(out, piece, position)
            if written != len(piece):
                raise SourceError("The staging space took less than it was given.", hint="Check its free space.")
        position += len(piece)
        context.progress.add(read_bytes=len(piece))
