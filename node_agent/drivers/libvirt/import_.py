"""The way back: a machine out of a restore point onto a hypervisor, or one of its disks.

Disks are written beside their places under names of their own, and put there when all are whole; then the machine is
defined. Whatever fails before that leaves the hypervisor as it was: files of the same path come back, a machine that
was replaced is defined again. A machine that is there and cannot be started stays, and says why.
"""

from __future__ import annotations

import json
import posixpath
import re
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from node_agent.drivers.base import DiskReader
from node_agent.drivers.libvirt import import_rbd
from node_agent.drivers.libvirt.access import ImportRequest
from node_agent.drivers.libvirt.errors import HypervisorError
from node_agent.drivers.libvirt.host import Host, is_uuid
from node_agent.drivers.libvirt.import_disk import file_target, write_disk
from node_agent.drivers.libvirt.import_xml import Placed, rewritten
from node_agent.drivers.libvirt.inventory import Vm, describe, machines
from node_agent.drivers.libvirt.journal import Entry, Journal
from node_agent.drivers.libvirt.metadata import NVRAM_FILE, TPM_FILE, VM_FILE
from node_agent.drivers.libvirt.rbd import RbdSource
from node_agent.drivers.libvirt.xml import parse
from node_agent.errors import TargetError, TargetExists
from node_agent.items import printable

FORMATS = ("raw", "qcow2")


@dataclass(frozen=True, slots=True)
class Imported:
    uuid: str
    name: str
    disks: Mapping[str, str]  # path by target
    started: bool
    notes: list[str]


@dataclass(slots=True)
class _Import:
    host: Host
    request: ImportRequest
    name: str
    placed: dict[str, Placed]
    replaced: Vm | None = None
    before: str = ""  # description of the replaced one
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def folder(self) -> str:
        return f"{self.host.access.scratch.rstrip('/')}/brs-import-{self.run}"

    def beside(self, placed: Placed, what: str) -> str:
        folder, name = posixpath.split(placed.path)
        return f"{folder}/.brs-import-{self.run}-{what}-{name}"

    def files(self) -> list[list[str]]:
        there = [one for one in self.placed.values() if one.rbd is None]
        return [[one.path, self.beside(one, "new"), self.beside(one, "old")] for one in there]

    def images(self) -> list[dict[str, Any]]:
        return [import_rbd.entry_of(one, self.run) for one in self.placed.values() if one.rbd is not None]


def import_machine(
    host: Host,
    journal: Journal,
    point: Mapping[str, bytes],
    disks: Mapping[str, DiskReader],
    request: ImportRequest,
    tick: Callable[[str, int], None] = lambda _disk, _bytes: None,
) -> Imported:
    """``point``: the small files of the restore point; ``disks``: readers of its disks by target.

    Raises TargetExists where something is there and may not be overwritten, TargetError, TargetFull.
    """
    settle_import(host, journal)
    described = _described(point)
    work = _planned(host, described, disks, request)
    xml, uuid, notes = rewritten(described["xml"], request, work.name, work.placed)
    _refuse_twin(host, uuid, work)
    entry = Entry(
        host.access.shown, uuid, work.folder, files=work.files(), images=work.images(), defined=uuid, before=work.before
    )
    journal.write(entry)
    try:
        for target, placed in work.placed.items():
            _write(work, disks[target], placed, tick)
        _put_in_place(work, xml, uuid, point)
        journal.write(replace(entry, done=True))
    finally:
        notes += settle_import(host, journal)
    if request.start:
        notes += _start(host, uuid)
    started = request.start and host.state(uuid) == "running"
    return Imported(uuid, work.name, {target: placed.path for target, placed in work.placed.items()}, started, notes)


def settle_import(host: Host, journal: Journal) -> list[str]:
    """Remove what an import left beside the disks' places; one that failed or died is undone. What stays, in words."""
    entry = journal.read()
    if entry is None:
        return []
    folder = shlex.quote(entry.folder)
    lines = [f'[ -e {folder}/import.pid ] && kill "$(cat {folder}/import.pid)"']
    for names in entry.files:
        path, new, old = map(shlex.quote, names)
        if not entry.done:  # what lies in the place is ours if it is no longer beside it and was written there
            lines.append(f"if [ -e {new}.written ] && [ ! -e {new} ]; then rm -f {path}; fi")
            lines.append(f"if [ -e {old} ]; then mv -T {old} {path}; fi")
        lines.append(f"rm -f {new} {new}.written {old}")
    for image in entry.images:
        lines += import_rbd.settle_lines(host, image, entry.folder, done=entry.done)
    lines.append(f"rm -rf {folder}")
    said = host.shell("\n".join(lines), timeout_s=import_rbd.REMOVE_S if entry.images else 120.0)
    if not entry.done and entry.defined:
        _undo_definition(host, entry)
    journal.clear()
    return import_rbd.notes_of(said)


