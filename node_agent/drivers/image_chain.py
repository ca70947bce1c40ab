"""Which files a disk image consists of, found out without letting qemu open any of them.

Only the few header fields that name other files are read here (qcow2: docs/interop/qcow2.txt of
qemu; vmdk: the VMware Virtual Disk Format 1.1 paper). A reference that is not a plain path inside
the allowed folders is refused: qemu would follow ``json:`` and network addresses, and a backing file
could be any file of the host (CVE-2024-4467 was of that kind).
"""

from __future__ import annotations

import json
import re
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from node_agent.errors import RefusedError, SourceError

RAW = "raw"
QCOW2 = "qcow2"
VMDK = "vmdk"
FORMATS = (RAW, QCOW2, VMDK, "vhdx", "vdi", "vpc")
MAX_DEPTH = 32

_SUFFIXES = {
    QCOW2: {".qcow2", ".qcow", ".qc2"},
    VMDK: {".vmdk"},
    "vhdx": {".vhdx"},
    "vdi": {".vdi"},
    "vpc": {".vhd", ".vpc"},
}
_RAW_SUFFIXES = {".raw", ".dd", ".bin"}
_ADDRESS = re.compile(rb"^[A-Za-z][A-Za-z0-9+.-]*:")
_QCOW2_MAGIC, _VMDK_MAGIC = b"QFI\xfb", b"KDMV"
_QCOW2_EXTERNAL_DATA = 1 << 2  # incompatible feature bit
_EXT_BACKING_FORMAT, _EXT_DATA_FILE = 0xE2792ACA, 0x44415441
_FORMAT_HINT = "State the format: --format raw if the file is the disk itself, --format {} if it is a container."


@dataclass(frozen=True, slots=True)
class Layer:
    """One image file of a chain, topmost first; ``below`` is its backing image."""

    path: Path
    format: str
    data_file: Path | None = None
    below: Layer | None = None

    def files(self) -> list[Path]:
        return [self.path] if self.data_file is None else [self.path, self.data_file]

    def options(self) -> dict[str, object]:
        """qemu's description of this layer, complete: nothing in the files can add to it."""
        options: dict[str, object] = {"driver": self.format, "read-only": True, "file": _protocol(self.path)}
        if self.format == QCOW2:
            options["backing"] = self.below.options() if self.below is not None else None
            if self.data_file is not None:
                options["data-file"] = _protocol(self.data_file)
        return options

    def address(self) -> str:
        return "json:" + json.dumps(self.options())


