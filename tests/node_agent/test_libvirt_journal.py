"""Who works on a machine of a hypervisor, or on an import, holds it; only what nobody holds is a leftover."""

from __future__ import annotations

from pathlib import Path

import pytest

from node_agent.drivers.libvirt.access import HostAccess
from node_agent.drivers.libvirt.errors import MachineBusy
from node_agent.drivers.libvirt.journal import Entry, Journal

ACCESS = HostAccess("host", "SHA256:x")


def test_a_machine_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    one, other = Journal(tmp_path, ACCESS, "vm"), Journal(tmp_path, ACCESS, "another vm")
    with one.held(), other.held():
        with pytest.raises(MachineBusy, match="in another task") as busy, Journal(tmp_path, ACCESS, "vm").held():
            pass
        assert busy.value.retryable and "tried again" in busy.value.hint
    with Journal(tmp_path, ACCESS, "vm").held():
        pass


def test_an_import_that_lives_is_no_leftover_and_one_that_died_is(tmp_path: Path) -> None:
    entry = Entry("host", "vm", folder="/made")
    before = Journal(tmp_path, ACCESS, "import")  # as older versions named the only one
    before.write(entry)
    with Journal.of_new_import(tmp_path, ACCESS) as died:
        died.write(entry)
    with Journal.of_new_import(tmp_path, HostAccess("other", "SHA256:x")) as elsewhere:
        elsewhere.write(entry)
    with Journal.of_new_import(tmp_path, ACCESS) as lives:
        lives.write(entry)
        for left in Journal.of_left_imports(tmp_path, ACCESS):
            assert left.read() == entry
            with pytest.raises(MachineBusy), left.held():  # ours meanwhile
                pass
            left.clear()
        assert before.read() is None and died.read() is None
        assert lives.read() == entry
        lives.clear()
    elsewhere.clear()
    assert not [path for path in tmp_path.iterdir() if "-" in path.name and path.suffix == ".json"]
