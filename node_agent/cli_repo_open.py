"""How the repository commands are declared and begin: lazily imported handlers, filters, reading a repository."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from node_agent.cli_session import (
    add_common_options,
    cache_dir,
    lock_wait_s,
    open_repository,
    read_password,
    repository_url,
    tag_lists,
)
from node_agent.errors import ConfigError, DamagedError, WrongPassword

if TYPE_CHECKING:
    from node_agent.repository.repository import Repository
    from node_agent.repository.snapshot import Snapshot

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


def command(commands: Commands[argparse.ArgumentParser], name: str, handler: str, text: str) -> argparse.ArgumentParser:
    """A command with the common options; ``handler`` is ``module:function`` of this package."""
    parser = commands.add_parser(name, help=text, description=text)
    add_common_options(parser)
    parser.set_defaults(handler=later(handler))
    return parser


def later(handler: str) -> Callable[[argparse.Namespace], int]:
    """A handler whose module is imported when it is called."""
    module, function = handler.split(":")

    def run(args: argparse.Namespace) -> int:
        code: int = getattr(import_module(f"node_agent.{module}"), function)(args)
        return code

    return run


def add_filters(parser: argparse.ArgumentParser, *, short_host: bool = True) -> None:
    host = ("--host", "-H") if short_host else ("--host",)
    parser.add_argument(*host, action="append", default=[], metavar="NAME", help="only of this host")
    parser.add_argument("--path", action="append", default=[], metavar="PATH", help="only with this path")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG[,TAG]", help="only with these tags")


def add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from-repo", metavar="URL", help="the other repository (RESTIC_FROM_REPOSITORY)")
    parser.add_argument("--from-password-file", metavar="FILE", help="its password (RESTIC_FROM_PASSWORD_FILE)")


@contextlib.contextmanager
def reading(args: argparse.Namespace) -> Iterator[Repository]:
    """An open repository under a shared lock, its index loaded."""
    with open_repository(args) as repo, repo.lock(wait_s=lock_wait_s(args), read_only_ok=True):
        repo.load_index()
        yield repo


@contextlib.contextmanager
def reading_source(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> Iterator[Repository]:
    """The other repository of a copy or a healing, read as above."""
    from node_agent.repository.backend import open_backend
    from node_agent.repository.repository import Repository

    given = argparse.Namespace(repo=args.from_repo, password_file=args.from_password_file)
    theirs = {
        name: env[f"RESTIC_FROM_{name.removeprefix('RESTIC_')}"]
        for name in ("RESTIC_REPOSITORY", "RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD")
        if env.get(f"RESTIC_FROM_{name.removeprefix('RESTIC_')}")
    }
    if not (given.repo or theirs.get("RESTIC_REPOSITORY")):
        raise ConfigError(
            "No repository to read from is named.", hint="Give --from-repo URL, or set RESTIC_FROM_REPOSITORY."
        )
    backend = open_backend(repository_url(given, theirs))
    try:
        source = Repository.open(backend, _source_password(given, theirs), cache_dir=cache_dir(args))
    except WrongPassword as error:
        raise WrongPassword(
            f"{error.message} (of the repository to read from)",
            hint="Give its own password: --from-password-file FILE, RESTIC_FROM_PASSWORD_FILE or RESTIC_FROM_PASSWORD.",
        ) from error
    with source as repo:
        with repo.lock(wait_s=lock_wait_s(args), read_only_ok=True):
            repo.load_index()
            yield repo


def _source_password(given: argparse.Namespace, env: Mapping[str, str]) -> str:
    try:
        return read_password(given, env)
    except ConfigError as error:
        if given.password_file or env:
            raise ConfigError(f"{error.message} (of the repository to read from)", hint=error.hint) from error
        raise ConfigError(
            "The password of the repository to read from is not given.",
            hint="Give --from-password-file FILE, or set RESTIC_FROM_PASSWORD_FILE or RESTIC_FROM_PASSWORD.",
        ) from error


def chosen(
    repo: Repository,
    args: argparse.Namespace,
    ids: list[str],
    damaged: Callable[[DamagedError], None] | None = None,
) -> list[Snapshot]:
    """The named snapshots, or all that match the filters; ``damaged`` as in :func:`list_snapshots`."""
    from node_agent.repository.snapshot import find_snapshot, list_snapshots

    filters = {"hosts": args.host, "paths": args.path, "tags": tag_lists(args.tag)}
    if ids:
        return [find_snapshot(repo, spec, **filters) for spec in ids]
    return list_snapshots(repo, **filters, damaged=damaged)


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def seconds(text: str | None, name: str) -> float | None:
    """``2h30m``, ``30d``, ``90s``. Raises ConfigError."""
    if not text:
        return None
    parts = re.findall(r"(\d+)([smhdw])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigError(f"{name} {text!r} is not a duration.", hint="Durations are written like 2h30m, 90s or 30d.")
    return float(sum(int(number) * _SECONDS[unit] for number, unit in parts))
