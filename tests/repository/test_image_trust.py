"""What an increment may believe: which state the changes are relative to, and what is compared although unchanged."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.items import Extent, Issues, Severity, TrackingBase
from node_agent.progress import Progress
from node_agent.repository.image import Comparison, ImageBackup
from node_agent.repository.image_blocks import MIN_BLOCK
from node_agent.repository.image_compare import DAY_S, GROUP, rotating, sampled, to_compare
from node_agent.repository.image_metadata import metadata_areas
from node_agent.repository.publish import BackupResult
from node_agent.repository.repository import Repository
from tests.repository.cli_world import Cli
from tests.repository.core_world import new_repo, restic
from tests.repository.data_world import MIB, Log, back_up_images, names_of
from tests.repository.test_image import Disk, bytes_of, random_disk

CYCLE_S = 28 * DAY_S
MONDAY = datetime(2026, 3, 2, 1, tzinfo=UTC)


# --- what changes are relative to ---


def base_of(repo: Repository, result: BackupResult, disk: str = "vm-1/vda") -> TrackingBase:
    assert result.block_size is not None
    return TrackingBase(repo.id, result.snapshot_id, result.tree_id, result.size_bytes, result.block_size, disk)


def increment(
    repo: Repository, disk: Disk, first: BackupResult, base: TrackingBase | None, **options: Any
) -> tuple[BackupResult, Issues]:
    issues = Issues()
    image = ImageBackup("d", disk, [Extent(0, 1)], base=base, identity="vm-1/vda")
    return back_up_images(repo, image, issues=issues, **{"parent": first.snapshot_id} | options), issues


def test_changes_relative_to_exactly_the_parent_are_used(tmp_path: Path) -> None:
    repo, disk = new_repo(tmp_path / "repo"), random_disk()
    first = back_up_images(repo, ImageBackup("d", disk))
    result, issues = increment(repo, disk, first, base_of(repo, first))
    assert (result.read_bytes, issues.items) == (MIN_BLOCK, [])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"repository": "ab" * 32}, "its repository is abababab"),
        ({"snapshot": "cd" * 32}, "its snapshot is cdcdcdcd"),
        ({"tree": "ef" * 32}, "its tree is efefefef"),
        ({"size": 9 * MIB}, f"its size is {9 * MIB}, and that of the parent {10 * MIB}"),
        ({"block_size": 2 * MIB}, f"its block size is {2 * MIB}"),
        ({"disk": "vm-2/vda"}, "its disk is vm-2/vda, and that of the parent vm-1/vda"),
        ({"disk": ""}, "its disk is not named"),
    ],
)
def test_changes_relative_to_anything_else_are_not_used(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    repo, disk = new_repo(tmp_path / "repo"), random_disk()
    first = back_up_images(repo, ImageBackup("d", disk))
    disk.content[5 * MIB] ^= 1  # outside of the extents that are given
    result, issues = increment(repo, disk, first, replace(base_of(repo, first), **wrong))
    assert result.read_bytes == disk.size
    [note] = issues.items
    assert (note.code, note.severity) == ("tracking-not-used", Severity.NOTE)
    assert said in note.message
    assert bytes_of(repo, result.snapshot_id, tmp_path / "out") == disk.content


@pytest.mark.parametrize("other", [{"host": "other"}, {"paths": ["/another-vm"]}, {"paths": ["/vm", "/more"]}])
def test_a_disk_of_the_same_name_of_another_machine_is_not_inherited_from(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    repo = new_repo(tmp_path / "repo")
    theirs = back_up_images(repo, ImageBackup("d", random_disk(seed=5)), **other)
    disk = random_disk(seed=6)
    result, issues = increment(repo, disk, theirs, None)
    assert result.read_bytes == disk.size
    assert "is of" in issues.items[0].message
    assert bytes_of(repo, result.snapshot_id, tmp_path / "out") == disk.content


def test_blocks_proven_before_are_proven_again_once_something_has_gone(tmp_path: Path) -> None:
    repo, disk = new_repo(tmp_path / "repo"), random_disk()
    first = back_up_images(repo, ImageBackup("d", disk))
    tree = next(iter(_proven(repo)))
    assert repo.index.proven(tree) == {b"d.raw": MIN_BLOCK}
    restic(tmp_path / "repo", "rebuild-index", "--read-all-packs")  # other index files: the epoch ends
    with repo.lock():
        repo.load_index()
        assert repo.index.proven(tree) == {}
    result, issues = increment(repo, disk, first, None)
    assert (result.read_bytes, issues.items) == (MIN_BLOCK, [])


def _proven(repo: Repository) -> list[bytes]:
    return [row[0] for row in repo.index._db.execute("SELECT tree FROM proven")]


# --- the rotating compare ---


@given(st.integers(1, 5000), st.lists(st.integers(1, 40 * 3600), min_size=1, max_size=60), st.integers(0, 2**31))
def test_in_a_chain_every_block_is_compared_in_each_cycle(count: int, pauses: list[int], start: int) -> None:
    compared: dict[int, int] = {}
    times = [start]
    while times[-1] - start < CYCLE_S + max(pauses):
        times.append(times[-1] + pauses[len(times) % len(pauses)] + 3600)
    for before, now in pairwise(times):
        for first, end in rotating(count, before, now, CYCLE_S):
            for number in range(first, end):
                compared[number] = now
    assert len(compared) == count


def test_a_daily_chain_compares_every_block_within_thirty_days() -> None:
    count, last = 3000, dict.fromkeys(range(3000), 0)
    for day in range(1, 120):
        for first, end in rotating(count, (day - 1) * DAY_S, day * DAY_S, CYCLE_S):
            last.update(dict.fromkeys(range(first, end), day))
        assert day < 30 or min(last.values()) > day - 30


def test_each_day_compares_about_its_share() -> None:
    count = 100_000
    for day in range(28):
        runs = rotating(count, day * DAY_S, (day + 1) * DAY_S, CYCLE_S)
        assert sum(end - first for first, end in runs) == pytest.approx(count / 28, rel=0.1)


def test_which_blocks_are_due_depends_on_nothing_but_number_and_times() -> None:
    assert rotating(10**6, 5.0, 90_000.5, CYCLE_S) == rotating(10**6, 5.0, 90_000.5, CYCLE_S)
    small, large = (rotating(count * GROUP, 0, DAY_S, CYCLE_S) for count in (1000, 4000))
    assert small == large[: len(small)]  # a disk that grows keeps its blocks' moments
    assert rotating(1000, 10, 10, CYCLE_S) == rotating(1000, 10, 9, CYCLE_S) == []
    assert rotating(1000, 0, CYCLE_S, CYCLE_S) == [(0, 1000)]
    assert rotating(1000, 0, 10**9, 0) == []


run_lists = st.lists(st.tuples(st.integers(0, 900), st.integers(1, 60)), max_size=12)


@given(run_lists, run_lists, st.integers(1, 1000), st.integers(0, 80), st.integers(0, 2 * CYCLE_S))
def test_what_is_compared_is_what_was_chosen_and_is_not_read_anyway(
    read: list[tuple[int, int]], metadata: list[tuple[int, int]], count: int, sample: int, age: int
) -> None:
    blocks = {number for first, length in read for number in range(first, min(count, first + length))}
    runs = [(number, number + 1) for number in sorted(blocks)]
    areas = [(first, first + length) for first, length in metadata]
    chosen = to_compare(Comparison(sample), runs, count, 0, age, lambda: areas)
    numbers = [number for first, end in chosen for number in range(first, end)]
    assert numbers == sorted(set(numbers))
    wanted = {number for first, end in [*areas, *rotating(count, 0, age, CYCLE_S)] for number in range(first, end)}
    unchanged = set(range(count)) - blocks
    assert wanted & unchanged <= set(numbers) <= unchanged
    assert len(numbers) >= min(sample, len(unchanged))


def test_the_sample_is_drawn_from_all_unchanged_blocks() -> None:
    runs = [(2, 5), (7, 8)]
    assert list(sampled(runs, 10, 99, lambda among, n: list(among)[:n])) == [0, 1, 5, 6, 8, 9]
    assert len(list(sampled([], 10**6, None, random.sample))) == 1000
    assert len(list(sampled([], 5000, None, random.sample))) == 64


def test_a_write_that_the_tracking_missed_is_found_within_thirty_days(tmp_path: Path) -> None:
    repo, disk = new_repo(tmp_path / "repo"), random_disk(70 * MIB)
    only_rotation = Comparison(0, metadata=False)
    last = back_up_images(repo, ImageBackup("d", disk), time=MONDAY)
    disk.content[66 * MIB + 7] ^= 1
    log, issues = Log(), Issues()
    for day in range(1, 30):
        last = back_up_images(
            repo,
            ImageBackup("d", disk, []),
            parent=last.snapshot_id,
            time=MONDAY + timedelta(days=day),
            compare=only_rotation,
            progress=Progress(log=log),
            issues=issues,
        )
        if issues.notes:
            break
    assert names_of(issues) == [("d", "tracking-wrong")]
    assert issues.left_out == 0
    assert f"Block {66 * MIB // MIN_BLOCK} at offset {66 * MIB}" in log
    assert last.read_bytes >= disk.size
    assert bytes_of(repo, last.snapshot_id, tmp_path / "out") == disk.content


def test_holes_are_compared_without_being_read(tmp_path: Path) -> None:
    repo, disk = new_repo(tmp_path / "repo"), Disk(bytes(70 * MIB))
    first = back_up_images(repo, ImageBackup("d", disk), time=MONDAY)
    issues = Issues()
    options: dict[str, Any] = {"parent": first.snapshot_id, "compare": Comparison(), "issues": issues}
    later = MONDAY + timedelta(days=40)
    second = back_up_images(repo, ImageBackup("d", disk, []), time=later, **options)
    assert (second.compared_bytes, issues.notes) == (0, 0)
    full = random_disk(70 * MIB)
    back_up_images(repo, ImageBackup("d", full, []), time=later, **options)
    assert names_of(issues) == [("d", "tracking-wrong")]


# --- where the metadata lie ---


def areas_of(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            data = file.read(length)
            assert len(data) == length
            return data

        return [(area.offset, area.end) for area in metadata_areas(read, path.stat().st_size)]


def covered(areas: list[tuple[int, int]], offset: int) -> bool:
    return any(first <= offset < end for first, end in areas)


@pytest.mark.parametrize(
    "options", [["-b", "1024"], ["-b", "4096"], ["-b", "4096", "-O", "^sparse_super,^resize_inode"]]
)
def test_every_superblock_of_ext4_is_found(tmp_path: Path, options: list[str]) -> None:
    image = tmp_path / "disk.raw"
    subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", *options, str(image), "2G"], check=True)
    said = subprocess.run(["/sbin/dumpe2fs", str(image)], capture_output=True, text=True, check=True).stdout
    size = int(options[1])
    places = [
        int(line.split("superblock at ")[1].split(",")[0]) * size
        for line in said.splitlines()
        if "superblock at" in line
    ]
    assert len(places) > 5
    areas = areas_of(image)
    assert [place for place in places if not covered(areas, place)] == []


def test_partitions_of_a_gpt_disk_are_looked_into(tmp_path: Path) -> None:
    image, part = tmp_path / "disk.raw", tmp_path / "part.raw"
    subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", str(part), "600M"], check=True)
    start, length = 100 * MIB, 600 * MIB
    entry = struct.pack("<16s16sQQQ72s", b"\1" * 16, b"\2" * 16, start // 512, (start + length) // 512 - 1, 0, b"")
    header = struct.pack("<8s64xQII", b"EFI PART", 2, 128, 128)
    mbr = bytearray(512)
    struct.pack_into("<4xB3xII", mbr, 446, 0xEE, 1, 0xFFFFFFFF)
    mbr[510:] = b"\x55\xaa"
    with image.open("wb") as file:
        file.write(bytes(mbr) + header.ljust(512, b"\0") + entry)
        file.seek(start)
        file.write(part.read_bytes())
        file.truncate(2000 * MIB)
    areas = areas_of(image)
    for offset in (0, 2000 * MIB - 1, start + 1024, start + 128 * MIB, start + 3 * 128 * MIB, start + length - 1):
        assert covered(areas, offset), offset


def test_logical_partitions_of_an_mbr_disk_are_found(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    sectors: dict[int, list[tuple[int, int, int]]] = {
        0: [(0x83, 40 * 2048, 20480), (0x05, 100 * 2048, 900 * 2048)],
        100 * 2048: [(0x83, 2048, 20480), (0x05, 300 * 2048, 100 * 2048)],
        400 * 2048: [(0x83, 2048, 20480), (0x05, 0, 2048)],  # a loop, which must end
    }
    with image.open("wb") as file:
        file.truncate(1000 * MIB)
        for sector, entries in sectors.items():
            table = bytearray(512)
            for number, entry in enumerate(entries):
                struct.pack_into("<4xB3xII", table, 446 + 16 * number, *entry)
            table[510:] = b"\x55\xaa"
            file.seek(sector * 512)
            file.write(table)
    areas = areas_of(image)
    for offset in (40 * MIB, 101 * MIB, 401 * MIB):
        assert covered(areas, offset)


@pytest.mark.parametrize(
    ("head", "places"),
    [
        (b"XFSB" + struct.pack(">I", 4096) + bytes(76) + struct.pack(">II", 5000, 4), [5000 * 4096, 15000 * 4096]),
        (
            b"\xebR\x90NTFS    " + struct.pack("<HB34xQQ", 512, 8, 3000, 40000),
            [3000 * 4096, 40000 * 4096, 1000 * MIB - 1],
        ),
    ],
)
def test_xfs_and_ntfs_are_known_by_their_headers(tmp_path: Path, head: bytes, places: list[int]) -> None:
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.write(head)
        file.truncate(1000 * MIB)
    areas = areas_of(image)
    assert [place for place in places if not covered(areas, place)] == []


@given(st.binary(min_size=0, max_size=5000), st.sampled_from([b"", b"XFSB", b"\xebR\x90NTFS    ", b"EFI PART"]))
def test_nothing_that_a_guest_writes_leads_outside_of_the_disk(noise: bytes, magic: bytes) -> None:
    content = bytearray((magic + noise).ljust(8 * 512, b"\xff"))
    content[510:512] = b"\x55\xaa"
    content[1024 + 56 : 1024 + 58] = b"\x53\xef" if len(noise) % 2 else b"EF"

    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(content)
        return bytes(content[offset : offset + length])

    areas = list(metadata_areas(read, len(content)))
    assert all(0 <= area.offset < area.end <= len(content) for area in areas)
    assert len(areas) < 100_000


# --- on the command line ---


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.run("init")
    return cli


def test_a_base_in_the_change_list_names_the_parent(cli: Cli, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(random.Random(3).randbytes(5 * MIB))
    first = cli.json("backup-image", str(disk), "--disk-id", "serial-7")
    listing = tmp_path / "changes.json"
    listing.write_text(json.dumps({"base": first["tracking_base"], "extents": [{"offset": 0, "length": 1}]}))
    command = ["backup-image", str(disk), "--changed-extents", str(listing), "--sample", "0"]
    second = cli.json(*command, "--disk-id", "serial-7")
    assert (second["total_bytes_read"], second["notes"]) == (MIN_BLOCK, 0)
    other = cli.json(*command, "--disk-id", "serial-8")
    assert (other["total_bytes_read"], other["notes"]) == (5 * MIB, 1)
    later = cli.json(*command, "--disk-id", "serial-7", "--parent", "latest")  # the latest is another snapshot
    assert (later["total_bytes_read"], later["notes"]) == (5 * MIB, 1)
    listing.write_text(json.dumps({"base": {"snapshot": 5}, "extents": []}))
    assert "does not say what it is relative to" in cli.error(*command)


def test_an_explicit_parent_of_another_image_is_not_believed(cli: Cli, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "disk.raw").write_bytes(random.Random(number).randbytes(5 * MIB))
    theirs = cli.json("backup-image", str(tmp_path / "1" / "disk.raw"))
    (tmp_path / "e.json").write_text("[]")
    mine = tmp_path / "2" / "disk.raw"
    arguments = ["--changed-extents", str(tmp_path / "e.json"), "--parent", theirs["snapshot_id"], "--sample", "0"]
    assert b"everything is read, because the parent snapshot" in cli.run("backup-image", str(mine), *arguments).stderr
    cli.run("restore", "latest", "--target", str(tmp_path / "out"))
    assert (tmp_path / "out" / "disks" / "disk.raw").read_bytes() == mine.read_bytes()


def test_a_disk_that_is_named_with_its_parent_may_be_found_elsewhere(cli: Cli, tmp_path: Path) -> None:
    before, after = tmp_path / "snapshot-1.raw", tmp_path / "snapshot-2.raw"
    before.write_bytes(random.Random(1).randbytes(5 * MIB))
    after.write_bytes(random.Random(2).randbytes(5 * MIB))  # all is different, but nothing is said to be
    first = cli.json("backup-image", str(before), "--name", "sda")
    (tmp_path / "e.json").write_text("[]")
    changes = ["--changed-extents", str(tmp_path / "e.json"), "--parent", first["snapshot_id"]]
    assert cli.json("backup-image", str(after), "--name", "sda", *changes)["total_bytes_read"] == 0
    told = cli.run("backup-image", str(after), *changes)
    assert b"everything is read" in told.stderr
