"""Restored disks that become RBD images, by the hypervisor's own means: ``rbd`` makes, renames and removes them, and a
``qemu-nbd`` there writes them.

An image is written under a passing name ``brs-import-RUN-TARGET`` and renamed when all disks are whole. One that had
the name steps aside meanwhile; it is removed when the machine is defined, unless it has snapshots that are not ours:
then it stays, renamed, and the restore says so.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from node_agent.drivers.libvirt import rbd
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.import_disk import Target
from node_agent.drivers.libvirt.import_xml import Placed
from node_agent.drivers.libvirt.rbd import RbdSource
from node_agent.errors import TargetError
from node_agent.items import printable

REMOVE_S = 3600.0  # an image is removed object by object


def require(host: Host, placed: Sequence[Placed]) -> None:
    """Before anything is made. TargetError says what the hypervisor lacks."""
    if not any(one.rbd for one in placed):
        return
    if not rbd.has_program(host):
        raise TargetError(
            "Restoring a disk into Ceph needs the program rbd on the hypervisor.",
            hint="Install it there (Debian: apt install ceph-common), or choose a folder: the disk becomes a file.",
        )
    if why := rbd.opens_rbd(host):
        raise TargetError(f"Disks cannot be written into Ceph: {why}", hint="Install it there, or choose a folder.")
    for one in placed:
        if one.rbd is not None and (set(one.rbd.image) & set("/@\0\n ") or one.rbd.image.startswith("-")):
            raise TargetError(
                f"{printable(one.rbd.image)!r} is no name for an image.", hint="Use letters, digits, dashes, dots."
            )


def state_of(host: Host, image: RbdSource, folder: str) -> str:
    """``absent``, ``free`` or ``in use``. ``folder``: for the key, made and removed."""
    place = shlex.quote(folder)
    script = f"""umask 077; mkdir -p {place}
{_key(host, image, folder)}
{_rbd(host, image, folder)} status --format json {_q(image)} >{place}/out 2>{place}/said; code=$?
cat {place}/out; cat {place}/said >&2; rm -rf {place}
[ $code != 2 ] || exit 0
exit $code"""
    said = host.shell(script)
    if not said.strip():
        return "absent"
    return "in use" if json.loads(said).get("watchers") else "free"


def target(host: Host, image: RbdSource, size: int, folder: str) -> Target:
    key = f"{folder}/key"
    with_key = rbd.lay_down_key(host, image, key)
    create = [*rbd.rbd_words(image, key if with_key else ""), "create", "--size", f"{size}B", image.name]
    opened = ["json:" + json.dumps(rbd.address(image, with_key=with_key))]
    return Target(image.path, create, [*(rbd.qemu_words(key) if with_key else []), *opened])


def entry_of(placed: Placed, run: str) -> dict[str, Any]:
    """What the journal says of a disk: all that is needed to take it back."""
    assert placed.rbd is not None
    return {"source": {**asdict(placed.rbd), "hosts": list(placed.rbd.hosts)}, "target": placed.target, "run": run}


def passing(entry: dict[str, Any]) -> RbdSource:
    return _source(entry).called(f"brs-import-{entry['run']}-{entry['target']}")


def swap_in(host: Host, entry: dict[str, Any], folder: str, *, overwrite: bool) -> None:
    image, new, old = _source(entry), passing(entry), _aside(entry)
    words, mark = _rbd(host, image, folder), shlex.quote(mark_of(entry, folder))
    aside = f"if there {_q(image)}; then {words} rename {_q(image)} {_q(old)}; fi"
    # Without leave to overwrite, the last rename fails if somebody made such an image meanwhile.
    host.shell(
        f"""set -e
{_key(host, image, folder)}
{_functions(words)}
stamp {_q(new)} >{mark}
{aside if overwrite else ":"}
{words} rename {_q(new)} {_q(image)}"""
    )


def mark_of(entry: dict[str, Any], folder: str) -> str:
    """The file that says that the image is about to be put in place, and when it was written last."""
    return f"{folder}/{entry['target']}.placed"


def aside_name(entry: dict[str, Any]) -> str:
    return _aside(entry).path


def used_lines(host: Host, entry: dict[str, Any], folder: str) -> list[str]:
    """Of the shell: tell of an image that was put in place, and has been written since or is open somewhere."""
    image, new = _source(entry), passing(entry)
    words, mark = _rbd(host, image, folder), shlex.quote(mark_of(entry, folder))
    return [
        f"if [ -e {mark} ]; then",
        _key(host, image, folder),
        _functions(words),
        f"if ! there {_q(new)} && there {_q(image)}; then",
        f'if [ "$(stamp {_q(image)})" != "$(cat {mark})" ] || {words} status {_q(image)} | grep -q watcher=; then',
        f"echo {shlex.quote(image.path)}",
        "fi; fi; fi",
    ]


def settle_lines(host: Host, entry: dict[str, Any], folder: str, *, done: bool) -> list[str]:
    """Of the shell: remove what is unfinished and put back what stepped aside; or remove that, when all is done."""
    image, new, old = _source(entry), passing(entry), _aside(entry)
    words, mark = _rbd(host, image, folder), shlex.quote(mark_of(entry, folder))
    lines = [f"umask 077; mkdir -p {shlex.quote(folder)}", _key(host, image, folder), _functions(words)]
    if done:
        ours = f"{words} snap ls {_q(old)} | awk '$2 ~ /^brs-[0-9a-f]+-[0-9]+$/ {{ print $2 }}'"
        return [
            *lines,
            f"if there {_q(old)}; then",
            f"for name in $({ours}); do {words} snap rm {_q(old)}@$name; done",
            f"{words} rm {_q(old)} >/dev/null 2>&1 || echo {shlex.quote('kept ' + old.name)}",
            "fi",
        ]
    # What has the name is ours if the passing one was renamed. The mark goes before this could be true of another.
    return [
        *lines,
        f"if there {_q(new)}; then rm -f {mark}; {words} rm {_q(new)} || exit 1",
        f"elif [ -e {mark} ] && there {_q(image)}; then {words} rm {_q(image)} || exit 1; fi",
        f"rm -f {mark}",
        f"if there {_q(old)}; then {words} rename {_q(old)} {_q(image)} || exit 1; fi",
    ]


def notes_of(said: str) -> list[str]:
    """What :func:`settle_lines` printed, in sentences."""
    return [
        f"The image that was replaced could not be removed (others' snapshots, clones), and is kept as "
        f"{printable(line.removeprefix('kept '))}."
        for line in said.splitlines()
        if line.startswith("kept ")
    ]


# --- parts ---


def _source(entry: dict[str, Any]) -> RbdSource:
    return RbdSource(**{**entry["source"], "hosts": tuple(entry["source"]["hosts"])})


def _aside(entry: dict[str, Any]) -> RbdSource:
    image = _source(entry)
    return image.called(f"{image.image}-before-{entry['run']}")


def _q(image: RbdSource) -> str:
    return shlex.quote(image.name)


def _functions(words: str) -> str:
    """``there``: a cluster that does not answer is not an image that is not there: with that the script ends."""
    return f"""there() {{ {words} info "$1" >/dev/null 2>&1; case $? in 0) :;; 2) return 1;; *) echo "rbd: no answer about $1" >&2; exit 1;; esac; }}
stamp() {{ {words} info --format json "$1" | sed -n 's/.*"modify_timestamp":"\\([^"]*\\)".*/\\1/p'; }}"""  # noqa: E501


def _rbd(host: Host, image: RbdSource, folder: str) -> str:
    key = f"{folder}/key" if rbd.secret_of(host, image) else ""
    return shlex.join(rbd.rbd_words(image, key))


def _key(host: Host, image: RbdSource, folder: str) -> str:
    """A line of the shell that lays the key down."""
    uuid = rbd.secret_of(host, image)
    return rbd.key_line(host, uuid, f"{folder}/key") if uuid else ":"
