"""How one small file gets into place: whole or not at all, with or without a temporary name, whatever is there."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node_agent.repository import restore_write
from node_agent.repository.crypto import Key
from node_agent.repository.restore_meta import Meta
from node_agent.repository.restore_write import IN_THE_WAY, REFUSED, Answer, Performer
from tests.repository.data_world import NOBODY, as_nobody, need_root, open_folder

__all__ = ["open_folder"]

CONTENT = b"content" * 1000
BLOB = bytes(32)


def meta(mode: int = 0o640, **fields: int) -> Meta:
    owner = {"uid": os.geteuid(), "gid": os.getegid()} | fields
    return mode, owner["uid"], owner["gid"], 5_000_000_001, 7_000_000_002, []


@pytest.fixture(params=["nameless", "named"])
def performer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Performer:
    if request.param == "named":  # what a system without such files makes of it, and answers with EISDIR
        monkeypatch.setattr(restore_write, "NAMELESS", os.O_RDWR | os.O_DIRECTORY)
    return Performer(Key.random(), lambda _pack, _offset, _length: b"")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def write(performer: Performer, folder: int, what: Meta | None = None, *, new: bool = True, length: int = 0) -> Answer:
    file = (0, new, b"file", b"/file", what or meta(), [BLOB, length] if length else [BLOB])
    return performer.write_alone(folder, file, {BLOB: CONTENT})


@pytest.mark.parametrize("mode", [0o640, 0o777, 0o000, 0o4755, 0o2751])
@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_a_file_gets_its_mode_and_times_whatever_the_umask(
    performer: Performer, folder: int, tmp_path: Path, mode: int, umask: int
) -> None:
    before = os.umask(umask)
    try:
        answer = write(performer, folder, meta(mode), length=100_000)
    finally:
        os.umask(before)
    assert (answer.failures, answer.notes, answer.written) == ([], [], len(CONTENT))
    found = (tmp_path / "file").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns, found.st_atime_ns) == (mode, 7_000_000_002, 5_000_000_001)
    assert (tmp_path / "file").read_bytes() == CONTENT + bytes(100_000)
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_hands_down_its_group_does_not_change_the_files(
    performer: Performer, folder: int, tmp_path: Path
) -> None:
    need_root()
    os.chown(tmp_path, 0, 4321)
    tmp_path.chmod(0o2770)
    assert write(performer, folder, meta(0o2750)).failures == []
    found = (tmp_path / "file").stat()
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (os.getegid(), 0o2750)


@pytest.mark.parametrize("new", [True, False])
def test_what_is_there_after_all_is_replaced_and_no_link_is_followed(
    performer: Performer, folder: int, tmp_path: Path, new: bool
) -> None:
    (tmp_path / "victim").write_bytes(b"not to be touched")
    (tmp_path / "file").symlink_to("victim")
    answer = write(performer, folder, new=new)
    assert (answer.failures, answer.written) == ([], len(CONTENT))
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert (tmp_path / "victim").read_bytes() == b"not to be touched"
    assert sorted(os.listdir(tmp_path)) == ["file", "victim"]


@pytest.mark.parametrize("new", [True, False])
def test_a_folder_in_the_way_stays(performer: Performer, folder: int, tmp_path: Path, new: bool) -> None:
    (tmp_path / "file").mkdir()
    ((number, kind, _code, _message),) = write(performer, folder, new=new).failures
    assert (number, kind) == (0, IN_THE_WAY)
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").is_dir()


def test_nothing_has_the_files_name_before_it_is_whole(
    performer: Performer, folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    apply = restore_write.apply_to_open

    def look(*args: object) -> None:
        seen.append(os.listdir(tmp_path))
        apply(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(restore_write, "apply_to_open", look)
    write(performer, folder)
    assert len(seen) == 1 and "file" not in seen[0]
    assert (seen[0] == []) == (restore_write.NAMELESS & os.O_TMPFILE == os.O_TMPFILE)


@pytest.mark.parametrize("step", ["write_all", "apply_to_open"])
def test_a_process_that_is_killed_leaves_no_half_file(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The second of three files, in the midst of its content or before its metadata."""
    performer = Performer(Key.random(), lambda _pack, _offset, _length: b"")
    original, calls = getattr(restore_write, step), []

    def kill(fd: int, what: Any, *more: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            if step == "write_all":
                original(fd, what[:100], *more)
            os.kill(os.getpid(), signal.SIGKILL)
        original(fd, what, *more)

    monkeypatch.setattr(restore_write, step, kill)
    child = os.fork()
    if child == 0:
        try:
            for name in (b"one", b"two", b"three"):
                performer.write_alone(folder, (0, True, name, b"/" + name, meta(), [BLOB]), {BLOB: CONTENT})
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["one"] and (tmp_path / "one").read_bytes() == CONTENT


def test_a_failure_leaves_nothing(
    performer: Performer, folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(restore_write, "apply_to_open", full)
    assert write(performer, folder).failures == [(0, REFUSED, 28, "No space left on device")]
    assert os.listdir(tmp_path) == []


def test_where_nameless_files_cannot_be_it_is_asked_once(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_write, "NAMELESS", os.O_RDWR | os.O_DIRECTORY)
    performer = Performer(Key.random(), lambda _pack, _offset, _length: b"")
    write(performer, folder)
    monkeypatch.setattr(restore_write, "NAMELESS", -1)  # would fail
    (tmp_path / "file").unlink()
    assert write(performer, folder).failures == []
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_nobody_writes_files_and_gets_no_set_id_bit_of_somebody_else(open_folder: Path) -> None:
    need_root()
    open_folder.chmod(0o777)

    def work() -> tuple[Answer, Answer]:
        folder = os.open(open_folder, os.O_RDONLY | os.O_DIRECTORY)
        performer = Performer(Key.random(), lambda _pack, _offset, _length: b"")
        files = [
            (0, True, b"own", b"/own", meta(0o4750), [BLOB]),
            (0, True, b"other", b"/other", meta(0o4755, uid=0), []),
        ]
        first, second = (performer.write_alone(folder, file, {BLOB: CONTENT}) for file in files)  # type: ignore[arg-type]
        return first, second

    first, second = as_nobody(work)
    assert (first.failures, second.failures) == ([], [])
    assert [(kind, count) for kind, _path, count in first.notes + second.notes] == [("owner", 1)]
    modes = {path.name: (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) for path in open_folder.iterdir()}
    assert modes == {"own": (0o4750, NOBODY), "other": (0o755, NOBODY)}