def _undo_definition(host: Host, entry: Entry) -> None:
    replaced = parse(entry.before, "domain").findtext("uuid", "") if entry.before else ""
    if entry.defined != replaced and host.try_virsh("domstate", entry.defined).code == 0:
        host.virsh("undefine", entry.defined, "--keep-nvram")
    if entry.before:
        host.virsh("define", "/dev/stdin", given=entry.before)


# --- what goes where ---


def _described(point: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        described = json.loads(point[VM_FILE])
        if described["platform"] != "libvirt" or not isinstance(described["xml"], str):
            raise ValueError
    except (KeyError, ValueError, TypeError) as error:
        raise TargetError(
            "The restore point does not describe a virtual machine of libvirt.",
            hint="Restore its disks as images, and define the machine by hand.",
        ) from error
    return dict(described)


def _planned(
    host: Host, described: Mapping[str, Any], disks: Mapping[str, DiskReader], request: ImportRequest
) -> _Import:
    name = request.name or str(described["name"])
    if not re.fullmatch(r"[^/\x00-\x1f]{1,200}", name):
        raise TargetError(f"{printable(name)!r} cannot be a machine's name.", hint="Leave out slashes and controls.")
    if request.format not in ("", *FORMATS):
        raise TargetError(f"Disks are written as raw or qcow2, not as {request.format!r}.", hint="Choose one.")
    chosen = list(request.disks) or list(disks)
    if absent := [target for target in chosen if target not in disks]:
        raise TargetError(f"The restore point has no disk {absent[0]}.", hint=f"It has {', '.join(sorted(disks))}.")
    there = machines(host)
    replaced = next((vm for vm in there if vm.name == name), None)
    if replaced is not None:
        _may_replace(replaced, request)
    known = {disk["target"]: disk for disk in described["disks"]}
    images = {disk.target: disk.rbd for disk in describe(described["xml"], "").disks}
    placed = {
        target: _place(known.get(target, {}), target, name, described, request, images.get(target)) for target in chosen
    }
    import_rbd.require(host, list(placed.values()))
    before = host.virsh("dumpxml", "--inactive", "--security-info", replaced.uuid) if replaced is not None else ""
    work = _Import(host, request, name, placed, replaced, before)
    _check_places(work, there)
    return work


def _may_replace(vm: Vm, request: ImportRequest) -> None:
    if not request.overwrite:
        raise TargetExists(
            f"The hypervisor has a machine {vm.name} already.", hint="Choose another name, or allow overwriting."
        )
    if vm.running:
        raise TargetExists(f"The machine {vm.name} is {vm.state}.", hint="Shut it down before it is overwritten.")


def _place(
    known: Mapping[str, Any],
    target: str,
    name: str,
    described: Mapping[str, Any],
    request: ImportRequest,
    image: RbdSource | None,
) -> Placed:
    if image is not None and not request.folder.startswith("/"):  # no folder: it becomes an image again
        same = name == described["name"] and request.folder in ("", image.pool)
        placed = image.called(image.image if same else f"{name}-{target}", request.folder)
        return Placed(target, placed.path, "raw", placed)
    source = str(known.get("source", "")) if known.get("kind") == "file" else ""
    kept = str(known.get("format", "")) if known.get("format") in FORMATS else "qcow2"
    format = request.format or kept
    # A pool is for images; files stay in their folders then.
    folder = request.folder if request.folder.startswith("/") else posixpath.dirname(source)
    if not folder.startswith("/"):
        raise TargetError(
            f"It is not known where the disk {target} is to lie.", hint="Give a folder on the hypervisor for the disks."
        )
    same = source and name == described["name"] and format == kept and folder == posixpath.dirname(source)
    file = posixpath.basename(source) if same else f"{name}-{target}.{'img' if format == 'raw' else format}"
    return Placed(target, posixpath.join(posixpath.normpath(folder), file), format)


def _check_places(work: _Import, there: list[Vm]) -> None:
    host, replaced, request = work.host, work.replaced, work.request
    paths = [one.path for one in work.placed.values()]
    if len(set(paths)) != len(paths):
        raise TargetError("Two disks would lie at one path.", hint="Restore them into different folders.")
    for vm in there:
        for disk in vm.disks:
            if (replaced is None or vm.uuid != replaced.uuid) and {disk.source, *disk.below} & set(paths):
                raise TargetExists(
                    f"The image {disk.source} belongs to the machine {vm.name}.", hint="Choose a folder."
                )
    states = {
        one.path: import_rbd.state_of(host, one.rbd, work.folder) for one in work.placed.values() if one.rbd is not None
    }
    if used := [path for path, state in states.items() if state == "in use"]:
        raise TargetExists(f"The image {used[0]} is in use.", hint="“rbd status POOL/IMAGE” says by whom.")
    if request.overwrite:
        return
    files = [path for path, _new, _old in work.files()]
    script = "\n".join(f"[ ! -e {shlex.quote(path)} ] || echo {shlex.quote(path)}" for path in files)
    found = host.shell(script + "\n:").splitlines()
    found += [path for path, state in states.items() if state != "absent"]
    if found:
        raise TargetExists(f"{found[0]} exists on the hypervisor.", hint="Choose a folder, or allow overwriting.")


def _refuse_twin(host: Host, uuid: str, work: _Import) -> None:
    if not is_uuid(uuid):
        raise TargetError("The machine's description has no UUID.")
    if work.replaced is not None and work.replaced.uuid == uuid:
        return
    if host.try_virsh("domstate", uuid).code == 0:
        raise TargetExists(
            "The hypervisor has a machine of this UUID under another name.", hint="Ask for a new identity."
        )


# --- doing it ---


def _write(work: _Import, reader: DiskReader, placed: Placed, tick: Callable[[str, int], None]) -> None:
    folder = shlex.quote(work.folder)
    if placed.rbd is not None:
        work.host.shell(f"umask 077; mkdir -p {folder}")
        new = import_rbd.passing(import_rbd.entry_of(placed, work.run))
        target = import_rbd.target(work.host, new, reader.size, work.folder)
    else:
        parent = shlex.quote(posixpath.dirname(placed.path))
        # qemu, which is another user, must pass through a folder that is made for it.
        work.host.shell(f"(umask 077; mkdir -p {folder}) && (umask 066; mkdir -p {parent})")
        target = file_target(work.beside(placed, "new"), placed.format, reader.size)
    write_disk(work.host, reader, target, work.folder, partial(tick, placed.target))


def _put_in_place(work: _Import, xml: str, uuid: str, point: Mapping[str, bytes]) -> None:
    """Files, definition, firmware."""
    host, replaced = work.host, work.replaced
    if replaced is not None and host.state(replaced.uuid) != "shut off":
        raise TargetExists(f"The machine {work.name} was started meanwhile.", hint="Shut it down, and try again.")
    for names in work.files():
        _swap_in(host, names)
    for image in work.images():
        import_rbd.swap_in(host, image, work.folder, overwrite=work.request.overwrite)
    if replaced is not None and replaced.uuid != uuid:
        host.virsh("undefine", replaced.uuid, "--keep-nvram", "--checkpoints-metadata")
    host.virsh("define", "/dev/stdin", given=xml)
    _firmware(host, xml, uuid, point)


def _swap_in(host: Host, names: Sequence[str]) -> None:
    """Into its place; a file that was there goes aside, and gives its owner and mode."""
    path, new, old = map(shlex.quote, names)
    host.shell(
        f"""set -e
: >{new}.written
if [ -e {path} ]; then
  chown --reference={path} {new}
  chmod --reference={path} {new}
  mv -T {path} {old}
fi
mv -T {new} {path}"""
    )


def _firmware(host: Host, xml: str, uuid: str, point: Mapping[str, bytes]) -> None:
    nvram = parse(xml, "domain").findtext("os/nvram", "")
    if nvram and NVRAM_FILE in point:
        path = shlex.quote(nvram)
        host.shell(f"umask 077; mkdir -p {shlex.quote(posixpath.dirname(nvram))}; cat >{path}", given=point[NVRAM_FILE])
    if TPM_FILE in point:
        folder = shlex.quote(f"/var/lib/libvirt/swtpm/{uuid}")
        host.shell(f"umask 077; mkdir -p {folder} && tar -C {folder} -xf -", given=point[TPM_FILE])


def _start(host: Host, uuid: str) -> list[str]:
    try:
        host.virsh("start", uuid)
    except HypervisorError as error:
        return [f"The machine is restored, and cannot be started: {error.message}"]
    return []


def attach_disk(
    host: Host,
    journal: Journal,
    machine: str,
    reader: DiskReader,
    placed: Placed,
    tick: Callable[[str, int], None] = lambda _disk, _bytes: None,
) -> None:
    """Restore one disk and give it to a machine that is there, as ``placed.target`` (running or not)."""
    settle_import(host, journal)
    work = _Import(host, ImportRequest(), "", {placed.target: placed})
    there = machines(host)
    vm = next((vm for vm in there if vm.uuid == machine), None)
    if vm is None:
        raise TargetError("The machine to attach the disk to is gone.", hint="Discover the platform again.")
    if any(disk.target == placed.target for disk in vm.disks):
        raise TargetExists(f"{vm.name} has a disk {placed.target} already.", hint="Choose another target name.")
    _check_places(work, there)
    entry = Entry(host.access.shown, machine, work.folder, files=work.files())
    journal.write(entry)
    words = ["attach-disk", machine, placed.path, placed.target, "--driver", "qemu", "--subdriver", placed.format]
    words += ["--sourcetype", "file", *(["--live"] if vm.running else []), *(["--config"] if vm.persistent else [])]
    try:
        _write(work, reader, placed, tick)
        _swap_in(host, work.files()[0])
        host.virsh(*words)
        journal.write(replace(entry, done=True))
    finally:
        settle_import(host, journal)
