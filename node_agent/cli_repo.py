"""``repo``: the repository engine on the command line, with no server. Recovery must not need what was lost.

Here are the commands and their options; what they do is in ``cli_repo_backup``, ``cli_repo_read`` and
``cli_repo_keep``, which are imported when they are needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module

from node_agent.cli_session import add_common_options

_KEEP = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_OVERWRITE = ("always", "changed", "never")
_COMPRESSION = ("auto", "off", "fastest", "better", "max")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    repo = subparsers.add_parser("repo", help="work with a repository directly", description=__doc__)
    add_common_options(repo)
    commands = repo.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_init, _backup, _backup_image, _snapshots, _ls, _restore, _dump, _check, _stats, _forget):
        add(commands)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, handler: str, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    add_common_options(parser)
    parser.set_defaults(handler=_later(handler))
    return parser


def _later(handler: str) -> Callable[[argparse.Namespace], int]:
    """A handler whose module is imported when it is called."""
    module, function = handler.split(":")

    def run(args: argparse.Namespace) -> int:
        code: int = getattr(import_module(f"node_agent.{module}"), function)(args)
        return code

    return run


def _init(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _command(commands, "init", "cli_repo_backup:init", "make a new repository")


def _backup(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "backup", "cli_repo_backup:backup", "back up files and folders")
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument(
        "--exclude", "-e", action="append", default=[], metavar="PATTERN", help="leave out (repeatable)"
    )
    parser.add_argument(
        "--exclude-file", action="append", default=[], metavar="FILE", help="patterns, one in each line"
    )
    parser.add_argument("--one-file-system", "-x", action="store_true", help="do not enter other file systems")
    parser.add_argument("--force", "-f", action="store_true", help="read everything, whatever the last backup says")
    _add_backup_options(parser)


def _backup_image(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "backup-image", "cli_repo_backup:backup_image", "back up a disk image or block device")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--name", metavar="N", help="the disk is stored as disks/N.raw (default: the file's name)")
    parser.add_argument("--format", metavar="F", help="raw, qcow2, vmdk, vhdx, vdi, vpc (default: told by the file)")
    parser.add_argument(
        "--backing-root", action="append", default=[], metavar="DIR", help="folder in which backing files are allowed"
    )
    parser.add_argument(
        "--changed-extents", metavar="FILE.json", help='[{"offset": bytes, "length": bytes}, …] against --parent'
    )
    parser.add_argument(
        "--sample", type=_count, default=0, metavar="N", help="compare N unchanged blocks, and both ends"
    )
    _add_backup_options(parser)


def _add_backup_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parent", metavar="SNAPSHOT", help="compare with this snapshot (default: the latest alike)")
    parser.add_argument("--host", "-H", metavar="NAME", help="host in the snapshot (default: this machine)")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG[,TAG]")
    parser.add_argument("--compression", choices=_COMPRESSION, default="auto")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", "-H", action="append", default=[], metavar="NAME", help="only of this host")
    parser.add_argument("--path", action="append", default=[], metavar="PATH", help="only with this path")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG[,TAG]", help="only with these tags")


def _snapshots(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "snapshots", "cli_repo_read:snapshots", "list snapshots")
    parser.add_argument("ids", nargs="*", metavar="SNAPSHOT")
    _add_filters(parser)


def _ls(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "ls", "cli_repo_read:ls", "list the files of a snapshot")
    parser.add_argument("snapshot", metavar="SNAPSHOT")
    parser.add_argument("folders", nargs="*", metavar="PATH", help="only what lies in these folders")
    parser.add_argument("--long", "-l", action="store_true", help="with mode, owner, size and time")
    parser.add_argument("--recursive", action="store_true", help="also what lies deeper in the named folders")
    _add_filters(parser)


def _restore(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "restore", "cli_repo_read:restore", "restore a snapshot into a folder")
    parser.add_argument("snapshot", metavar="SNAPSHOT")
    parser.add_argument("--target", "-t", required=True, metavar="DIR")
    parser.add_argument(
        "--include", "-i", action="append", default=[], metavar="PATH", help="only this path (repeatable)"
    )
    parser.add_argument("--strip", metavar="PATH", help="restore the content of this folder directly into DIR")
    parser.add_argument("--overwrite", choices=_OVERWRITE, default="always", help="files that exist (default: always)")
    parser.add_argument("--verify", action="store_true", help="read every file back and prove it")
    parser.add_argument("--sparse", action="store_true", help="for restic's users; zeros always become holes")
    _add_filters(parser)


def _dump(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "dump", "cli_repo_read:dump", "write a file of a snapshot to standard output")
    parser.add_argument("snapshot", metavar="SNAPSHOT")
    parser.add_argument("entry", metavar="PATH")
    _add_filters(parser)


def _check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "check", "cli_repo_keep:check", "prove the repository's structure, or all of its data")
    parser.add_argument("--read-data", action="store_true", help="read and prove every pack")


def _stats(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "stats", "cli_repo_read:stats", "sizes of snapshots and of what is stored")
    parser.add_argument("ids", nargs="*", metavar="SNAPSHOT")
    parser.add_argument("--mode", choices=("restore-size", "raw-data"), default="restore-size")
    _add_filters(parser)


def _forget(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "forget", "cli_repo_keep:forget", "remove snapshots, named or by a policy")
    parser.add_argument("ids", nargs="*", metavar="SNAPSHOT")
    for period in _KEEP:
        parser.add_argument(f"--keep-{period}", type=_keep_count, default=0, metavar="N")
    for period in ("", *(f"-{period}" for period in _KEEP[1:])):
        parser.add_argument(f"--keep-within{period}", default="", metavar="DURATION", help="for example 1y5m7d2h")
    parser.add_argument("--keep-tag", action="append", default=[], metavar="TAG[,TAG]")
    parser.add_argument("--group-by", "-g", default="host,paths", metavar="host,paths,tags")
    parser.add_argument("--dry-run", "-n", action="store_true", help="only say what would be done")
    _add_filters(parser)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of blocks")
    return int(text)


def _keep_count(text: str) -> int:
    if text == "unlimited":
        return -1
    try:
        number = int(text)
    except ValueError:
        number = -2
    if number < -1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of snapshots")
    return number
