"""What goes wrong with a real cluster, what is said then, and what is left: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node_agent.drivers.base import Finding
from node_agent.drivers.ceph.cluster import (
    CephDenied,
    CephError,
    CephMissing,
    CephOther,
    CephUnreachable,
    Cluster,
)
from node_agent.drivers.ceph.inventory import list_images
from node_agent.drivers.ceph.probe import probe
from node_agent.drivers.ceph.snapshots import clear_left_behind, kept_by_owner, ours_on, release, remove
from node_agent.drivers.ceph.source import DISK, ImageRef, find, open_images
from node_agent.errors import BrsError, ConfigError, RefusedError, SourceChanged
from node_agent.repository.repository import Repository
from tests.lab.rbd_world import NO_MAPS, OWNER, World, store
from tests.repository.data_world import MIB

HOSTILE = ("a@b", "a/b", "with space", ".hidden", "-rf", "umlaut-ü-🙂", "rbd:x:conf=y", "{}%s", "new\nline")


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"fsid": "00000000-0000-4000-8000-000000000000"}, CephOther, "is meant"),
        ({"user": "nobody"}, CephDenied, "does not let client.nobody in"),
        ({"key": "reader"}, CephDenied, "does not let client.brs in"),
        ({"mon_hosts": ["127.0.0.1:9"]}, CephUnreachable, "127.0.0.1 port 9: Connection refused"),
        ({"mon_hosts": ["nowhere.invalid"]}, CephUnreachable, "nowhere.invalid port 3300: Name or service not known"),
        ({"mon_hosts": ["a b"]}, ConfigError, "monitors' addresses"),
        ({"mon_hosts": ["127.0.0.1\nkey = x"]}, ConfigError, "monitors' addresses"),
        ({"user": "client.brs"}, ConfigError, "user's name"),
        ({"key": "secret"}, ConfigError, "user's key"),
        ({"fsid": "x"}, ConfigError, "fsid"),
    ],
)
def test_a_wrong_access_is_told_apart(world: World, wrong: dict[str, Any], error: type[BrsError], said: str) -> None:
    if wrong.get("key") == "reader":
        wrong = {"key": world.state.keys["reader"]}
    with pytest.raises(error) as caught, Cluster(replace(world.access, **wrong)):
        raise AssertionError("let in")
    assert said in caught.value.message and caught.value.hint
    assert world.access.key not in repr(world.access) + str(caught.value)
    finding = probe(replace(world.access, **wrong), world.journal())[-1]
    assert (finding.ok, finding.detail) == (False, caught.value.message)


def test_another_server_at_the_port_is_no_monitor(world: World) -> None:
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        port = server.getsockname()[1]
        with (
            pytest.raises(CephUnreachable, match="no Ceph monitor"),
            Cluster(replace(world.access, mon_hosts=[f"127.0.0.1:{port}"])),
        ):
            raise AssertionError("let in")


def test_the_key_is_seen_by_nobody(world: World) -> None:
    with world.connect() as cluster:
        process = cluster._process
        assert process is not None
        seen = b"".join(Path(f"/proc/{process.pid}/{what}").read_bytes() for what in ("cmdline", "environ"))
        assert b"librbd_child" in seen and world.access.key.encode() not in seen
    assert process.returncode == 0


def test_missing_rights_are_named_with_the_command_that_gives_them(world: World) -> None:
    image = world.image(8 * MIB)
    reader = world.access_as("reader", world.state.keys["reader"])
    findings = probe(reader, world.journal(), ImageRef("rbd", image))
    assert [finding.ok for finding in findings] == [True, True, True, True, True, True, False]
    assert "profile rbd" in findings[-1].hint
    none = world.access_as("none", world.lab.add_client("none", "mon", "profile rbd"))
    assert not (found := probe(none, world.journal())[-1]).ok and "osd 'profile rbd pool=rbd'" in found.hint
    assert world.snapshots(image) == []


def test_the_connection_test_makes_reads_and_removes_a_snapshot(world: World) -> None:
    image = world.image(8 * MIB)
    findings = probe(world.access, world.journal(), ImageRef("rbd", image))
    assert all(finding.ok for finding in findings) and len(findings) == 8
    assert world.snapshots(image) == []
    missing = probe(replace(world.access, pools=("rbd", "gone")), world.journal(), ImageRef("rbd", "none"))
    assert [f for f in missing if not f.ok] == [
        Finding("The pool gone can be read", ok=False, detail="There is no such pool.",
                hint="Correct it, or create the pool."),
        Finding("Look at rbd/none", ok=False, detail="There is no image none in the pool rbd.",
                hint="It was removed, moved to the trash or to another pool: discover the platform anew."),
    ]  # fmt: skip


def test_a_pool_or_image_that_is_gone_is_an_error_and_another_pool_is_refused(world: World) -> None:
    for ref, access, error in (
        (ImageRef("rbd", "none"), world.access, CephMissing),
        (ImageRef("rbd", "none", "1234567890ab"), world.access, CephMissing),
        (ImageRef("gone", "x"), replace(world.access, pools=("gone",)), CephMissing),
        (ImageRef("other", "x"), world.access, RefusedError),
    ):
        with pytest.raises(error), open_images(world.request("", images={DISK: ref}, access=access), world.journal()):
            raise AssertionError("opened")


def test_every_name_of_an_image_is_backed_up(world: World, repo: Repository) -> None:
    for name in HOSTILE:
        world.create_named(name)
    with world.connect() as cluster:
        found = {image.name: image for image in list_images(cluster, "rbd") if not isinstance(image, BrsError)}
        assert set(HOSTILE) <= set(found)
        for name in HOSTILE:
            ref = {DISK: ImageRef("rbd", name)}
            first = world.back_up(repo, "", images=ref)
            assert first.result.size_bytes == 8 * MIB
            assert (world.back_up(repo, "", first, images=ref).read, first.notes) == (0, [])
            now = find(cluster, ref[DISK])
            assert release(cluster, now, OWNER) == [] and not find(cluster, ref[DISK]).snapshots
            cluster.call("remove", pool="rbd", name=name, image_id=now.id)


def test_the_inventory_says_what_an_image_is(world: World) -> None:
    base = world.image(features=NO_MAPS, objects="8M")
    clone = world.clone(base)
    guest = world.holding(clone)
    found = world.look(clone)
    assert found.parent is not None and found.parent.image == base and found.parent.overlap == 40 * MIB
    assert len(found.watchers) == 1 and found.watchers[0].startswith("127.0.0.1:")
    guest.communicate("\n")
    found = world.look(base)
    assert (found.object_size, found.features) == (
        8 * MIB,
        {"layering", "exclusive-lock", "deep-flatten", "operations"},
    )
    assert [(one.kind, one.size) for one in found.snapshots] == [("user", 40 * MIB)]


def test_a_snapshot_that_vanishes_while_it_is_read_is_no_backup(world: World, repo: Repository) -> None:
    image = world.image()
    with pytest.raises(SourceChanged, match="was removed while it was read"):
        with open_images(world.request(image), world.journal()) as machine:
            world.guest(image, ["remove-snapshot", world.snapshots(image)[0]])
            store(repo, machine, None)
    assert world.snapshots(image) == []


def test_a_process_that_dies_is_said_and_nothing_stays(world: World, repo: Repository) -> None:
    image = world.image()
    journal = world.journal()
    with pytest.raises(CephUnreachable, match="ended"):
        with open_images(world.request(image), journal) as machine:
            content: Any = machine.disks[DISK].content
            os.kill(content._cluster._process.pid, signal.SIGKILL)
            store(repo, machine, None)
    assert len(world.snapshots(image)) == 1
    world.back_up(repo, image)
    assert len(world.snapshots(image)) == 1 and not list((world.folder / "state" / "ceph").iterdir())


_RUN = """
import sys, json
from pathlib import Path
from node_agent.drivers.ceph.access import CephAccess
from node_agent.drivers.ceph.journal import Journal
from node_agent.drivers.ceph.source import DISK, ImageRef, RbdRequest, open_images
given = json.loads(sys.stdin.readline())
access = CephAccess(given["mon"], given["fsid"], "brs", given["key"], ["rbd"])
request = RbdRequest(access, {DISK: ImageRef("rbd", given["image"])}, given["owner"])
with open_images(request, Journal(Path(given["state"]))) as machine:
    machine.disks[DISK].content.read(0, 4096)
    print("reading", flush=True)
    sys.stdin.readline()
