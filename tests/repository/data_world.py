"""What the tests of files and images share: a tree with everything hard in it, backups and restores in one line,
a user who is nobody, and small file systems that fill up."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.repository.files import backup_files
from node_agent.repository.files_restore import RestoreResult, restore
from node_agent.repository.image import Comparison, ImageBackup, backup_images
from node_agent.repository.publish import BackupResult
from node_agent.repository.repository import Repository

T = TypeVar("T")
NOBODY = 65534
MIB = 1 << 20


def need_root() -> None:
    """Some things only root can prepare. CI runs as root, so there it is an error."""
    if os.geteuid() == 0:
        return
    if os.environ.get("CI") == "true":
        pytest.fail("this test needs root, and CI must run it")
    pytest.skip("NEEDS ROOT: run the suite as root to run this test")


# --- backups and restores ---


def back_up(repo: Repository, *roots: Path, issues: Issues | None = None, **options: Any) -> BackupResult:
    options = {"host": "host", "paths": [str(root) for root in roots], "time": datetime.now(UTC)} | options
    options.setdefault("progress", Progress())
    with repo.lock() as lock:
        repo.load_index()
        return backup_files(repo, lock, roots, issues=issues or Issues(), **options)


def back_up_images(
    repo: Repository, *images: ImageBackup, issues: Issues | None = None, **options: Any
) -> BackupResult:
    options = {"host": "host", "paths": ["/vm"], "time": datetime.now(UTC), "compare": Comparison.none()} | options
    options.setdefault("progress", Progress())
    with repo.lock() as lock:
        repo.load_index()
        return backup_images(repo, lock, images, issues=issues or Issues(), **options)


def bring_back(
    repo: Repository, snapshot: str, target: Path, *, issues: Issues | None = None, **options: Any
) -> RestoreResult:
    options.setdefault("progress", Progress())
    with repo.lock():
        repo.load_index()
        return restore(repo, snapshot, target, issues=issues or Issues(), **options)


class Log:
    """Collects what a run says."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, level: str, message: str) -> None:
        self.lines.append((level, message))

    def __contains__(self, text: str) -> bool:
        return any(text in message for _, message in self.lines)


# --- a tree with everything hard in it ---

HARD_NAMES = (
    b"plain",
    b"with space",
    b" lead",
    b"-rf",
    b"new\nline",
    b'quo"te',
    b"apo'strophe",
    b"back\\slash",
    b"back\\n",
    b"\\xff",
    b"tab\tbell\x07del\x7f",
    b"\xff\xfe\x80 not utf-8",
    b"half \xc3",
    "umlaut ü".encode(),
    "line\u2028sep".encode(),
    "emoji 🙂".encode(),
    "private \ue000".encode(),
    "bom \ufeff".encode(),
    b"<&>",
    b"x" * 255,
)

ACL_ACCESS = "system.posix_acl_access"


def acl(user: int) -> bytes:
    """A POSIX ACL as the kernel keeps it: owner rw, one user r, group r, mask r, others nothing."""
    entries = [
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 4, user),
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 4, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    ]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def make_hard_tree(top: Path, *, raw_link: bool = True, sockets: bool = True) -> None:
    """Needs root. ``raw_link``: a link whose target is not UTF-8, which restic 0.14 cannot keep."""
    top.mkdir()
    (top / "empty folder").mkdir()
    (top / "zero").touch()
    (top / "big").write_bytes(os.urandom(5 * MIB + 123))
    for folder in (top, top / "names"):
        folder.mkdir(exist_ok=True)
        for name in HARD_NAMES:
            Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(b"content of " + name)
    Path(os.fsdecode(os.fsencode(top) + b"/dir\n\xfe")).mkdir()
    _make_sparse(top / "sparse")
    _make_modes(top)
    _make_links(top, raw_link)
    _make_special(top, sockets)
    deep = top / "deep"
    for _ in range(60):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"deep down")
    os.utime(top / "zero", ns=(1, 4102444800_123456789))
    os.utime(top / "plain", ns=(5, 1_000_000_001))
    os.utime(top / "empty folder", ns=(1_500_000_000_000000007, 1_500_000_000_000000009))


def _make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.seek(20 * MIB)
        file.write(b"island" * 1000)
        file.seek(40 * MIB)
        file.write(b"shore")
        file.truncate(64 * MIB)


def _make_modes(top: Path) -> None:
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("none", 0), ("readonly", 0o444)):
        (top / name).write_bytes(name.encode())
        (top / name).chmod(mode)
    (top / "owned").write_bytes(b"by somebody else")
    os.chown(top / "owned", 1234, 4321)
    for name, mode in (("sticky", 0o1777), ("closed", 0o500)):
        (top / name).mkdir()
        (top / name / "inside").write_bytes(b"inside")
        (top / name).chmod(mode)
    os.setxattr(top / "plain", b"user.text", b"value")
    os.setxattr(top / "plain", b"user.binary", bytes(range(256)))
    os.setxattr(top / "plain", b"user.empty", b"")
    os.setxattr(top / "sticky", b"user.on.folder", b"1")
    os.setxattr(top / "readonly", b"trusted.secret", b"root's")
    os.setxattr(top / "owned", ACL_ACCESS, acl(NOBODY))


