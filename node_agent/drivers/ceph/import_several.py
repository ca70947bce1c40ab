"""The way back of a point with several images: where each goes, all of them or none, and the group around them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from node_agent.drivers.base import DiskContent
from node_agent.drivers.ceph.access import CephAccess
from node_agent.drivers.ceph.cluster import CephMissing, Cluster
from node_agent.drivers.ceph.groups import Group, group_of
from node_agent.drivers.ceph.import_ import ImportOptions, ImportResult, import_image
from node_agent.drivers.ceph.inventory import describe
from node_agent.drivers.ceph.journal import Journal
from node_agent.drivers.ceph.tracking import read_facts
from node_agent.errors import BrsError, TargetError, TargetExists
from node_agent.items import printable
from node_agent.progress import Progress


def placed(
    machine: str, name: str, pool: str, metadata: Mapping[str, bytes], disks: Sequence[str], *, overwrite: bool
) -> dict[str, ImportOptions]:
    """Where each disk goes. The images of a group keep their names if the group keeps its own; otherwise they get the
    new name with the disk's behind it. ``pool`` empty: where each was."""
    group, facts = group_of(machine), read_facts(metadata)
    own = machine.partition("/")[2].rpartition("/")[0]
    places = {}
    for disk in disks:
        known = facts.get(disk, {})
        if group is None:
            wanted = name
        elif name in ("", group.name):
            wanted = str(known.get("image", disk))
        else:
            wanted = name if len(disks) == 1 else f"{name}-{disk}"
        places[disk] = ImportOptions(pool or str(known.get("pool", own)), wanted, overwrite=overwrite)
    if len({(one.pool, one.name) for one in places.values()}) < len(places):
        raise TargetError("Two images would have one name.", hint="Restore them one by one, or into their own pools.")
    return places


def import_images(
    access: CephAccess,
    journal: Journal,
    places: Mapping[str, ImportOptions],
    sources: Mapping[str, DiskContent],
    metadata: Mapping[str, bytes],
    progress: Progress,
) -> list[ImportResult]:
    """As :func:`import_image` for each, by the disk's name. An error removes the new images again; one that was
    overwritten before the error stays as restored, and the error says so."""
    if len(places) > 1:
        _refuse_existing(access, places)
    done: list[ImportResult] = []
    for disk, options in places.items():
        try:
            done.append(import_image(access, journal, options, sources[disk], metadata, disk, progress))
        except BaseException as error:
            stay = _take_back(access, done)
            if stay and isinstance(error, BrsError):
                error.message += f" These are restored already, and stay: {', '.join(stay)}."
            raise
    if len(places) > 1:
        done[-1].notes += _regroup(access, metadata, done)
    return done


def _refuse_existing(access: CephAccess, places: Mapping[str, ImportOptions]) -> None:
    with Cluster(access) as cluster:
        for options in places.values():
            if options.overwrite or options.pool not in access.pools:
                continue
            try:
                there = describe(cluster, options.pool, name=options.name)
            except CephMissing:
                continue
            raise TargetExists(f"The image {printable(there.spec)} exists already.", hint="Give another name.")


def _take_back(access: CephAccess, done: Sequence[ImportResult]) -> list[str]:
    """What could not be taken back, by name."""
    stay = [printable(f"{one.pool}/{one.name}") for one in done if one.how != "new"]
    new = [one for one in done if one.how == "new"]
    if not new:
        return stay
    try:
        with Cluster(access) as cluster:
            for one in new:
                cluster.call("remove", pool=one.pool, name=one.name, image_id=one.image_id)
    except BrsError:
        stay += [printable(f"{one.pool}/{one.name}") for one in new]
    return stay


def _regroup(access: CephAccess, metadata: Mapping[str, bytes], done: Sequence[ImportResult]) -> list[str]:
    """New images make a group of their own, next to the one that they come from. What is not as it was, in words."""
    try:
        was = json.loads(metadata["vm.json"])["group"]
        group = Group(str(was["pool"]), str(was["name"]))
    except (KeyError, TypeError, ValueError):
        return []
    new = [one for one in done if one.how == "new"]
    if not new:
        return []
    try:
        with Cluster(access) as cluster:
            taken = set(cluster.call("list_groups", pool=group.pool))
            number = 1
            name = group.name
            while name in taken:
                number += 1
                name = f"{group.name}-{number}"
            cluster.call("create_group", pool=group.pool, name=name)
            for one in new:
                cluster.call("add_to_group", pool=group.pool, group=name, image_pool=one.pool, image=one.name)
    except BrsError as error:
        return [f"The images are restored, but not put into a group: {error.message}"]
    return [f"The images are in the group {printable(f'{group.pool}/{name}')}."]
