"""``repo``: the repository engine on the command line, with no server. Recovery must not need what was lost.

Here and in ``cli_repo_parsers`` are the commands and their options; what they do is in other modules, imported when
they are needed.
"""

from __future__ import annotations

import argparse

from node_agent.cli_options import BLOCK_SIZES, Help, add_common_options
from node_agent.cli_repo_open import add_filters, command
from node_agent.cli_repo_parsers import add_parsers
from node_agent.cli_repo_source_options import (
    add_exclude_options,
    add_pattern_options,
    add_source_options,
)

_ABOUT = "The repository engine on its own, without a server: recovery must not need what was lost."
_OVERWRITE = ("always", "changed", "never")
_COMPRESSION = ("auto", "off", "fastest", "better", "max")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    repo = subparsers.add_parser(
        "repo", help="work with a repository directly", description=_ABOUT, formatter_class=Help
    )
    add_common_options(repo)
    commands = repo.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_init, _backup, _backup_image, _snapshots, _ls, _restore, _dump, _stats):
        add(commands)
    add_parsers(commands)


def _init(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command(commands, "init", "cli_repo_backup:init", "make a new repository")


def _backup(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = command(commands, "backup", "cli_repo_backup:backup", "back up files and folders")
    add_source_options(parser)
    add_exclude_options(parser)
    parser.add_argument("--one-file-system", "-x", action="store_true", help="do not enter other file systems")
    parser.add_argument("--force", "-f", action="store_true", help="read everything, whatever the last backup says")
    parser.add_argument("--dry-run", "-n", action="store_true", help="store nothing, only say what would be added")
    _add_backup_options(parser)


def _backup_image(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = command(commands, "backup-image", "cli_repo_backup:backup_image", "back up a disk image or block device")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--name", metavar="N", help="the disk is stored as disks/N.raw (default: the file's name)")
    parser.add_argument("--format", metavar="F", help="raw, qcow2, vmdk, vhdx, vdi, vpc (default: told by the file)")
    parser.add_argument(
        "--backing-root", action="append", default=[], metavar="DIR", help="folder in which backing files are allowed"
    )
    parser.add_argument(
        "--changed-extents",
        metavar="FILE.json",
        help='[{"offset": bytes, "length": bytes}, …] against --parent, or {"base": …, "extents": …}',
    )
    parser.add_argument(
        "--block-size",
        choices=tuple(BLOCK_SIZES),
        help="cut the disk into blocks of that (default: as its last backup; a new one by its size, 256K up to 64 GiB)",
    )
    parser.add_argument("--disk-id", metavar="ID", help="which disk this is, for the base of the change list")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="compare what is said to be unchanged as nodes do: 64 blocks or one in a thousand,"
        " the disk's metadata, and each block once in 28 days (default: none is read)",
    )
    parser.add_argument(
        "--sample", type=_count, metavar="N", help="compare N blocks at random and the disk's metadata (0: none)"
    )
    parser.add_argument(
        "--compare-days", type=_count, metavar="N", help="compare each block once in N days (0: none for that)"
    )
    _add_backup_options(parser)


def _add_backup_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parent", metavar="SNAPSHOT", help="compare with this snapshot (default: the latest alike)")
    parser.add_argument("--host", "-H", metavar="NAME", help="host in the snapshot (default: this machine)")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG[,TAG]")
    parser.add_argument("--time", metavar="TIME", help="of the snapshot: 2026-01-31 23:59:59 (default: now)")
    parser.add_argument("--compression", choices=_COMPRESSION, default="auto")


def _snapshots(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = command(commands, "snapshots", "cli_repo_list:snapshots", "list snapshots")
    parser.add_argument("ids", nargs="*", metavar="SNAPSHOT")
    parser.add_argument("--latest", type=int, default=0, metavar="N", help="only the last N of each host and its paths")
    parser.add_argument("--last", dest="latest", action="store_const", const=1, help=argparse.SUPPRESS)
    parser.add_argument("--group-by", "-g", default="", metavar="host,paths,tags", help="a list for each group")
    parser.add_argument("--compact", "-c", action="store_true", help="without the paths")
    add_filters(parser)


def _ls(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = command(commands, "ls", "cli_repo_read:ls", "list the files of a snapshot")
    parser.add_argument("snapshot", metavar="SNAPSHOT")
    parser.add_argument("folders", nargs="*", metavar="PATH", help="only what lies in these folders")
    parser.add_argument("--long", "-l", action="store_true", help="with mode, owner, size and time")
    parser.add_argument("--recursive", action="store_true", help="also what lies deeper in the named folders")
    add_filters(parser)


def _restore(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = command(commands, "restore", "cli_repo_read:restore", "restore a snapshot into a folder")
    parser.add_argument("snapshot", metavar="SNAPSHOT")
    parser.add_argument("--target", "-t", required=True, metavar="DIR")
    add_pattern_options(parser, "include", "only what matches, and the folders that lead to it")
    add_pattern_options(parser, "exclude", "leave out what matches")
    parser.add_argument("--strip", metavar="PATH", help="restore the content of this folder directly into DIR")
    parser.add_argument("--overwrite", choices=_OVERWRITE, default="always", help="files that exist (default: always)")
    parser.add_argument("--verify", action="store_true", help="read every file back and prove it")
    parser.add_argument("--sparse", action="store_true", help="for restic's users; zeros always become holes")
    add_filters(parser)


def _dump(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = command(commands, "dump", "cli_repo_read:dump", "write a file of a snapshot to standard output")
    parser.add_argument("snapshot", metavar="SNAPSHOT")
    parser.add_argument("entry", metavar="PATH")
    add_filters(parser)
    parser.add_argument("--offset", type=int, metavar="BYTES", help="begin there; nothing before it is read")
    parser.add_argument("--length", type=int, metavar="BYTES", help="write no more than that")


def _stats(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = command(commands, "stats", "cli_repo_read:stats", "sizes of snapshots and of what is stored")
    parser.add_argument("ids", nargs="*", metavar="SNAPSHOT")
    parser.add_argument("--mode", choices=("restore-size", "raw-data"), default="restore-size")
    add_filters(parser)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of blocks")
    return int(text)
