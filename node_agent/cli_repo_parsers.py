"""The options of the commands that look into a repository, keep it and repair it; each names the one that runs it."""

from __future__ import annotations

import argparse

from node_agent.cli_repo_open import Commands, add_filters, add_source_options, add_source_password, command

_PERIODS = (("last", "-l"), ("hourly", ""), ("daily", "-d"), ("weekly", "-w"), ("monthly", "-m"), ("yearly", "-y"))
_CAT = ("config", "snapshot", "index", "pack", "blob", "tree", "key", "masterkey", "lock")
_LIST = ("blobs", "packs", "index", "snapshots", "keys", "locks")


def add_parsers(commands: Commands[argparse.ArgumentParser]) -> None:
    for add in (
        _check,
        _forget,
        _prune,
        _repair,
        _probe,
        _copy,
        _key,
        _unlock,
        _diff,
        _find,
        _tag,
        _list,
        _cat,
        _cache,
        _version,
    ):
        add(commands)


def _check(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "check", "cli_repo_keep:check", "prove the repository's structure, and its data")
    parser.add_argument("--read-data", action="store_true", help="read and prove every pack")
    parser.add_argument(
        "--read-data-subset", metavar="n/t|x%|SIZE", help="read a part; shares and sizes take the least recently proven"
    )
    parser.add_argument("--max-duration", metavar="DURATION", help="stop reading after that long, for example 2h30m")
    parser.add_argument("--max-age", metavar="DURATION", help="read only what was not proven for that long: 30d")
    parser.add_argument("--accept-gone", action="store_true", help="tell of snapshots that are gone for the last time")


def _forget(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "forget", "cli_repo_keep:forget", "remove snapshots, named or by a policy")
    parser.add_argument("ids", nargs="*", metavar="SNAPSHOT")
    for period, short in _PERIODS:
        names = (f"--keep-{period}", short) if short else (f"--keep-{period}",)
        parser.add_argument(*names, type=_keep_count, default=0, metavar="N")
    for period in ("", *(f"-{period}" for period, _ in _PERIODS[1:])):
        parser.add_argument(f"--keep-within{period}", default="", metavar="DURATION", help="for example 1y5m7d2h")
    parser.add_argument("--keep-tag", action="append", default=[], metavar="TAG[,TAG]")
    parser.add_argument("--group-by", "-g", default="host,paths", metavar="host,paths,tags")
    parser.add_argument("--compact", "-c", action="store_true", help="only counts and ids, without the reasons")
    parser.add_argument("--dry-run", "-n", action="store_true", help="only say what would be done")
    parser.add_argument("--prune", action="store_true", help="then give back the space, if snapshots were removed")
    _add_prune_options(parser)
    add_filters(parser)


def _prune(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "prune", "cli_repo_maintain:prune", "give back the space of what no snapshot needs")
    parser.add_argument("--dry-run", "-n", action="store_true", help="only say what would be done")
    _add_prune_options(parser)


def _add_prune_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-unused", default="5%", metavar="SIZE|x%|unlimited", help="waste that may stay")
    parser.add_argument("--max-repack-size", metavar="SIZE", help="bytes of packs to rewrite at most")
    parser.add_argument("--max-duration", metavar="DURATION", help="stop rewriting after that long, for example 1h")


