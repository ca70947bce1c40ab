"""Where a restore may go and what of: every door is tried."""

from __future__ import annotations

import uuid

import pytest

from apps.catalog import browse as lists
from apps.catalog.models import CopyState, PointCopy, RestorePoint
from apps.errors import Conflict, Denied, Invalid, NotFound, TooLarge
from apps.iam.models import AuditEvent
from apps.inventory.models import Platform, PlatformKind, Workload
from apps.jobs import requests
from apps.jobs.models import Job
from node_agent import protocol
from node_agent.protocol import Entry, RestoreTarget
from tests.apps.acting import ActingNode
from tests.world import make_node


@pytest.fixture
def alpha(world):
    """Alpha, whose node may write to /restore and to /srv."""
    world.alpha.node.roots["write"].append("/srv")
    world.alpha.node.save()
    return world.alpha


@pytest.fixture
def image(alpha):
    """A point of a disk image on Alpha's node."""
    platform = Platform.objects.create(tenant=alpha.tenant, kind=PlatformKind.IMAGE, name="images", node=alpha.node)
    workload = Workload.objects.create(
        tenant=alpha.tenant,
        platform=platform,
        name="disk",
        source={"path": "/srv/vm/disk.qcow2", "format": "qcow2", "disk": "disk"},
    )
    RestorePoint.objects.filter(pk=alpha.point.pk).update(workload=workload)
    alpha.point.refresh_from_db()
    return alpha.point


def to(path: str, **more) -> RestoreTarget:
    return RestoreTarget(**{"driver": "files", "path": path, **more})


def restore(user, house, target: RestoreTarget, **more) -> Job:
    return requests.restore(user, house.point, **{"chosen": [], "node": None, "target": target, **more})


def know_files(house) -> None:
    """The server knows: /srv/documents/ (a.txt, big.bin, sub/)."""
    srv, documents, sub = (uuid.uuid4().hex * 2 for _ in range(3))
    lists.add(
        house.repository,
        [
            protocol.Directory(tree_id=tree_id, entries=entries)
            for tree_id, entries in {
                house.copy.tree_id: [Entry(name="srv", type="dir", tree=srv)],
                srv: [Entry(name="documents", type="dir", tree=documents)],
                documents: [
                    Entry(name="a.txt", type="file", size=5),
                    Entry(name="big.bin", type="file", size=2**50),
                    Entry(name="sub", type="dir", tree=sub),
                ],
                sub: [],
            }.items()
        ],
    )


def test_a_restore_is_what_a_node_can_lease(world, alpha):
    job = restore(world.operator, alpha, to("/restore//here/"), chosen=["/srv/documents/a.txt"], verify=True)
    leased = ActingNode(alpha.node).take()
    spec = leased.spec
    assert leased.job_id == job.pk
    assert (spec.kind, spec.snapshot_id, spec.include) == ("restore", alpha.copy.snapshot_id, ["/srv/documents/a.txt"])
    assert (spec.target.path, spec.target.in_place, spec.verify) == ("/restore/here", False, True)
    assert spec.repository.password == alpha.repository_password
    event = AuditEvent.objects.get(verb="restore.requested")
    assert event.detail["target"]["path"] == "/restore/here"
    assert event.detail["node"] == "alpha-node"


@pytest.mark.parametrize("path", ["", "restore", "/restore/../etc", "/restore/..", "/restore\x00", "/" + "x" * 5000])
def test_a_target_that_is_no_clean_absolute_path_is_refused(world, alpha, path):
    with pytest.raises(Invalid):
        restore(world.owner, alpha, to(path))


def test_a_target_outside_of_the_nodes_roots_is_refused_with_what_is_allowed(world, alpha):
    with pytest.raises(Invalid, match="may not write to “/etc”") as refused:
        restore(world.owner, alpha, to("/etc"))
    assert refused.value.error_code == "outside-roots"
    assert "/restore" in refused.value.hint


def test_in_place_where_the_node_may_not_write_is_refused(world, alpha):
    alpha.node.roots["write"] = ["/restore"]
    alpha.node.save()
    with pytest.raises(Invalid, match="/srv/documents"):
        restore(world.owner, alpha, to("", in_place=True))


def test_the_wrong_driver_is_refused(world, alpha):
    with pytest.raises(Invalid, match="“files”"):
        restore(world.owner, alpha, to("/restore/x", driver="image"))


def test_an_unknown_staging_is_refused(world, alpha):
    with pytest.raises(Invalid):
        restore(world.owner, alpha, to("/restore/x"), staging="tape")


