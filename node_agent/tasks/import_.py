"""Put what Fetch staged on this node in place (staging: disk)."""

from __future__ import annotations

from node_agent.drivers.files_copy import TreeCopy
from node_agent.drivers.image_write import check_target, place, staging_beside
from node_agent.errors import TargetError
from node_agent.items import printable
from node_agent.protocol import RestoreResult, RestoreSpec
from node_agent.tasks.context import TaskContext
from node_agent.tasks.fetch import plan_of
from node_agent.tasks.restore import shown
from node_agent.tasks.staging import Facts, Staged


def run(context: TaskContext, spec: RestoreSpec) -> RestoreResult:
    context.phase("import")
    staged = Staged(context.staging_dir, spec.staging)
    with staged.emptying():
        facts = staged.required()
        facts.give(context.issues)
        if facts.driver == "image":
            return _image(context, spec, staged)
        return _files(context, spec, staged, facts)


def _files(context: TaskContext, spec: RestoreSpec, staged: Staged, facts: Facts) -> RestoreResult:
    files = written = skipped = 0
    for number, target in enumerate(plan_of(staged)):
        allowed = context.guard.write(str(target))  # the roots may have changed since the first step
        copy = TreeCopy(context.progress, context.issues, overwrite=spec.target.overwrite)
        done = copy.run(staged.data / str(number), allowed, str(target))
        files, written, skipped = files + done.files, written + done.size_bytes, skipped + done.skipped
    return RestoreResult(files=files, bytes_written=written, skipped=skipped, target=shown(spec, facts.paths))


def _image(context: TaskContext, spec: RestoreSpec, staged: Staged) -> RestoreResult:
    target = context.guard.write(str(plan_of(staged)[0]))
    check_target(target, format=spec.target.format, overwrite=spec.target.overwrite)
    raw = next(staged.data.iterdir(), None)
    if raw is None:
        raise TargetError("The staged disk is gone.", hint="Start the run again from the start.")
    with staging_beside(target, str(context.task_id)) as folder:
        copy = TreeCopy(context.progress, context.issues)
        done = copy.run(raw, folder / raw.name, str(target))
        place(
            folder / raw.name,
            target,
            format=spec.target.format,
            overwrite=spec.target.overwrite,
            check=context.progress.check,
        )
    return RestoreResult(files=1, bytes_written=done.size_bytes, target=printable(str(target)))
