"""The walk of a files backup, from the roots down.

Depth first with an explicit stack, each folder on it held open, so that a link that appears during the run
leads nowhere and depth is bounded by open files rather than by the interpreter.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from node_agent.errors import DamagedError, SourceError
from node_agent.items import Issue, Issues, Severity, printable
from node_agent.progress import Progress
from node_agent.repository.files_frames import Before, Frame, Linked, Tally, WalkOptions, WalkStats
from node_agent.repository.files_listing import Entry, Listing, list_folder
from node_agent.repository.files_meta import node_from_stat, proc_path, read_xattrs
from node_agent.repository.files_open import is_regular, open_regular
from node_agent.repository.files_pool import Part, SmallFiles
from node_agent.repository.files_read import Content, FileReader
from node_agent.repository.files_roots import RootFolder
from node_agent.repository.files_small import (
    CHANGED,
    REPLACED,
    SMALL_FILE,
    Finding,
    Outcome,
    Owner,
    describe_file,
    finding_of,
    no_xattrs,
    set_owner,
)
from node_agent.repository.files_trees import Folder, TreeQueue
from node_agent.repository.folder_cache import CachedFolder, FolderCache
from node_agent.repository.repository import BlobKind, BlobWriter, Repository
from node_agent.repository.tree import EncodedNode, Node, encode_node, load_tree, node_type

# A file whose change time is this close to the parent's start may have changed after it was read, within the
# same tick of the file system's clock: it is read again.
TICK_NS = 20_000_000


_TOLD_AT_ONCE = 64  # files


class Walk:
    def __init__(
        self,
        repo: Repository,
        writer: BlobWriter,
        options: WalkOptions,
        progress: Progress,
        issues: Issues,
        cache: FolderCache | None = None,
    ) -> None:
        self._repo = repo
        self._options = options
        self._progress = progress
        self._issues = issues
        self._reader = FileReader(writer, repo.chunker, progress)
        # Owners from elsewhere are no part of what a folder looks like.
        self._cache = cache if not options.owners else None
        self._writer = writer
        self._small = SmallFiles(writer, progress, self._read_grown)
        self._trees = TreeQueue(writer, self._load_cached, self._take, self._cache)
        self._linked: dict[tuple[int, int], Linked] = {}
        self._root = b"/"
        self._device = 0
        self._recordable_ns = time.time_ns() - TICK_NS
        self._fresh_ns = 0 if options.before is None else int(options.before.time.timestamp() * 1e9) - TICK_NS
        self._tally = Tally()
        self.stats = WalkStats()

    def store(self, plan: RootFolder) -> bytes:
        """Store all roots; the id of the tree of ``/``, which is submitted but not flushed."""
        before = self._options.before
        known = Before(bytes.fromhex(before.tree) if before is not None else None, self._load_nodes)
        with self._small:
            folder = self._store_root_folder(plan, known)[1] if plan.is_root else self._store_above(plan, known)
            self._trees.drain()
        self._tell()
        return folder.id()

    # --- down to the roots ---

    def _store_above(self, plan: RootFolder, before: Before) -> Folder:
        folder = Folder(plan.path)
        for name, child in sorted(plan.children.items()):
            if not child.is_root:
                node = node_from_stat(name, os.stat(child.path))
                node.xattrs = self._xattrs(child.path, child.path, follow=True)
                folder.add_folder(node, self._store_above(child, before.folder(name)))
            elif os.path.isdir(child.real):
                st, sub = self._store_root_folder(child, before.folder(name))
                node = self._node(child.path, name, st)
                node.xattrs = self._xattrs(child.real, child.path, follow=True)
                folder.add_folder(node, sub)
            else:
                self._store_root_file(child, name, before, folder)
        self._trees.finish(folder)
        return folder

    def _store_root_folder(self, root: RootFolder, before: Before) -> tuple[os.stat_result, Folder]:
        path = root.path
        try:
            fd = os.open(root.real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            st = os.fstat(fd)
            self._root, self._device = path, st.st_dev
            first = self._open_frame(path, fd, before)
        except OSError as error:
            raise SourceError(f"The folder {printable(path)} cannot be read: {error.strerror}.") from error
        self._descend(first)
        return st, first.folder

    def _store_root_file(self, root: RootFolder, name: bytes, before: Before, folder: Folder) -> None:
        """A root that is no folder, perhaps reached through a link: read in the folder it really lies in."""
        path, real = root.path, os.path.realpath(root.real)
        self._root = os.path.dirname(path)
        try:
            fd = os.open(os.path.dirname(real), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"The path {printable(path)} cannot be read: {error.strerror}.") from error
        try:
            frame = Frame(path, fd, iter(()), before, folder)
            self._visit(frame, path, name, os.path.basename(real))
        finally:
            os.close(fd)

    # --- below a root ---

    def _descend(self, first: Frame) -> None:
        stack = [first]
        try:
            while stack:
                frame = stack[-1]
                entry = next(frame.entries, None)
                if entry is None:
                    self._trees.finish(frame.folder)
                    os.close(stack.pop().fd)
                    continue
                self._progress.check()
                name, st = entry
                if st is not None and frame.before.tree is None and _is_small(st) and not self._options.owners:
                    self._add_small(frame, name, st.st_size, False, None)  # nearly all of a first backup
                    continue
                left_out = self._issues.left_out
                child = self._visit(frame, os.path.join(frame.path, name), name, name, st)
                if self._issues.left_out != left_out:
                    frame.folder.digest = None  # its tree does not hold all that it looks like
                if child is not None:
                    stack.append(child)
        finally:
            for frame in stack:
                os.close(frame.fd)

    def _visit(
        self, frame: Frame, path: bytes, name: bytes, on_disk: bytes, st: os.stat_result | None = None
    ) -> Frame | None:
        """Store one entry; a folder to go into comes back as a frame.

        ``name`` is what the snapshot calls it, ``on_disk`` what it is called in the open folder.
        """
        try:
            if frame.subtrees is not None:
                return self._enter(frame, path, name)
            if st is None:
                st = os.stat(on_disk, dir_fd=frame.fd, follow_symlinks=False)
                if self._is_excluded(path, st):
                    return None
            kind = node_type(st.st_mode)
            if kind == "dir":
                return self._enter(frame, path, name)
            if kind == "file":
                self._store_file(frame, path, name, on_disk, st)
            elif not kind:
                self._leave_out(path, "unknown-type", "It is of an unknown type.")
            else:
                self._store_special(frame, path, name, on_disk, st)
        except OSError as error:
            self._leave_out(path, *finding_of(error))
        return None

    def _is_excluded(self, path: bytes, st: os.stat_result) -> bool:
        excludes = self._options.excludes
        return bool(excludes) and excludes.match(path, self._root, node_type(st.st_mode) == "dir", st.st_size)

    def _enter(self, frame: Frame, path: bytes, name: bytes) -> Frame | None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=frame.fd)
        st = os.fstat(fd)
        # In a folder that looks as it did, the folders' nodes are known, too.
        node = self._node(path, name, st) if frame.subtrees is None else Node(name, "dir")
        if self._options.one_file_system and st.st_dev != self._device:
            os.close(fd)
            empty = Folder(path)
            self._trees.finish(empty)
            frame.folder.add_folder(node, empty)
            return None
        if frame.subtrees is None:
            child = self._open_frame(path, fd, frame.before.folder(name))
            node.xattrs = self._xattrs(child.fd, path)
        else:
            child = self._open_frame(path, fd, Before(frame.subtrees[name], self._load_nodes))
        frame.folder.add_folder(node, child.folder)
        return child

    def _open_frame(self, path: bytes, fd: int, before: Before) -> Frame:
        """Takes over ``fd``; raises OSError when the folder cannot be listed."""
        try:
            listing = list_folder(fd, path, self._root, self._options.excludes, self._options.one_file_system)
        except OSError:
            os.close(fd)
            raise
        self.stats.dirs += 1
        cached = self._find_cached(before, listing)
        if cached is None:
            digest = listing.digest if listing.newest_ns < self._recordable_ns else None
            return Frame(path, fd, iter(listing), before, Folder(path, digest=digest))
        self._take_over(path, listing)
        digest = listing.digest
        subtrees = dict(zip(listing.folders, cached.subtrees, strict=True))
        entries: Iterator[Entry] = ((name, None) for name in listing.folders)
        return Frame(path, fd, entries, before, Folder(path, digest=digest, cached=cached), subtrees)

    # --- folders that look as they did ---

    def _find_cached(self, before: Before, listing: Listing) -> CachedFolder | None:
        if self._cache is None or before.tree is None or listing.newest_ns >= self._fresh_ns:
            return None
        cached = self._cache.find(before.tree)
        if cached is None or cached.digest != listing.digest or len(cached.subtrees) != len(listing.folders):
            return None
        return cached

    def _take_over(self, path: bytes, listing: Listing) -> None:
        """Count what is in a folder without looking at it again; its folders are still to be entered."""
        self.stats.unmodified += listing.files
        self.stats.size_bytes += listing.size_bytes
        self._progress.add(done_files=listing.files, done_bytes=listing.size_bytes)
        self._progress.set(current=printable(path))
        for name in listing.sockets:
            self._note_socket(os.path.join(path, name))

    def _load_cached(self, tree: bytes) -> Sequence[Node]:
        try:
            return load_tree(self._repo, tree)
        except DamagedError:
            if self._cache is not None:
                self._cache.forget(tree)  # the next run reads the folder instead
            raise

    # --- entries ---

    def _node(self, path: bytes, name: bytes, st: os.stat_result) -> Node:
        node = node_from_stat(name, st)
        owner = self._options.owners.get(path)
        if owner is not None:
            set_owner(node, owner)
        return node

    def _store_file(self, frame: Frame, path: bytes, name: bytes, on_disk: bytes, st: os.stat_result) -> None:
        known = frame.before.node(name)
        if known is not None and self._is_unchanged(known, st):
            frame.folder.add(replace(known, device_id=st.st_dev, links=st.st_nlink))
            self.stats.unmodified += 1
            self._tally.done_bytes += known.size
            self._tell_of(path, known.size)
            return
        owner = self._options.owners.get(path)
        if _is_small(st) and name is on_disk:
            self._add_small(frame, name, st.st_size, known is not None, owner)
        else:
            self._store_now(frame, path, name, on_disk, owner, known is not None)

    def _add_small(self, frame: Frame, name: bytes, size: int, known: bool, owner: Owner | None) -> None:
        frame.folder.add_later(self._small.add(name, frame, frame.fd, size, known, owner))

    def _store_now(
        self, frame: Frame, path: bytes, name: bytes, on_disk: bytes, owner: Owner | None, known: bool
    ) -> None:
        """A large file, or one with several names; raises OSError."""
        findings: list[Finding] = []
        fd = open_regular(on_disk, frame.fd)
        try:
            st = os.fstat(fd)
            if not is_regular(st):
                self._note_findings(frame.folder, path, [REPLACED])
                return
            node = describe_file(fd, name, st, owner, findings)
            content = self._read(fd, st, findings)
        finally:
            os.close(fd)
        self._note_findings(frame.folder, path, findings)
        node.size = content.size
        frame.folder.add_file(node, content)
        self._count(path, content.size, known)

    def _read_grown(self, folder: int, name: bytes, owner: Owner | None) -> Outcome:
        """A file that was small when its folder was listed; on a thread, so it touches nothing of the walk."""
        findings: list[Finding] = []
        try:
            fd = open_regular(name, folder)
            try:
                st = os.fstat(fd)
                if not is_regular(st):
                    return Outcome(None, 0, 0, [REPLACED])
                node = describe_file(fd, name, st, owner, findings)
                read = FileReader(self._writer, self._repo.chunker, Progress()).read(fd, st)
            finally:
                os.close(fd)
        except OSError as error:
            return Outcome(None, 0, 0, [*findings, finding_of(error)])
        if read.changed:
            findings.append(CHANGED)
        node.size, node.content = read.content.size, read.content.ids()
        return Outcome(encode_node(node), node.size, read.read_bytes, findings)

    def _take(self, folder: Folder, part: Part) -> None:
        """Put files that were read into their folder."""
        read = size = files = changed = 0
        for outcome, name, known in zip(self._small.wait(part), part.names, part.known, strict=True):
            if outcome.findings:
                self._note_findings(folder, os.path.join(folder.path, name), outcome.findings)
            read += outcome.read_bytes
            if outcome.node is not None:
                folder.add_encoded(EncodedNode(name, outcome.node))
                size += outcome.size
                files += 1
                changed += known
        self.stats.read_bytes += read
        self._tally.read_bytes += read
        self._tally.done_bytes += read
        self.stats.new += files - changed
        self.stats.changed += changed
        self._tell_of(os.path.join(folder.path, part.names[-1]), size, files)

    def _note_findings(self, folder: Folder, path: bytes, findings: Sequence[Finding]) -> None:
        for code, message in findings:
            self._leave_out(path, code, message)
            folder.digest = None  # the tree does not hold all that the folder looks like

    def _read_plain(self, fd: int, st: os.stat_result, findings: list[Finding]) -> Content:
        read = self._reader.read(fd, st)
        self.stats.read_bytes += read.read_bytes
        if not read.counted:
            self._tally.read_bytes += read.read_bytes
            self._tally.done_bytes += read.read_bytes
        if read.changed:
            findings.append(CHANGED)
        return read.content

    def _read(self, fd: int, st: os.stat_result, findings: list[Finding]) -> Content:
        """The file's content; of a hard link that was read under another name, the same."""
        key = (st.st_dev, st.st_ino)
        linked = self._linked.get(key)
        if linked is not None:
            linked.left -= 1
            if not linked.left:
                del self._linked[key]
            self._progress.add(done_bytes=linked.content.size)
            return linked.content
        content = self._read_plain(fd, st, findings)
        if not findings and st.st_nlink > 1:
            self._linked[key] = Linked(content, st.st_nlink - 1)
        return content

    def _store_special(self, frame: Frame, path: bytes, name: bytes, on_disk: bytes, st: os.stat_result) -> None:
        node = self._node(path, name, st)
        if node.type == "symlink":
            node.linktarget = os.fsencode(os.readlink(on_disk, dir_fd=frame.fd))
        if node.type == "socket":
            self._note_socket(path)
        else:
            node.xattrs = self._xattrs(proc_path(frame.fd, on_disk), path)
        frame.folder.add(node)

    def _is_unchanged(self, known: Node, st: os.stat_result) -> bool:
        return (
            known.type == "file"
            and known.size == st.st_size
            and known.mtime == st.st_mtime_ns
            and known.ctime == st.st_ctime_ns
            and known.inode == st.st_ino
            and st.st_ctime_ns < self._fresh_ns
            and all(self._repo.has(BlobKind.DATA, blob_id) for blob_id in known.content)
        )

    def _xattrs(self, where: bytes | int, path: bytes, *, follow: bool = False) -> list[tuple[str, bytes]]:
        try:
            return list(read_xattrs(where, follow=follow))
        except OSError as error:
            self._leave_out(path, *no_xattrs(error))
            return []

    # --- the parent snapshot ---

    def _load_nodes(self, tree_id: bytes) -> Sequence[Node]:
        try:
            return load_tree(self._repo, tree_id)
        except DamagedError as error:
            self._progress.log("warning", f"A folder of the parent snapshot cannot be read, so its files are: {error}")
            return ()

    # --- counting ---

    def _count(self, path: bytes, size: int, known: bool) -> None:
        """A file that was stored. ``known``: the parent snapshot has it, as another one."""
        self.stats.new += not known
        self.stats.changed += known
        self._tell_of(path, size)

    def _tell_of(self, path: bytes, size: int, files: int = 1) -> None:
        self.stats.size_bytes += size
        self._tally.done_files += files
        if self._tally.done_files >= _TOLD_AT_ONCE:
            self._progress.set(current=printable(path))
            self._tell()

    def _tell(self) -> None:
        self._progress.add(**asdict(self._tally))
        self._tally = Tally()

    def _leave_out(self, path: bytes, code: str, message: str) -> None:
        self._issues.add(Issue(printable(path), code, message))
        self._progress.add(left_out=1)

    def _note_socket(self, path: bytes) -> None:
        message = "A socket: it is listed, but there is nothing to restore."
        self._issues.add(Issue(printable(path), "socket", message, Severity.NOTE))


def _is_small(st: os.stat_result) -> bool:
    return stat.S_ISREG(st.st_mode) and st.st_size <= SMALL_FILE and st.st_nlink == 1
