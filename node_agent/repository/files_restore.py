"""Restore of a snapshot, whole or in part, into a folder.

Folders first, as they are met; files in batches, whose blobs are read pack by pack; a folder's own metadata
when all in it is done. One item's failure is not the run's: it is left out and listed. A full target ends the run.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from node_agent.errors import DamagedError, SourceMissing, TargetError
from node_agent.items import Issue, Issues, printable
from node_agent.progress import Progress
from node_agent.repository.files_browse import dump, find_node, list_tree, normal_path
from node_agent.repository.open_files import allow_many
from node_agent.repository.repository import Repository
from node_agent.repository.restore_choice import Choice, Included, Paths, count_chosen
from node_agent.repository.restore_content import BATCH_FILES, ContentWriter, FileJob
from node_agent.repository.restore_crew import Crew
from node_agent.repository.restore_meta import Notes, apply_to_open, meta_of
from node_agent.repository.restore_special import make_special
from node_agent.repository.restore_target import (
    Folder,
    InTheWay,
    discard,
    enter,
    is_safe_name,
    lookup,
    open_below,
    open_target,
    put_in_place,
    temporary_name,
    translate,
)
from node_agent.repository.restore_trees import Trees
from node_agent.repository.tree import Node

__all__ = ["Overwrite", "RestoreResult", "dump", "list_tree", "restore"]

Overwrite = Literal["never", "changed", "always"]


@dataclass(slots=True)
class RestoreResult:
    """``damaged`` files could not be restored because of the repository; all that is missing is in the issues."""

    files: int = 0
    dirs: int = 0
    others: int = 0  # links, FIFOs, devices
    skipped: int = 0  # left as they were by the overwrite rule
    damaged: int = 0
    bytes_written: int = 0


def restore(
    repo: Repository,
    snapshot_id: str,
    target: Path,
    *,
    include: Sequence[bytes] = (),
    choice: Choice | None = None,
    strip: bytes | None = None,
    overwrite: Overwrite = "always",
    progress: Progress,
    issues: Issues,
    verify: bool = False,
) -> RestoreResult:
    """Recreate a snapshot's files below ``target``, which is made if it does not exist.

    ``include``: paths in the snapshot, with what lies below them; empty means all. ``choice``: instead of them; then
    folders that only lead to something are made once there is something. ``strip``: a folder (or file) in the
    snapshot whose content is put into ``target`` directly. ``overwrite`` decides about files that exist: ``never``
    leaves them, ``changed`` rewrites those of other size or time, ``always`` all. Folders are never removed.
    ``verify`` reads every file back. The index must have been loaded.
    Raises SnapshotNotFound, SourceMissing (a path that is not in the snapshot), TargetError, TargetFull.
    """
    allow_many()
    choice = choice or Paths([normal_path(path) for path in include])
    top, base, choice = _start(repo, snapshot_id, strip, choice)
    trees = Trees(repo, whole=choice.most)
    if not progress.counters.total_bytes:
        _measure(trees, top, base, choice, progress)
    fd, created = open_target(target)
    run = _Run(repo, trees, fd, choice, overwrite, progress, issues, verify)
    run.restore(top, base, created)
    if isinstance(choice, Included) and run.result == RestoreResult() and not issues.left_out:
        raise SourceMissing(
            "Nothing in the snapshot matches what is to be included.",
            hint="Look with ls what is in it; a pattern without a slash in front matches at any depth.",
        )
    if run.refused and run.result == RestoreResult():
        raise TargetError(f"Nothing could be restored to {printable(str(target))}. {run.refused}")
    return run.result


def _start(repo: Repository, snapshot_id: str, strip: bytes | None, choice: Choice) -> tuple[Node, bytes, Choice]:
    """The folder to begin with (nameless if the target does not become it), its path, without a slash at the end, and
    what is to be restored of it."""
    base = normal_path(strip or b"/")
    top = find_node(repo, snapshot_id, base)
    for path in choice.paths if isinstance(choice, Paths) else ():
        find_node(repo, snapshot_id, path)
    if not top.is_dir:
        choice = Paths([base])
        base = os.path.dirname(base)
        top = replace(find_node(repo, snapshot_id, base), name=b"")
    return top, base.rstrip(b"/"), choice


def _measure(trees: Trees, top: Node, base: bytes, choice: Choice, progress: Progress) -> None:
    """Set the totals, so that the run can say how far it is. Damaged folders are told of later."""
    everything = isinstance(choice, Paths) and choice.most
    counts = trees.count(top.subtree or b"") if everything else count_chosen(trees, top.subtree, base, choice)
    size = files = 0
    for more_files, more_size in counts:
        progress.check()
        files += more_files
        size += more_size
    progress.set(total_bytes=size, total_files=files)


@dataclass(slots=True)
class _Frame:
    """A folder of the snapshot on the way of the walk; ``folder`` is None while nothing in it was restored."""

    node: Node
    folder: Folder | None
    path: bytes
    nodes: Iterator[Node]
    whole: bool = False

    def leave(self) -> None:
        if self.folder is not None:
            self.folder.release()


@dataclass(slots=True)
class _FirstName:
    """Where a file with several names is restored first."""

    parts: tuple[bytes, ...]
    name: bytes
    content: Sequence[bytes]
    waiting: list[FileJob] | None = field(default_factory=list)  # its other names, as long as it is not finished


class _Run:
    def __init__(
        self,
        repo: Repository,
        trees: Trees,
        target_fd: int,
        choice: Choice,
        overwrite: Overwrite,
        progress: Progress,
        issues: Issues,
        verify: bool,
    ) -> None:
        self._repo = repo
        self._target_fd = target_fd
        self._choice = choice
        self._overwrite = overwrite
        self._progress = progress
        self._issues = issues
        self._notes = Notes()
        self._verify = verify
        self._trees = trees
        self._first_names: dict[tuple[int, int], _FirstName] = {}
        self._again: list[FileJob] = []  # names that could not be linked: to be written for themselves
        self.result = RestoreResult()
        self.refused = ""  # why the target first took something not

    def restore(self, top: Node, base: bytes, created: bool) -> None:
        """Everything below ``top``. Takes over the target's descriptor."""
        node = top if created and top.name else None
        root = Folder(self._target_fd, base or b"/", (), node, None, self._finish_folder)
        stack = [_Frame(top, root, base, self._children(top, base))]
        held: set[FileJob] = set()  # keep their folders open
        counted = self._progress.counters
        expected = Crew.pieces(counted.total_files // BATCH_FILES, counted.total_bytes)
        crew = Crew(self._repo.files.key, self._repo.backend, verify=self._verify, expected=expected)
        content = ContentWriter(self._repo, crew, self._progress, self._notes, self._file_done, verify=self._verify)
        self._content, self._held = content, held
        try:
            with crew:
                self._walk(stack)
        finally:
            content.discard_unfinished()
            for job in held:
                job.folder.release()
            while stack:
                stack.pop().leave()
            self.result.bytes_written = content.bytes_written
            self._notes.tell(self._issues)

    def _walk(self, stack: list[_Frame]) -> None:
        while stack:
            frame = stack[-1]
            child = next(frame.nodes, None)
            if child is None:
                if len(stack) == 1:
                    self._finish_files()
                stack.pop().leave()
                continue
            self._progress.check()
            deeper = self._visit(stack, child)
            if deeper is not None:
                stack.append(deeper)

    def _finish_files(self) -> None:
        self._content.drain()
        while self._again:
            again, self._again = self._again, []
            for job in again:
                self._content.add(job)
            self._content.drain()

    def _children(self, node: Node, path: bytes) -> Iterator[Node]:
        if node.subtree is None:
            return iter(())
        try:
            nodes = self._trees.load(node.subtree)
        except DamagedError as error:
            self._damaged(path or b"/", f"The folder's list of files is damaged: {error}")
            return iter(())
        self._trees.expect([child.subtree for child in nodes if child.subtree is not None])
        return iter(nodes)

    def _visit(self, stack: list[_Frame], node: Node) -> _Frame | None:
        frame = stack[-1]
        path = frame.path + b"/" + node.name
        if not is_safe_name(node.name):
            self._damaged(path, "Its name could lead outside of the target; it was not restored.")
            return None
        taken, leads, whole = (True, True, True) if frame.whole else self._choice.look(path)
        if node.type == "socket" and taken:
            self._notes.add("socket", path)
            return None
        folder: Folder | None = None
        if taken:
            above = self._made(stack)
            if above is None:
                return None
            try:
                if not node.is_dir:
                    self._restore_entry(above, node, path)
                else:
                    folder = self._enter(above, node, path, wanted=True)
            except (InTheWay, OSError) as error:
                self._refuse(error, path)
                return None
        if not node.is_dir or not (taken or leads):
            return None
        return _Frame(node, folder, path, self._children(node, path) if leads else iter(()), whole)

    def _made(self, stack: list[_Frame]) -> Folder | None:
        """The folder on top, made now with those that lead to it; None if one cannot be: all of it is left out."""
        if stack[-1].folder is not None:
            return stack[-1].folder
        for number, frame in enumerate(stack):
            above = stack[number - 1].folder
            if frame.folder is not None or above is None:
                continue
            try:
                frame.folder = self._enter(above, frame.node, frame.path, wanted=False)
            except (InTheWay, OSError) as error:
                self._refuse(error, frame.path)
                for lost in stack[number:]:
                    lost.nodes = iter(())
                break
        return stack[-1].folder

    def _refuse(self, error: InTheWay | OSError, path: bytes) -> None:
        """One item that the target does not take; raises what ends the whole run."""
        if isinstance(error, InTheWay):
            self._leave_out(path, "in-the-way", str(error))
            return
        whole = translate(error, path)
        if whole is not None:
            raise whole from error
        self.refused = self.refused or f"{printable(path)} cannot be written: {error.strerror}."
        self._leave_out(path, "not-written", f"It cannot be written: {error.strerror}.")

    def _enter(self, parent: Folder, node: Node, path: bytes, *, wanted: bool) -> Folder:
        fd, created = enter(parent, node.name, self._overwrite)
        # A folder that only leads to what is wanted keeps what it is, if it was there.
        own = node if created or (wanted and self._overwrite != "never") else None
        self.result.dirs += wanted
        return Folder(fd, path, (*parent.parts, node.name), own, parent.hold(), self._finish_folder, fresh=created)

    def _finish_folder(self, folder: Folder) -> None:
        if folder.node is not None:
            apply_to_open(folder.fd, meta_of(folder.node), folder.path, self._notes)

    # --- entries that are no folders ---

    def _restore_entry(self, folder: Folder, node: Node, path: bytes) -> None:
        existing = None if folder.fresh else lookup(folder, node.name)
        if existing is not None and stat.S_ISDIR(existing.st_mode):
            raise InTheWay("A folder is in its place.")
        if existing is not None and self._keeps(existing, node):
            self.result.skipped += 1
            self._progress.add(done_files=int(node.is_file), done_bytes=node.size)
        elif node.is_file:
            self._queue_file(folder, node, path, new=existing is None)
        elif make_special(folder, node, path, self._notes):
            self.result.others += 1
        else:
            self._leave_out(path, "unknown-type", f"It is of the unknown type {node.type!r}.")

    def _keeps(self, existing: os.stat_result, node: Node) -> bool:
        if self._overwrite == "never":
            return True
        same = stat.S_ISREG(existing.st_mode) and node.is_file and existing.st_size == node.size
        return self._overwrite == "changed" and same and existing.st_mtime_ns == node.mtime

    def _queue_file(self, folder: Folder, node: Node, path: bytes, *, new: bool) -> None:
        job = FileJob(folder.hold(), node.name, node, path, new)
        self._held.add(job)
        if node.links > 1 and node.inode:
            first = self._first_names.setdefault(
                (node.device_id, node.inode), _FirstName(folder.parts, node.name, node.content)
            )
            # Another content under the same numbers (a merged or hostile snapshot) is another file.
            if (first.parts, first.name) != (folder.parts, node.name) and first.content == node.content:
                if first.waiting is None:
                    self._link(job, first)
                else:
                    first.waiting.append(job)
                return
        self._content.add(job)

    # --- files that are finished ---

    def _file_done(self, job: FileJob) -> None:
        self._count(job)
        if job.node.links > 1:
            first = self._first_names.get((job.node.device_id, job.node.inode))
            if first is not None and first.waiting is not None and (first.parts, first.name) == job.place:
                waiting, first.waiting = first.waiting, None
                for other in waiting:
                    self._link(other, first)
        self._let_go(job)

    def _let_go(self, job: FileJob) -> None:
        self._held.discard(job)
        job.folder.release()

    def _link(self, job: FileJob, first: _FirstName) -> None:
        """Make another name of a file that was restored, or have it written for itself."""
        if not self._linked(job, first):
            self._again.append(job)
            return
        self.result.files += 1
        self._progress.add(done_files=1, done_bytes=job.node.size)
        self._let_go(job)

    def _linked(self, job: FileJob, first: _FirstName) -> bool:
        temporary = temporary_name()
        try:
            source = open_below(self._target_fd, first.parts)
            try:
                found = os.stat(first.name, dir_fd=source, follow_symlinks=False)
                if not stat.S_ISREG(found.st_mode) or found.st_size != job.node.size:
                    return False
                os.link(first.name, temporary, src_dir_fd=source, dst_dir_fd=job.folder.fd, follow_symlinks=False)
            finally:
                os.close(source)
            put_in_place(job.folder, temporary, job.name, linked=True)
        except (OSError, InTheWay):  # written for itself instead, which tells what is wrong if that fails too
            discard(job.folder, temporary)
            return False
        return True

    def _count(self, job: FileJob) -> None:
        if not job.failure:
            self.result.files += 1
            self._progress.add(done_files=1)
        elif job.damaged:
            self._damaged(job.path, f"It was not restored: {job.failure}")
        else:
            self.refused = self.refused or f"{printable(job.path)}: {job.failure}"
            self._leave_out(job.path, "not-written", job.failure)

    def _damaged(self, path: bytes, message: str) -> None:
        self.result.damaged += 1
        self._leave_out(path, "damaged", message)

    def _leave_out(self, path: bytes, code: str, message: str) -> None:
        self._issues.add(Issue(printable(path), code, message))
        self._progress.add(left_out=1)
