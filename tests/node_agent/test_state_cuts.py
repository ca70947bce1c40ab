"""The node's own files, cut at every step of being written: what a kill or a power cut leaves is old or new, whole."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from node_agent.drivers.ceph import journal as ceph_journal
from node_agent.drivers.libvirt.access import HostAccess
from node_agent.drivers.libvirt.journal import Entry, Journal
from node_agent.errors import ConfigError, SourceMissing
from node_agent.outbox import Outbox, Parcel
from node_agent.protocol import FailReport
from node_agent.repository.lock_journal import LockJournal
from node_agent.state import CA_FILE, Identity, State
from node_agent.tasks import staging
from node_agent.tasks.staging import Facts, Staged
from tests.repository.power import Disk, Model, Step, contents, recording

OLD = Identity("https://old", "1", "node", ["a"], token_at=1.0)
NEW = Identity("https://new", "2", "node", ["b"], token_at=2.0)
FIRST, SECOND = (UUID(int=number) for number in (1, 2))


def _states(folder: Path, actions: list[Callable[[], object]]) -> Iterator[tuple[int, Path]]:
    """Do the actions; then each state that a cut may leave on a local disk, in a folder of its own, with the number of
    actions that were over when it came."""
    start = contents(folder)
    ends: list[int] = []
    with recording(folder) as steps:
        for action in actions:
            action()
            ends.append(len(steps))
    yield from _laid_out(folder.parent / "cut", start, steps, ends)


def _laid_out(place: Path, start: dict[str, bytes], steps: list[Step], ends: list[int]) -> Iterator[tuple[int, Path]]:
    disk, seen = Disk(start), set()
    names = disk.names
    for number in range(len(steps) + 1):
        over = sum(end <= number for end in ends)
        for model, files in disk.after_cut(names):
            key = (over, frozenset(files.items()))
            if model & Model.LOCAL and key not in seen:
                seen.add(key)
                shutil.rmtree(place, ignore_errors=True)
                for path, data in files.items():
                    (place / path).parent.mkdir(parents=True, exist_ok=True)
                    (place / path).write_bytes(data)
                place.mkdir(exist_ok=True)
                yield over, place
        if number < len(steps):
            disk.do(steps[number])
    assert len(seen) > len(ends)


def test_an_enrolment_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    """A token is never kept beside another server than its own."""
    state = State(tmp_path / "state")
    state.prepare()
    actions = [
        lambda: state.keep_enrolment(OLD, "old ca", "old token"),
        lambda: state.keep_token("newer token", 1.5),
        lambda: state.keep_enrolment(NEW, "new ca", "new token"),
    ]
    for over, place in _states(state.folder, actions):
        found = State(place)
        if not found.enrolled:
            assert over in (0, 2), "an enrolment that was over is gone"
            continue
        server, token = found.identity().server, found.token()
        assert token in {"https://old": ("old token", "newer token"), "https://new": ("new token",)}[server]
        assert (place / CA_FILE).read_text() == f"{server.removeprefix('https://')} ca"
        if over == 2 and server == "https://old":
            assert token == "newer token"


def test_a_result_that_was_kept_is_sent_and_never_half_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "outbox"
    folder.mkdir()
    box = Outbox(folder, lambda: 5.0)
    parcels = [
        Parcel(task_id=task, made_at=1.0, verb="fail", fail=FailReport(token="t", code="c", message="m" * 500))
        for task in (FIRST, SECOND)
    ]
    actions = [lambda: box.put(parcels[0]), lambda: box.put(parcels[1]), lambda: box.drop(FIRST)]
    for over, place in _states(folder, actions):
        waiting = Outbox(place, lambda: 5.0).waiting()
        assert all(parcel in parcels for parcel in waiting)
        assert not list(place.glob("*.damaged"))
        assert {parcel.task_id for parcel in waiting} >= {
            *((FIRST,) if over == 1 else ()),
            *((SECOND,) if over > 1 else ()),
        }


def test_a_result_that_a_disk_has_spoilt_is_set_aside_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = Outbox(tmp_path, lambda: 5.0)
    for task in (FIRST, SECOND):
        box.put(Parcel(task_id=task, made_at=1.0, verb="fail", fail=FailReport(token="t", code="c", message="m")))
    path = tmp_path / f"{FIRST}.json"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert [parcel.task_id for parcel in box.waiting()] == [SECOND]
        assert "is damaged and was set aside" in caplog.text
        caplog.clear()


def test_what_was_begun_on_a_hypervisor_is_known_or_not_begun(tmp_path: Path) -> None:
    access = HostAccess("host", "SHA256:x")
    folder = tmp_path / "journal"
    folder.mkdir()
    journal = Journal(folder, access, "vm")
    entries = [Entry("host", "vm", folder="/one"), Entry("host", "vm", folder="/two", files=[["a", "b", "c"]])]
    actions = [lambda: journal.write(entries[0]), lambda: journal.write(entries[1]), journal.clear]
    for over, place in _states(folder, actions):
        found = Journal(place, access, "vm").read()
        allowed = ([None, entries[0]], entries, [entries[1], None], [entries[1], None])[over]
        assert found in allowed


def test_half_an_entry_about_a_hypervisor_is_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path, HostAccess("host", "SHA256:x"), "vm")
    journal.write(Entry("host", "vm", folder="/one"))
    (path,) = tmp_path.glob("*.json")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert journal.read() is None
    path.write_bytes(b"\xff[1, 2]")
    assert journal.read() is None


def test_what_was_begun_in_a_ceph_cluster_is_known_or_not_begun(tmp_path: Path) -> None:
    entry = ceph_journal.Entry("fsid", "pool", "1a2b", "brs-x", "snapshot")
    folder = tmp_path / "state"
    journal = ceph_journal.Journal(folder)

    def begin() -> None:
        with journal.under_way(entry):
            pass

    for over, place in _states(folder, [begin, lambda: journal.forget(entry)]):
        left = ceph_journal.Journal(place).left_behind("fsid")
        assert left == [entry] or (left == [] and over != 1)


def test_half_an_entry_about_a_cluster_stops_the_run_and_is_named(tmp_path: Path) -> None:
    journal = ceph_journal.Journal(tmp_path)
    with journal.under_way(ceph_journal.Entry("fsid", "pool", "1a2b", "brs-x", "snapshot")):
        pass
    (path,) = (tmp_path / "ceph").glob("*.json")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ConfigError, match="is damaged") as caught:
        journal.left_behind("fsid")
    assert path.name in caught.value.message and caught.value.hint


def test_half_an_entry_of_a_lock_never_proves_a_lock_dead_at_once(tmp_path: Path) -> None:
    """A live program may be writing it."""
    journal = LockJournal(tmp_path / "holder", "r" * 64)
    names = ["ab" * 32, "cd" * 32]
    actions = [lambda: journal.add(names[0]), lambda: journal.add(names[1]), lambda: journal.remove(names[0])]
    for _, place in _states(tmp_path / "holder", actions):
        found = LockJournal(place, "r" * 64)
        assert set(found.dead()) <= set()  # the process that wrote them lives: this one
    for name in names:
        journal.remove(name)


def test_a_status_that_is_cut_is_no_status(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.keep_status({"last": "word"})
    whole = (tmp_path / "status.json").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "status.json").write_bytes(whole[:length])
        assert state.status() == {}


def test_what_was_staged_before_the_machine_was_started_anew_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it was synced: after a power cut files may be there by half, and would be backed up as they are."""
    staged = Staged(tmp_path, "job")
    staged.begin()
    (staged.data / "file").write_bytes(b"content")
    facts = Facts("task", "files", ["/x"], 1.0)
    staged.finish(facts)
    assert staged.required() == facts
    monkeypatch.setattr(staging, "boot_id", lambda: "another")
    with pytest.raises(SourceMissing, match="started anew") as caught:
        staged.required()
    assert "Start the run again" in caught.value.hint and "may be torn" in caplog.text
    monkeypatch.undo()
    meta = staged.folder / staging.META
    whole = meta.read_bytes()
    for content in (*(whole[:length] for length in range(len(whole))), b"[]", json.dumps({"boot": "x"}).encode()):
        meta.write_bytes(content)
        with contextlib.suppress(SourceMissing):
            assert staged.required() == facts
            pytest.fail("half a file was believed")


def test_what_a_killed_node_was_writing_goes_when_it_starts_and_nothing_else(tmp_path: Path) -> None:
    state = State(tmp_path / "state")
    state.prepare()
    state.keep_enrolment(OLD, "ca", "token")
    (state.folder / "platforms" / "kvm").mkdir(parents=True)
    kept = {path for path in state.folder.rglob("*") if path.is_file()}
    for name in (
        ".mine.json-abcdefgh",
        ".node.json",
        ".node.json-abc",
        "node.json-abcdefgh",
        "data/.node.json-abcdefgh",
    ):
        (state.folder / name).write_text("somebody's")
        kept.add(state.folder / name)
    for name in (
        ".node.json-abcd_f12",
        ".token-x2345678",
        f"outbox/.{FIRST}.json-abcdefgh",
        "platforms/kvm/.1a.json-abcdefgh",
    ):
        (state.folder / name).write_text("half a f")
    with state.lock():
        assert state.clear_temporaries() == 4
        assert state.clear_temporaries() == 0
    assert {path for path in state.folder.rglob("*") if path.is_file()} - {state.folder / "lock"} == kept
    assert state.identity() == OLD