"""


def test_a_node_that_is_killed_leaves_what_the_next_run_removes(world: World, repo: Repository) -> None:
    import json

    image = world.image()
    first = world.back_up(repo, image)
    access = world.access
    given = {"mon": access.mon_hosts, "fsid": access.fsid, "key": access.key, "image": image, "owner": OWNER,
             "state": str(world.folder / "state")}  # fmt: skip
    node = subprocess.Popen([sys.executable, "-c", _RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    world.processes.append(node)
    assert node.stdin is not None and node.stdout is not None
    node.stdin.write(json.dumps(given) + "\n")
    node.stdin.flush()
    assert node.stdout.readline() == "reading\n"
    assert len(world.snapshots(image)) == 2
    with world.connect() as cluster:
        assert clear_left_behind(cluster, world.journal()) == 0  # it lives
        node.send_signal(signal.SIGKILL)
        node.wait()
        assert len(world.snapshots(image)) == 2
    world.guest(image, ["write", 3 * MIB, 10, 1])
    truth = world.truth(image)
    second = world.back_up(repo, image, first)
    assert second.notes == [] and second.read <= 3 * MIB  # up to the end that the object had
    assert world.restored(repo, second) == world.exported(truth)
    assert len([name for name in world.snapshots(image) if name.startswith("brs-")]) == 1
    assert world.look(image).watchers == []


def test_a_run_that_died_after_its_point_was_stored_is_gone_on_from(world: World, repo: Repository) -> None:
    image = world.image()
    from node_agent.drivers.ceph.journal import Entry

    point = world.back_up(repo, image)
    [kept] = world.snapshots(image)
    now = world.look(image)
    with world.journal().under_way(Entry(world.state.fsid, "rbd", now.id, kept, "snapshot")):
        pass  # stored, and never acknowledged
    second = world.back_up(repo, image, point)
    assert (second.read, second.notes) == (0, [])


def test_snapshots_are_told_by_their_owners_and_those_of_one_can_be_removed(world: World, repo: Repository) -> None:
    image = world.image(8 * MIB)
    world.back_up(repo, image)
    world.back_up(repo, image, owner="feedbeef")
    world.guest(image, ["snapshot", "brs-undo-7"], ["snapshot", "manual"])
    with world.connect() as cluster:
        now = find(cluster, ImageRef("rbd", image))
        ours, theirs = [f"rbd/{image}@brs-{owner}-1" for owner in (OWNER, "feedbeef")]
        assert kept_by_owner(now) == {OWNER: [ours], "feedbeef": [theirs]}
        remove(cluster, ours_on(now, "feedbeef")[0])
        now = find(cluster, ImageRef("rbd", image))
        assert kept_by_owner(now) == {OWNER: [ours]}
        assert release(cluster, now, OWNER) == []
    assert world.snapshots(image) == ["brs-undo-7", "manual"]


def test_a_kept_snapshot_that_somebody_cloned_stays_and_is_said(world: World, repo: Repository) -> None:
    image = world.image(8 * MIB)
    first = world.back_up(repo, image)
    [kept] = world.snapshots(image)
    world.lab.rbd("snap", "protect", f"rbd/{image}@{kept}")
    second = world.back_up(repo, image, first)
    assert (second.read, len(world.snapshots(image))) == (0, 2)
    with world.connect() as cluster:
        [problem] = release(cluster, find(cluster, ImageRef("rbd", image)), OWNER, keep=[])[:1]
        assert "protected or has clones" in problem.message
    world.lab.rbd("snap", "unprotect", f"rbd/{image}@{kept}")


def test_ceph_errors_render(world: World) -> None:
    def tree(root: type[CephError]) -> list[type[CephError]]:
        return [root, *(one for child in root.__subclasses__() for one in tree(child))]

    for error in (*tree(CephError), CephMissing):
        shown = error()
        assert shown.message.endswith(".") and len(shown.hint) > 10 and shown.code == shown.code.lower()
