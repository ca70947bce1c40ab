"""What a workload's ``source`` may say, for each kind of platform; and whether a path lies below a node's roots.

Paths are POSIX paths on the node: absolute, normal, no NUL, no ``..``. The node has the last word (its own
configuration lists what it may touch); what is refused here is refused early and in the form.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import Any

from django.utils.translation import gettext as _

from apps.errors import Invalid
from apps.inventory.models import MACHINES, Node, PlatformKind, Workload
from node_agent.protocol import BackupSource, MachineSource

MAX_PATHS = 100
MAX_EXCLUDES = 1000
MAX_LENGTH = 4096
FORMATS = ("", "raw", "qcow2")
FREEZES = ("no", "try", "require")
FREEZE_LIMIT_S = 10
_FIELDS = {
    PlatformKind.FILES: {"paths", "excludes", "one_file_system"},
    PlatformKind.IMAGE: {"path", "format", "disk"},
}
MACHINE_FIELDS = {"known_as", "leave_out", "freeze", "freeze_limit_s"}


class InvalidSource(Invalid):
    """``field`` names the part of the source that is wrong ("paths", "excludes", "path", "disk", "format")."""

    code = "invalid-source"

    def __init__(self, field: str, message: str, *, hint: str | None = None) -> None:
        self.field = field
        super().__init__(message, hint=hint)


def clean(kind: str, source: dict[str, Any]) -> dict[str, Any]:
    """The source in its stored form; raises InvalidSource. Unknown names are refused, so that typing errors show."""
    if not isinstance(source, dict):
        raise InvalidSource("source", _("The source must be an object."))
    allowed = _FIELDS.get(kind, MACHINE_FIELDS)
    unknown = sorted(str(name) for name in set(source) - allowed)
    if unknown:
        raise InvalidSource(unknown[0], _("The source has no field “%(name)s”.") % {"name": unknown[0]})
    if kind in MACHINES:
        return _clean_machine(source)
    return _clean_files(source) if kind == PlatformKind.FILES else _clean_image(source)


def paths_of(workload: Workload) -> list[str]:
    """The paths on its node that a workload is read from; none of a machine."""
    source = workload.source
    return source.get("paths") or ([source["path"]] if "path" in source else [])


def unprotectable(workload: Workload) -> list[str]:
    """A machine's disks that cannot be protected and are not left out on purpose: while there are any, each point is
    partial, and upon a partial point nothing is built."""
    left_out = workload.source.get("leave_out", [])
    disks = workload.facts.get("disks", [])
    return [disk["name"] for disk in disks if disk.get("why_left_out") and disk["name"] not in left_out]


def backup_source(workload: Workload) -> BackupSource:
    """What a workload's backups read, in the words of the wire."""
    kind, source = workload.platform.kind, workload.source
    if kind not in MACHINES:
        return as_backup_source(kind, source)
    machine = MachineSource(
        id=workload.external_id,
        name=workload.name,
        host=workload.facts.get("host", ""),
        leave_out=source.get("leave_out", []),
        freeze=source.get("freeze", "try"),
        freeze_limit_s=source.get("freeze_limit_s", FREEZE_LIMIT_S),
    )
    return BackupSource(driver=kind, paths=[], machine=machine)


def identity(workload: Workload) -> tuple[str, list[str]]:
    """Host and paths of its snapshots. A machine's stay when it is renamed: else nothing could be built upon."""
    if workload.platform.kind in MACHINES:
        return workload.source["known_as"], [f"/{workload.platform.kind}/{workload.external_id}"]
    return workload.name, backup_source(workload).paths


def as_backup_source(kind: str, source: dict[str, Any]) -> BackupSource:
    """A stored source in the words of the wire."""
    if kind == PlatformKind.FILES:
        return BackupSource(
            driver="files",
            paths=source["paths"],
            excludes=source.get("excludes", []),
            one_file_system=source.get("one_file_system", False),
        )
    return BackupSource(
        driver="image", paths=[source["path"]], disk=source.get("disk", "disk"), format=source.get("format", "")
    )


def clean_path(path: object, field: str = "path") -> str:
    """An absolute path in normal form; raises InvalidSource naming ``field``."""
    if not isinstance(path, str) or not path.strip():
        raise InvalidSource(field, _("A path is missing."), hint=_("Give the absolute path on the node."))
    if "\x00" in path or len(path) > MAX_LENGTH:
        raise InvalidSource(field, _("The path holds a NUL character or is longer than 4,096 characters."))
    if any(0xD800 <= ord(character) <= 0xDFFF for character in path):
        raise InvalidSource(field, _("The path is not valid Unicode."))
    if not path.startswith("/"):
        raise InvalidSource(
            field, _("“%(path)s” is not an absolute path.") % {"path": path}, hint=_("Begin it with “/”.")
        )
    if ".." in path.split("/"):
        raise InvalidSource(field, _("“%(path)s” holds “..”.") % {"path": path}, hint=_("Write the path without “..”."))
    return "/" + posixpath.normpath(path).lstrip("/")


