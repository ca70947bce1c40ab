"""Restore and Import in one: from the repository to a folder, back in place, or into an image file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node_agent.drivers.image_write import check_target, place, staging_beside
from node_agent.errors import RefusedError, SnapshotNotFound, TargetError
from node_agent.items import printable
from node_agent.protocol import RestoreResult, RestoreSpec, RestoreTarget
from node_agent.repository.files_browse import find_node
from node_agent.repository.files_restore import restore
from node_agent.repository.go_quote import decode_name
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import Snapshot, load_snapshot
from node_agent.repository.tree import load_tree
from node_agent.tasks.context import TaskContext
from node_agent.tasks.opening import open_for_reading

DISKS = b"disks"


@dataclass(frozen=True)
class Placement:
    """Paths of a snapshot and the folder they go to. ``strip``: leading path that is not made below the folder."""

    target: Path
    include: list[bytes]
    strip: bytes | None


def run(context: TaskContext, spec: RestoreSpec) -> RestoreResult:
    context.phase("restore")
    if spec.repository is None:
        raise RefusedError("A restore without a repository makes no sense.", hint="This is an error of the server.")
    if not spec.target.in_place:
        context.guard.write(spec.target.path)
    with open_for_reading(context, spec.repository) as repo:
        snapshot = load_snapshot(repo, spec.snapshot_id)
        if spec.target.driver == "image":
            return _image(context, spec, repo, snapshot)
        return _files(context, spec, repo, snapshot)


# --- files ---


def _files(context: TaskContext, spec: RestoreSpec, repo: Repository, snapshot: Snapshot) -> RestoreResult:
    files = written = skipped = 0
    for placed in placements(context, spec, repo, snapshot):
        done = restore(
            repo,
            snapshot.id,
            placed.target,
            include=placed.include,
            strip=placed.strip,
            overwrite=spec.target.overwrite,
            progress=context.progress,
            issues=context.issues,
            verify=spec.verify,
        )
        files += done.files
        written += done.bytes_written
        skipped += done.skipped
    return RestoreResult(files=files, bytes_written=written, skipped=skipped, target=shown(spec, snapshot.paths))


def placements(context: TaskContext, spec: RestoreSpec, repo: Repository, snapshot: Snapshot) -> list[Placement]:
    """What goes where. In place, each protected root is a target of its own: the folders above are not touched."""
    include = [snapshot_path(path) for path in spec.include]
    if not spec.target.in_place:
        strip = snapshot_path(spec.strip) if spec.strip else None
        return [Placement(context.guard.write(spec.target.path), include, strip)]
    placed: list[Placement] = []
    for root in snapshot.paths:
        raw = os.path.normpath(os.fsencode(root))
        chosen = [path for path in include if _is_below(path, raw)] if include else [raw]
        if not chosen:
            continue
        real = context.guard.write(root)
        context.guard.read(root)
        if find_node(repo, snapshot.id, raw).is_dir:
            placed.append(Placement(real, chosen, raw))
        else:
            placed.append(Placement(real.parent, chosen, os.path.dirname(raw)))
    if include and not placed:
        raise RefusedError("None of the chosen paths lies in a folder that was protected.", hint="Choose others.")
    return placed


def snapshot_path(text: str) -> bytes:
    """A path as the server names it (Go-quoted names) as the bytes of the tree. RefusedError for one that climbs."""
    try:
        parts = [decode_name(part) for part in text.split("/") if part]
    except ValueError as error:
        raise RefusedError(f"{printable(text)!r} is not a path of a restore point.", hint="Choose it anew.") from error
    if any(part in (b".", b"..") or b"/" in part or b"\0" in part for part in parts):
        raise RefusedError(f"{printable(text)!r} is not a path of a restore point.", hint="Choose it anew.")
    return b"/" + b"/".join(parts)


def shown(spec: RestoreSpec, roots: Sequence[str]) -> str:
    return ", ".join(roots) if spec.target.in_place else spec.target.path


def _is_below(path: bytes, root: bytes) -> bool:
    return path == root or path.startswith(root.rstrip(b"/") + b"/")


# --- disk images ---


def _image(context: TaskContext, spec: RestoreSpec, repo: Repository, snapshot: Snapshot) -> RestoreResult:
    disk = the_disk(repo, snapshot, spec.include)
    target = image_target(context, spec.target, disk, snapshot.paths)
    check_target(target, format=spec.target.format, overwrite=spec.target.overwrite)
    with staging_beside(target, str(context.task_id)) as folder:
        done = restore_disk(context, repo, snapshot, disk, folder, verify=spec.verify)
        context.phase("import")
        place(
            folder / os.fsdecode(disk),
            target,
            format=spec.target.format,
            overwrite=spec.target.overwrite,
            check=context.progress.check,
        )
    return RestoreResult(files=1, bytes_written=done, target=printable(str(target)))


def restore_disk(
    context: TaskContext, repo: Repository, snapshot: Snapshot, disk: bytes, folder: Path, *, verify: bool
) -> int:
    """The disk's raw file, sparse, in ``folder``. Returns the bytes written."""
    done = restore(
        repo,
        snapshot.id,
        folder,
        include=[b"/" + DISKS + b"/" + disk],
        strip=b"/" + DISKS,
        overwrite="always",
        progress=context.progress,
        issues=context.issues,
        verify=verify,
    )
    if not (folder / os.fsdecode(disk)).is_file():
        raise TargetError("The disk could not be restored.", hint="The list of what was left out says why.")
    return done.bytes_written


def the_disk(repo: Repository, snapshot: Snapshot, include: Sequence[str]) -> bytes:
    """The file name of the one disk to restore, such as ``disk.raw``."""
    folder = next((n for n in load_tree(repo, bytes.fromhex(snapshot.tree)) if n.name == DISKS and n.subtree), None)
    names = [node.name for node in load_tree(repo, folder.subtree)] if folder and folder.subtree else []
    wanted = [snapshot_path(path) for path in include]
    chosen = [n for n in names if not wanted or any(_is_below(b"/" + DISKS + b"/" + n, path) for path in wanted)]
    if len(chosen) != 1:
        raise SnapshotNotFound(
            f"The restore point holds {len(names)} disks, and exactly one must be chosen.", hint="Choose one disk."
        )
    return chosen[0]


def image_target(context: TaskContext, target: RestoreTarget, disk: bytes, paths: Sequence[str]) -> Path:
    """The file to write: the one that was protected, the one that was given, or one in the given folder."""
    if target.in_place:
        context.guard.read(paths[0])
        return context.guard.write(target.path or paths[0])
    real = context.guard.write(target.path)
    if not real.is_dir():
        return real
    stem = os.fsdecode(disk).removesuffix(".raw")
    return real / f"{stem}.{target.format}"
