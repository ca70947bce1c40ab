"""``repo key``, ``unlock`` and ``cache``: who may open, who is at work, what this machine remembers."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from node_agent.cli_session import (
    cache_dir,
    human_size,
    lock_wait_s,
    open_repository,
    open_store,
    print_json,
    read_password,
    wants_json,
)
from node_agent.errors import ConfigError, TargetError
from node_agent.repository.key_export import export_keys, restore_keys
from node_agent.repository.keys import OpenedKey, change_password, list_keys, open_master_key, remove_key
from node_agent.repository.repository import Repository

_SHORT = 8
_DAY_S = 86400


@contextlib.contextmanager
def _opened(args: argparse.Namespace, *, write: bool) -> Iterator[tuple[Repository, OpenedKey]]:
    """The repository and which key opened it."""
    with open_repository(args) as repo:
        with repo.lock(exclusive=write, wait_s=lock_wait_s(args), read_only_ok=not write):
            yield repo, open_master_key(repo.backend, read_password(args))


def key_list(args: argparse.Namespace) -> int:
    with _opened(args, write=False) as (repo, opened):
        found = list_keys(repo.backend)
    if wants_json(args):
        print_json(
            [
                {
                    "current": key.name == opened.name,
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
        mark = "*" if key.name == opened.name else " "
        said = f"DAMAGED: {key.damaged}" if key.damaged else f"{key.username}@{key.hostname}  {key.created[:19]}"
        print(f"{mark}{key.name[:_SHORT]}  {said}")
    return 1 if any(key.damaged for key in found) else 0


def key_add(args: argparse.Namespace) -> int:
    password = _new_password(args)
    with _opened(args, write=False) as (repo, _):
        name = repo.add_key(password)
    _tell(args, "added", name, f"key {name[:_SHORT]} was added")
    return 0


def key_passwd(args: argparse.Namespace) -> int:
    password = _new_password(args)
    with _opened(args, write=True) as (repo, opened):
        repo.guard(prove=True)
        name = change_password(repo.backend, opened, password)
    _tell(args, "changed", name, f"the password was changed; the new key is {name[:_SHORT]}")
    return 0


def key_remove(args: argparse.Namespace) -> int:
    with _opened(args, write=True) as (repo, opened):
        repo.guard(prove=True)
        name = remove_key(repo.backend, args.id, current=opened.name)
    _tell(args, "removed", name, f"key {name[:_SHORT]} was removed")
    return 0


def key_export(args: argparse.Namespace) -> int:
    with _opened(args, write=False) as (repo, _):
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
    found = _databases(folder)
    old = [entry for entry in found if entry.age_days > args.max_age] if args.cleanup else []
    for entry in old:
        for path in folder.glob(f"{entry.repository}*.sqlite*"):
            path.unlink(missing_ok=True)
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


@dataclass(slots=True)
class _Databases:
    """Of one repository."""

    repository: str  # the beginning of its id
    bytes: int = 0
    age_days: int = 0


def _databases(folder: Path) -> list[_Databases]:
    found: dict[str, _Databases] = {}
    for path in sorted(folder.glob("*.sqlite*")):
        name = path.name.split(".", 1)[0]
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue  # a journal that just went
        age_days = int((time.time() - stat.st_mtime) / _DAY_S)
        known = found.setdefault(name, _Databases(name, age_days=age_days))
        known.bytes += stat.st_size
        known.age_days = min(known.age_days, age_days)
    return list(found.values())
