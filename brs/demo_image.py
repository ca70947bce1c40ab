"""The demo's disk image: one that it builds, or a changing view of one that the user gave.

A given image is never written: the demo protects a qcow2 overlay on top of it, so a change touches the overlay only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

PARTITION_OFFSET = 1024 * 1024
OWN_SIZE = 96 * 1024 * 1024


class ImageError(Exception):
    """A tool of qemu or of e2fsprogs failed; the message holds its words."""


def tool(*command: str) -> str:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path})
    if done.returncode:
        raise ImageError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def build(folder: Path, files: Path) -> Path:
    """A raw disk with a partition table and an ext4 that holds the content of ``files``."""
    image = folder / "disk.raw"
    image.touch()
    os.truncate(image, OWN_SIZE)
    layout = folder / "layout"
    layout.write_text("label: dos\nstart=2048, type=83\n")
    shell = f'PATH="$PATH:/usr/sbin:/sbin" sfdisk -q "{image}" < "{layout}"'
    tool("sh", "-c", shell)
    blocks = (OWN_SIZE - PARTITION_OFFSET) // 4096
    options = ["-q", "-F", "-b", "4096", "-d", str(files), "-E", f"offset={PARTITION_OFFSET}"]
    tool("mke2fs", "-t", "ext4", *options, str(image), str(blocks))
    layout.unlink()
    return image


def overlay(folder: Path, image: Path) -> Path:
    """A qcow2 on top of the user's image, which stays as it is."""
    info = json.loads(tool("qemu-img", "info", "--output=json", "-U", str(image)))
    top = folder / "disk.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", str(info["format"]), str(top))
    return top


def change(image: Path, scratch: Path) -> str:
    """Write something into the image; says what."""
    if image.suffix == ".raw":
        note = scratch / "written-later.txt"
        note.write_text("This file was written between the two backups.\n" * 2000)
        tool("debugfs", "-w", "-R", f"write {note} written-later.txt", f"{image}?offset={PARTITION_OFFSET}")
        return "a file was written into its ext4"
    size = json.loads(tool("qemu-img", "info", "--output=json", str(image)))["virtual-size"]
    offset = size // 3 // 65536 * 65536
    tool("qemu-io", "-c", f"write -P 0xb5 {offset} 65536", str(image))
    return f"64 KiB were overwritten at {offset // 2**20} MiB (in an overlay: your image is not touched)"


def keep_copy(image: Path, copy: Path) -> None:
    """The image's content now, as raw, made by qemu-img: what a restore is judged by."""
    fmt = "raw" if image.suffix == ".raw" else "qcow2"
    tool("qemu-img", "convert", "-f", fmt, "-O", "raw", str(image), str(copy))


def same(one: Path, other: Path) -> bool:
    """Whether two raw images have the same size and content, judged by qemu-img."""
    if shutil.which("qemu-img") is None:
        raise ImageError("qemu-img is missing")
    done = subprocess.run(
        ["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", str(one), str(other)],
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise ImageError(f"qemu-img compare: {done.stderr.strip()}")
    return done.returncode == 0 and one.stat().st_size == other.stat().st_size
