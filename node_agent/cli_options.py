"""The options that every repository command has, and what they say: which repository, which password, how.

Names, variables and outcome are restic's. An option goes before a variable; of two options, or two variables,
that say the same thing neither is guessed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from node_agent.errors import ConfigError

_STORE_OPTION = "option:"
_MIN_PACK_MIB, _MAX_PACK_MIB = 4, 128
_LOUDEST = 3
BLOCK_SIZES = {"256K": 256 << 10, "512K": 512 << 10, "1M": 1 << 20, "2M": 2 << 20, "4M": 4 << 20, "8M": 8 << 20}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Help(argparse.HelpFormatter):
    """The usage line names a command's own options; those of every command follow in their own part."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        own = [action for action in actions if getattr(action, "container", None).__class__ is not _Common]
        super().add_usage(usage, own, groups, prefix)


class _Common(argparse._ArgumentGroup):
    """The part of a command's help for what is the same for all."""


def add_common_options(command: argparse.ArgumentParser) -> None:
    """Options of every repository command; accepted before and after the command's name."""
    absent = argparse.SUPPRESS
    parser = _Common(command, "options of every command")
    command._action_groups.append(parser)
    parser.add_argument("--repo", "-r", metavar="URL", default=absent, help="repository (RESTIC_REPOSITORY)")
    parser.add_argument("--repository-file", metavar="FILE", default=absent, help="file with the repository's URL")
    parser.add_argument(
        "--option", "-o", metavar="NAME=VALUE", action=AddOption, default=absent, help="of the store; may be repeated"
    )
    parser.add_argument("--password-file", "-p", metavar="FILE", default=absent, help="file with the password")
    parser.add_argument("--password-command", metavar="CMD", default=absent, help="program that prints the password")
    parser.add_argument("--key-hint", metavar="KEY", default=absent, help="try this key first (RESTIC_KEY_HINT)")
    _add_cache_options(parser)
    parser.add_argument("--json", action="store_true", default=absent, help="output for programs")
    parser.add_argument("--quiet", "-q", action="store_true", default=absent, help="no progress")
    parser.add_argument(
        "--verbose", "-v", action="count", default=absent, help="say more; -vv each request to the store"
    )
    for level in range(_LOUDEST + 1):  # pflag's form with a number, of which argparse knows nothing
        parser.add_argument(
            f"--verbose={level}", dest="verbose", action="store_const", const=level, default=absent, help=absent
        )
    parser.add_argument("--no-lock", action="store_true", default=absent, help="read without a lock")
    parser.add_argument(
        "--wait-lock", type=float, metavar="SECONDS", default=absent, help="wait for another program's lock"
    )
    parser.add_argument("--retry-lock", metavar="DURATION", default=absent, help="the same, for example 5m")
    _add_transport_options(parser)


def _add_cache_options(parser: _Common) -> None:
    absent = argparse.SUPPRESS
    parser.add_argument("--cache-dir", metavar="DIR", default=absent, help="index cache (BRS_CACHE_DIR, ~/.cache/brs)")
    parser.add_argument("--no-cache", action="store_true", default=absent, help="keep no cache of the index on disk")
    parser.add_argument(
        "--cleanup-cache", action="store_true", default=absent, help="remove caches that were not used for 30 days"
    )


def _add_transport_options(parser: _Common) -> None:
    absent = argparse.SUPPRESS
    for direction in ("upload", "download"):
        parser.add_argument(
            f"--limit-{direction}", type=int, metavar="KIB", default=absent, help="KiB a second (default: unlimited)"
        )
    parser.add_argument("--cacert", metavar="FILE", default=absent, help="certificates to trust (RESTIC_CACERT)")
    parser.add_argument(
        "--insecure-tls", action="store_true", default=absent, help="do not prove the store's certificate (insecure)"
    )
    parser.add_argument(
        "--pack-size", metavar="MIB", default=absent, help="size of new packs, 4 to 128 (RESTIC_PACK_SIZE; 16)"
    )


