"""Stock restic and BRS on one repository: each lists, checks and restores what the other wrote."""

from __future__ import annotations

import json
import os
import random
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from node_agent.items import Issues
from node_agent.repository.backend import open_backend
from node_agent.repository.check import check
from node_agent.repository.files_restore import dump
from node_agent.repository.image import ImageBackup
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import list_snapshots
from tests.repository.core_world import JUDGES, PASSWORD, new_repo, open_repo, restic
from tests.repository.data_world import (
    MIB,
    allocated,
    back_up,
    back_up_images,
    bring_back,
    differences,
    fingerprint,
    make_hard_tree,
    need_root,
    restored,
)
from tests.repository.test_image import Disk


def restic_repo(folder: Path) -> Repository:
    folder.mkdir()
    restic(folder, "init", "--repository-version", "2")
    return Repository.open(open_backend(str(folder)), PASSWORD)


def test_restic_restores_a_hard_tree_that_brs_wrote(tmp_path: Path) -> None:
    need_root()
    # restic 0.14 knows neither raw link targets nor how to restore sockets.
    make_hard_tree(tmp_path / "source", raw_link=False, sockets=False)
    repo = new_repo(tmp_path / "repo")
    result = back_up(repo, tmp_path / "source")
    assert not result.partial
    assert "no errors were found" in restic(tmp_path / "repo", "check", "--read-data").stdout
    restic(tmp_path / "repo", "restore", result.snapshot_id, "--target", str(tmp_path / "out"))
    copy = fingerprint(restored(tmp_path / "out", tmp_path / "source"))
    assert differences(fingerprint(tmp_path / "source"), copy) == {}


def test_brs_restores_a_hard_tree_that_restic_wrote(tmp_path: Path) -> None:
    need_root()
    make_hard_tree(tmp_path / "source", raw_link=False, sockets=False)
    repo = restic_repo(tmp_path / "repo")
    restic(tmp_path / "repo", "backup", str(tmp_path / "source"))
    issues = Issues()
    (snapshot,) = list_snapshots(repo)
    bring_back(repo, snapshot.id, tmp_path / "out", issues=issues, verify=True)
    assert issues.items == []
    copy = fingerprint(restored(tmp_path / "out", tmp_path / "source"))
    assert differences(fingerprint(tmp_path / "source"), copy) == {}


