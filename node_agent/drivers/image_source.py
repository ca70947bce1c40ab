"""Driver *image*: one disk image file on this node, read as a whole disk (see :mod:`node_agent.drivers.image`)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from node_agent.drivers.base import Disk, Driver, Finding
from node_agent.drivers.image import open_image
from node_agent.errors import BrsError, SourceError
from node_agent.items import printable


class ImageDriver(Driver):
    name = "image"

    @contextmanager
    def open(self, paths: Sequence[str], *, format: str = "") -> Iterator[Disk]:
        if len(paths) != 1:
            raise SourceError("An image workload is one disk image file.", hint="Make one workload for each image.")
        real = self.guard.read(paths[0])
        roots = [Path(root) for root in self.guard.roots.read]
        with open_image(real, format=format or None, roots=roots) as content:
            yield Disk(paths[0], content, content.format)

    def probe(self, path: str) -> list[Finding]:
        inside = "Inside the folders this node may read"
        try:
            real = self.guard.read(path)
        except BrsError as error:
            return [Finding.of(inside, error)]
        findings = [Finding(inside, ok=True, detail=printable(str(real))), _tools()]
        try:
            with self.open([path]) as disk:
                detail = f"{disk.content.format} disk of {disk.content.size} bytes"
        except BrsError as error:
            return [*findings, Finding.of("Can be read as a disk", error)]
        return [*findings, Finding("Can be read as a disk", ok=True, detail=detail)]


def _tools() -> Finding:
    missing = [name for name in ("qemu-nbd", "qemu-img") if shutil.which(name) is None]
    if not missing:
        return Finding("qemu's tools are installed", ok=True, detail=str(shutil.which("qemu-img")))
    return Finding(
        "qemu's tools are installed",
        ok=False,
        detail=f"{' and '.join(missing)} not found; raw images work without.",
        hint="Debian: apt install qemu-utils.",
    )