@pytest.mark.parametrize("path", ["/", "/srv/documents", "/srv/documents/below", "/srv/letters/x"])
def test_elsewhere_onto_protected_data_needs_the_right_to_restore_in_place(world, alpha, path):
    alpha.node.roots["write"] = ["/"]
    alpha.node.save()
    Workload.objects.create(
        tenant=alpha.tenant, platform=alpha.platform, name="letters", source={"paths": ["/srv/letters"]}
    )
    elsewhere = to(path, overwrite="always")
    with pytest.raises(Denied):
        restore(world.operator, alpha, elsewhere)
    restore(world.admin, alpha, elsewhere)


def test_beside_the_protected_data_is_elsewhere(world, alpha):
    restore(world.operator, alpha, to("/srv"))  # lands at /srv/srv/documents


def test_onto_what_another_tenant_protects_on_a_shared_node_nobody_restores(world, alpha):
    Platform.objects.filter(pk=world.beta.platform.pk).update(node=alpha.node)
    Workload.objects.filter(pk=world.beta.workload.pk).update(source={"paths": ["/srv/secret"]})
    with pytest.raises(Conflict, match="somebody else"):
        restore(world.owner, alpha, to("/srv/secret/x"))


def test_in_place_goes_to_the_node_the_data_came_from(world, alpha):
    job = restore(world.admin, alpha, to("/ignored", in_place=True))
    assert job.tasks.get().requires == [f"node:{alpha.node.pk}", "driver:files"]
    other, _token = make_node("alpha-second", alpha.tenant)
    alpha.destination.nodes.add(other)
    with pytest.raises(Invalid, match="alpha-node"):
        restore(world.admin, alpha, to("", in_place=True), node=other)


def test_two_restores_in_place_exclude_one_another(world, alpha):
    first = restore(world.admin, alpha, to("", in_place=True))
    second = restore(world.admin, alpha, to("", in_place=True, overwrite="always"))
    third = restore(world.admin, alpha, to("/restore/x"))
    gates = [job.tasks.get().excludes for job in (first, second, third)]
    assert gates[0] == gates[1] != gates[2]
    node = ActingNode(alpha.node)
    assert node.take().job_id == first.pk
    assert node.take().job_id == third.pk


def test_a_node_that_does_not_reach_the_repository_is_refused(world, alpha):
    other, _token = make_node("alpha-second", alpha.tenant)
    with pytest.raises(Conflict, match="does not reach"):
        restore(world.operator, alpha, to("/restore/x"), node=other)
    alpha.destination.nodes.add(other)
    job = restore(world.operator, alpha, to("/restore/x"), node=other)
    assert job.tasks.get().requires[0] == f"node:{other.pk}"


def test_without_a_choice_the_workloads_own_node_is_taken_if_it_reaches_the_repository(world, alpha):
    other, _token = make_node("aaa-second", alpha.tenant)
    alpha.destination.nodes.add(other)
    assert restore(world.operator, alpha, to("/restore/x")).tasks.get().requires[0] == f"node:{alpha.node.pk}"
    alpha.destination.nodes.remove(alpha.node)
    assert restore(world.operator, alpha, to("/restore/x")).tasks.get().requires[0] == f"node:{other.pk}"
    alpha.destination.nodes.clear()
    with pytest.raises(Conflict, match="No node reaches"):
        restore(world.operator, alpha, to("/restore/x"))


def test_another_tenants_node_does_not_exist(world, alpha):
    alpha.destination.nodes.add(world.beta.node)
    for person in (world.owner, world.root):
        with pytest.raises(NotFound):
            restore(person, alpha, to("/restore/x"), node=world.beta.node)


def test_a_shared_node_may_be_the_target(world, alpha):
    alpha.destination.nodes.add(world.shared_node)
    restore(world.operator, alpha, to("/restore/x"), node=world.shared_node)


def test_chosen_paths_must_exist_when_the_list_is_known(world, alpha):
    restore(world.operator, alpha, to("/restore/x"), chosen=["/srv/documents/unknown"])
    know_files(alpha)
    with pytest.raises(NotFound, match="unknown"):
        restore(world.operator, alpha, to("/restore/x"), chosen=["/srv/documents/a.txt", "/srv/documents/unknown"])
    job = restore(world.operator, alpha, to("/restore/x"), chosen=["/srv/documents/sub/", "/srv/documents/a.txt"] * 2)
    assert job.tasks.get().spec["include"] == ["/srv/documents/sub", "/srv/documents/a.txt"]


