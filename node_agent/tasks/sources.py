"""The drivers of this node by name: those of files and images, and those of platforms that machines lie on.

A platform's driver is imported when it is used first. A node that lacks what the driver needs (a library, a program)
has not got it, and says so.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from node_agent.drivers.base import Driver, MachinePlatform
from node_agent.drivers.files import FilesDriver
from node_agent.drivers.image_source import ImageDriver
from node_agent.errors import RefusedError
from node_agent.guard import Guard
from node_agent.protocol import PlatformAccess
from node_agent.tasks.context import TaskContext

DRIVERS: dict[str, type[Driver]] = {driver.name: driver for driver in (FilesDriver, ImageDriver)}


@dataclass(frozen=True)
class PlatformDriver:
    """``make`` imports the driver; ``modules`` and ``programs`` are what it cannot work without, and ``lacks``
    says what else is missing."""

    make: Callable[[PlatformAccess, TaskContext], MachinePlatform]
    modules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    lacks: Callable[[], list[str]] = list

    @property
    def missing(self) -> list[str]:
        modules = [f"the Python package {name}" for name in self.modules if importlib.util.find_spec(name) is None]
        programs = [f"the program {name}" for name in self.programs if shutil.which(name) is None]
        return [*modules, *programs, *self.lacks()]


def _kvm(access: PlatformAccess, context: TaskContext) -> MachinePlatform:
    from node_agent.tasks.platform_kvm import KvmPlatform

    return KvmPlatform(access, context)


def _rbd(access: PlatformAccess, context: TaskContext) -> MachinePlatform:
    from node_agent.tasks.platform_rbd import RbdPlatform

    return RbdPlatform(access, context)


@cache
def _lacks_rbd() -> list[str]:
    """The bindings belong to the system's Python, not to ours. Asked once: what is installed later counts after a
    restart of the node."""
    from node_agent.drivers.ceph.cluster import usable_python

    python = usable_python()
    if python is not None and subprocess.run([python, "-c", "import rados, rbd"], capture_output=True).returncode == 0:
        return []
    return ["Ceph's library (Debian: apt install python3-rbd)"]


PLATFORMS: dict[str, PlatformDriver] = {
    "kvm": PlatformDriver(_kvm, modules=("paramiko",), programs=("ssh",)),
    "rbd": PlatformDriver(_rbd, lacks=_lacks_rbd),
}


def names() -> list[str]:
    """Those that this node can run."""
    return sorted([*DRIVERS, *(name for name, driver in PLATFORMS.items() if not driver.missing)])


def driver_for(name: str, guard: Guard) -> Driver:
    found = DRIVERS.get(name)
    if found is None:
        raise _unknown(name)
    return found(guard)


def is_platform(name: str) -> bool:
    return name in PLATFORMS


def platform_for(context: TaskContext, access: PlatformAccess) -> MachinePlatform:
    """Within what the node allows, and only with addresses whose keys are known."""
    driver = PLATFORMS.get(access.kind)
    if driver is None:
        raise _unknown(access.kind)
    if driver.missing:
        raise RefusedError(
            f"This node cannot use platforms of the kind {access.kind}: {', '.join(driver.missing)} is missing.",
            hint="Install it on the node and restart the node.",
        )
    context.guard.platform(access.kind, access.addresses)
    return driver.make(access, context)


def _unknown(name: str) -> RefusedError:
    return RefusedError(
        f"This node has no driver {name!r}.", hint=f"It has {', '.join(names())}. Update the node or use another."
    )
