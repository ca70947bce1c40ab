"""A job's way as people see it: Export → Store, Restore → Import …, with figures for each stage. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from apps.jobs.models import ACTIVE, State, Task

# Phases of a task in their order. A streaming backup is one task in which Export and Store run at once: what is read
# is shown at Export, what is in the store at Store, and Export is complete when all is read.
STREAM = "backup"
PHASES = {
    "backup": ("export", "store"),
    "export": ("export",),
    "store": ("store",),
    "restore": ("restore", "import"),
    "fetch": ("restore",),
    "import": ("import",),
}

UNBEGUN = "unbegun"  # a phase that its task ended before


@dataclass(frozen=True)
class Stage:
    key: str
    word: str
    state: str
    task_id: str
    node: str
    done_bytes: int
    total_bytes: int
    rate: float
    figures: dict[str, Any]
    attempt: int
    error: str
    hint: str

    @property
    def percent(self) -> int:
        if self.state == State.SUCCEEDED or self.state == State.PARTIAL:
            return 100
        share = self.whole or (self.done_bytes / self.total_bytes if self.total_bytes else 0)
        return max(0, min(99, round(100 * share)))

    @property
    def whole(self) -> float:
        """Of a task with phases that the page does not tell apart; bytes and items are those of one of them."""
        return float(self.figures.get("whole") or 0)

    @property
    def step(self) -> str:
        """What is counted by items at the moment."""
        done, total = self.figures.get("done_files") or 0, self.figures.get("total_files") or 0
        return f"{min(done, total)} / {total}" if self.whole and total and not self.total_bytes else ""

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Of several disks, each with its bytes; of one disk the stage's own bar says it."""
        parts: list[dict[str, Any]] = self.figures.get("parts") or []
        return parts if len(parts) > 1 else []

    @property
    def eta_s(self) -> float | None:
        if self.state not in ACTIVE or self.rate <= 0 or not self.total_bytes or self.whole:
            return None
        return max(0, self.total_bytes - self.done_bytes) / self.rate


def word(key: str) -> str:
    words = {
        "export": _("Export"),
        "store": _("Store"),
        "restore": _("Restore"),
        "import": _("Import"),
        "verify": _("Verify"),
        "probe": _("Test"),
        "discover": _("Look for machines"),
        "init": _("Prepare"),
        "download": _("Download"),
        "browse": _("Read list"),
        "forget": _("Remove"),
        "fetch": _("Restore"),
        "prune": _("Reclaim space"),
        "remove-traces": _("Remove"),
    }
    return words.get(key, key.capitalize())


def pipeline(tasks: Sequence[Task]) -> list[Stage]:
    return [stage for task in tasks for stage in _stages(task)]


def _stages(task: Task) -> list[Stage]:
    keys = PHASES.get(task.kind, (task.kind,))
    # A phase that is none of them comes after the last: file lists are sent, objects locked. None said yet: the first.
    reached = keys.index(task.phase) if task.phase in keys else len(keys) - 1 if task.phase else 0
    if task.kind == STREAM and task.state in ACTIVE and reached:
        return [_stream_stage(task, key) for key in keys]
    return [_stage(task, key, number, reached) for number, key in enumerate(keys)]


def _stage(task: Task, key: str, number: int, reached: int) -> Stage:
    last = len(PHASES.get(task.kind, (key,))) - 1
    shown = number == (reached if task.phase or task.state in ACTIVE else last)  # a task has one set of figures
    return _stage_of(task, key, _state(task, number, reached), task.progress or {} if shown else {})


def _stage_of(task: Task, key: str, state: str, figures: dict[str, Any]) -> Stage:
    return Stage(
        key=key,
        word=word(key),
        state=state,
        task_id=str(task.pk),
        node=task.node.name if task.node else "",
        done_bytes=int(figures.get("done_bytes") or 0),
        total_bytes=int(figures.get("total_bytes") or 0),
        rate=float(figures.get("rate_bytes_s") or 0),
        figures=figures,
        attempt=task.attempt,
        error=task.error_message,
        hint=task.error_hint,
    )


def _stream_stage(task: Task, key: str) -> Stage:
    figures = dict(task.progress or {})
    if key == "export":
        read, total = int(figures.get("exported_bytes") or 0), int(figures.get("total_bytes") or 0)
        figures |= {"done_bytes": read, "rate_bytes_s": 0, "current": figures.get("current", ""), "parts": []}
        state = State.SUCCEEDED if total and read >= total else State.RUNNING
    else:
        figures, state = figures | {"current": ""}, State.RUNNING
    return _stage_of(task, key, str(state), figures)


def _state(task: Task, number: int, reached: int) -> str:
    """Of one phase of a task: what lies before the phase reached is done, what lies behind it waits or never began.

    A stream is read and stored at once: what ends it ends both.
    """
    broken = task.state in (State.FAILED, State.CANCELLED) and bool(task.phase)
    if (task.state not in ACTIVE and not broken) or number == reached:
        return str(task.state)
    if number > reached:
        return UNBEGUN if broken else str(State.QUEUED)
    return str(task.state if broken and task.kind == STREAM else State.SUCCEEDED)