def _make_links(top: Path, raw_link: bool) -> None:
    (top / "links").mkdir()
    (top / "links" / "original").write_bytes(b"one file, three names" * 100)
    os.link(top / "links" / "original", top / "links" / "second")
    os.link(top / "links" / "original", top / "sticky" / "third")
    os.symlink("original", top / "links" / "relative")
    os.symlink("/etc/hostname", top / "links" / "absolute")
    os.symlink("nowhere", top / "links" / "dangling")
    os.symlink("loop-b", top / "links" / "loop-a")
    os.symlink("loop-a", top / "links" / "loop-b")
    os.symlink("..", top / "links" / "up")
    os.symlink(".", top / "links" / "self")
    if raw_link:
        os.symlink(b"not \xff utf-8", os.fsencode(top / "links" / "raw"))
    os.chown(top / "links" / "dangling", 1234, 4321, follow_symlinks=False)
    os.utime(top / "links" / "dangling", ns=(7, 1_234_567_890_000000001), follow_symlinks=False)


def _make_special(top: Path, sockets: bool) -> None:
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "disk", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    if sockets:
        with socket.socket(socket.AF_UNIX) as listener, _working_in(top):
            listener.bind("socket")


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """A socket's path may have 107 bytes only."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def fingerprint(top: Path, *, times: bool = True) -> dict[bytes, tuple[Any, ...]]:
    """Everything that a restore should bring back, by relative path. Sockets are not in it."""
    found: dict[bytes, tuple[Any, ...]] = {}
    first_names: dict[tuple[int, int], bytes] = {}
    base = os.fsencode(top)
    stack = [b""]
    while stack:
        relative = stack.pop()
        path = os.path.join(base, relative) if relative else base
        st = os.lstat(path)
        if stat.S_ISSOCK(st.st_mode):
            continue
        if stat.S_ISDIR(st.st_mode):
            stack += sorted((os.path.join(relative, os.fsencode(n)) for n in os.listdir(path)), reverse=True)
        found[relative] = _facts(path, relative, st, first_names, times)
    return found


def _facts(
    path: bytes, relative: bytes, st: os.stat_result, first_names: dict[tuple[int, int], bytes], times: bool
) -> tuple[Any, ...]:
    content: Any = None
    linked = b""
    if stat.S_ISREG(st.st_mode):
        content = (st.st_size, hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest())
        linked = first_names.setdefault((st.st_dev, st.st_ino), relative) if st.st_nlink > 1 else b""
    elif stat.S_ISLNK(st.st_mode):
        content = os.readlink(path)
    xattrs = sorted((n, os.getxattr(path, n, follow_symlinks=False)) for n in os.listxattr(path, follow_symlinks=False))
    when = st.st_mtime_ns if times else 0
    return (oct(st.st_mode), st.st_uid, st.st_gid, st.st_rdev, when, content, linked, xattrs)


def differences(left: dict[bytes, Any], right: dict[bytes, Any]) -> dict[bytes, Any]:
    """What differs, in a form that a failing test can print."""
    return {
        path: (left.get(path), right.get(path))
        for path in left.keys() | right.keys()
        if left.get(path) != right.get(path)
    }


def restored(target: Path, source: Path) -> Path:
    """Where an absolute path lies below a target."""
    return target / str(source).lstrip("/")


# --- nobody ---


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter (pytest's are closed to others)."""
    folder = Path(tempfile.mkdtemp(prefix="brs-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody(action: Callable[[], T]) -> T:
    """Run ``action`` in a child process without rights; what it returns or raises comes back pickled.

    A fork: the interpreter may lie where nobody may not go, so everything must have been imported.
    """
    need_root()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with os.fdopen(writer, "wb") as out:
            out.write(pickle.dumps(_outcome_as_nobody(action)))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        data = answer.read()
    os.waitpid(child, 0)
    ok, value = pickle.loads(data)
    if not ok:
        raise value
    return value  # type: ignore[no-any-return]


def _outcome_as_nobody(action: Callable[[], T]) -> tuple[bool, Any]:
    try:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return True, action()
    except BaseException as error:  # noqa: BLE001 - carried to the parent, which raises it
        return False, error


# --- small file systems ---


@contextmanager
def mounted(folder: Path, kind: str, options: str) -> Iterator[Path]:
    """A file system of its own, such as ``tmpfs`` with ``size=4m``."""
    need_root()
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", kind, "-o", options, kind, str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def names_of(issues: Issues) -> Sequence[tuple[str, str]]:
    return [(Path(issue.path).name, issue.code) for issue in issues.items]
