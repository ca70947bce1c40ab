"""What every driver promises (see node_agent/drivers/base.py), for each of them."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from node_agent.config import RootsConfig
from node_agent.drivers.base import Disk, Driver, FileTree
from node_agent.drivers.files import FilesDriver
from node_agent.drivers.image_source import ImageDriver
from node_agent.errors import RefusedError, SourceError, SourceMissing
from node_agent.guard import Guard


@dataclass
class Case:
    driver: Callable[[Guard], Driver]
    make: Callable[[Path], None]


def _tree(path: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"content")


def _disk(path: Path) -> None:
    with path.open("wb") as out:
        out.truncate(1 << 20)
        out.write(b"boot")


def _qcow2(path: Path) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)


CASES = {
    "files": Case(FilesDriver, _tree),
    "image raw": Case(ImageDriver, _disk),
    "image qcow2": Case(ImageDriver, _qcow2),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    (tmp_path / "root").mkdir()
    return Guard(RootsConfig(read=[str(tmp_path / "root")]))


def open_files() -> set[str]:
    gc.collect()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return found


def test_what_is_there_opens_as_one_of_two_shapes(case: Case, guard: Guard, tmp_path: Path) -> None:
    path = tmp_path / "root" / "source"
    case.make(path)
    with case.driver(guard).open([str(path)]) as source:
        assert isinstance(source, FileTree | Disk)
        if isinstance(source, Disk):
            assert source.path == str(path)
            assert sum(extent.length for extent in source.content.extents()) == source.content.size == 1 << 20
            assert not source.content.changed()
        else:
            assert list(source.roots) == [(path, str(path))]


def test_opening_is_undone_also_when_the_body_fails(case: Case, guard: Guard, tmp_path: Path) -> None:
    path = tmp_path / "root" / "source"
    case.make(path)
    before = open_files()
    with pytest.raises(RuntimeError), case.driver(guard).open([str(path)]):
        raise RuntimeError
    assert {name for name in open_files() - before if str(tmp_path) in name or "socket" in name} == set()


def test_what_is_not_there_is_missing(case: Case, guard: Guard, tmp_path: Path) -> None:
    with pytest.raises(SourceMissing), case.driver(guard).open([str(tmp_path / "root" / "nothing")]):
        pass


def test_a_path_outside_the_roots_is_refused_whether_it_exists_or_not(case: Case, guard: Guard, tmp_path: Path) -> None:
    case.make(tmp_path / "outside")
    for path in (tmp_path / "outside", tmp_path / "nothing"):
        with pytest.raises(RefusedError), case.driver(guard).open([str(path)]):
            pass


def test_a_link_out_of_the_roots_is_refused(case: Case, guard: Guard, tmp_path: Path) -> None:
    case.make(tmp_path / "outside")
    (tmp_path / "root" / "door").symlink_to(tmp_path / "outside")
    with pytest.raises(RefusedError), case.driver(guard).open([str(tmp_path / "root" / "door")]):
        pass


def test_no_path_at_all_is_an_error(case: Case, guard: Guard) -> None:
    with pytest.raises(SourceError), case.driver(guard).open([]):
        pass


def test_probing_never_raises_and_each_complaint_says_what_to_do(case: Case, guard: Guard, tmp_path: Path) -> None:
    path = tmp_path / "root" / "source"
    case.make(path)
    driver = case.driver(guard)
    assert all(finding.ok for finding in driver.probe(str(path)))
    for bad in ("relative", "/nonexistent", str(tmp_path), "nul\0", str(tmp_path / "root" / "nothing")):
        complaints = [finding for finding in driver.probe(bad) if not finding.ok]
        assert complaints, bad
        assert all(finding.detail and finding.hint for finding in complaints)


def test_a_qcow2_with_a_backing_file_outside_the_roots_is_refused(guard: Guard, tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.raw", tmp_path / "root" / "overlay.qcow2"
    _disk(base)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay]
    subprocess.run(command, check=True)
    with pytest.raises(RefusedError), ImageDriver(guard).open([str(overlay)]):
        pass
