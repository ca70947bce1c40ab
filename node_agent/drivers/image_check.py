"""Whether an image's own tables are sound, as ``qemu-img check`` judges.

qemu reads what lies beyond the end of a cut-off image as zeros and says nothing, so a damaged container would give
a whole-looking backup.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

from node_agent.drivers.image_chain import Layer
from node_agent.errors import SourceError

_SOUND = (0, 3, 63)  # no errors; only leaked clusters, which cost space; a format that qemu cannot check


def damage_of(layers: Sequence[Layer]) -> str:
    """What is wrong, as a sentence; empty if nothing is known to be."""
    return " ".join(filter(None, map(_damage, layers)))


def _damage(layer: Layer) -> str:
    options = layer.options()
    if "backing" in options:
        options["backing"] = None  # each layer is looked at by itself
    # -U: a program that reads the image is no reason; one that writes to it is found when it is opened.
    command = ["qemu-img", "check", "-U", "--output=json", "json:" + json.dumps(options)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    except FileNotFoundError as error:
        raise SourceError(
            f"Reading {layer.format} images needs the program qemu-img.",
            hint="Install it on the node (Debian: apt install qemu-utils).",
        ) from error
    if done.returncode in _SOUND:
        return ""
    try:
        found = json.loads(done.stdout)
        count = f"{found.get('corruptions', 0) + found.get('check-errors', 0)} errors"
    except (ValueError, AttributeError, TypeError):
        count = " ".join(done.stderr.decode("utf-8", "replace").split())[:300] or f"exit code {done.returncode}"
    return (
        f"The image file {layer.path} is damaged (qemu-img check: {count}): parts of the disk may read as zeros. "
        "Restore an earlier point, or repair the file with 'qemu-img check -r all'."
    )