class AddOption(argparse.Action):
    """Gathers ``--option name=value`` given before and after the command's name."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        name, equals, value = str(values).partition("=")
        if not name or not equals:
            parser.error(f"--option needs NAME=VALUE, not {values!s}")
        # One attribute for each: a command's own namespace replaces attributes of the same name given before it.
        setattr(namespace, _STORE_OPTION + name, value)


def wants_json(args: argparse.Namespace) -> bool:
    return bool(getattr(args, "json", False))


def verbosity(args: argparse.Namespace) -> int:
    level = int(getattr(args, "verbose", 0))
    if level and getattr(args, "quiet", False):
        raise ConfigError("--quiet and --verbose contradict each other.", hint="Leave out one of them.")
    return level


# --- which repository, which password ---


def repository_url(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> str:
    """From --repo or --repository-file, else RESTIC_REPOSITORY or RESTIC_REPOSITORY_FILE."""
    for url, file in (
        _either("--repo", getattr(args, "repo", None), "--repository-file", getattr(args, "repository_file", None)),
        _either_variable(env, "RESTIC_REPOSITORY", "RESTIC_REPOSITORY_FILE"),
    ):
        if url or file:
            return url or _line_from(Path(file), "The repository file", "Write the repository's address into it.")
    raise ConfigError(
        "No repository is named.", hint="Give --repo PATH or --repository-file FILE, or set RESTIC_REPOSITORY."
    )


def read_password(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> str:
    """Options, BRS_REPOSITORY_PASSWORD, RESTIC_PASSWORD_FILE or RESTIC_PASSWORD_COMMAND, RESTIC_PASSWORD; first found.

    Runs the command, if there is one: to be asked once.
    """
    file, command = _either(
        "--password-file",
        getattr(args, "password_file", None),
        "--password-command",
        getattr(args, "password_command", None),
    )
    if not (file or command) and env.get("BRS_REPOSITORY_PASSWORD"):
        return env["BRS_REPOSITORY_PASSWORD"]
    if not (file or command):
        file, command = _either_variable(env, "RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND")
    if command:
        return _password_of(command)
    if file:
        return _line_from(Path(file), "The password file", "Write the password into it.")
    if env.get("RESTIC_PASSWORD"):
        return env["RESTIC_PASSWORD"]
    raise ConfigError(
        "The repository's password is not given.",
        hint="Give --password-file FILE or --password-command CMD, or set BRS_REPOSITORY_PASSWORD or RESTIC_PASSWORD.",
    )


def _either(name: str, value: str | None, other_name: str, other: str | None) -> tuple[str, str]:
    """Both, of which one at most may be given."""
    if value and other:
        raise ConfigError(f"{name} and {other_name} say the same thing.", hint="Leave out one of them.")
    return value or "", other or ""


def _either_variable(env: Mapping[str, str], name: str, other: str) -> tuple[str, str]:
    return _either(name, env.get(name), other, env.get(other))


def _line_from(path: Path, what: str, hint: str) -> str:
    try:
        # As restic: white space around it, such as the newline at the end, is no part of it.
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {path} cannot be read: {error}.", hint="Check the path and its rights.") from error
    if not text:
        raise ConfigError(f"{what} {path} is empty.", hint=hint)
    return text


def _password_of(command: str) -> str:
    """What a program prints. No shell: words as a shell splits them. It may ask on the terminal, not on stdin."""
    hint = "Correct --password-command (RESTIC_PASSWORD_COMMAND), and try it alone: it must print the password."
    try:
        words = shlex.split(command)
        if not words:
            raise ConfigError("The password command is empty.", hint=hint)
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
        password = done.stdout.decode().strip()
    except OSError as error:
        raise ConfigError(f"The password command {words[0]} cannot be run: {error.strerror}.", hint=hint) from error
    except ValueError as error:  # quotes that do not close; output that is not UTF-8
        raise ConfigError("The password command, or what it prints, is not understood.", hint=hint) from error
    if done.returncode:
        raise ConfigError(f"The password command {words[0]} ended with {done.returncode}.", hint=hint)
    if not password:
        raise ConfigError(f"The password command {words[0]} printed nothing.", hint=hint)
    return password


def key_hint(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> str:
    return str(getattr(args, "key_hint", None) or env.get("RESTIC_KEY_HINT") or "")


# --- how ---


def store_options(args: argparse.Namespace) -> dict[str, str]:
    """Those of ``--option``, for the one kind of store that is named."""
    return {name.removeprefix(_STORE_OPTION): v for name, v in vars(args).items() if name.startswith(_STORE_OPTION)}


def shared_options(args: argparse.Namespace) -> dict[str, str]:
    """What holds for every store that has use for it."""
    given = {"cacert": str(getattr(args, "cacert", "")), "insecure-tls": "yes" * getattr(args, "insecure_tls", False)}
    for name in ("limit-upload", "limit-download"):
        kib = getattr(args, name.replace("-", "_"), 0)
        given[name] = f"{kib}K" if kib > 0 else ""  # as restic: less than one is unlimited
    return {name: value for name, value in given.items() if value}


def cache_dir(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> Path | None:
    if getattr(args, "no_cache", False):
        return None
    given = getattr(args, "cache_dir", None) or env.get("BRS_CACHE_DIR")
    if given:
        return Path(given)
    if env.get("RESTIC_CACHE_DIR"):
        return Path(env["RESTIC_CACHE_DIR"]) / "brs"  # beside restic's own, which are folders named by an id
    base = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME") or "/var/tmp") / ".cache")
    return Path(base) / "brs"


def pack_size(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> int | None:
    """Bytes; None when nothing is said."""
    given = getattr(args, "pack_size", None) or env.get("RESTIC_PACK_SIZE")
    if not given:
        return None
    if not given.isdecimal() or not _MIN_PACK_MIB <= int(given) <= _MAX_PACK_MIB:
        raise ConfigError(
            f"Packs of {given!r} MiB are not possible.",
            hint=f"--pack-size (RESTIC_PACK_SIZE) is a number from {_MIN_PACK_MIB} to {_MAX_PACK_MIB}.",
        )
    return int(given) << 20


def lock_wait_s(args: argparse.Namespace) -> float:
    given = getattr(args, "retry_lock", None)
    if given is not None:
        return 0.0 if given == "0" else seconds(given, "--retry-lock") or 0.0
    return float(getattr(args, "wait_lock", 0) or 0)


def seconds(text: str | None, name: str) -> float | None:
    """``2h30m``, ``30d``, ``90s``. Raises ConfigError."""
    if not text:
        return None
    parts = re.findall(r"(\d+)([smhdw])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ConfigError(f"{name} {text!r} is not a duration.", hint="Durations are written like 2h30m, 90s or 30d.")
    return float(sum(int(number) * _SECONDS[unit] for number, unit in parts))
