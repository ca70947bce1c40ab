"""What the repository commands share: opening, local databases, progress on the terminal, output."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from node_agent.cli_options import (
    cache_dir,
    key_hint,
    pack_size,
    read_password,
    repository_url,
    shared_options,
    store_options,
    verbosity,
    wants_json,
)
from node_agent.errors import Cancelled, ConfigError, Interrupted
from node_agent.items import Issue, Issues, Severity
from node_agent.progress import Counters, Progress

if TYPE_CHECKING:
    from node_agent.repository.backend import Backend
    from node_agent.repository.repository import Repository

logger = logging.getLogger(__name__)

REDRAW_S = 0.5
OLD_CACHE_DAYS = 30
_DAY_S = 86400
_SILENT = (("debug", "info"), ("debug",), ())  # by verbosity: what is not told
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


# --- opening ---


def open_store(args: argparse.Namespace) -> Backend:
    """The store that is named, with the options given for it."""
    from node_agent.repository.backend import open_backend

    _be_verbose(verbosity(args))
    store = open_backend(repository_url(args), store_options(args), shared=shared_options(args))
    warn_of_insecure_tls(args, store.url)
    return store


def open_repository(args: argparse.Namespace, *, lockless: bool | None = None) -> Repository:
    """``lockless`` speaks for a repository to which --no-lock does not apply."""
    from node_agent.repository.repository import Repository

    size, cache = pack_size(args), cache_dir(args)
    repo = Repository.open(open_store(args), read_password(args), cache_dir=cache, key_hint=key_hint(args))
    repo.lockless = bool(getattr(args, "no_lock", False)) if lockless is None else lockless
    repo.pack_size = size or repo.pack_size
    if getattr(args, "cleanup_cache", False) and cache is not None:
        remove_old_databases(cache, OLD_CACHE_DAYS)
    logger.info(
        "repository %s (version %d) of %s opened by key %s; cache: %s",
        repo.id[:10],
        repo.config.version,
        repo.backend.url,
        repo.opened_by.name[:8],
        cache or "none",
    )
    return repo


def warn_of_insecure_tls(args: argparse.Namespace, url: str) -> None:
    if "insecure-tls" in shared_options(args) | store_options(args):
        print(
            f"WARNING: --insecure-tls: nobody proves that {url} is that store. Whoever is in between gets the"
            " credentials, and can withhold, replace and remove backups. Give --cacert FILE instead.",
            file=sys.stderr,
        )


def _be_verbose(level: int) -> None:
    """-v shows what the engine has to say, -vv each request to the store."""
    if not level:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger(__package__)
    ours.handlers = [handler]
    ours.setLevel(logging.INFO if level == 1 else logging.DEBUG)
    ours.propagate = False


# --- local databases ---


@dataclass(slots=True)
class Databases:
    """Of one repository."""

    repository: str  # the beginning of its id
    bytes: int = 0
    age_days: int = 0


def local_databases(folder: Path) -> list[Databases]:
    found: dict[str, Databases] = {}
    for path in sorted(folder.glob("*.sqlite*")):
        name = path.name.split(".", 1)[0]
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # a journal that just went
        age_days = int((time.time() - stat.st_mtime) / _DAY_S)
        known = found.setdefault(name, Databases(name, age_days=age_days))
        known.bytes += stat.st_size
        known.age_days = min(known.age_days, age_days)
    return list(found.values())


def remove_old_databases(folder: Path, max_age_days: int) -> list[Databases]:
    """Of repositories that nobody used for longer than that."""
    old = [entry for entry in local_databases(folder) if entry.age_days > max_age_days]
    for entry in old:
        for path in folder.glob(f"{entry.repository}*.sqlite*"):
            path.unlink(missing_ok=True)
    return old


# --- progress ---


@contextlib.contextmanager
def progress_shown(args: argparse.Namespace) -> Iterator[Progress]:
    """A run's progress: a bar on a terminal, warnings on stderr, and signals that ask the run to stop.

    Ctrl-C and SIGTERM stop at the next file or block, so that finished packs are still named by an index;
    a second Ctrl-C stops at once. SIGHUP is ignored: stock ``restic unlock`` sends it to ask whether the
    holder of a lock lives.
    """
    shown = sys.stderr.isatty() and not getattr(args, "quiet", False) and not wants_json(args)
    bar = _Bar(shown, _SILENT[min(verbosity(args), len(_SILENT) - 1)])
    per_second = _per_second() if wants_json(args) and not getattr(args, "quiet", False) else 0.0
    progress = Progress(log=bar.log, watched=shown or per_second > 0)
    with _stopped_by_signals(progress), bar.drawing(progress), _told(per_second, progress):
        yield progress


@contextlib.contextmanager
def _told(per_second: float, progress: Progress) -> Iterator[None]:
    """With ``--json`` and RESTIC_PROGRESS_FPS: the figures of the bar as lines for programs, and once at the end."""
    if not per_second:
        yield
        return
    done = threading.Event()

    def tell() -> None:
        while not done.wait(1 / per_second):
            print_json(status_line(progress.counters))

    thread = threading.Thread(target=tell, name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print_json(status_line(progress.counters))


def _per_second() -> float:
    said = os.environ.get("RESTIC_PROGRESS_FPS") or "0"
    try:
        return min(60.0, max(0.0, float(said)))
    except ValueError:
        raise ConfigError(
            f"RESTIC_PROGRESS_FPS is {said!r}, which is no number.", hint="Write for example 1."
        ) from None


@contextlib.contextmanager
def _stopped_by_signals(progress: Progress) -> Iterator[None]:
    def ask(number: int, _frame: FrameType | None) -> None:
        if progress.stopping:
            raise KeyboardInterrupt
        progress.stop(Cancelled() if number == signal.SIGINT else Interrupted())

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bar:
    """One line at the bottom of the terminal, redrawn; messages go above it."""

    def __init__(self, shown: bool, silent: Sequence[str]) -> None:
        self._shown = shown
        self._silent = silent
        self._lock = threading.Lock()
        self._done = threading.Event()

    def log(self, level: str, message: str) -> None:
        if level in self._silent:
            return
        with self._lock:
            clear = "\r\x1b[K" if self._shown else ""
            print(f"{clear}{level}: {message}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def drawing(self, progress: Progress) -> Iterator[None]:
        if not self._shown:
            yield
            return
        thread = threading.Thread(target=self._draw, args=(progress,), name="progress-bar", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _draw(self, progress: Progress) -> None:
        while not self._done.wait(REDRAW_S):
            with self._lock:
                print(f"\r\x1b[K{bar_line(progress.counters)}", end="", file=sys.stderr, flush=True)


def bar_line(c: Counters, width: int = 24) -> str:
    """The bar shows the whole run where it is known, else the phase; the figures are the phase's."""
    phase = f"  {c.phase}" if c.phase else ""
    if c.total_bytes:
        counts = f"{human_size(c.done_bytes)} of {human_size(c.total_bytes)}"
    elif c.total_files and not c.done_bytes:  # snapshots, index files, packs
        counts = f"{c.done_files} of {c.total_files}"
    elif c.whole:
        counts = ""
    else:
        return f"{human_size(c.done_bytes)} in {c.done_files} files{phase}  {c.current[-40:]}"
    share = c.whole or c.share
    filled = round(share * width)
    bar = "#" * filled + "." * (width - filled)
    return f"[{bar}] {share:6.1%}  {counts}{phase}"


