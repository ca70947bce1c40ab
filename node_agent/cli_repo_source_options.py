"""The options that say what is protected, what is restored and what is left out; names and meaning are restic's."""

from __future__ import annotations

import argparse


def add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH")
    for option, text in (
        ("--files-from", "paths or patterns of paths, one in each line"),
        ("--files-from-verbatim", "paths, one in each line, as they are"),
        ("--files-from-raw", "paths, each ended by a zero byte"),
    ):
        parser.add_argument(option, action="append", default=[], metavar="FILE", help=f"{text} (- reads stdin)")
    parser.add_argument("--stdin", action="store_true", help="back up what comes on standard input, as one file")
    parser.add_argument("--stdin-filename", default="stdin", metavar="NAME", help="name of that file (stdin)")
    parser.add_argument(
        "--stdin-from-command",
        action="store_true",
        help="PATH … is a command (after --): back up what it writes; no snapshot if it fails",
    )


def add_pattern_options(parser: argparse.ArgumentParser, verb: str, text: str) -> None:
    """``--VERB`` and what goes with it."""
    for names, more in (((f"--{verb}", f"-{verb[0]}"), ""), ((f"--i{verb}",), ", in upper or lower case")):
        parser.add_argument(*names, action="append", default=[], metavar="PATTERN", help=f"{text}{more} (repeatable)")
    for name in (f"--{verb}-file", f"--i{verb}-file"):
        parser.add_argument(name, action="append", default=[], metavar="FILE", help="patterns, one in each line")


def add_exclude_options(parser: argparse.ArgumentParser) -> None:
    add_pattern_options(parser, "exclude", "leave out what matches")
    parser.add_argument("--exclude-caches", action="store_true", help="leave out what lies beside a CACHEDIR.TAG")
    parser.add_argument(
        "--exclude-if-present",
        action="append",
        default=[],
        metavar="NAME[:HEADER]",
        help="leave out what lies beside such a file (that begins so)",
    )
    parser.add_argument("--exclude-larger-than", metavar="SIZE", help="leave out larger files: 500M, 2G")
