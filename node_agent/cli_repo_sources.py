"""What ``repo backup`` protects and leaves out: paths, lists of paths, patterns (those of a restore, too), or what a
program writes.

Names and meaning of the options are restic's.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import glob
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from node_agent.errors import ConfigError, SourceError
from node_agent.items import printable
from node_agent.progress import Progress
from node_agent.repository.backend.settings import parse_size
from node_agent.repository.excludes import Excludes, Marker

_LOOK_AGAIN_S = 0.5
_CACHE_TAG = "CACHEDIR.TAG:Signature: 8a477f597d28d172789f06886806bc55"


def excludes_of(args: argparse.Namespace) -> Excludes:
    markers = [*args.exclude_if_present, *([_CACHE_TAG] if args.exclude_caches else [])]
    try:
        largest = parse_size(args.exclude_larger_than) if args.exclude_larger_than else None
    except ValueError as error:
        raise ConfigError(f"{error}.", hint="Correct --exclude-larger-than.") from error
    return Excludes(
        patterns_of(args.exclude, args.exclude_file),
        ignoring_case=patterns_of(args.iexclude, args.iexclude_file),
        markers=[Marker.of(text) for text in markers],
        larger_than=largest,
    )


def roots_of(args: argparse.Namespace) -> list[Path]:
    """Absolute, each once. Raises ConfigError if nothing is named."""
    paths: list[str] = list(args.paths)
    for name in args.files_from:
        paths += _matches(line for line in _lines(name, b"\n") if line.strip() and not line.lstrip().startswith("#"))
    for name in args.files_from_verbatim:
        paths += [line for line in _lines(name, b"\n") if line]
    for name in args.files_from_raw:
        paths += [line for line in _lines(name, b"\0") if line]
    if not paths:
        raise ConfigError("No path to protect is given.", hint="Name at least one path, or a list with --files-from.")
    return list(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))


def _matches(patterns: Iterator[str]) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern.strip(), include_hidden=True))
        if not matches:
            print(f"warning: {printable(pattern.strip())} matches no file, and is passed over", file=sys.stderr)
        found += matches
    return found


def _lines(name: str, end: bytes) -> list[str]:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"The list of paths {name} cannot be read: {error.strerror}.", hint="Check it.") from error
    if end == b"\n":
        content = content.replace(b"\r\n", b"\n")
        if b"\0" in content:
            raise ConfigError(f"The list of paths {name} has zero bytes.", hint="Give it with --files-from-raw.")
    return [os.fsdecode(line) for line in content.split(end)]


def patterns_of(given: Sequence[str], files: Sequence[str]) -> list[str]:
    """Those of the command line as they are; those in files trimmed, without comments, with variables replaced."""
    patterns = list(given)
    for name in files:
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"The file of patterns {name} cannot be read: {error.strerror}.", hint="Check it."
            ) from error
        lines = (line.strip() for line in _text(content).split("\n"))
        patterns += [_with_variables(line) for line in lines if line and not line.startswith("#")]
    return patterns


def _text(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    return content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _with_variables(line: str) -> str:
    """``$NAME`` and ``${NAME}`` from the environment, empty if not there; ``$$`` is a dollar. As restic does."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return "$" if name == "$" else os.environ.get(name, "")

    return re.sub(r"\$(?:\{([^{}]+)\}|([*#$@!?0-9-]|[A-Za-z_][A-Za-z0-9_]*))", value, line)


def stream_name(args: argparse.Namespace) -> str:
    """The file's name if a stream is to be backed up, else nothing. Raises ConfigError for contradictions."""
    if not args.stdin and not args.stdin_from_command:
        return ""
    if args.stdin_from_command and not args.paths:
        raise ConfigError("No command is given.", hint="Give it last: backup --stdin-from-command -- COMMAND …")
    if args.stdin and (args.paths or args.stdin_from_command):
        raise ConfigError("--stdin takes no paths and no command.", hint="Leave out one of them.")
    if args.files_from or args.files_from_verbatim or args.files_from_raw:
        raise ConfigError("A stream and lists of paths do not go together.", hint="Leave out one of them.")
    name = str(args.stdin_filename).removeprefix("/")
    if not name or "/" in name or name in (".", "..") or "\0" in name:
        raise ConfigError(f"{args.stdin_filename!r} is no name of a file.", hint="Give a plain name, without folders.")
    return name


class Source:
    """A stream, and whether all of it came. However quiet it is, a wish to stop is noticed."""

    def __init__(self, pipe: IO[bytes], progress: Progress, process: subprocess.Popen[bytes] | None = None) -> None:
        self.pipe = pipe
        self._progress = progress
        self._process = process
        self._look = select.poll()
        self._look.register(pipe, select.POLLIN)

    def readinto(self, b: memoryview, /) -> int:
        self._progress.check()
        while not self._look.poll(_LOOK_AGAIN_S * 1000):
            self._progress.check()
        return os.readv(self.pipe.fileno(), [b])

    def ended(self) -> None:
        """Raises SourceError if the program that wrote it failed."""
        if self._process is None:
            return
        while True:
            self._progress.check()  # Ctrl-C of a terminal ends the command, too
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(_LOOK_AGAIN_S)
                break
        if code:
            raise SourceError(
                f"The command ended with {code}: what it wrote is not whole, and no snapshot was made.",
                hint="Its own messages are above; run it again once it succeeds.",
            )


@contextmanager
def stream_of(args: argparse.Namespace, progress: Progress) -> Iterator[Source]:
    if args.stdin:
        yield Source(sys.stdin.buffer, progress)
        return
    try:
        process = subprocess.Popen(args.paths, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except OSError as error:
        raise SourceError(f"The command {args.paths[0]} cannot be started: {error.strerror}.") from error
    assert process.stdout is not None
    with process:
        try:
            yield Source(process.stdout, progress, process)
        finally:
            if process.poll() is None:
                process.kill()
