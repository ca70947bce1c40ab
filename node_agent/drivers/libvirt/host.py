"""A hypervisor's commands: virsh, qemu-img and the shell, each argument quoted.

Machines are always named by their UUID: libvirt looks for that first, and a name may hold anything.
"""

from __future__ import annotations

import json
import re
import shlex
import uuid
from typing import Any

from node_agent.drivers.libvirt.access import HostAccess
from node_agent.drivers.libvirt.errors import (
    HypervisorError,
    HypervisorUnreachable,
    JobLost,
    MachineBusy,
    MachineMissing,
)
from node_agent.drivers.libvirt.ssh import Connection, Result
from node_agent.items import printable

# For what works for long over there: the machines go first. Without ionice (or rights for it) it works all the same.
GENTLY = "nice -n 10 $(command -v ionice >/dev/null && echo ionice -c 2 -n 7)"
_MISSING = ("Domain not found", "failed to get domain", "no domain with matching")
_NO_LIBVIRT = ("failed to connect to the hypervisor", "End of file while reading data", "client socket is closed")
_LOST = ("backup job data missing", "held by monitor=init-")
_BUSY = ("cannot acquire state change lock", "another", "job is already", "already active", "a different job")


class Host:
    def __init__(self, access: HostAccess) -> None:
        self.access = access
        self.connection = Connection(access)
        self._images: dict[str, list[dict[str, Any]]] = {}

    def __enter__(self) -> Host:
        self.connection.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def virsh_words(self, *args: str) -> str:
        """A virsh command as words of the shell, for scripts that do several things at once."""
        return shlex.join(["virsh", "-q", "-c", self.access.uri, *args])

    def virsh(self, *args: str, given: str = "", timeout_s: float = 120.0) -> str:
        """Its output. ``given`` is what it reads as ``/dev/stdin``."""
        result = self.try_virsh(*args, given=given, timeout_s=timeout_s)
        if result.code:
            raise refusal(f"virsh {args[0]}", result)
        return result.out

    def try_virsh(self, *args: str, given: str = "", timeout_s: float = 120.0) -> Result:
        script = f"LC_ALL=C {self.virsh_words(*args)}"
        return self.connection.run(script, given=given.encode(), timeout_s=timeout_s)

    def shell(self, script: str, *, given: bytes = b"", timeout_s: float = 120.0) -> str:
        result = self.connection.run(f"LC_ALL=C; export LC_ALL\n{script}", given=given, timeout_s=timeout_s)
        if result.code:
            raise refusal("A command", result)
        return result.out

    def image_info(self, path: str, format: str) -> list[dict[str, Any]]:
        """``qemu-img info`` of an image and what lies below it, top first, beside all locks."""
        words = ["qemu-img", "info", "-U", "-f", format, "--backing-chain", "--output=json", path]
        found = self._images[path] = _list_of_objects(self.shell(shlex.join(words)), "qemu-img info")
        return found

    def known_image(self, path: str, format: str) -> list[dict[str, Any]]:
        """As it was when it was asked for last, by this conversation."""
        return self._images.get(path) or self.image_info(path, format)

    def state(self, machine: str) -> str:
        return self.virsh("domstate", machine).strip()


def is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def checked_uuid(text: str) -> str:
    if not is_uuid(text):
        raise MachineMissing(f"{printable(text)[:100]!r} is no UUID of a virtual machine.")
    return text


def refusal(what: str, result: Result) -> HypervisorError | MachineMissing:
    lines = [line.removeprefix("error: ").strip() for line in result.errors.splitlines() if line.strip()]
    text = printable(" ".join(lines))[-600:] or f"it ended {result.code}"
    if any(sign in text for sign in _MISSING):
        return MachineMissing(f"The hypervisor has no such virtual machine: {text}")
    if any(sign in text for sign in _LOST):
        return JobLost()
    if any(sign in text for sign in _NO_LIBVIRT):
        return HypervisorUnreachable(
            f"libvirt on the hypervisor does not answer: {text}", hint="Look whether libvirtd runs there, and its log."
        )
    if any(sign in text for sign in _BUSY):
        return MachineBusy(f"Another job runs on the virtual machine: {text}")
    if re.search(r"\b(virsh|qemu-img|qemu-nbd): (command )?not found", text):
        return HypervisorError(f"{what} is not to be found on the hypervisor: {text}", hint="Install it there.")
    return HypervisorError(f"{what} was refused by the hypervisor: {text}")


def _list_of_objects(text: str, what: str) -> list[dict[str, Any]]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise HypervisorError(f"{what} printed no JSON.") from error
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise HypervisorError(f"{what} printed another JSON than a list of images.")
    return value