@pytest.mark.parametrize("path", ["a.txt", "/srv/../etc", "/a\x00"])
def test_chosen_paths_that_climb_are_refused(world, alpha, path):
    with pytest.raises(Invalid):
        restore(world.operator, alpha, to("/restore/x"), chosen=[path])


def test_choosing_the_root_is_choosing_everything(world, alpha):
    assert restore(world.operator, alpha, to("/restore/x"), chosen=["/"]).tasks.get().spec["include"] == []


def test_a_point_is_read_from_a_copy_that_is_there(world, alpha):
    PointCopy.objects.filter(pk=alpha.copy.pk).update(state=CopyState.DAMAGED)
    restore(world.operator, alpha, to("/restore/x"))
    PointCopy.objects.filter(pk=alpha.copy.pk).update(state=CopyState.MISSING)
    with pytest.raises(Conflict, match="No repository holds"):
        restore(world.operator, alpha, to("/restore/x"))


def test_staging_on_disk_fetches_then_imports_on_one_node(world, alpha):
    job = restore(world.operator, alpha, to("/restore/x"), staging="disk")
    fetch, place = job.tasks.order_by("ordinal")
    assert (fetch.kind, place.kind, place.after, place.same_node) == ("fetch", "import", fetch, True)
    assert place.repository is None
    assert fetch.spec["staging"] == place.spec["staging"] != ""
    assert place.excludes and not fetch.excludes


# --- disk images ----------------------------------------------------------------------------------------


def test_an_image_goes_to_a_file(world, alpha, image):
    job = restore(world.operator, alpha, to("/restore/new.raw", driver="image"))
    spec = job.tasks.get().spec
    assert spec["target"]["path"] == "/restore/new.raw"
    assert job.tasks.get().requires[1] == "driver:image"
    with pytest.raises(Invalid, match="raw or qcow2"):
        restore(world.operator, alpha, to("/restore/new", driver="image", format="vmdk"))
    with pytest.raises(Invalid, match="“image”"):
        restore(world.operator, alpha, to("/restore/new"))


def test_an_image_in_place_keeps_its_file_and_format(world, alpha, image):
    job = restore(world.admin, alpha, to("/ignored", driver="image", in_place=True, overwrite="always"))
    target = job.tasks.get().spec["target"]
    assert (target["path"], target["format"]) == ("/srv/vm/disk.qcow2", "qcow2")


@pytest.mark.parametrize("path", ["/srv/vm/disk.qcow2", "/srv/vm"])
def test_an_image_elsewhere_onto_itself_needs_the_right_to_restore_in_place(world, alpha, image, path):
    with pytest.raises(Denied):
        restore(world.operator, alpha, to(path, driver="image", overwrite="always"))


def test_a_node_without_the_driver_is_refused(world, alpha, image):
    alpha.node.drivers = ["files"]
    alpha.node.save()
    with pytest.raises(Conflict, match="cannot restore this kind"):
        restore(world.operator, alpha, to("/restore/new.raw", driver="image"), node=alpha.node)


# --- single files and lists -----------------------------------------------------------------------------


def test_a_download_is_bound_to_its_user_and_leased_by_a_node(world, alpha):
    know_files(alpha)
    download = requests.download(world.operator, alpha.point, "/srv/documents/a.txt")
    assert (download.user, download.file_name, download.size_bytes) == (world.operator, "a.txt", 5)
    spec = ActingNode(alpha.node).take().spec
    assert (spec.kind, spec.path) == ("download", "/srv/documents/a.txt")
    assert spec.max_bytes > 0


def test_folders_absent_files_and_too_large_ones_are_not_downloaded(world, alpha):
    know_files(alpha)
    with pytest.raises(Invalid, match="not a file"):
        requests.download(world.operator, alpha.point, "/srv/documents/sub")
    with pytest.raises(Invalid):
        requests.download(world.operator, alpha.point, "/")
    with pytest.raises(NotFound):
        requests.download(world.operator, alpha.point, "/srv/documents/absent")
    with pytest.raises(TooLarge):
        requests.download(world.operator, alpha.point, "/srv/documents/big.bin")


def test_a_file_with_an_odd_name_gets_a_usable_one(world, alpha):
    download = requests.download(world.operator, alpha.point, r"/srv/say \"hi\" \xff.txt")
    assert download.file_name == r'say "hi" \xff.txt'
    assert download.job.tasks.get().spec["path"] == r"/srv/say \"hi\" \xff.txt"


def test_however_many_ask_for_the_list_of_files_one_job_reads_it(world, alpha):
    assert requests.browse(world.viewer, alpha.point) == requests.browse(world.operator, alpha.point)
    assert ActingNode(alpha.node).take().spec.kind == "browse"
