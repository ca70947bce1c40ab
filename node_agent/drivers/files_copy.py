"""A faithful copy of a tree: content with its holes, hard links, links, special files, metadata.

Used for disk staging, both ways. The walk holds each folder open on both sides and never follows a link
below the root, so that nothing outside the two roots is read or written, whatever appears there meanwhile.
One item's failure is not the copy's: it is listed. Owners and attributes that this user may not set are notes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from node_agent.errors import SourceChanged, SourceError, TargetError, TargetFull
from node_agent.items import Issue, Issues, Severity, printable
from node_agent.progress import Progress

Overwrite = Literal["never", "changed", "always"]
Skip = Callable[[bytes, bool], bool]  # (path where it really lies, whether it is a folder)
CHUNK = 4 * 1024 * 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_XATTRS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_MAY_NOT = (errno.EPERM, errno.EACCES)
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class Copied:
    files: int = 0
    size_bytes: int = 0
    skipped: int = 0


@dataclass(slots=True)
class _Frame:
    """One folder under way on both sides; its own metadata is set when everything in it is there."""

    path: bytes
    relative: bytes
    source: int
    target: int
    names: Iterator[bytes]


@dataclass(slots=True)
class TreeCopy:
    """Copies one root. ``known_as`` is the root's path for messages."""

    progress: Progress
    issues: Issues
    overwrite: Overwrite = "always"
    skip: Skip = lambda _path, _is_dir: False
    one_file_system: bool = False
    owners: dict[bytes, tuple[int, int]] | None = None  # collects owners that could not be set, instead of notes
    done: Copied = field(default_factory=Copied)
    _links: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _target_root: int = -1
    _device: int = 0
    _source_root: bytes = b""

    def run(self, source: Path, target: Path, known_as: str) -> Copied:
        """``target`` is the root's place: a folder that may exist, or the file itself."""
        path = os.fsencode(known_as)
        self._links.clear()
        self._source_root = os.fsencode(source)
        try:
            st = source.lstat()
            if stat.S_ISDIR(st.st_mode):
                target.mkdir(parents=True, exist_ok=True)
                self._tree(_open(os.fsencode(source), None), _open(os.fsencode(target), None), path)
            else:
                self._single(source, target, path)
        except FileNotFoundError as error:
            raise SourceError(f"{printable(known_as)} cannot be copied: {error.strerror}.") from error
        except OSError as error:
            raise _target_error(error, known_as) from error
        return self.done

    def _single(self, source: Path, target: Path, path: bytes) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        from_fd, to_fd = _open(os.fsencode(source.parent), None), _open(os.fsencode(target.parent), None)
        try:
            self._target_root = to_fd
            name, new_name = os.fsencode(source.name), os.fsencode(target.name)
            frame = _Frame(os.path.dirname(path), b"", from_fd, to_fd, iter(()))
            self._item(frame, name, new_name, path, os.stat(name, dir_fd=from_fd, follow_symlinks=False))
        finally:
            os.close(from_fd)
            os.close(to_fd)

    def _tree(self, source: int, target: int, path: bytes) -> None:
        self._target_root = target
        self._device = os.fstat(source).st_dev
        stack = [_Frame(path, b"", source, target, _names(source))]
        try:
            while stack:
                frame = stack[-1]
                name = next(frame.names, None)
                if name is None:
                    self._close_folder(frame)
                    stack.pop()
                    continue
                child = self._visit(frame, name)
                if child is not None:
                    stack.append(child)
        finally:
            for frame in reversed(stack):
                os.close(frame.source)
                os.close(frame.target)

    def _visit(self, frame: _Frame, name: bytes) -> _Frame | None:
        self.progress.check()
        path = os.path.join(frame.path, name)
        try:
            st = os.stat(name, dir_fd=frame.source, follow_symlinks=False)
            lies_at = os.path.join(self._source_root, frame.relative, name)
            if self.skip(lies_at, stat.S_ISDIR(st.st_mode)):
                return None
            if stat.S_ISDIR(st.st_mode):
                return self._enter(frame, name, path, st)
            self._item(frame, name, name, path, st)
        except FileNotFoundError:
            self._leave_out(path, "vanished", "It vanished while it was copied.")
        except SourceChanged as error:
            self._leave_out(path, "changed", str(error))
        except OSError as error:
            if error.errno in _FULL:
                raise
            self._leave_out(path, "unreadable", f"It could not be copied: {error.strerror}.")
        return None

    def _enter(self, frame: _Frame, name: bytes, path: bytes, st: os.stat_result) -> _Frame | None:
        source = os.open(name, _DIRECTORY, dir_fd=frame.source)
        target = -1
        try:
            names = _names(source)
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=frame.target)
            target = os.open(name, _DIRECTORY, dir_fd=frame.target)  # a link in its place is refused
        except OSError:
            os.close(source)
            raise
        if self.one_file_system and st.st_dev != self._device:
            names = iter(())  # another file system: its mount point, not its content
        return _Frame(path, os.path.join(frame.relative, name), source, target, names)

    def _close_folder(self, frame: _Frame) -> None:
        self._metadata(frame.source, frame.target, os.fstat(frame.source), frame.path)
        os.close(frame.source)
        os.close(frame.target)

    # --- items that are not folders

    def _item(self, frame: _Frame, name: bytes, new_name: bytes, path: bytes, st: os.stat_result) -> None:
        if not self._wanted(frame, new_name, st):
            self.done.skipped += 1
            return
        self.progress.set(current=printable(path))
        relative = os.path.join(frame.relative, new_name)
        if st.st_nlink > 1 and self._linked(frame, new_name, st):
            self._count(st, 0)
            return
        temporary = b".brs-%d-%s" % (os.getpid(), os.urandom(4).hex().encode())
        try:
            self._make(frame, name, temporary, path, st)
            os.rename(temporary, new_name, src_dir_fd=frame.target, dst_dir_fd=frame.target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=frame.target)
            raise
        if st.st_nlink > 1:
            self._links[(st.st_dev, st.st_ino)] = relative

    def _make(self, frame: _Frame, name: bytes, temporary: bytes, path: bytes, st: os.stat_result) -> None:
        if stat.S_ISREG(st.st_mode):
            self._regular(frame, name, temporary, path)
            return
        if stat.S_ISLNK(st.st_mode):
            os.symlink(os.readlink(name, dir_fd=frame.source), temporary, dir_fd=frame.target)
        else:
            os.mknod(temporary, st.st_mode, st.st_rdev, dir_fd=frame.target)
            os.chmod(temporary, stat.S_IMODE(st.st_mode), dir_fd=frame.target)
        uid, gid, folder = st.st_uid, st.st_gid, frame.target
        self._owner(path, st, lambda: os.chown(temporary, uid, gid, dir_fd=folder, follow_symlinks=False))
        os.utime(temporary, ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=frame.target, follow_symlinks=False)
        self._count(st, 0)

    def _regular(self, frame: _Frame, name: bytes, temporary: bytes, path: bytes) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        source = os.open(name, flags, dir_fd=frame.source)
        try:
            before = os.fstat(source)
            if not stat.S_ISREG(before.st_mode):
                raise SourceChanged("It was replaced while it was copied.")
            target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=frame.target)
            try:
                self._content(source, target, before.st_size)
                after = os.fstat(source)
                self._metadata(source, target, before, path)
            finally:
                os.close(target)
        finally:
            os.close(source)
        self._count(before, before.st_size)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            self._leave_out(path, "changed", "It changed while it was copied; its content may be mixed.")

    def _content(self, source: int, target: int, size: int) -> None:
        position = 0
        while position < size:
            data, end = _next_data(source, position, size)
            position = data
            while position < end:
                self.progress.check()
                piece = os.pread(source, min(CHUNK, end - position), position)
                if not piece:
                    position = size  # became shorter; noticed by the caller
                    break
                _write(target, piece, position)
                position += len(piece)
                self.progress.add(read_bytes=len(piece))
        os.ftruncate(target, size)

    def _wanted(self, frame: _Frame, name: bytes, st: os.stat_result) -> bool:
        try:
            there = os.stat(name, dir_fd=frame.target, follow_symlinks=False)
        except FileNotFoundError:
            return True
        if stat.S_ISDIR(there.st_mode):
            raise OSError(errno.EISDIR, "a folder is in its place")
        if self.overwrite == "changed":
            same = (there.st_size, there.st_mtime_ns) == (st.st_size, st.st_mtime_ns)
            return not (same and stat.S_IFMT(there.st_mode) == stat.S_IFMT(st.st_mode))
        return self.overwrite == "always"

    def _linked(self, frame: _Frame, name: bytes, st: os.stat_result) -> bool:
        first = self._links.get((st.st_dev, st.st_ino))
        if first is None:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=frame.target)
        os.link(first, name, src_dir_fd=self._target_root, dst_dir_fd=frame.target, follow_symlinks=False)
        return True

    # --- metadata

    def _metadata(self, source: int, target: int, st: os.stat_result, path: bytes) -> None:
        """Owner before mode: changing the owner clears set-id bits. Times last."""
        owned = self._owner(path, st, lambda: os.fchown(target, st.st_uid, st.st_gid))
        self._xattrs(source, target, path)
        # A set-id bit without its owner would lend the rights of the node's user.
        mode = stat.S_IMODE(st.st_mode) if owned else stat.S_IMODE(st.st_mode) & ~(stat.S_ISUID | stat.S_ISGID)
        self._keep(path, "mode", lambda: os.fchmod(target, mode))
        self._keep(path, "times", lambda: os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns)))

    def _owner(self, path: bytes, st: os.stat_result, change: Callable[[], None]) -> bool:
        """Whether the owner is kept: in the copy, or in ``owners`` beside it."""
        if self.owners is None:
            return self._keep(path, "owner", change)
        try:
            change()
        except OSError as error:
            if error.errno not in _MAY_NOT:
                raise
            self.owners[path] = (st.st_uid, st.st_gid)
        return True

    def _keep(self, path: bytes, what: str, change: Callable[[], None]) -> bool:
        try:
            change()
        except OSError as error:
            if error.errno not in _MAY_NOT:
                raise
            self._note(path, what, f"Its {what} could not be kept: the node's user may not set it.")
            return False
        return True

    def _xattrs(self, source: int, target: int, path: bytes) -> None:
        try:
            names = os.listxattr(source)
        except OSError as error:
            if error.errno in _NO_XATTRS:
                return
            raise
        for name in names:
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError as error:
                if error.errno not in (*_MAY_NOT, *_NO_XATTRS, errno.ENODATA):
                    raise
                self._note(path, "xattr", f"Its attribute {name} could not be kept: {error.strerror}.")

    # --- counting

    def _count(self, st: os.stat_result, size: int) -> None:
        self.done.files += stat.S_ISREG(st.st_mode)
        self.done.size_bytes += size
        self.progress.add(done_files=1, done_bytes=size)

    def _leave_out(self, path: bytes, code: str, message: str) -> None:
        self.issues.add(Issue(printable(path), code, message))
        self.progress.set(left_out=self.issues.left_out)

    def _note(self, path: bytes, code: str, message: str) -> None:
        self.issues.add(Issue(printable(path), code, message, Severity.NOTE))


def _open(path: bytes, folder: int | None) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)


def _names(folder: int) -> Iterator[bytes]:
    return iter(sorted(os.fsencode(name) for name in os.listdir(folder)))


def _next_data(fd: int, position: int, size: int) -> tuple[int, int]:
    """Begin and end of the next run of data; (size, size) when only a hole is left."""
    try:
        data = os.lseek(fd, position, os.SEEK_DATA)
        return min(data, size), min(os.lseek(fd, data, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        return position, size  # a file system that knows no holes


def _write(fd: int, piece: bytes, position: int) -> None:
    view = memoryview(piece)
    while view:
        count = os.pwrite(fd, view, position)
        view, position = view[count:], position + count


def _target_error(error: OSError, known_as: str) -> TargetError:
    if error.errno in _FULL:
        return TargetFull("There is no space left for the copy.")
    return TargetError(f"{printable(known_as)} cannot be copied: {error.strerror}.")
