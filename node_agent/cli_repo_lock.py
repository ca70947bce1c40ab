"""``repo probe`` and ``repo repair undelete``: stores that lock objects."""

from __future__ import annotations

import argparse
import sys

from node_agent.cli_session import open_store, print_json, progress_shown, wants_json
from node_agent.errors import ConfigError
from node_agent.progress import Progress
from node_agent.repository.backend.base import Backend, Kind, ObjectLock

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
    """Without the repository's password or a lock: after an attack neither keys nor locks may be in sight."""
    backend = open_store(args)
    lock = _object_lock(backend)
    with progress_shown(args) as progress:
        done, lost = _undelete(lock, args.dry_run, progress)
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


def _undelete(lock: ObjectLock, dry_run: bool, progress: Progress) -> tuple[list[str], list[str]]:
    done: list[str] = []
    lost: list[str] = []
    for kind in _KINDS:
        progress.set(phase=f"undelete: {kind.name.lower()}")
        for name in list(lock.hidden(kind)):
            progress.check()
            good = dry_run or lock.bring_back(kind, name)
            (done if good else lost).append(f"{kind.name.lower()} {name}".replace("config config", "config"))
            progress.add(done_files=1)
    return done, lost


def _object_lock(backend: Backend) -> ObjectLock:
    if backend.object_lock is None:
        raise ConfigError(
            "This needs a store that locks objects.",
            hint="Give --option object-lock=compliance --option object-lock-days=N with an s3: address.",
        )
    return backend.object_lock
