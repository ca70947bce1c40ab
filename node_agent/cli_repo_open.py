"""How the repository commands are declared and begin: lazily imported handlers, filters, reading a repository."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from node_agent.cli_options import (
    Help,
    add_common_options,
    cache_dir,
    key_hint,
    lock_wait_s,
    read_password,
    repository_url,
    shared_options,
)
from node_agent.cli_session import open_repository, tag_lists, warn_of_insecure_tls
from node_agent.errors import ConfigError, DamagedError, WrongPassword

if TYPE_CHECKING:
    from node_agent.repository.repository import Repository
    from node_agent.repository.snapshot import Snapshot

_FROM = "RESTIC_FROM_"

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


def command(commands: Commands[argparse.ArgumentParser], name: str, handler: str, text: str) -> argparse.ArgumentParser:
    """A command with the common options; ``handler`` is ``module:function`` of this package."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", formatter_class=Help)
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
    parser.add_argument("--from-repository-file", metavar="FILE", help="file with its URL")
    add_source_password(parser)


def add_source_password(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from-password-file", metavar="FILE", help="its password (RESTIC_FROM_PASSWORD_FILE)")
    parser.add_argument("--from-password-command", metavar="CMD", help="program that prints its password")
    parser.add_argument("--from-key-hint", metavar="KEY", help="the key of it to try first (RESTIC_FROM_KEY_HINT)")


@contextlib.contextmanager
def reading(args: argparse.Namespace) -> Iterator[Repository]:
    """An open repository under a shared lock, its index loaded."""
    with open_repository(args) as repo, repo.lock(wait_s=lock_wait_s(args), read_only_ok=True):
        repo.load_index()
        yield repo


def names_source(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> bool:
    """Whether another repository is named to read from."""
    options = (args.from_repo, getattr(args, "from_repository_file", None))
    return any(options) or any(env.get(f"{_FROM}{name}") for name in ("REPOSITORY", "REPOSITORY_FILE"))


@contextlib.contextmanager
def reading_source(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> Iterator[Repository]:
    """The other repository of a copy or a healing, read as above."""
    from node_agent.repository.backend import open_backend
    from node_agent.repository.repository import Repository

    names = ("repo", "repository_file", "password_file", "password_command", "key_hint")
    given = argparse.Namespace(**{name: getattr(args, f"from_{name}", None) for name in names})
    theirs = {f"RESTIC_{name.removeprefix(_FROM)}": value for name, value in env.items() if name.startswith(_FROM)}
    if not names_source(args, env):
        raise ConfigError(
            "No repository to read from is named.", hint="Give --from-repo URL, or set RESTIC_FROM_REPOSITORY."
        )
    backend = open_backend(repository_url(given, theirs), shared=shared_options(args))
    warn_of_insecure_tls(args, backend.url)
    try:
        source = Repository.open(
            backend,
            _source_password(given, theirs),
            cache_dir=cache_dir(args),
            key_hint=key_hint(given, theirs),
        )
        source.lockless = bool(getattr(args, "no_lock", False))
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
        if given.password_file or given.password_command or any("PASSWORD" in name for name in env):
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
