from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from node_agent.progress import Progress
from node_agent.repository.check import CheckReport, check
from node_agent.repository.check_choice import ReadChoice, VerifiedPacks
from node_agent.repository.repository import BlobKind
from tests.repository.core_world import flip, make_snapshot, new_repo, open_repo, restic, stored

RNG = random.Random(5)
PARTS = [RNG.randbytes(30_000) for _ in range(8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixteen packs: each snapshot made one of data and one of trees."""
    repo = new_repo(tmp_path / "repo")
    with repo.lock() as lock:
        for number, content in enumerate(PARTS):
            make_snapshot(repo, lock, {b"f%d" % number: [content]}, host=str(number))
    return tmp_path / "repo"


def _read(folder: Path, verified: VerifiedPacks | None = None, **limits: object) -> CheckReport:
    repo = open_repo(folder)
    with repo.lock():
        return check(repo, read_data=True, choice=ReadChoice(**limits), verified=verified)  # type: ignore[arg-type]


def test_the_parts_of_a_division_read_every_pack_once(folder: Path) -> None:
    reports = [_read(folder, part=(number, 3)) for number in (1, 2, 3)]
    assert sum(report.read_packs for report in reports) == 16
    assert sum(report.read_bytes for report in reports) == sum(path.stat().st_size for path in stored(folder, "data"))


def test_a_division_holds_the_packs_that_stock_restic_puts_there(folder: Path) -> None:
    for number in (1, 2, 3):
        said = restic(folder, "check", f"--read-data-subset={number}/3").stdout
        packs = _read(folder, part=(number, 3)).read_packs
        assert f" {packs} packs" in said or f"/ {packs} items" in said or f"group #{number} of {packs}" in said, said


def test_rolling_checks_read_the_least_recently_proven_first_until_all_were_read(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "cache" / "verified.sqlite"
    seen: list[int] = []
    for _ in range(5):
        with VerifiedPacks(log) as verified:
            report = _read(folder, verified, share=0.25)
        assert report.ok and 0 < report.read_packs < 16
        assert report.never_read_packs is not None
        seen.append(report.never_read_packs)
    assert seen == sorted(seen, reverse=True) and seen[-1] == 0
    assert report.oldest_proof_s is not None and report.oldest_proof_s < 300


def test_what_was_proven_lately_is_not_read_again(folder: Path, tmp_path: Path) -> None:
    with VerifiedPacks(tmp_path / "v.sqlite") as verified:
        assert _read(folder, verified, max_age_s=3600).read_packs == 16
        assert _read(folder, verified, max_age_s=3600).read_packs == 0
        repo = open_repo(folder)
        with repo.lock() as lock:
            make_snapshot(repo, lock, {b"new": [b"new" * 1000]})
        assert _read(folder, verified, max_age_s=3600).read_packs == 2
        assert _read(folder, verified, max_age_s=0).read_packs == 18


def test_a_full_reading_is_remembered_too(folder: Path, tmp_path: Path) -> None:
    repo = open_repo(folder)
    with VerifiedPacks(tmp_path / "v.sqlite") as verified, repo.lock():
        assert check(repo, read_data=True, verified=verified).read_packs == 16
        assert _read(folder, verified, max_age_s=3600).read_packs == 0


def test_the_time_limit_ends_the_reading_and_says_what_is_left(folder: Path) -> None:
    report = _read(folder, max_duration_s=0)
    assert report.ok and report.read_packs == 0 and report.unread_packs == 16


def test_damage_that_a_rolling_check_reads_is_named_and_read_first_the_next_time(folder: Path, tmp_path: Path) -> None:
    repo = open_repo(folder)
    (place,) = repo.index.locations(BlobKind.DATA, hashlib.sha256(PARTS[3]).digest())
    path = folder / "data" / place.pack[:2] / place.pack
    with VerifiedPacks(tmp_path / "v.sqlite") as verified:
        assert _read(folder, verified).ok
        flip(path, place.blob.offset + 99)
        (error,) = _read(folder, verified, part=(int(place.pack[:2], 16) % 4 + 1, 4)).errors
        assert (error.kind, error.name, len(error.snapshots)) == ("pack", place.pack, 1)
        (error,) = _read(folder, verified, size_bytes=1).errors  # one pack only, and it is this one
        assert error.name == place.pack
        flip(path, place.blob.offset + 99)
        assert _read(folder, verified, size_bytes=1).ok


@pytest.mark.parametrize("harm", ["header", "length", "cut", "longer"])
def test_a_rolling_check_notices_every_kind_of_harm_to_a_pack(folder: Path, harm: str) -> None:
    path = stored(folder, "data")[0]
    content = path.read_bytes()
    path.chmod(0o600)
    if harm == "cut":
        path.write_bytes(content[:-7])
    elif harm == "longer":
        path.write_bytes(content + b"\0" * 7)
    else:
        flip(path, len(content) - (20 if harm == "header" else 2))
    errors = _read(folder, share=1.0).errors
    assert path.name in {error.name for error in errors}


def test_a_broken_memory_of_checks_is_made_anew(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "v.sqlite"
    log.write_bytes(b"no database" * 1000)
    with VerifiedPacks(log) as verified:
        assert _read(folder, verified).read_packs == 16


def test_packs_that_are_gone_are_forgotten(folder: Path, tmp_path: Path) -> None:
    with VerifiedPacks(tmp_path / "v.sqlite") as verified:
        verified.note("00" * 32, 1.0)
        _read(folder, verified)
        assert len(list(verified.times())) == 16


@pytest.mark.parametrize("text", ["1/5", "5/5", "2.5%", "100%", "10G", "500"])
def test_subsets_are_written_as_restics(text: str) -> None:
    assert ReadChoice(**ReadChoice.parse_subset(text)) != ReadChoice()  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "0/5", "6/5", "1/257", "0%", "101%", "x", "0", "-1G"])
def test_nonsense_is_no_subset(text: str) -> None:
    with pytest.raises(ValueError, match="is not a part"):
        ReadChoice.parse_subset(text)


def test_a_check_that_is_stopped_remembers_what_it_proved(folder: Path, tmp_path: Path) -> None:
    from node_agent.errors import Cancelled

    class StopsSoon(Progress):
        def add(self, **amounts: int) -> None:
            super().add(**amounts)
            if self.counters.read_bytes > 100_000:
                self.stop(Cancelled())

    repo = open_repo(folder)
    with VerifiedPacks(tmp_path / "v.sqlite") as verified, repo.lock():
        with pytest.raises(Cancelled):
            check(repo, read_data=True, choice=ReadChoice(), verified=verified, progress=StopsSoon())
        assert 0 < len(list(verified.times())) < 16
