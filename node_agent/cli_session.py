"""What the repository commands share: options, the password, opening, progress on the terminal, output."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from node_agent.errors import Cancelled, ConfigError, Interrupted
from node_agent.items import Issue, Issues, Severity
from node_agent.progress import Counters, Progress

if TYPE_CHECKING:
    from node_agent.repository.backend import Backend
    from node_agent.repository.repository import Repository

REDRAW_S = 0.5
_STORE_OPTION = "option:"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options of every repository command; accepted before and after the command's name."""
    absent = argparse.SUPPRESS
    parser.add_argument("--repo", "-r", metavar="URL", default=absent, help="repository (RESTIC_REPOSITORY)")
    parser.add_argument(
        "--option", "-o", metavar="NAME=VALUE", action=AddOption, default=absent, help="of the store; may be repeated"
    )
    parser.add_argument("--password-file", "-p", metavar="FILE", default=absent, help="file with the password")
    parser.add_argument("--cache-dir", metavar="DIR", default=absent, help="index cache (BRS_CACHE_DIR, ~/.cache/brs)")
    parser.add_argument("--no-cache", action="store_true", default=absent, help="keep no cache of the index on disk")
    parser.add_argument("--json", action="store_true", default=absent, help="output for programs")
    parser.add_argument("--quiet", "-q", action="store_true", default=absent, help="no progress")
    parser.add_argument(
        "--wait-lock", type=float, metavar="SECONDS", default=absent, help="wait for another program's lock"
    )


class AddOption(argparse.Action):
    """Gathers ``--option name=value`` given before and after the command's name."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        name, equals, value = str(values).partition("=")
        if not name or not equals:
            parser.error(f"--option needs NAME=VALUE, not {values!s}")
        # One attribute for each: a command's own namespace replaces attributes of the same name given before it.
        setattr(namespace, _STORE_OPTION + name, value)


def option(args: argparse.Namespace, name: str, default: object = None) -> object:
    return getattr(args, name, default)


def wants_json(args: argparse.Namespace) -> bool:
    return bool(getattr(args, "json", False))


# --- opening ---


def repository_url(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> str:
    url = getattr(args, "repo", None) or env.get("RESTIC_REPOSITORY")
    if not url:
        raise ConfigError("No repository is named.", hint="Give --repo PATH, or set RESTIC_REPOSITORY.")
    return str(url)


def read_password(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> str:
    """From --password-file, BRS_REPOSITORY_PASSWORD, RESTIC_PASSWORD_FILE, RESTIC_PASSWORD; first found."""
    given = getattr(args, "password_file", None)
    if given:
        return _password_from(Path(given))
    if env.get("BRS_REPOSITORY_PASSWORD"):
        return env["BRS_REPOSITORY_PASSWORD"]
    if env.get("RESTIC_PASSWORD_FILE"):
        return _password_from(Path(env["RESTIC_PASSWORD_FILE"]))
    if env.get("RESTIC_PASSWORD"):
        return env["RESTIC_PASSWORD"]
    raise ConfigError(
        "The repository's password is not given.",
        hint="Give --password-file FILE, or set BRS_REPOSITORY_PASSWORD or RESTIC_PASSWORD.",
    )


def _password_from(path: Path) -> str:
    try:
        # As restic: white space around the password, such as the newline at the end, is no part of it.
        password = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The password file {path} cannot be read: {error}.", hint="Check the path and its rights."
        ) from error
    if not password:
        raise ConfigError(f"The password file {path} is empty.", hint="Write the password into it.")
    return password


def cache_dir(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> Path | None:
    if getattr(args, "no_cache", False):
        return None
    given = getattr(args, "cache_dir", None) or env.get("BRS_CACHE_DIR")
    if given:
        return Path(given)
    base = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME") or "/var/tmp") / ".cache")
    return Path(base) / "brs"


def open_store(args: argparse.Namespace) -> Backend:
    """The store that --repo names, with the options of --option."""
    from node_agent.repository.backend import open_backend

    given = {name.removeprefix(_STORE_OPTION): v for name, v in vars(args).items() if name.startswith(_STORE_OPTION)}
    return open_backend(repository_url(args), given)


def open_repository(args: argparse.Namespace) -> Repository:
    from node_agent.repository.repository import Repository

    return Repository.open(open_store(args), read_password(args), cache_dir=cache_dir(args))


def lock_wait_s(args: argparse.Namespace) -> float:
    return float(getattr(args, "wait_lock", 0) or 0)


# --- progress ---


@contextlib.contextmanager
def progress_shown(args: argparse.Namespace) -> Iterator[Progress]:
    """A run's progress: a bar on a terminal, warnings on stderr, and signals that ask the run to stop.

    Ctrl-C and SIGTERM stop at the next file or block, so that finished packs are still named by an index;
    a second Ctrl-C stops at once. SIGHUP is ignored: stock ``restic unlock`` sends it to ask whether the
    holder of a lock lives.
    """
    bar = _Bar(shown=sys.stderr.isatty() and not getattr(args, "quiet", False) and not wants_json(args))
    progress = Progress(log=bar.log)
    with _stopped_by_signals(progress), bar.drawing(progress):
        yield progress


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

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._lock = threading.Lock()
        self._done = threading.Event()

    def log(self, level: str, message: str) -> None:
        if level in ("debug", "info"):
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
    phase = f"  {c.phase}" if c.phase else ""
    if c.total_bytes:
        done, total = c.done_bytes, c.total_bytes
        counts = f"{human_size(done)} of {human_size(total)}"
    elif c.total_files and not c.done_bytes:  # snapshots of a check or copy, index files of a repair
        done, total = c.done_files, c.total_files
        counts = f"{done} of {total}"
    else:
        return f"{human_size(c.done_bytes)} in {c.done_files} files{phase}  {c.current[-40:]}"
    share = min(1.0, done / total)
    filled = round(share * width)
    bar = "#" * filled + "." * (width - filled)
    return f"[{bar}] {share:6.1%}  {counts}{phase}"


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
