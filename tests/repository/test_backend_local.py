from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.errors import BackendError, BackendFull, BackendReadOnly, ConfigError, RepositoryMissing
from node_agent.repository.backend import Kind, open_backend

NAME = "ab" * 32


def _must_be_root() -> None:
    if os.geteuid() == 0:
        return
    if os.environ.get("CI"):
        pytest.fail("CI must run these tests as root: they mount file systems and change users")
    pytest.skip("NOT TESTED: needs root to mount file systems and change users")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    _must_be_root()
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_nothing_of_the_object_stays(small_disk: Path) -> None:
    backend = open_backend(str(small_disk / "repo"))
    backend.create()
    with pytest.raises(BackendFull, match=str(small_disk)):
        backend.put(Kind.PACK, NAME, [b"x" * (3 << 20)])
    assert list(backend.list(Kind.PACK)) == []
    assert [p for p in small_disk.rglob("*") if p.is_file()] == []
    backend.put(Kind.PACK, NAME, [b"small"])  # and it goes on once there is room


def test_a_read_only_mount_is_named(small_disk: Path) -> None:
    backend = open_backend(str(small_disk / "repo"))
    backend.create()
    backend.put(Kind.INDEX, NAME, [b"x"])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(BackendReadOnly, match="read-only"):
        backend.put(Kind.PACK, NAME, [b"x"])
    with pytest.raises(BackendReadOnly):
        backend.delete(Kind.INDEX, NAME)
    with pytest.raises(BackendReadOnly):
        backend.now()
    assert backend.get(Kind.INDEX, NAME) == b"x"


def test_a_destination_that_is_not_mounted_is_never_filled_in_its_place(small_disk: Path) -> None:
    backend = open_backend(str(small_disk))
    backend.create()
    backend.put(Kind.PACK, NAME, [b"x"])
    subprocess.run(["umount", str(small_disk)], check=True)
    try:
        for attempt in (
            lambda: backend.put(Kind.PACK, NAME, [b"x"]),
            lambda: backend.put(Kind.INDEX, NAME, [b"x"]),
            lambda: backend.get(Kind.PACK, NAME),
            lambda: list(backend.list(Kind.SNAPSHOT)),
            lambda: backend.now(),
        ):
            with pytest.raises(RepositoryMissing, match="mounted"):
                attempt()
        assert list(small_disk.iterdir()) == []
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(small_disk)], check=True)  # for the fixture to unmount


AS_NOBODY = """
import os, sys
from node_agent.errors import BrsError
from node_agent.repository.backend import Kind, open_backend
os.setgroups([]); os.setgid(65534); os.setuid(65534)
backend = open_backend(sys.argv[1])
for step in (lambda: backend.put(Kind.PACK, "cd" * 32, [b"x"]), lambda: backend.delete(Kind.PACK, "ab" * 32),
             lambda: backend.get(Kind.PACK, "ab" * 32), backend.create):
    try:
        step()
        print("done")
    except BrsError as error:
        print(type(error).__name__, error.message)
"""


def test_a_user_without_rights_gets_errors_that_say_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    _must_be_root()
    folder = Path(subprocess.check_output(["mktemp", "-d", "/var/tmp/brs-test-XXXXXX"], text=True).strip())
    try:
        folder.chmod(0o755)
        backend = open_backend(str(folder / "repo"))
        backend.create()
        backend.put(Kind.PACK, NAME, [b"x"])
        for path in [folder / "repo", *(folder / "repo").rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(folder / "repo")],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        )
        put, delete, get, create = done.stdout.splitlines()
        assert put.startswith(BackendReadOnly.__name__) and "may not be written by this user" in put
        assert delete.startswith(BackendReadOnly.__name__)
        assert get.startswith(BackendError.__name__ + " ") and "may not be read by this user" in get
        assert create == "done"  # all folders exist already; nothing is to be made
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_a_missing_parent_folder_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(RepositoryMissing, match="absent"):
        open_backend(str(tmp_path / "absent" / "repo")).create()
    assert list(tmp_path.iterdir()) == []


def test_files_are_private_unless_the_repository_is_its_groups(tmp_path: Path) -> None:
    for shared, expected in ((False, 0o400), (True, 0o440)):
        root = tmp_path / f"repo{shared}"
        backend = open_backend(str(root))
        backend.create()
        backend.put(Kind.CONFIG, "config", [b"c"])
        (root / "config").chmod(0o440 if shared else 0o400)
        backend.put(Kind.INDEX, NAME, [b"x"])
        assert (root / "index" / NAME).stat().st_mode & 0o777 == expected


def test_leftovers_of_interrupted_puts_are_never_listed_and_can_be_removed(tmp_path: Path) -> None:
    backend = open_backend(str(tmp_path))
    backend.create()
    (tmp_path / "data" / "ab" / f"{NAME}-tmp-1234").write_bytes(b"half")
    (tmp_path / "index" / f"{NAME}-tmp-1234").write_bytes(b"half")
    assert list(backend.list(Kind.PACK)) == list(backend.list(Kind.INDEX)) == []
    assert backend.remove_leftovers() == 2
    assert backend.remove_leftovers() == 0


def test_a_symbolic_link_to_the_destination_is_followed_anew_each_time(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "link").symlink_to("one")
    backend = open_backend(str(tmp_path / "link" / "repo"))
    backend.create()
    assert (tmp_path / "one" / "repo" / "data").is_dir()


@pytest.mark.parametrize("url", ["", "ftp:host/x", "swift:container:/x"])
def test_an_address_of_an_unknown_kind_says_what_is_supported(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_backend(url)
    assert "folder" in caught.value.hint