def _repair(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("repair", help="repair the index, packs or snapshots")
    parts = parser.add_subparsers(title="what", metavar="PART", required=True)
    index = command(parts, "index", "cli_repo_repair:repair_index", "make the index again from packs' headers")
    index.add_argument("--read-all-packs", action="store_true", help="read every header, whatever the index says")
    index.add_argument("--dry-run", "-n", action="store_true", help="only say what would be done")
    packs = command(parts, "packs", "cli_repo_repair:repair_packs", "replace damaged packs, fetch what is lost")
    packs.add_argument("packs", nargs="*", metavar="PACK", help="packs that a check named (default: those it finds)")
    packs.add_argument("--read-data", action="store_true", help="read every pack to find the damaged ones")
    packs.add_argument("--from", dest="from_repo", metavar="URL", help="a repository that has the blobs")
    add_source_password(packs)
    snapshots = command(
        parts, "snapshots", "cli_repo_repair:repair_snapshots", "say which files are hurt; write snapshots without them"
    )
    snapshots.add_argument("ids", nargs="*", metavar="SNAPSHOT")
    snapshots.add_argument("--read-data", action="store_true", help="read every pack to find what is damaged")
    snapshots.add_argument("--write", action="store_true", help="write a partial snapshot of what is left")
    snapshots.add_argument("--forget", action="store_true", help="as --write, and remove the hurt one")
    add_filters(snapshots)

    undelete = command(
        parts,
        "undelete",
        "cli_repo_lock:undelete",
        "bring back what was deleted or overwritten, where objects are locked",
    )
    undelete.add_argument("--dry-run", "-n", action="store_true", help="only say what would be done")
    undelete.add_argument(
        "--without-password", action="store_true", help="bring back also what repairs put out of sight themselves"
    )


def _probe(commands: Commands[argparse.ArgumentParser]) -> None:
    command(commands, "probe", "cli_repo_lock:probe", "prove that the store keeps what it is told to lock")


def _copy(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "copy", "cli_repo_maintain:copy", "copy snapshots here from another repository")
    parser.add_argument("ids", nargs="*", metavar="SNAPSHOT", help="of the other repository (default: all)")
    add_source_options(parser)
    add_filters(parser)


def _key(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("key", help="list, add, remove, change passwords; save keys and put them back")
    parts = parser.add_subparsers(title="what", metavar="ACTION", required=True)
    command(parts, "list", "cli_repo_keys:key_list", "list the keys")
    for name, text in (("add", "let another password open the repository"), ("passwd", "change the password")):
        part = command(parts, name, f"cli_repo_keys:key_{name}", text)
        part.add_argument("--new-password-file", metavar="FILE", help="the new password (BRS_NEW_PASSWORD)")
    export = command(parts, "export", "cli_repo_keys:key_export", "save keys and config, sealed as they are, in a file")
    export.add_argument("file", metavar="FILE", help="to be kept elsewhere: a repository has one copy of each")
    restore = command(parts, "restore", "cli_repo_keys:key_restore", "put back exported keys and config")
    restore.add_argument("file", metavar="FILE", help="that 'key export' wrote")
    remove = command(parts, "remove", "cli_repo_keys:key_remove", "remove a key, but not the one in use")
    remove.add_argument("id", metavar="KEY")


def _unlock(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "unlock", "cli_repo_keys:unlock", "remove locks that were left behind")
    parser.add_argument("--remove-all", action="store_true", help="all locks, also of programs that work now")


def _diff(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "diff", "cli_repo_look:diff", "what changed between two snapshots")
    parser.add_argument("before", metavar="SNAPSHOT")
    parser.add_argument("after", metavar="SNAPSHOT")
    parser.add_argument("--metadata", action="store_true", help="also changes of mode, owner, times and the like")


def _find(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "find", "cli_repo_look:find", "find files by name in all snapshots")
    parser.add_argument("patterns", nargs="+", metavar="PATTERN")
    parser.add_argument("--ignore-case", "-i", action="store_true")
    parser.add_argument("--long", "-l", action="store_true", help="with mode, owner, size and time")
    parser.add_argument("--oldest", "-O", metavar="TIME", help="changed at or after, for example 2026-05-17 12:00")
    parser.add_argument("--newest", "-N", metavar="TIME", help="changed at or before")
    parser.add_argument("--snapshot", "-s", action="append", default=[], metavar="SNAPSHOT", help="only in this one")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--blob", action="store_true", help="the patterns are ids of blobs: who needs them?")
    what.add_argument("--tree", action="store_true", help="the patterns are ids of trees")
    add_filters(parser)


def _tag(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "tag", "cli_repo_keep:tag", "change the tags of snapshots")
    parser.add_argument("ids", nargs="*", metavar="SNAPSHOT")
    parser.add_argument("--set", action="append", metavar="TAG[,TAG]", help="instead of all others ('' for none)")
    parser.add_argument("--add", action="append", default=[], metavar="TAG[,TAG]")
    parser.add_argument("--remove", action="append", default=[], metavar="TAG[,TAG]")
    add_filters(parser)


def _list(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "list", "cli_repo_list:list_names", "list the names of what is stored")
    parser.add_argument("kind", choices=_LIST)


def _version(commands: Commands[argparse.ArgumentParser]) -> None:
    command(commands, "version", "cli_repo_list:version", "say which version this is")


def _cat(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "cat", "cli_repo_look:cat", "show an object of the repository, opened and proven")
    parser.add_argument("kind", choices=_CAT)
    parser.add_argument("id", nargs="?", default="", metavar="ID", help="beginnings do, but for blobs and trees")


def _cache(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "cache", "cli_repo_keys:cache", "list the local databases about repositories")
    parser.add_argument("--cleanup", action="store_true", help="remove those not used for --max-age days")
    parser.add_argument("--max-age", type=int, default=30, metavar="DAYS")


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
