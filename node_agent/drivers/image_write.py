"""The way back for disk images: raw content becomes the image file that was asked for.

The content is staged as a sparse raw file beside the target, so that the last step is a rename: the
target is either untouched or whole. qcow2 is written by qemu's own tool.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from node_agent.drivers.image import open_image
from node_agent.errors import SourceError, TargetError, TargetExists, TargetFull
from node_agent.items import printable

Overwrite = Literal["never", "changed", "always"]
FORMATS = ("raw", "qcow2")
_POLL_S = 0.2


def check_target(target: Path, *, format: str, overwrite: Overwrite) -> None:
    """Before anything is read: raises TargetError when ``target`` could not be written in the end."""
    if format not in FORMATS:
        raise TargetError(f"Images are written as {' or '.join(FORMATS)}, not as {format!r}.", hint="Choose one.")
    if format == "qcow2" and shutil.which("qemu-img") is None:
        raise TargetError(
            "Writing qcow2 needs the program qemu-img.", hint="Debian: apt install qemu-utils; or restore as raw."
        )
    if not os.path.lexists(target):
        return
    if not target.is_file() or target.is_symlink():
        raise TargetError(f"{printable(str(target))} is not a regular file.", hint="Give the path of a file.")
    if overwrite == "never":
        raise TargetExists(f"{printable(str(target))} exists already.")
    _refuse_in_use(target)


@contextmanager
def staging_beside(target: Path, run: str) -> Iterator[Path]:
    """A private folder on the target's file system, gone afterwards. TargetError when it cannot be made.

    ``run`` names it: another attempt of the same run removes what a killed one left behind.
    """
    folder = target.parent / f".brs-restore-{run}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise TargetError(f"{printable(str(target.parent))} cannot be written: {error.strerror}.") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def place(
    raw: Path, target: Path, *, format: str, overwrite: Overwrite, check: Callable[[], None] = lambda: None
) -> int:
    """Turn the staged ``raw`` file into ``target``, durable on return. Returns the bytes it takes on disk."""
    ready = raw
    if format == "qcow2":
        ready = raw.with_name(raw.name + ".qcow2")
        _convert(raw, ready, check)
    try:
        _as_before(ready, target)
        handle = os.open(ready, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        check_target(target, format=format, overwrite=overwrite)  # somebody may have put a file there meanwhile
        ready.replace(target)
        _sync_folder(target.parent)
        return target.stat().st_blocks * 512
    except OSError as error:
        raise TargetError(f"{printable(str(target))} cannot be put in place: {error.strerror}.") from error


def _convert(raw: Path, ready: Path, check: Callable[[], None]) -> None:
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-S", "4k", str(raw), str(ready)]
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages)
        try:
            while True:
                try:
                    code = process.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    check()
        except BaseException:
            process.kill()
            process.wait()
            raise
        if code:
            messages.seek(0)
            text = " ".join(messages.read(2000).decode("utf-8", "replace").split())
            if "No space left" in text:
                raise TargetFull()
            raise TargetError(f"qemu-img could not write {printable(str(ready))}: {text}")


def _as_before(ready: Path, target: Path) -> None:
    """A replaced image keeps its mode and, where this user may set it, its owner (the hypervisor's)."""
    if not target.exists():
        ready.chmod(0o600)
        return
    before = target.stat()
    ready.chmod(before.st_mode & 0o777)
    with contextlib.suppress(PermissionError):
        os.chown(ready, before.st_uid, before.st_gid)


def _refuse_in_use(target: Path) -> None:
    try:
        with open_image(target, format="raw"):
            pass
    except SourceError as error:
        if "in use" not in error.message:
            return  # not readable as an image: replacing it is what the user asked for
        raise TargetError(
            f"{printable(str(target))} is in use by a virtual machine.",
            hint="Shut the virtual machine down, or restore to another file.",
        ) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