def is_below(path: str, roots: Iterable[str]) -> bool:
    """Whether a clean path is one of the roots or lies below one."""
    return any(root == "/" or path == root or path.startswith(root + "/") for root in map(_bare, roots))


def require_roots(node: Node, purpose: str, paths: Iterable[str]) -> None:
    """Refuse paths outside of what the node told that it allows. ``purpose``: read, write or repositories.

    A node that never told its roots is asked anyway; it decides itself.
    """
    if not node.roots:
        return
    roots = node.roots.get(purpose) or []
    for path in paths:
        if not is_below(path, roots):
            raise Invalid(
                _refusal(purpose) % {"node": node.name, "path": path},
                hint=_("Allowed there: %(roots)s. More is allowed in the node's own node.toml, [roots] %(purpose)s.")
                % {"roots": ", ".join(roots) or _("nothing"), "purpose": purpose},
                code="outside-roots",
            )


def _refusal(purpose: str) -> str:
    if purpose == "write":
        return _("The node %(node)s may not write to “%(path)s”.")
    if purpose == "repositories":
        return _("The node %(node)s may not keep repositories in “%(path)s”.")
    return _("The node %(node)s may not read “%(path)s”.")


def _bare(root: str) -> str:
    return "/" + posixpath.normpath(root).lstrip("/")


def _clean_files(source: dict[str, Any]) -> dict[str, Any]:
    paths = _texts(source.get("paths"), "paths", MAX_PATHS)
    if not paths:
        raise InvalidSource("paths", _("Give at least one path to protect."))
    found = sorted({clean_path(path, "paths") for path in paths})
    for path in found:
        if is_below(path, [other for other in found if other != path]):
            raise InvalidSource("paths", _("“%(path)s” lies below another of the paths.") % {"path": path})
    excludes = [
        text for text in (one.strip() for one in _texts(source.get("excludes"), "excludes", MAX_EXCLUDES)) if text
    ]
    for pattern in excludes:
        if "\x00" in pattern or "\n" in pattern or len(pattern) > MAX_LENGTH:
            raise InvalidSource("excludes", _("A pattern holds NUL or a line break, or is too long."))
    cleaned: dict[str, Any] = {"paths": found, "excludes": excludes}
    if not isinstance(source.get("one_file_system", False), bool):
        raise InvalidSource("one_file_system", _("It must be true or false."))
    if source.get("one_file_system"):
        cleaned["one_file_system"] = True
    return cleaned


def _clean_image(source: dict[str, Any]) -> dict[str, Any]:
    path = clean_path(source.get("path"))
    disk = source.get("disk") or "disk"
    if not isinstance(disk, str) or len(disk) > 100 or disk in {".", ".."} or not _is_plain_name(disk):
        raise InvalidSource(
            "disk", _("The disk's name is not usable."), hint=_("Letters, digits, “.”, “-” and “_”, at most 100.")
        )
    image_format = source.get("format") or ""
    if image_format not in FORMATS:
        raise InvalidSource("format", _("The format must be raw or qcow2, or empty to look."))
    return {"path": path, "format": image_format, "disk": disk}


def _clean_machine(source: dict[str, Any]) -> dict[str, Any]:
    known_as = source.get("known_as")
    if not isinstance(known_as, str) or not known_as or len(known_as) > 200 or "\x00" in known_as:
        raise InvalidSource("known_as", _("The name that its points bear is missing."))
    freeze = source.get("freeze", "try")
    if freeze not in FREEZES:
        raise InvalidSource("freeze", _("It must be no, try or require."))
    limit = source.get("freeze_limit_s", FREEZE_LIMIT_S)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 600:
        raise InvalidSource("freeze_limit_s", _("It must be a whole number of seconds from 1 to 600."))
    left_out = sorted(set(_texts(source.get("leave_out"), "leave_out", MAX_PATHS)))
    if any(not name or len(name) > 250 or "\x00" in name for name in left_out):
        raise InvalidSource("leave_out", _("The disk's name is not usable."))
    return {"known_as": known_as, "leave_out": left_out, "freeze": freeze, "freeze_limit_s": limit}


def _texts(value: object, field: str, most: int) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidSource(field, _("It must be a list of texts."))
    if len(value) > most:
        raise InvalidSource(field, _("There may be at most %(most)s of them.") % {"most": most})
    return value


def _is_plain_name(name: str) -> bool:
    return name.isascii() and all(character.isalnum() or character in ".-_" for character in name)
