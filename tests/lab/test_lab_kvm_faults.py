"""What happens on the hypervisor when the node dies, and what connection test and imports say when something is off."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from node_agent.drivers.base import Freeze
from node_agent.drivers.libvirt import BackupRequest, ImportRequest, LibvirtHost, freeze, run_folder
from node_agent.drivers.libvirt.access import Limits
from node_agent.drivers.libvirt.errors import (
    GuestNotFrozen,
    HypervisorError,
    HypervisorUnreachable,
    JobAborted,
    MachineBusy,
)
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.import_xml import Placed
from node_agent.drivers.libvirt.inventory import machine
from node_agent.errors import BrsError, TargetError, TargetExists
from tests.lab.kvm_world import MARK, Protected, access_to, footprint
from tests.lab.libvirt import Guest, Lab, wait

MIB = 1 << 20
Make = Callable[..., Protected]
pytestmark = pytest.mark.slow
QUICK = Limits(silent_s=3)

# A node that opens the machine and then does nothing but hold it.
_NODE = """
import json, sys
from pathlib import Path
from node_agent.drivers.base import Freeze
from node_agent.drivers.libvirt import BackupRequest, HostAccess, LibvirtHost
from node_agent.drivers.libvirt.access import Limits
given = json.load(sys.stdin)
driver = LibvirtHost(HostAccess(**given["access"]), Path(given["state"]))
with driver.open(BackupRequest(given["machine"], given["mark"], limits=Limits(silent_s=3))) as machine:
    machine.disks["vda"].content.read(0, 65536)
    print("open", flush=True)
    __import__("time").sleep(600)
"""


def node_that_holds(one: Protected) -> subprocess.Popen[str]:
    node = subprocess.Popen([sys.executable, "-c", _NODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert node.stdin is not None and node.stdout is not None
    json.dump(
        {
            "access": asdict(access_to(one.lab)), "state": str(one.folder / "state"),
            "machine": one.guest.uuid, "mark": MARK,
        },
        node.stdin,
    )  # fmt: skip
    node.stdin.close()
    assert node.stdout.readline() == "open\n"
    return node


def test_the_watchdog_ends_the_run_of_a_node_that_was_killed(shared: Protected) -> None:
    one = shared
    before = footprint(one.lab, one.guest)
    node = node_that_holds(one)
    assert footprint(one.lab, one.guest)["job"] != before["job"]
    other = LibvirtHost(access_to(one.lab), one.folder / "another-node")
    with pytest.raises(MachineBusy, match="Another node"):
        with other.open(one.request()):
            pass
    node.kill()
    node.wait()
    left = lambda: {**footprint(one.lab, one.guest), "checkpoints": []}  # noqa: E731 - the next run drops that
    wait(lambda: left() == before, "the watchdog to clean up")
    assert one.back_up().codes == set()
    assert footprint(one.lab, one.guest) == before


def test_the_same_node_settles_at_once_what_it_left(shared: Protected) -> None:
    one = shared
    before = footprint(one.lab, one.guest)
    node = node_that_holds(one)
    node.kill()
    node.wait()
    assert one.back_up().codes == set()
    assert footprint(one.lab, one.guest) == before


def test_the_watchdog_thaws_a_guest_whose_script_died(shared: Protected) -> None:
    one = shared
    request = BackupRequest(one.guest.uuid, MARK, freeze=Freeze.REQUIRE, limits=Limits(frozen_s=2, silent_s=30))
    with Host(access_to(one.lab)) as host:
        vm = machine(host, one.guest.uuid)
        with run_folder.run_folder(host, request, run_folder.new_path(host, request), vm.state) as folder:
            with pytest.raises(BrsError):  # in place of the job: the script is killed while the guest is frozen
                freeze.begin(host, vm, request, folder, "kill -9 $$")
            wait(lambda: _freeze_log(one.guest).split()[-2:-1] == ["thaw"], "the thaw")
            assert one.guest.agent({"execute": "guest-fsfreeze-status"}) == "thawed"


def test_a_guest_that_does_not_thaw_is_left_to_the_watchdog_which_tries_on(shared: Protected) -> None:
    one = shared
    before = footprint(one.lab, one.guest)
    request = BackupRequest(one.guest.uuid, MARK, freeze=Freeze.REQUIRE, limits=Limits(frozen_s=2, silent_s=3))
    deaf = one.folder / "deaf"
    deaf.mkdir()
    (deaf / "virsh").write_text('#!/bin/sh\ncase "$*" in *domfsthaw*) exit 1;; esac\nexec /usr/bin/virsh "$@"\n')
    (deaf / "virsh").chmod(0o755)
    with Host(access_to(one.lab)) as host:
        vm = machine(host, one.guest.uuid)
        path = run_folder.new_path(host, request)
        with run_folder.run_folder(host, request, path, vm.state) as folder:
            one.lab.shell(f"kill -STOP $(cat {path}/watch)")  # so that it is not the quicker one
            begun = freeze.begin(host, vm, request, folder, f"PATH={deaf}:$PATH; export PATH")
            assert begun.still_frozen
        assert folder.left and run_folder.may_be_frozen(host, path)
        one.lab.shell(f"kill -CONT $(cat {path}/watch)")
    wait(lambda: footprint(one.lab, one.guest) == before, "the watchdog to thaw and to go")
    assert one.guest.agent({"execute": "guest-fsfreeze-status"}) == "thawed"


def test_a_required_freeze_that_fails_is_what_is_said_and_is_not_tried_again(
    shared: Protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there is a checkpoint to do without: that would not help."""
    one = shared
    one.back_up()
    before = footprint(one.lab, one.guest)
    monkeypatch.setattr(freeze, "_STATUS", '{"execute":"guest-ping"}')  # as if it had thawed itself, as Windows does
    with pytest.raises(GuestNotFrozen, match="thawed before the snapshot"):
        with one.driver.open(one.request(freeze=Freeze.REQUIRE)):
            pass
    *_, last = one.guest.run("cat /run/freeze.log").splitlines()
    assert last.startswith("thaw") and footprint(one.lab, one.guest) == before


