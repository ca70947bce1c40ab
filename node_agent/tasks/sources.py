"""The drivers of this node by name."""

from __future__ import annotations

from node_agent.drivers.base import Driver
from node_agent.drivers.files import FilesDriver
from node_agent.drivers.image_source import ImageDriver
from node_agent.errors import RefusedError
from node_agent.guard import Guard

DRIVERS: dict[str, type[Driver]] = {driver.name: driver for driver in (FilesDriver, ImageDriver)}


def driver_for(name: str, guard: Guard) -> Driver:
    found = DRIVERS.get(name)
    if found is None:
        raise RefusedError(
            f"This node has no driver {name!r}.", hint=f"It has {', '.join(DRIVERS)}. Update the node or use another."
        )
    return found(guard)
