"""How full the file system of a repository is, told with each result: no test of the destination is needed."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TypeVar

from node_agent.guard import is_remote
from node_agent.protocol import Placed, Spec
from node_agent.tasks.context import TaskContext

log = logging.getLogger("brs.node.space")
Place = TypeVar("Place", bound=Placed)


def with_space(context: TaskContext, spec: Spec, result: Place) -> Place:
    """``result`` of a task on the repository of ``spec``. Stores that are no folders do not tell."""
    access = getattr(spec, "repository", None)
    if access is None or is_remote(access.url):
        return result
    return placed(result, Path(context.guard.repository(access.url)))


def placed(result: Place, place: Path) -> Place:
    try:
        usage = shutil.disk_usage(place if place.exists() else place.parent)
    except OSError as error:  # the work is done; only its footnote is missing
        log.warning("the space at %s is not known: %s", place, error)
        return result
    return result.model_copy(update={"capacity_bytes": usage.total, "free_bytes": usage.free})