def _freeze_log(guest: Guest) -> str:
    """Read when the agent lets us: while it is frozen it runs nothing."""
    try:
        return guest.run("cat /run/freeze.log")
    except subprocess.CalledProcessError:
        return ""


def test_a_scratch_folder_that_runs_full_ends_the_backup_and_not_the_guest(shared: Protected) -> None:
    one = shared
    before = footprint(one.lab, one.guest)
    limits = Limits(floor_bytes=1 << 50, floor_percent=100)
    with pytest.raises(JobAborted, match="ran out of free space"):
        with one.driver.open(one.request(limits=limits)) as found:
            wait(lambda: footprint(one.lab, one.guest)["job"] == before["job"], "the watchdog")
            found.disks["vda"].content.read(0, MIB)
    one.guest.run("echo fine >/data/fine && sync")
    assert footprint(one.lab, one.guest) == before


def test_a_lost_connection_is_an_error_and_the_next_run_heals(shared: Protected) -> None:
    one = shared
    before = footprint(one.lab, one.guest)
    with pytest.raises(BrsError):
        with one.driver.open(one.request()) as found:
            one.lab.shell("for pid in $(pgrep -f '[s]shd: root'); do kill -9 $pid; done")
            found.disks["vda"].content.read(0, 8 * MIB)
    assert one.back_up().codes == set()
    assert footprint(one.lab, one.guest) == before


def test_a_disk_that_is_attached_or_written_to_during_a_backup_does_no_harm(protected: Make) -> None:
    one = protected("during")
    first = one.back_up()
    with one.readers(first) as readers:

        def attach() -> None:
            one.guest.run("dd if=/dev/urandom of=/data/x bs=1M count=8 2>/dev/null && sync")

        point = one.back_up(meanwhile=attach)
        assert set(point.bases) == {"vda"}
        place = one.folder / "attached.img"
        one.driver.attach_disk(one.guest.uuid, readers["vda"], Placed("vdb", str(place), "qcow2"))
    one.guest.disks["vdb"] = place
    assert set(one.back_up().bases) == {"vda", "vdb"}


# --- imports ---


def test_restore_options_are_kept_to(protected: Make) -> None:
    one = protected("options", "mixed")
    one.guest.destroy()
    point = one.back_up()
    folder = str(one.folder / "vms")
    for number, (format, chosen) in enumerate([("raw", ("vda", "vdb")), ("qcow2", ("vda",)), ("", ())]):
        request = ImportRequest(
            name=f"brs-lab-options-{number}", folder=folder, format=format, disks=chosen, start=True
        )  # fmt: skip
        imported = one.bring_in(point, request)
        copy = Guest(one.lab, imported.name, imported.uuid, {t: Path(p) for t, p in imported.disks.items()})
        try:
            assert set(imported.disks) == set(chosen or ("vda", "vdb"))
            wanted = {"raw": "raw", "qcow2": "qcow2", "": "qcow2"}[format]
            info = json.loads(one.lab.shell(f"qemu-img info -U --output=json {imported.disks['vda']}"))
            assert info["format"] == wanted and info["actual-size"] < 100 * MIB
            copy.wait_for_agent()
            assert "GUEST-IS-UP" in copy.run("cat /run/marker")
        finally:
            copy.remove()


def test_in_place_needs_leave_and_replaces_what_is_shut_off(protected: Make) -> None:
    one = protected("in-place")
    one.guest.run("echo original >/data/state && sync")
    point = one.back_up()
    one.guest.run("echo spoilt >/data/state && sync")
    back = ImportRequest(new_identity=False, overwrite=True)
    with pytest.raises(TargetExists, match="running"):
        one.bring_in(point, back)
    one.guest.destroy()
    with pytest.raises(TargetExists, match="already"):
        one.bring_in(point, ImportRequest(new_identity=False))
    imported = one.bring_in(point, back)
    assert (imported.uuid, imported.name) == (one.guest.uuid, one.guest.name)
    one.guest.start()
    assert one.guest.run("cat /data/state") == "original\n"
    after = one.back_up()
    assert "tracking-lost" in after.codes  # a new image: its changes since the point are not known


