"""``repo probe`` and ``repo repair undelete``: stores that lock objects."""

from __future__ import annotations

import argparse
import sys

from node_agent.cli_options import read_password, wants_json
from node_agent.cli_session import open_store, print_json, progress_shown
from node_agent.errors import BrsError, ConfigError
from node_agent.progress import Progress
from node_agent.repository.backend.base import Backend, Kind, ObjectLock
from node_agent.repository.index_file import marks_of
from node_agent.repository.repository import Repository

_KINDS = (Kind.CONFIG, Kind.KEY, Kind.SNAPSHOT, Kind.INDEX, Kind.PACK)
_SHOWN = 1000


def probe(args: argparse.Namespace) -> int:
    """Needs no password and no repository: only the bucket."""
    backend = open_store(args)
    found = _object_lock(backend).probe()
    if wants_json(args):
        print_json({"message_type": "probe", "ok": not found.problem, "checks": found.checks, "problem": found.problem})
    else:
        for check in found.checks:
            print(f"seen: {check}")
        print(f"refused: {found.problem}" if found.problem else "what is locked here stays, also against this account")
    return 1 if found.problem else 0


def undelete(args: argparse.Namespace) -> int:
    """Takes no lock: after an attack it may be of no use. What repairs put out of sight themselves stays there."""
    backend = open_store(args)
    lock = _object_lock(backend)
    withdrawn = set() if args.without_password else _withdrawn(args, backend)
    with progress_shown(args) as progress:
        done, lost = _undelete(lock, withdrawn, args.dry_run, progress)
    if wants_json(args):
        names = {"brought_back": done, "without_right_version": lost}
        print_json({"message_type": "summary", "dry_run": args.dry_run} | names)
    else:
        for text, found in (("brought back", done), ("no right version is left", lost)):
            for name in found[:_SHOWN]:
                print(f"{'would be ' * (args.dry_run and found is done)}{text}: {name}")
        print(f"{len(done)} objects {'would be ' * args.dry_run}brought back, {len(lost)} have no right version left")
    if lost:
        print("hint: run a check; 'repair index' makes lost index files again from the packs", file=sys.stderr)
    return 1 if lost else 0


def _withdrawn(args: argparse.Namespace, backend: Backend) -> set[tuple[Kind, str]]:
    """What the index, read beneath whatever an attacker laid over it, says to be out of use."""
    try:
        repo = Repository.open(backend, read_password(args))
    except BrsError as error:
        error.hint = f"{error.hint} Or give --without-password: then what repairs put out of sight comes back as well."
        raise
    marks = marks_of(repo.files, [info.name for info in backend.list(Kind.INDEX)])
    return {(Kind.INDEX, name) for name in marks.superseded} | {(Kind.PACK, name) for name in marks.dropped}


def _undelete(
    lock: ObjectLock, withdrawn: set[tuple[Kind, str]], dry_run: bool, progress: Progress
) -> tuple[list[str], list[str]]:
    done: list[str] = []
    lost: list[str] = []
    for kind in _KINDS:
        progress.set(phase=f"undelete: {kind.name.lower()}")
        for name in list(lock.hidden(kind)):
            progress.check()
            if (kind, name) in withdrawn:
                continue
            good = dry_run or lock.bring_back(kind, name)
            (done if good else lost).append(f"{kind.name.lower()} {name}".replace("config config", "config"))
            progress.add(done_files=1)
    for kind, name in () if dry_run else withdrawn:
        lock.hide(kind, name)  # something may have been laid over it, or its marker taken away
    return done, lost


def _object_lock(backend: Backend) -> ObjectLock:
    if backend.object_lock is None:
        raise ConfigError(
            "This needs a store that locks objects.",
            hint="Give --option object-lock=compliance --option object-lock-days=N with an s3: address.",
        )
    return backend.object_lock
