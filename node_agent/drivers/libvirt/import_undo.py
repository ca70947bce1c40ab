"""What an import has made beside the places of disks and firmware, removed; and one that failed or died, taken back.

One that died just before its end looks whole to everybody: somebody may have started the machine since, and worked with
it. So before anything is taken back it is asked whether it has been used; then all stays as it is, and that is said.
"""

from __future__ import annotations

import logging
import shlex

from node_agent.drivers.libvirt import import_rbd, run_folder
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.journal import Entry, Journal
from node_agent.drivers.libvirt.xml import parse
from node_agent.items import printable

logger = logging.getLogger(__name__)


def settle_import(host: Host, journal: Journal) -> list[str]:
    """What stays though it should not, in words."""
    entry = journal.read()
    if entry is None:
        return []
    if not entry.done and (used := _used(host, entry)):
        said = _said_of_used(entry, used)
        logger.warning("%s", said)
        ours = [part for _path, new, _old in entry.files for part in (new, f"{new}.written")]
        host.shell(shlex.join(["rm", "-rf", *filter(None, [entry.folder]), *ours]))
        journal.clear()
        return [said]
    if not entry.done:
        _undefine(host, entry)
    folder = shlex.quote(entry.folder)
    lines = [run_folder.kill_line(entry.folder, "import.pid")]
    for names in entry.files:
        path, new, old = map(shlex.quote, names)
        if not entry.done:  # what lies in the place is ours if it is no longer beside it and was written there
            lines.append(f"if [ -e {new}.written ] && [ ! -e {new} ]; then rm -rf {path}; fi")
            lines.append(f"if [ -e {old} ]; then mv -T {old} {path}; fi")
        lines.append(f"rm -rf {new} {new}.written {old}")
    for image in entry.images:
        lines += import_rbd.settle_lines(host, image, entry.folder, done=entry.done)
    lines.append(f"rm -rf {folder}")
    said = host.shell("\n".join(lines), timeout_s=import_rbd.REMOVE_S if entry.images else 120.0)
    if not entry.done and entry.before:
        host.virsh("define", "/dev/stdin", given=entry.before)
    journal.clear()
    return import_rbd.notes_of(said)


def _used(host: Host, entry: Entry) -> list[str]:
    """What was put in place and has been written since, or is in use now."""
    lines = [f"umask 077; mkdir -p {shlex.quote(entry.folder)}"] if entry.images else []
    for names in entry.files:
        path, new, _old = map(shlex.quote, names)
        written = f'[ -e {new}.written ] && [ ! -e {new} ] && [ -n "$(find {path} -newer {new}.written)" ]'
        lines.append(f"if {written}; then printf '%s\\n' {path}; fi")
    for image in entry.images:
        lines += import_rbd.used_lines(host, image, entry.folder)
    used = host.shell("\n".join([*lines, ":"])).splitlines()
    if not entry.defined or not (entry.files or entry.images):
        return used
    state = host.try_virsh("domstate", entry.defined)
    if state.code == 0 and state.out.strip() != "shut off" and _anything_placed(host, entry):
        used.append(f"machine {entry.defined}")
    return used


def _anything_placed(host: Host, entry: Entry) -> bool:
    marks = [f"{new}.written" for _path, new, _old in entry.files]
    marks += [import_rbd.mark_of(image, entry.folder) for image in entry.images]
    return host.connection.run(" || ".join(f"[ -e {shlex.quote(mark)} ]" for mark in marks)).code == 0


def _said_of_used(entry: Entry, used: list[str]) -> str:
    beside = [old for _path, _new, old in entry.files] + [import_rbd.aside_name(image) for image in entry.images]
    text = (
        "What a restore that broke off just before its end had put in place has been used since, and is left as it is"
    )
    return printable(
        f"{text}: {', '.join(used)}. What it replaced, if anything, lies beside it: {', '.join(beside)}. "
        "Remove that by hand."
    )


def _undefine(host: Host, entry: Entry) -> None:
    """The machine that the import defined. First: libvirt removes a TPM's state along, and the one before comes back
    with the files."""
    replaced = parse(entry.before, "domain").findtext("uuid", "") if entry.before else ""
    if entry.defined not in ("", replaced) and host.try_virsh("domstate", entry.defined).code == 0:
        host.virsh("undefine", entry.defined, "--keep-nvram")