def test_restic_lists_and_finds_what_brs_wrote(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (b"a\nb", b"\xff", b"c\\d", "ü".encode()):
        Path(os.fsdecode(os.path.join(os.fsencode(source), name))).write_bytes(name)
    repo = new_repo(tmp_path / "repo")
    noon = datetime(2026, 5, 17, 12, 0, 0, 123456, tzinfo=UTC)
    result = back_up(repo, source, host="mail", paths=["/mail"], tags=["brs.task=1", "nightly"], time=noon)
    (listed,) = json.loads(restic(tmp_path / "repo", "snapshots", "--json").stdout)
    assert listed["id"] == result.snapshot_id
    assert listed["tree"] == result.tree_id
    assert (listed["hostname"], listed["paths"], listed["tags"]) == ("mail", ["/mail"], ["brs.task=1", "nightly"])
    assert listed["time"] == "2026-05-17T12:00:00.123456Z"
    names = restic(tmp_path / "repo", "ls", "latest", str(source), "--json").stdout
    assert len(re.findall('"type":"file"', names)) == 4


@pytest.mark.parametrize("program", JUDGES)
def test_restic_restores_an_image_that_brs_wrote(tmp_path: Path, program: str) -> None:
    content = bytearray(random.Random(5).randbytes(6 * MIB) + bytes(30 * MIB) + os.urandom(12345))
    repo = new_repo(tmp_path / "repo")
    first = back_up_images(repo, ImageBackup("sda", Disk(bytes(content))), metadata={"vm.json": b"{}"})
    judge = partial(restic, tmp_path / "repo", program=program)
    assert "no errors were found" in judge("check", "--read-data").stdout
    sparse = ["--sparse"] if "--sparse" in judge("restore", "--help").stdout else []  # since restic 0.15
    judge("restore", first.snapshot_id, "--target", str(tmp_path / "out"), *sparse)
    assert (tmp_path / "out" / "disks" / "sda.raw").read_bytes() == content
    assert not sparse or allocated(tmp_path / "out" / "disks" / "sda.raw") < 8 * MIB, "holes stay holes"
    assert (tmp_path / "out" / "vm.json").read_bytes() == b"{}"
    dumped = judge("dump", first.snapshot_id, "/vm.json").stdout
    assert dumped == "{}"


def test_restic_takes_a_brs_snapshot_as_parent_and_reads_nothing_again(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(5 * MIB))
    later = datetime.now(UTC) + timedelta(seconds=1)
    repo = new_repo(tmp_path / "repo")
    first = back_up(repo, source, time=later)
    out = restic(tmp_path / "repo", "backup", str(source), "--parent", first.snapshot_id, "--json").stdout
    summary = json.loads(out.splitlines()[-1])
    assert (summary["files_unmodified"], summary["files_new"], summary["files_changed"]) == (1, 0, 0)
    assert summary["data_blobs"] == 0


def test_brs_takes_a_restic_snapshot_as_parent_and_reads_nothing_again(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(5 * MIB))
    repo = restic_repo(tmp_path / "repo")
    os.utime(source / "big", ns=(1, 1_600_000_000_000000001))
    parent = None
    for _ in range(2):  # a change time in the past of the parent needs a moment: the second backup is later
        restic(tmp_path / "repo", "backup", str(source))
        parent = list_snapshots(repo)[-1].id
    result = back_up(repo, source, parent=parent)
    assert (result.files_unmodified, result.read_bytes) == (1, 0)
    restic(tmp_path / "repo", "check", "--read-data")


def test_files_that_restic_chunked_come_back_exactly(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rng = random.Random(11)
    (source / "big").write_bytes(rng.randbytes(30 * MIB))
    (source / "mixed").write_bytes(rng.randbytes(3 * MIB) + bytes(20 * MIB) + b"x" * MIB)
    with (source / "sparse").open("wb") as file:
        file.seek(100 * MIB)
        file.write(b"end")
    repo = restic_repo(tmp_path / "repo")
    restic(tmp_path / "repo", "backup", str(source))
    (snapshot,) = list_snapshots(repo)
    bring_back(repo, snapshot.id, tmp_path / "out")
    copy = restored(tmp_path / "out", source)
    assert differences(fingerprint(source), fingerprint(copy)) == {}
    assert allocated(copy / "sparse") < MIB
    parts: list[bytes] = []
    with repo.lock():
        dump(repo, snapshot.id, os.fsencode(source / "big"), parts.append)
    assert b"".join(parts) == (source / "big").read_bytes()


def test_brs_and_restic_take_turns_and_both_find_the_repository_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    repo = restic_repo(tmp_path / "repo")
    for turn in range(3):
        (source / f"brs{turn}").write_bytes(os.urandom(MIB))
        back_up(repo, source)
        (source / f"restic{turn}").write_bytes(os.urandom(MIB))
        restic(tmp_path / "repo", "backup", str(source))
    restic(tmp_path / "repo", "forget", "--keep-last", "1", "--group-by", "", "--prune", "--max-unused", "0")
    restic(tmp_path / "repo", "check", "--read-data")
    repo = open_repo(tmp_path / "repo")
    with repo.lock():
        report = check(repo, read_data=True)
    assert report.ok, report.errors
    (snapshot,) = list_snapshots(repo)
    bring_back(repo, snapshot.id, tmp_path / "out")
    assert differences(fingerprint(source), fingerprint(restored(tmp_path / "out", source))) == {}
    result = back_up(repo, source)
    assert result.files == 6
    restic(tmp_path / "repo", "check", "--read-data")


def test_a_snapshot_that_restic_tagged_anew_keeps_its_brs_tags(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    repo = new_repo(tmp_path / "repo")
    back_up(repo, tmp_path / "source", tags=["brs.point=7", "brs.workload=8"])
    restic(tmp_path / "repo", "tag", "--add", "kept", "latest")
    (snapshot,) = list_snapshots(repo)
    assert sorted(snapshot.tags) == ["brs.point=7", "brs.workload=8", "kept"]
    assert snapshot.original
