"""``repo key``, ``unlock`` and ``cache``: who may open, who is at work, what this machine remembers."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from node_agent.cli_options import cache_dir, lock_wait_s, read_password, wants_json
from node_agent.cli_session import (
    human_size,
    local_databases,
    open_repository,
    open_store,
    print_json,
    remove_old_databases,
)
from node_agent.errors import ConfigError, TargetError
from node_agent.repository.key_export import export_keys, restore_keys
from node_agent.repository.keys import change_password, list_keys, remove_key
from node_agent.repository.repository import Repository

_SHORT = 8


@contextlib.contextmanager
def _reading(args: argparse.Namespace) -> Iterator[Repository]:
    with open_repository(args) as repo, repo.lock(wait_s=lock_wait_s(args), read_only_ok=True):
        yield repo


@contextlib.contextmanager
def _changing(args: argparse.Namespace, *, exclusive: bool) -> Iterator[Repository]:
    with open_repository(args) as repo, repo.lock(exclusive=exclusive, wait_s=lock_wait_s(args)):
        repo.guard(prove=exclusive)
        yield repo


def key_list(args: argparse.Namespace) -> int:
    with _reading(args) as repo:
        found = list_keys(repo.backend)
    if wants_json(args):
        print_json(
            [
                {
                    "current": key.name == repo.opened_by.name,
                    "id": key.name[:_SHORT],
                    "userName": key.username,
                    "hostName": key.hostname,
                    "created": key.created[:19].replace("T", " "),
                    "name": key.name,
                    "damaged": key.damaged,
                }
                for key in found
            ]
        )
        return 1 if any(key.damaged for key in found) else 0
    for key in found:
        mark = "*" if key.name == repo.opened_by.name else " "
        said = f"DAMAGED: {key.damaged}" if key.damaged else f"{key.username}@{key.hostname}  {key.created[:19]}"
        print(f"{mark}{key.name[:_SHORT]}  {said}")
    return 1 if any(key.damaged for key in found) else 0


def key_add(args: argparse.Namespace) -> int:
    password = _new_password(args)
    with _changing(args, exclusive=False) as repo:
        name = repo.add_key(password)
    _tell(args, "added", name, f"key {name[:_SHORT]} was added")
    return 0


def key_passwd(args: argparse.Namespace) -> int:
    password = _new_password(args)
    with _changing(args, exclusive=True) as repo:
        name = change_password(repo.backend, repo.opened_by, password)
    _tell(args, "changed", name, f"the password was changed; the new key is {name[:_SHORT]}")
    return 0


def key_remove(args: argparse.Namespace) -> int:
    with _changing(args, exclusive=True) as repo:
        name = remove_key(repo.backend, args.id, current=repo.opened_by.name)
    _tell(args, "removed", name, f"key {name[:_SHORT]} was removed")
    return 0


def key_export(args: argparse.Namespace) -> int:
    with _reading(args) as repo:
        content = export_keys(repo)
        name = repo.id
    path = Path(args.file)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise TargetError(f"The file {path} cannot be written: {error.strerror}.") from error
    _tell(args, "exported", name, f"keys and config of repository {name[:_SHORT]} are in {path}; keep it elsewhere")
    return 0


def key_restore(args: argparse.Namespace) -> int:
    path = Path(args.file)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"The file {path} cannot be read: {error.strerror}.", hint="Give a file that 'key export' wrote."
        ) from error
    restored = restore_keys(open_store(args), content, read_password(args))
    if wants_json(args):
        print_json({"message_type": "key_restored", "config": restored.config, "keys": restored.keys})
        return 0
    for name in restored.keys:
        print(f"key {name[:_SHORT]} was put back")
    print(f"the config was {'put back' if restored.config else 'as it should be'}; now run a check")
    return 0


def _tell(args: argparse.Namespace, what: str, name: str, text: str) -> None:
    if wants_json(args):
        print_json({"message_type": f"key_{what}", "id": name})
    else:
        print(text)


def _new_password(args: argparse.Namespace) -> str:
    """From the file, the environment, or asked for twice on a terminal."""
    if args.new_password_file:
        return read_password(argparse.Namespace(password_file=args.new_password_file))
    if os.environ.get("BRS_NEW_PASSWORD"):
        return os.environ["BRS_NEW_PASSWORD"]
    if not sys.stdin.isatty():
        raise ConfigError("The new password is not given.", hint="Give --new-password-file, or set BRS_NEW_PASSWORD.")
    first = getpass.getpass("new password: ")
    if not first or first != getpass.getpass("the same again: "):
        raise ConfigError("The passwords are empty or differ; nothing was changed.", hint="Try again.")
    return first


def unlock(args: argparse.Namespace) -> int:
    with open_repository(args) as repo:
        cleared = repo.unlock(everything=args.remove_all)
    if wants_json(args):
        print_json(
            {"message_type": "summary", "removed": [{"id": lock.info.name, "who": lock.who} for lock in cleared]}
        )
        return 0
    for lock in cleared:
        print(f"removed lock {lock.info.name[:_SHORT]} of {lock.who}")
    print(f"{len(cleared)} locks of others were removed")
    return 0


def cache(args: argparse.Namespace) -> int:
    folder = cache_dir(args)
    if folder is None:
        raise ConfigError("There is no cache without a folder for it.", hint="Leave out --no-cache.")
    found = local_databases(folder)
    old = remove_old_databases(folder, args.max_age) if args.cleanup else []
    if wants_json(args):
        print_json(
            {
                "folder": str(folder),
                "repositories": [asdict(entry) for entry in found],
                "removed": [entry.repository for entry in old],
            }
        )
        return 0
    for entry in found:
        gone = "  removed" if entry in old else ""
        print(f"{entry.repository}  {human_size(entry.bytes)}  used {entry.age_days} days ago{gone}")
    print(f"{len(found)} repositories in {folder}{f', {len(old)} removed' if args.cleanup else ''}")
    return 0