class _Breaking:
    """A disk that cannot be read to its end."""

    def __init__(self, reader: Any) -> None:
        self.size = reader.size
        self._reader = reader

    def read(self, offset: int, length: int) -> bytes:
        if offset > self.size // 2:
            raise BrsError("The repository is gone.")
        return bytes(self._reader.read(offset, length))


def test_an_import_that_fails_leaves_the_hypervisor_as_it_was(protected: Make) -> None:
    one = protected("undone")
    point = one.back_up()
    one.guest.destroy()
    before = one.lab.shell(
        f"virsh list --all --uuid; cd {one.lab.folder}/images; find . | sort; cksum {one.guest.disks['vda']}"
    )
    with one.readers(point) as readers:
        broken = {"vda": _Breaking(readers["vda"])}
        for request in (ImportRequest(name="brs-lab-new"), ImportRequest(new_identity=False, overwrite=True)):
            with pytest.raises(BrsError, match="repository is gone"):
                one.driver.import_machine(point.metadata, broken, request)
        spoilt = {
            **point.metadata,
            "vm.json": point.metadata["vm.json"].replace(b"qemu-system-x86_64", b"no-such-qemu"),
        }
        with pytest.raises(HypervisorError):
            one.driver.import_machine(spoilt, readers, ImportRequest(new_identity=False, overwrite=True))
        with pytest.raises(TargetError, match="no disk vdz"):
            one.driver.import_machine(point.metadata, readers, ImportRequest(name="n", disks=("vdz",)))
    after = one.lab.shell(
        f"virsh list --all --uuid; cd {one.lab.folder}/images; find . | sort; cksum {one.guest.disks['vda']}"
    )
    assert after == before
    one.guest.start()


# --- the connection test ---


def test_the_connection_test_reads_a_real_job_and_leaves_nothing(shared: Protected) -> None:
    one = shared
    before = footprint(one.lab, one.guest)
    findings = list(one.driver.probe(one.guest.uuid))
    assert [finding.ok for finding in findings] == [True] * 5, findings
    assert one.guest.name in findings[-1].detail
    assert footprint(one.lab, one.guest) == before


def test_a_user_of_the_group_libvirt_with_a_password_can_back_up(shared: Protected, lab: Lab, tmp_path: Path) -> None:
    one = shared
    state = lab.state()
    assert state is not None
    lab.shell(f"install -d -o operator -m 755 {lab.folder}/operator")
    access = access_to(
        lab, user="operator", private_key=None, password=state.password, scratch=f"{lab.folder}/operator"
    )
    one.driver = LibvirtHost(access, tmp_path / "operator")
    assert all(finding.ok for finding in one.driver.probe(one.guest.uuid))
    one.assert_equals_copies(one.back_up_with_copies("operator"))


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"host_key": "SHA256:" + "A" * 43}, HypervisorError, "host key .* is not the one that is pinned"),
        ({"private_key": None, "password": "wrong"}, HypervisorError, "refuses the login"),
        ({"port": 1}, HypervisorUnreachable, "does not answer"),
    ],
)
def test_what_keeps_us_out_is_said(lab: Lab, tmp_path: Path, wrong: dict[str, Any], error: type, said: str) -> None:
    driver = LibvirtHost(access_to(lab, **wrong), tmp_path)
    with pytest.raises(error, match=said):
        driver.inventory()
    [finding] = driver.probe()
    assert not finding.ok and finding.hint


def test_a_scratch_folder_that_is_not_there_and_a_forbidden_tunnel_are_named(shared: Protected, tmp_path: Path) -> None:
    one = shared
    *_, last = LibvirtHost(access_to(one.lab, scratch="/nowhere"), tmp_path).probe()
    assert (last.name, last.ok) == ("Scratch folder", False) and "/nowhere" in last.detail
    config = f"{one.lab.folder}/ssh/sshd_config"
    one.lab.shell(f"echo 'AllowStreamLocalForwarding no' >>{config}; kill -HUP $(cat /run/sshd.pid)")
    try:
        wait(lambda: "forbids forwarding" in list(one.driver.probe(one.guest.uuid))[-1].detail, "the new setting")
        *_, last = one.driver.probe(one.guest.uuid)
        assert not last.ok and "AllowStreamLocalForwarding" in last.hint
    finally:
        one.lab.shell(f"sed -i '/AllowStreamLocal/d' {config}; kill -HUP $(cat /run/sshd.pid)")
        wait(lambda: list(one.driver.probe(one.guest.uuid))[-1].ok, "the old setting")


def test_the_inventory_tells_of_machines_disks_and_networks(protected: Make) -> None:
    one = protected("listed", "mixed", start=False)
    [found] = [vm for vm in one.driver.inventory() if vm.uuid == one.guest.uuid]
    assert (found.name, found.state, found.persistent, found.firmware) == (one.guest.name, "shut off", True, "bios")
    assert [(disk.target, disk.format) for disk in found.disks] == [("vda", "qcow2"), ("vdb", "raw")]
    threads = [threading.Thread(target=one.driver.inventory) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
