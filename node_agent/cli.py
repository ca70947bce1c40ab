"""The command line of a node: finds the command, runs it, turns its outcome into an exit code.

A group of commands registers itself by a function ``add_parser(subparsers)`` and sets ``handler`` on its
parsers: a function that takes the parsed arguments and returns the exit code. Heavy imports belong into
the handlers, so that ``--help`` and quick commands start quickly.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import cast

from node_agent import cli_node, cli_repo
from node_agent.errors import BrsError, Cancelled, Interrupted, RepositoryLocked, RepositoryMissing, WrongPassword

GROUPS = (cli_repo, cli_node)

Handler = Callable[[argparse.Namespace], int]

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_PARTIAL = 3
EXIT_INTERRUPTED = 130
# As restic's since 0.17; looked through in order.
_EXIT_CODES: tuple[tuple[type[BrsError], int], ...] = (
    (RepositoryMissing, 10),
    (RepositoryLocked, 11),
    (WrongPassword, 12),
    (Cancelled, EXIT_INTERRUPTED),
    (Interrupted, EXIT_INTERRUPTED),
)


def main(argv: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names in a message need not be printable here
    args = build_parser().parse_args(argv)
    return run(cast(Handler, args.handler), args)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m node_agent", description="BRS node: protects and restores data.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in GROUPS:
        group.add_parser(subparsers)
    return parser


def run(handler: Handler, args: argparse.Namespace) -> int:
    """Run one command; what it raises on purpose becomes a sentence, a hint and an exit code."""
    try:
        code = handler(args)
        sys.stdout.flush()
    except BrsError as error:
        return _report(error, as_json=getattr(args, "json", False))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (| head): not an error, and nothing may be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    return code


def exit_code(error: BrsError) -> int:
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), EXIT_ERROR)


def _report(error: BrsError, *, as_json: bool) -> int:
    code = exit_code(error)
    if as_json:
        fields = {"message_type": "exit_error", "code": code, "message": error.message, "hint": error.hint}
        print(json.dumps(fields | {"error": error.code}), file=sys.stderr)
        return code
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return code
