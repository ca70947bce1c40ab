"""The way back: a machine out of a restore point onto a hypervisor, or one of its disks.

Disks are written beside their places under names of their own, and put there when all are whole; then the machine is
defined; the firmware's files likewise. Whatever fails before that leaves the hypervisor as it was (see
:mod:`node_agent.drivers.libvirt.import_undo`): files of the same path come back, a machine that was replaced is defined
again. A machine that is there and cannot be started stays, and says why.
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
from node_agent.drivers.libvirt.host import Host, is_uuid, refusal
from node_agent.drivers.libvirt.import_disk import file_target, write_disk
from node_agent.drivers.libvirt.import_undo import settle_import
from node_agent.drivers.libvirt.import_xml import Placed, rewritten
from node_agent.drivers.libvirt.inventory import Vm, describe, machine, machines
from node_agent.drivers.libvirt.journal import Entry, Journal
from node_agent.drivers.libvirt.metadata import NVRAM_FILE, TPM_FILE, VM_FILE
from node_agent.drivers.libvirt.rbd import RbdSource
from node_agent.drivers.libvirt.xml import parse
from node_agent.errors import TargetError, TargetExists
from node_agent.items import printable

FORMATS = ("raw", "qcow2")
TPM_FOLDER = "/var/lib/libvirt/swtpm"
_TAKEN = 17


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
    firmware: dict[str, bytes] = field(default_factory=dict)  # by place: variables, or the archive of a TPM's folder
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def folder(self) -> str:
        return f"{self.host.access.scratch.rstrip('/')}/brs-import-{self.run}"

    def beside(self, path: str, what: str) -> str:
        folder, name = posixpath.split(path)
        return f"{folder}/.brs-import-{self.run}-{what}-{name}"

    def files(self) -> list[list[str]]:
        there = [*(one.path for one in self.placed.values() if one.rbd is None), *self.firmware]
        return [[path, self.beside(path, "new"), self.beside(path, "old")] for path in there]

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
    described = _described(point)
    work = _planned(host, described, disks, request)
    xml, uuid, notes = rewritten(described["xml"], request, work.name, work.placed)
    _refuse_twin(host, uuid, work)
    work.firmware = _firmware(xml, uuid, point)
    _check_places(work)
    entry = Entry(
        host.access.shown, uuid, work.folder, files=work.files(), images=work.images(), defined=uuid, before=work.before
    )
    journal.write(entry)
    try:
        for target, placed in work.placed.items():
            _write(work, disks[target], placed, tick)
        for path, content in work.firmware.items():
            _write_firmware(work, path, content)
        _put_in_place(work, xml, uuid)
        journal.write(replace(entry, done=True))
    finally:
        notes += settle_import(host, journal)
    if request.start:
        notes += _start(host, uuid)
    started = request.start and host.state(uuid) == "running"
    return Imported(uuid, work.name, {target: placed.path for target, placed in work.placed.items()}, started, notes)


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
    replaced = next((vm for vm in machines(host) if vm.name == name), None)
    if replaced is not None:
        _may_replace(host, replaced, request)
    known = {disk["target"]: disk for disk in described["disks"]}
    images = {disk.target: disk.rbd for disk in describe(described["xml"], "").disks}
    placed = {
        target: _place(known.get(target, {}), target, name, described, request, images.get(target)) for target in chosen
    }
    import_rbd.require(host, list(placed.values()))
    before = host.virsh("dumpxml", "--inactive", "--security-info", replaced.uuid) if replaced is not None else ""
    return _Import(host, request, name, placed, replaced, before)


def _may_replace(host: Host, vm: Vm, request: ImportRequest) -> None:
    if not request.overwrite:
        raise TargetExists(
            f"The hypervisor has a machine {vm.name} already.", hint="Choose another name, or allow overwriting."
        )
    if vm.running:
        raise TargetExists(f"The machine {vm.name} is {vm.state}.", hint="Shut it down before it is overwritten.")
    if vm.saved:  # its memory would be woken up over other disks
        raise TargetExists(
            f"The machine {vm.name} is saved with its memory.",
            hint="Start it and shut it down, or give its memory up: virsh managedsave-remove.",
        )
    if vm.tpm and host.connection.run("virsh help undefine | grep -q -e --keep-tpm").code:
        raise TargetExists(
            f"The machine {vm.name} has a TPM, whose state a libvirt older than 8.9 loses if the restore fails.",
            hint="Restore under another name.",
        )


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


def _check_places(work: _Import) -> None:
    host = work.host
    paths = [*(one.path for one in work.placed.values()), *work.firmware]
    if len(set(paths)) != len(paths):
        raise TargetError("Two disks would lie at one path.", hint="Restore them into different folders.")
    _refuse_others(work)
    states = {
        one.path: import_rbd.state_of(host, one.rbd, work.folder) for one in work.placed.values() if one.rbd is not None
    }
    if used := [path for path, state in states.items() if state == "in use"]:
        raise TargetExists(f"The image {used[0]} is in use.", hint="“rbd status POOL/IMAGE” says by whom.")
    if work.request.overwrite:
        return
    script = "\n".join(f"[ ! -e {shlex.quote(path)} ] || echo {shlex.quote(path)}" for path, _new, _old in work.files())
    found = host.shell(script + "\n:").splitlines()
    found += [path for path, state in states.items() if state != "absent"]
    if found:
        raise _exists(found[0])


def _exists(path: str) -> TargetExists:
    return TargetExists(
        f"{path} exists on the hypervisor.", hint="Choose another folder or name, or allow overwriting."
    )


def _refuse_others(work: _Import) -> None:
    """Whatever may be overwritten: never what belongs to another machine."""
    paths = {*(one.path for one in work.placed.values()), *work.firmware}
    for vm in machines(work.host):
        if work.replaced is not None and vm.uuid == work.replaced.uuid:
            continue
        for path in [vm.nvram, *_disks_of(work.host, vm)]:
            if path in paths:
                raise TargetExists(f"The image {path} belongs to the machine {vm.name}.", hint="Choose a folder.")


def _disks_of(host: Host, vm: Vm) -> list[str]:
    """As it is now, and of a running one also as it will be after its next start."""
    found = [path for disk in vm.disks for path in (disk.source, *disk.below)]
    if vm.running and vm.persistent:
        listed = host.virsh("domblklist", "--inactive", vm.uuid).splitlines()
        found += [words[1].strip() for line in listed if len(words := line.split(maxsplit=1)) == 2]
    return found


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
        target = file_target(work.beside(placed.path, "new"), placed.format, reader.size)
    write_disk(work.host, reader, target, work.folder, partial(tick, placed.target))


def _put_in_place(work: _Import, xml: str, uuid: str) -> None:
    """Files and definition. Hours may have passed since it was asked what is there."""
    host, replaced = work.host, work.replaced
    if replaced is not None:
        now = machine(host, replaced.uuid)
        if now.running or now.saved:
            raise TargetExists(f"The machine {work.name} was started meanwhile.", hint="Shut it down, and try again.")
    _refuse_others(work)
    for names in work.files():
        _swap_in(host, names, overwrite=work.request.overwrite)
    for image in work.images():
        import_rbd.swap_in(host, image, work.folder, overwrite=work.request.overwrite)
    if replaced is not None and replaced.uuid != uuid:
        keep_tpm = ["--keep-tpm"] if replaced.tpm else []  # older ones do not know the option
        host.virsh("undefine", replaced.uuid, "--keep-nvram", *keep_tpm, "--checkpoints-metadata")
    host.virsh("define", "/dev/stdin", given=xml)


def _swap_in(host: Host, names: Sequence[str], *, overwrite: bool) -> None:
    """Into its place; a file that was there goes aside, and gives its owner and mode."""
    path, new, old = map(shlex.quote, names)
    aside = f"""if [ -e {path} ]; then
  chown --reference={path} {new}
  chmod --reference={path} {new}
  mv -T {path} {old}