def _protocol(path: Path) -> dict[str, object]:
    text = str(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceError("The path of the image is not valid UTF-8, so qemu cannot be told it.") from error
    driver = "host_device" if stat.S_ISBLK(path.stat().st_mode) else "file"
    return {"driver": driver, "filename": text, "read-only": True}


def detect_format(path: Path) -> str:
    """The format by content and name; raw when nothing speaks for another.

    A file that looks like a container only by content is one that the guest could have made: it is
    refused when its name says raw, when it is a device, or when its header refers to other files.
    """
    seen = _format_by_content(path)
    if seen == RAW or path.suffix.lower() in _SUFFIXES[seen]:
        return seen
    doubtful = path.suffix.lower() in _RAW_SUFFIXES or not path.is_file()
    if doubtful or _refers_elsewhere(path, seen):
        raise SourceError(
            f"It is not clear whether {path} is a raw disk or a {seen} image: its content begins like {seen}, "
            "which the disk's user may have written there.",
            hint=_FORMAT_HINT.format(seen),
        )
    return seen


def resolve_chain(path: Path, format: str, roots: Sequence[Path]) -> list[Layer]:
    """The image and all it stands on, topmost first; every file checked to lie in ``roots``."""
    found: list[tuple[Path, str, Path | None]] = []
    current: tuple[Path, str] | None = (path, format)
    while current is not None:
        here, kind = current
        if kind not in FORMATS:
            raise SourceError(f"The image format {kind!r} is not supported.", hint=f"Supported: {', '.join(FORMATS)}.")
        if len(found) >= MAX_DEPTH or any(here == seen for seen, _, _ in found):
            raise SourceError(f"The backing files of {path} form a loop or are nested too deep.")
        data_file, current = _references(here, kind, roots)
        found.append((here, kind, data_file))
    layer: Layer | None = None
    layers: list[Layer] = []
    for here, kind, data_file in reversed(found):
        layer = Layer(here, kind, data_file, layer)
        layers.insert(0, layer)
    return layers


def _references(path: Path, format: str, roots: Sequence[Path]) -> tuple[Path | None, tuple[Path, str] | None]:
    """(external data file, (backing file, its format)) of one image."""
    if format == VMDK and _refers_elsewhere(path, VMDK):
        raise RefusedError(
            f"The VMware image {path} consists of several files.",
            hint="Convert it into one file first: qemu-img convert -O qcow2.",
        )
    if format != QCOW2:
        return None, None
    header = _read_qcow2(path)
    data_file = None
    if header.external_data:
        if header.data_file is None:
            raise SourceError(f"The image {path} names no file for its external data.")
        data_file = _inside(path, header.data_file, roots)
    if header.backing is None:
        return data_file, None
    backing = _inside(path, header.backing, roots)
    return data_file, (backing, header.backing_format or _format_by_content(backing))


def _inside(image: Path, name: bytes, roots: Sequence[Path]) -> Path:
    """The real path that ``image`` refers to as ``name``."""
    shown = name.decode("utf-8", "backslashreplace")
    if _ADDRESS.match(name) or b"\0" in name:
        raise RefusedError(
            f"The image {image} refers to {shown!r}, which is not a plain path.",
            hint="Flatten the image with 'qemu-img convert' if it is trusted.",
        )
    try:
        real = (image.parent / name.decode("utf-8", "surrogateescape")).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise SourceError(f"The image {image} needs the file {shown!r}, which cannot be reached.") from error
    if not any(real.is_relative_to(root.resolve()) for root in roots):
        raise RefusedError(
            f"The image {image} refers to {shown!r}, outside of the folders that may be read.",
            hint="Allow that folder for backing files if it is trusted, or flatten the image.",
        )
    return real


# --- headers ---


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    backing: bytes | None
    backing_format: str | None
    external_data: bool
    data_file: bytes | None


def _format_by_content(path: Path) -> str:
    with _open(path) as file:
        head = file.read(512)
    if head[:4] == _QCOW2_MAGIC:
        return QCOW2
    if head[:4] in (_VMDK_MAGIC, b"COWD") or head.startswith(b"# Disk DescriptorFile"):
        return VMDK
    if head[:8] == b"vhdxfile":
        return "vhdx"
    if head[64:68] == b"\x7f\x10\xda\xbe":
        return "vdi"
    return "vpc" if head[:8] == b"conectix" else RAW


def _refers_elsewhere(path: Path, format: str) -> bool:
    if format == QCOW2:
        header = _read_qcow2(path)
        return header.backing is not None or header.external_data
    if format == VMDK:
        return not _is_single_vmdk(path)
    return False


def _is_single_vmdk(path: Path) -> bool:
    """A sparse extent with its own content (no descriptor that lists files) and without a parent."""
    with _open(path) as file:
        head = file.read(512)
        if len(head) < 512 or head[:4] != _VMDK_MAGIC:
            return False
        capacity, _grain, descriptor, sectors = struct.unpack_from("<4Q", head, 12)
        file.seek(min(descriptor, 1 << 40) * 512)
        text = file.read(min(sectors, 2048) * 512)
    return capacity != 0 and b"parentFileNameHint" not in text


def _read_qcow2(path: Path) -> Qcow2Header:
    with _open(path) as file:
        head = file.read(1 << 20)
    if len(head) < 72 or head[:4] != _QCOW2_MAGIC:
        raise SourceError(f"{path} is not a qcow2 image.", hint="State the right format of the image.")
    version, offset, size = struct.unpack_from(">IQI", head, 4)
    features, start = (0, 72)
    if version >= 3 and len(head) >= 104:
        features, start = struct.unpack_from(">Q", head, 72)[0], struct.unpack_from(">I", head, 100)[0]
    if offset and (size > 1023 or offset + size > len(head)):
        raise SourceError(f"The header of the image {path} is damaged.")
    extensions = _extensions(head, start)
    backing_format = extensions.get(_EXT_BACKING_FORMAT)
    return Qcow2Header(
        backing=head[offset : offset + size] if offset else None,
        backing_format=backing_format.decode("ascii", "replace") if backing_format else None,
        external_data=bool(features & _QCOW2_EXTERNAL_DATA),
        data_file=extensions.get(_EXT_DATA_FILE),
    )


def _extensions(head: bytes, start: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while start + 8 <= len(head):
        kind, size = struct.unpack_from(">II", head, start)
        if kind == 0:
            break
        found[kind] = head[start + 8 : start + 8 + size]
        start += 8 + (size + 7) // 8 * 8
    return found


def _open(path: Path) -> BinaryIO:
    try:
        if not (path.is_file() or path.is_block_device()):
            raise SourceError(
                f"{path} is neither a file nor a block device.", hint="Give the file that holds the disk."
            )
        return path.open("rb")
    except OSError as error:
        raise SourceError(f"The image {path} cannot be opened: {error.strerror}.") from error
