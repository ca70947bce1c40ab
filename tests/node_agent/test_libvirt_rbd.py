"""How a machine's description names an image in Ceph, and how that is said to qemu, to rbd and in a new description."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import cast
from uuid import uuid4
from xml.etree import ElementTree

import pytest

from node_agent.config import RootsConfig
from node_agent.drivers.ceph.groups import Group, disk_names, group_of, id_of
from node_agent.drivers.ceph.import_several import placed
from node_agent.drivers.ceph.inventory import Image, identity
from node_agent.drivers.libvirt import ImportRequest, import_rbd
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.import_xml import Placed, rewritten
from node_agent.drivers.libvirt.rbd import RbdSource, address, rbd_words, source_of
from node_agent.errors import TargetError
from node_agent.guard import Guard
from node_agent.progress import Progress
from node_agent.protocol import PlatformAccess
from node_agent.repository.lock import LockHolder
from node_agent.tasks.context import Outlet, TaskContext
from node_agent.tasks.platform_kvm import KvmPlatform

SECRET = "5a37cd74-43a1-4a43-9a61-d62a7d0c5f4b"
UUID = "1e0f2d0c-51a6-4a0c-9f0e-8a8f9c3b7a11"
DISK = (
    "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
    f"<auth username='brs'><secret type='ceph' uuid='{SECRET}'/></auth>"
    "<source protocol='rbd' name='vms/web/root' index='2'><host name='mon1' port='3300'/><host name='fd00::1'/>"
    "</source>"
    "<target dev='vda' bus='virtio'/></disk>"
)


def test_pool_namespace_monitors_and_login_are_read_as_libvirt_writes_them() -> None:
    found = source_of(ElementTree.fromstring(DISK))
    assert found == RbdSource("vms", "root", "web", ("mon1:3300", "[fd00::1]:6789"), "brs", SECRET)
    assert (found.name, found.path) == ("vms/web/root", "rbd:vms/web/root")
    assert address(found, with_key=True) == {
        "driver": "raw",
        "file": {
            "driver": "rbd", "pool": "vms", "namespace": "web", "image": "root", "user": "brs",
            "server": [{"host": "mon1", "port": "3300"}, {"host": "fd00::1", "port": "6789"}],
            "key-secret": "cephx", "auth-client-required": ["cephx"],
        },
    }  # fmt: skip
    words = " ".join(rbd_words(found, "/run/key"))
    assert words.endswith("-m mon1:3300,[fd00::1]:6789 -c /dev/null --id brs --keyfile /run/key")


@pytest.mark.parametrize(
    ("xml", "found"),
    [
        ("<disk type='file'><source file='/a'/></disk>", None),
        ("<disk type='network'><source protocol='nbd' name='vms/root'/></disk>", None),
        ("<disk type='network'><source protocol='rbd' name='root'/></disk>", None),
        ("<disk type='network'><source protocol='rbd' name='a/b/c/d'/></disk>", None),
        ("<disk type='network'><source protocol='rbd' name='a//d'/></disk>", None),
        ("<disk type='network'><source protocol='rbd' name='a/b'><snapshot name='s'/></source></disk>", None),
        ("<disk type='network'><source protocol='rbd' name='a/b'><config file='/c'/></source></disk>",
         RbdSource("a", "b", conf="/c")),
        ("<disk type='network'><source protocol='rbd' name='a/b'><auth username='u'><secret usage='x y'/></auth>"
         "</source></disk>", RbdSource("a", "b", user="u", usage="x y")),
    ],
)  # fmt: skip
def test_what_is_no_image_of_a_pool_is_none(xml: str, found: RbdSource | None) -> None:
    assert source_of(ElementTree.fromstring(xml)) == found


def test_ceph_s_own_files_are_relied_on_where_the_description_names_no_monitor() -> None:
    assert rbd_words(RbdSource("a", "b", conf="/c"), "")[-2:] == ["-c", "/c"]
    assert address(RbdSource("a", "b", conf="/c"), with_key=False)["file"] == {
        "driver": "rbd", "pool": "a", "image": "b", "conf": "/c",
    }  # fmt: skip


def test_a_restored_disk_is_another_image_by_the_same_monitors_or_a_file() -> None:
    xml = f"<domain><name>web</name><uuid>{UUID}</uuid><devices>{DISK}</devices></domain>"
    source = source_of(ElementTree.fromstring(DISK))
    assert source is not None
    image = source.called("web2-vda", "other")
    assert (image.name, source.called("web2-vda").name) == ("other/web2-vda", "vms/web/web2-vda")
    new, _uuid, _notes = rewritten(xml, ImportRequest(), "web2", {"vda": Placed("vda", image.path, "raw", image)})
    disk = ElementTree.fromstring(new).find("devices/disk")
    assert disk is not None and source_of(disk) == image and "index" not in new
    file, _uuid, _notes = rewritten(xml, ImportRequest(), "web2", {"vda": Placed("vda", "/vms/a.qcow2", "qcow2")})
    disk = ElementTree.fromstring(file).find("devices/disk")
    assert disk is not None and (disk.get("type"), source_of(disk)) == ("file", None)
    assert "auth" not in file and "/vms/a.qcow2" in file


@pytest.mark.parametrize(("told", "wanted"), [({}, False), ({"rbd-snapshots": "yes"}, True)])
def test_snapshots_in_the_cluster_are_made_only_where_the_platform_says_so(
    tmp_path: Path, told: dict[str, str], wanted: bool
) -> None:
    access = PlatformAccess(kind="kvm", addresses=["kvm1"], options=told, host_keys={"kvm1": "ssh-ed25519 AAAA"})
    context = TaskContext(
        uuid4(), Guard(RootsConfig()), Progress(), cast(Outlet, None), LockHolder("x"), tmp_path, tmp_path, tmp_path
    )
    assert KvmPlatform(access, context)._host("kvm1").access.ceph_snapshots is wanted


# --- groups -------------------------------------------------------------------------------------------


def _image(name: str, id: str) -> Image:
    none: Sequence[str] = ()
    return Image("vms", 1, id, name, 1, 1, frozenset(), frozenset(), 1, 1, "", 0.0, None, (), none, {})


def test_a_disk_is_named_by_its_image_keeps_its_name_and_shares_it_with_no_other() -> None:
    images = [_image("root", "1"), _image("a/b", "2"), _image("a@b", "3"), _image("-", "4")]
    assert list(disk_names("f", images, {})) == ["root", "a_b", "a_b-2", "image"]
    before = {identity("f", images[0]): "old", identity("f", images[3]): "root"}
    assert {name: image.id for name, image in disk_names("f", images, before).items()} == {
        "old": "1", "a_b": "2", "a_b-2": "3", "root": "4",
    }  # fmt: skip


def test_a_group_s_id_leads_back_to_it_and_an_image_s_to_none() -> None:
    group = Group("vms/ns", "web")
    assert group_of(id_of("fsid", group)) == group
    assert group_of("fsid/vms/10ab") is None


def test_images_of_a_group_keep_their_names_with_the_group_s_and_get_new_ones_with_another() -> None:
    facts = b'{"version": 1, "disks": {"a": {"image": "x", "pool": "p1"}, "b": {"image": "x", "pool": "p2"}}}'
    metadata, machine = {"rbd.json": facts}, "fsid/vms/group:web"

    def names(name: str, pool: str, *disks: str) -> list[str]:
        places = placed(machine, name, pool, metadata, disks, overwrite=False)
        return [f"{one.pool}/{one.name}" for one in places.values()]

    assert names("web", "", "a", "b") == names("", "", "a", "b") == ["p1/x", "p2/x"]
    assert names("new", "", "a", "b") == ["p1/new-a", "p2/new-b"]
    assert names("new", "p3", "a") == ["p3/new"]
    with pytest.raises(TargetError, match="one name"):
        names("web", "p3", "a", "b")


# --- taking an import back ---

_RBD = """#!/bin/sh
for word in "$@"; do case $word in -*|20|60|/dev/null) ;; *) break;; esac; shift; done
echo "$*" >>"$0.log"
case "$*" in "info vms/new"*) exit $NEW;; "info vms/brs-import-"*) exit $NEW;; "info vms/root-before-"*) exit 2;; esac
"""


def _settled(folder: Path, new: int) -> tuple[int, list[str]]:
    """Status of the script that takes an import back, and what it asked rbd; ``new``: what rbd says of the image that
    has not its name yet."""
    program = folder / "bin" / "rbd"
    program.parent.mkdir()
    program.write_text(_RBD)
    program.chmod(0o755)
    image = import_rbd.entry_of(Placed("vda", "rbd:vms/root", "raw", RbdSource("vms", "root")), "77")
    run = folder / "run"
    run.mkdir()
    Path(import_rbd.mark_of(image, str(run))).touch()
    lines = import_rbd.settle_lines(cast(Host, None), image, str(run), done=False)
    path = f"{program.parent}:{os.environ['PATH']}"
    done = subprocess.run(["sh", "-c", "\n".join(lines)], env={"PATH": path, "NEW": str(new)}, capture_output=True)
    return done.returncode, Path(f"{program}.log").read_text().splitlines()


def test_a_cluster_that_does_not_answer_costs_nobody_an_image(tmp_path: Path) -> None:
    """The image under the name is that of an import only if the one that it wrote has no name of its own any more."""
    code, asked = _settled(tmp_path, new=110)
    assert code and not [words for words in asked if words.startswith("rm")], asked


@pytest.mark.parametrize(("new", "removed"), [(0, "rm vms/brs-import-77-vda"), (2, "rm vms/root")])
def test_of_an_import_that_is_taken_back_the_image_that_it_wrote_goes(tmp_path: Path, new: int, removed: str) -> None:
    code, asked = _settled(tmp_path, new)
    assert (code, [words for words in asked if words.startswith("rm")]) == (0, [removed])