fi"""
    result = host.connection.run(
        f"""set -e
: >{new}.written
{aside if overwrite else ":"}
mv -nT {new} {path} || [ -e {new} ]
[ ! -e {new} ] || exit {_TAKEN}"""
    )
    if result.code == _TAKEN:  # somebody made it meanwhile
        raise _exists(names[0])
    if result.code:
        raise refusal("Putting a file in its place", result)


def _firmware(xml: str, uuid: str, point: Mapping[str, bytes]) -> dict[str, bytes]:
    nvram = parse(xml, "domain").findtext("os/nvram", "")
    found = {}
    if nvram and NVRAM_FILE in point:
        found[nvram] = point[NVRAM_FILE]
    if TPM_FILE in point:
        found[f"{TPM_FOLDER}/{uuid}"] = point[TPM_FILE]
    return found


def _write_firmware(work: _Import, path: str, content: bytes) -> None:
    new, folder = shlex.quote(work.beside(path, "new")), shlex.quote(posixpath.dirname(path))
    put = f"mkdir {new} && tar -C {new} -xf -" if path.startswith(TPM_FOLDER) else f"cat >{new}"
    work.host.shell(f"umask 077; mkdir -p {folder}; {put}", given=content)


def _start(host: Host, uuid: str) -> list[str]:
    try:
        host.virsh("start", uuid)
    except HypervisorError as error:
        return [f"The machine is restored, and cannot be started: {error.message}"]
    return []


def attach_disk(
    host: Host,
    journal: Journal,
    uuid: str,
    reader: DiskReader,
    placed: Placed,
    tick: Callable[[str, int], None] = lambda _disk, _bytes: None,
) -> None:
    """Restore one disk and give it to a machine that is there, as ``placed.target`` (running or not)."""
    work = _Import(host, ImportRequest(), "", {placed.target: placed})
    vm = next((vm for vm in machines(host) if vm.uuid == uuid), None)
    if vm is None:
        raise TargetError("The machine to attach the disk to is gone.", hint="Discover the platform again.")
    if any(disk.target == placed.target for disk in vm.disks):
        raise TargetExists(f"{vm.name} has a disk {placed.target} already.", hint="Choose another target name.")
    _check_places(work)
    entry = Entry(host.access.shown, uuid, work.folder, files=work.files())
    journal.write(entry)
    words = ["attach-disk", uuid, placed.path, placed.target, "--driver", "qemu", "--subdriver", placed.format]
    words += ["--sourcetype", "file", *(["--live"] if vm.running else []), *(["--config"] if vm.persistent else [])]
    try:
        _write(work, reader, placed, tick)
        _swap_in(host, work.files()[0], overwrite=False)
        host.virsh(*words)
        journal.write(replace(entry, done=True))
    finally:
        settle_import(host, journal)
