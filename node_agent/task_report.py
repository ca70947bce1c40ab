"""The last word about a task, within what the wire carries."""

from __future__ import annotations

from node_agent.errors import BrsError
from node_agent.items import Issue, Issues, Severity
from node_agent.progress import Counters
from node_agent.protocol import (
    LIST_KEEP,
    CompleteReport,
    FailReport,
    LeftOut,
    Outcome,
    PartProgress,
    ProbeCheck,
    ProgressReport,
    Result,
)
from node_agent.task_log import TaskLog

LIST_BYTES = 4 * 1024 * 1024  # of the list of left-out items; a body may have 8 MiB
UNEXPECTED = "The node met an error that it does not know."


def progress_report(token: str, counters: Counters, rate: float, lines: TaskLog) -> ProgressReport:
    return ProgressReport(
        token=token,
        phase=counters.phase,
        total_bytes=counters.total_bytes,
        done_bytes=counters.settled_bytes,
        exported_bytes=counters.done_bytes,
        read_bytes=counters.read_bytes,
        new_bytes=counters.new_bytes,
        stored_bytes=counters.stored_bytes,
        total_files=counters.total_files,
        done_files=counters.done_files,
        left_out=counters.left_out,
        whole=round(counters.whole, 4),
        rate_bytes_s=round(rate, 1),
        current=counters.current[:4000],
        parts=[
            PartProgress(name=name[:300], total_bytes=size, done_bytes=done)
            for (name, size), done in zip(counters.parts[:300], counters.done_of_parts[:300], strict=True)
        ],
        checks=[
            ProbeCheck(name=name, ok=ok, detail=detail, hint=hint) for name, ok, detail, hint in counters.checks[:200]
        ],
        log=lines.pending(),
    )


def completed(token: str, result: Result, issues: Issues, last: ProgressReport) -> CompleteReport:
    return CompleteReport(
        token=token,
        outcome=Outcome.PARTIAL if issues.left_out else Outcome.SUCCEEDED,
        result=result,
        left_out=_bounded(issues.items),
        left_out_count=issues.left_out,
        notes_count=issues.notes,
        last=last,
    )


def failed(token: str, error: Exception, lines: TaskLog) -> FailReport:
    """What the user reads. Of an error that is not ours only the type travels: its text may hold anything."""
    if isinstance(error, BrsError):
        return FailReport(
            token=token,
            code=error.code,
            message=error.message[:8000],
            hint=error.hint[:4000],
            retryable=error.retryable,
            log=lines.pending(),
        )
    return FailReport(
        token=token,
        code=BrsError.code,
        message=f"{UNEXPECTED} ({type(error).__name__})",
        hint=BrsError.default_hint,
        log=lines.pending(),
    )


def _bounded(issues: list[Issue]) -> list[LeftOut]:
    """Left-out items before notes, as many as fit."""
    kept: list[LeftOut] = []
    size = 0
    for issue in sorted(issues, key=lambda issue: issue.severity is Severity.NOTE):
        item = LeftOut(
            path=issue.path[:8000],
            code=issue.code,
            message=issue.message[:4000],
            note=issue.severity is Severity.NOTE,
        )
        size += len(item.model_dump_json())
        if len(kept) == LIST_KEEP or size > LIST_BYTES:
            break
        kept.append(item)
    return kept
