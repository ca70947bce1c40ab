"""Imports that meet another import, somebody's file, a machine with its memory saved, or their end at a bad moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node_agent.drivers.base import Consistency
from node_agent.drivers.libvirt import ImportRequest, driver, import_, journal
from node_agent.errors import BrsError, TargetExists
from tests.lab.kvm_world import Protected
from tests.lab.libvirt import Guest

Make = Callable[..., Protected]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Meanwhile:
    """A disk; before its end is read, something happens."""

    def __init__(self, reader: Any, happens: Callable[[], object]) -> None:
        self.size = reader.size
        self._reader, self._happens = reader, happens

    def read(self, offset: int, length: int) -> bytes:
        if offset + length == self.size:
            self._happens()
        return bytes(self._reader.read(offset, length))


def removed(one: Protected, *imported: import_.Imported) -> None:
    for each in imported:
        Guest(one.lab, each.name, each.uuid, {t: Path(p) for t, p in each.disks.items()}).remove()


def everything(one: Protected) -> str:
    """Machines, what lies where imports write, and its content but for the images of others, which may be running."""
    places = f"{one.lab.folder}/images {one.folder}/vms /var/lib/libvirt/qemu/nvram /var/lib/libvirt/swtpm"
    theirs = f"-path '{one.lab.folder}/images/*' ! -name '{one.guest.name}.vd?'"
    return one.lab.shell(
        f"virsh -q list --all --uuid | sort; find {places} 2>/dev/null | sort; "
        f"find {places} -type f ! \\( {theirs} \\) 2>/dev/null | sort | xargs cksum"
    )


def test_two_imports_at_once_leave_each_other_alone(protected: Make) -> None:
    one = protected("both")
    point = one.back_up()
    made: list[import_.Imported] = []

    def another() -> None:
        request = ImportRequest(name="brs-lab-second", folder=str(one.folder / "vms"))
        with one.readers(point) as readers:
            thread = threading.Thread(
                target=lambda: made.append(one.driver.import_machine(point.metadata, readers, request))
            )
            thread.start()
            thread.join()

    with one.readers(point) as readers:
        disks = {"vda": Meanwhile(readers["vda"], another)}
        request = ImportRequest(name="brs-lab-first", folder=str(one.folder / "vms"))
        made.append(one.driver.import_machine(point.metadata, disks, request))
    assert [each.name for each in made] == ["brs-lab-second", "brs-lab-first"]
    for each in made:
        assert one.lab.shell(f"qemu-img check -q {each.disks['vda']}; virsh domstate {each.uuid}").strip() == "shut off"
    assert not list((one.folder / "state").glob("*-*"))
    removed(one, *made)


def test_a_file_that_somebody_makes_meanwhile_is_not_overwritten(protected: Make) -> None:
    one = protected("meanwhile")
    point = one.back_up()
    request = ImportRequest(name="brs-lab-late", folder=str(one.folder / "vms"))
    place = one.folder / "vms" / "brs-lab-late-vda.qcow2"
    with one.readers(point) as readers:
        disks = {"vda": Meanwhile(readers["vda"], lambda: place.write_text("theirs"))}
        with pytest.raises(TargetExists, match="exists"):
            one.driver.import_machine(point.metadata, disks, request)
    assert place.read_text() == "theirs" and [path.name for path in place.parent.iterdir()] == [place.name]


def test_a_place_that_another_machine_gets_meanwhile_is_refused_even_with_leave_to_overwrite(protected: Make) -> None:
    one = protected("taken")
    point = one.back_up()  # it runs, and gets the disk at its next start
    request = ImportRequest(name="brs-lab-taker", folder=str(one.folder / "vms"), overwrite=True)
    place = one.folder / "vms" / "brs-lab-taker-vda.qcow2"

    def take() -> None:
        place.write_text("theirs")
        one.lab.virsh("attach-disk", one.guest.uuid, str(place), "vdq", "--config")

    with one.readers(point) as readers:
        with pytest.raises(TargetExists, match="belongs to the machine"):
            one.driver.import_machine(point.metadata, {"vda": Meanwhile(readers["vda"], take)}, request)
    assert place.read_text() == "theirs"


def test_a_machine_saved_with_its_memory_is_not_called_stopped_nor_replaced(protected: Make) -> None:
    one = protected("saved")
    one.lab.virsh("managedsave", one.guest.uuid)
    point = one.back_up()
    assert point.consistency is Consistency.CRASH and "memory-left-out" in point.codes
    with pytest.raises(TargetExists, match="saved with its memory"):
        one.bring_in(point, ImportRequest(new_identity=False, overwrite=True))
    one.lab.virsh("managedsave-remove", one.guest.uuid)
    point = one.back_up()
    assert point.consistency is Consistency.STOPPED
    assert one.bring_in(point, ImportRequest(new_identity=False, overwrite=True)).uuid == one.guest.uuid


@pytest.fixture
def dies_at_its_end(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """All is in place, and the node cannot say so any more; ``settled``: whether it can still tidy up."""
    write, settle = journal.Journal.write, import_.settle_import

    def dying(self: journal.Journal, entry: journal.Entry) -> None:
        if entry.done:
            raise BrsError("The node died.")
        write(self, entry)

    def end(settled: bool) -> None:
        monkeypatch.setattr(journal.Journal, "write", dying)
        monkeypatch.setattr(import_, "settle_import", settle if settled else lambda _host, _journal: [])

    return end


def test_an_import_that_fails_after_the_definition_takes_its_firmware_back(
    protected: Make, dies_at_its_end: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = protected("firmware", uefi=True)
    point = one.back_up()
    one.guest.destroy()
    before = everything(one)
    old = {**point.metadata, "nvram.fd": b"x" * len(point.metadata["nvram.fd"])}
    (one.folder / "vms").mkdir()
    before = everything(one)
    dies_at_its_end(True)
    new = ImportRequest(name="brs-lab-firmware-2", folder=str(one.folder / "vms"))
    same, other = ImportRequest(new_identity=False, overwrite=True), ImportRequest(overwrite=True)
    for request in (new, same, other):
        with one.readers(point) as readers, pytest.raises(BrsError, match="The node died"):
            one.driver.import_machine(old, readers, request)
        assert everything(one) == before
    monkeypatch.undo()
    imported = one.bring_in(replace(point, metadata=old), same)
    assert imported.uuid == one.guest.uuid and everything(one) != before
    assert not one.lab.shell("find /var/lib/libvirt -name '.brs-*'")


@pytest.mark.parametrize("how", ["running", "written"])
def test_what_an_import_that_died_had_put_in_place_stays_once_it_has_been_used(
    protected: Make, dies_at_its_end: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    one = protected(f"used-{how}")
    point = one.back_up()
    request = ImportRequest(name=f"brs-lab-dead-{how}", folder=str(one.folder / "vms"))
    dies_at_its_end(False)
    with one.readers(point) as readers, pytest.raises(BrsError, match="The node died"):
        one.driver.import_machine(point.metadata, readers, request)
    monkeypatch.undo()
    [uuid] = one.lab.shell(f"virsh -q list --all --uuid --name | awk '$2 == \"{request.name}\" {{ print $1 }}'").split()
    used = Guest(one.lab, request.name, uuid, {"vda": one.folder / "vms" / f"{request.name}-vda.qcow2"})
    one.lab.virsh("start", uuid)
    used.wait_for_agent()
    used.run("echo since >/data/since && sync")
    if how == "written":
        used.destroy()
    second = one.bring_in(point, ImportRequest(name=f"brs-lab-next-{how}", folder=str(one.folder / "vms")))
    assert "has been used since" in second.notes[0] and str(used.disks["vda"]) in second.notes[0]
    assert not one.lab.shell(f"find {one.lab.folder}/scratch {one.folder}/vms -name '*brs-import*'")
    if how == "written":
        one.lab.virsh("start", uuid)
        used.wait_for_agent()
    assert used.run("cat /data/since") == "since\n"
    used.remove()
    removed(one, second)


def test_what_an_import_that_died_had_put_in_place_goes_if_nobody_used_it(
    protected: Make, dies_at_its_end: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = protected("unused")
    point = one.back_up()
    one.guest.destroy()
    before = everything(one)
    dies_at_its_end(False)
    with one.readers(point) as readers, pytest.raises(BrsError, match="The node died"):
        one.driver.import_machine(point.metadata, readers, ImportRequest(name="brs-lab-dead"))
    monkeypatch.undo()
    assert everything(one) != before
    with driver.Host(one.driver.access) as host:
        assert one.driver._settle_imports(host) == []
    assert everything(one) == before