def status_line(c: Counters) -> dict[str, object]:
    """For programs; fields as restic's."""
    return {
        "message_type": "status",
        "phase": c.phase,
        "percent_done": round(c.whole or c.share, 4),
        "total_files": c.total_files,
        "files_done": c.done_files,
        "total_bytes": c.total_bytes,
        "bytes_done": c.settled_bytes,
    }


# --- output ---


def human_size(size: float) -> str:
    for unit in _UNITS:
        if abs(size) < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"


def print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, separators=(",", ":")), flush=True)


def report_issues(issues: Issues, *, as_json: bool, during: str) -> None:
    """Each issue on stderr: one line for people, or restic's error message as JSON."""
    for issue in issues.items:
        print(_issue_json(issue, during) if as_json else _issue_line(issue), file=sys.stderr)
    dropped = issues.left_out + issues.notes - len(issues.items)
    if dropped and not as_json:
        print(f"… and {dropped} more", file=sys.stderr)


def _issue_line(issue: Issue) -> str:
    label = "left out" if issue.severity is Severity.LEFT_OUT else "note"
    return f"{label}: {issue.path}: {issue.message}"


def _issue_json(issue: Issue, during: str) -> str:
    error = {"message": issue.message, "code": issue.code, "severity": issue.severity.value}
    return json.dumps({"message_type": "error", "error": error, "during": during, "item": issue.path})


def split_tags(given: Sequence[str]) -> list[str]:
    """``--tag a,b --tag c`` as one list."""
    return [tag.strip() for entry in given for tag in entry.split(",") if tag.strip()]


def tag_lists(given: Sequence[str]) -> list[list[str]]:
    """``--tag a,b --tag c`` as restic's filters have it: (a and b) or c."""
    return [split_tags([entry]) for entry in given]
