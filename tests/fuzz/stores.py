"""Every operation of every remote store against one that lies: see hostile_http.py, twists.py and hostile_sftp.py.

    python -m tests.fuzz.stores --seconds 60 [--only s3] [--seed N] [--executions N]

Whatever a store answers, an operation ends in time and without eating the memory, with a result that can be right, or
with an error of ours that says what, where, and what to do. Ends 1 at the first finding, after it was printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import hashlib
import logging
import math
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx

from node_agent.errors import BackendError, RepositoryError
from node_agent.repository.backend import Backend, Kind, ObjectInfo, sftp_client
from node_agent.repository.backend.base import CONFIG_NAME, is_object_name
from tests.contracts.backend_peers import KINDS_OF_PEERS, Moto, Peer, Place
from tests.fuzz.hostile_http import ENDLESS, HostileProxy
from tests.fuzz.hostile_sftp import HostileSftp, random_lie
from tests.fuzz.twists import random_twist

MEMORY = 3 << 30
HANG_S = 40.0
MOST_TAKEN = ENDLESS // 2  # of an answer without end
MOST_RSS = 600 << 20
CONTENT = b"0123456789" * 3000
NAME = hashlib.sha256(CONTENT).hexdigest()
WHOLE = ("get", "rest")
HTTP_KINDS = ("s3", "s3-locked", "azure", "gcs-stand-in", "rest")
KINDS = (*HTTP_KINDS, "sftp")


class MotoLocked(Moto):
    """With a bucket whose objects are locked, and no checks of who asks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        headers = {"Authorization": _AUTH, "x-amz-bucket-object-lock-enabled": "true"}
        httpx.put(f"http://127.0.0.1:{self.port}/locked", headers=headers).raise_for_status()

    def place(self) -> Place:
        place = super().place()
        options = {"object-lock": "compliance", "object-lock-days": "1"}
        return dataclasses.replace(place, url=place.url.replace("/buck/", "/locked/"), options=options)


_AUTH = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, Signature=x"
PEERS: dict[str, type[Peer]] = {**KINDS_OF_PEERS, "s3-locked": MotoLocked}


class Finding(AssertionError):
    """What no store may bring about."""


# --- operations, and what may come of them ---


def _whole(store: Backend, kind: Kind, name: str) -> None:
    _is(isinstance(store.get(kind, name), bytes), "no bytes")


def _part(store: Backend, offset: int, length: int) -> None:
    data = store.get(Kind.PACK, NAME, offset, length)
    _is(isinstance(data, bytes) and len(data) <= length, f"{len(data)} bytes instead of {length}")


def _looked_at(store: Backend, kind: Kind, name: str) -> None:
    info = store.stat(kind, name)
    _is(info.name == name, f"another name: {info.name[:100]!r}")
    _sane(info)


def _listed(store: Backend, kind: Kind) -> None:
    seen = set()
    for info in store.list(kind):
        _is(is_object_name(info.name), f"no name: {info.name[:100]!r}")
        _is(info.name not in seen, "a name twice")
        _sane(info)
        seen.add(info.name)


def _sane(info: ObjectInfo) -> None:
    _is(type(info.size) is int and 0 <= info.size < 1 << 63, f"a size of {info.size}")
    _is(type(info.modified) is float and math.isfinite(info.modified), f"a time of {info.modified}")


def _is(right: bool, otherwise: str) -> None:
    if not right:
        raise Finding(otherwise)


def _clock(store: Backend) -> None:
    _is(math.isfinite(store.now()), "no time")


def _made(store: Backend) -> None:
    store.put(Kind.CONFIG, CONFIG_NAME, [b"config"])


def _lock_looked_at(store: Backend) -> None:
    lock = store.object_lock
    if lock is None:
        return
    lock.locked_until(Kind.PACK, NAME)
    _is(math.isfinite(lock.lock(Kind.PACK, NAME).until), "no time")
    list(lock.hidden(Kind.PACK))
    lock.bring_back(Kind.PACK, NAME)


OPERATIONS: dict[str, Callable[[Backend], object]] = {
    "create": lambda store: store.create(),
    "get": lambda store: _whole(store, Kind.PACK, NAME),
    "get of a key": lambda store: _whole(store, Kind.KEY, NAME),
    "get of the config": lambda store: _whole(store, Kind.CONFIG, CONFIG_NAME),
    "part": lambda store: _part(store, 100, 1000),
    "part at the end": lambda store: _part(store, len(CONTENT) - 10, 1000),
    "rest": lambda store: _is(isinstance(store.get(Kind.PACK, NAME, 500), bytes), "no bytes"),
    "stat": lambda store: _looked_at(store, Kind.PACK, NAME),
    "stat of the config": lambda store: _looked_at(store, Kind.CONFIG, CONFIG_NAME),
    "list": lambda store: _listed(store, Kind.PACK),
    "list of locks": lambda store: _listed(store, Kind.LOCK),
    "put": lambda store: store.put(Kind.PACK, NAME, [CONTENT]),
    "put of a lock": lambda store: store.put(Kind.LOCK, NAME, [CONTENT]),
    "put of the config": _made,
    "delete": lambda store: store.delete(Kind.LOCK, NAME),
    "delete of a pack": lambda store: store.delete(Kind.PACK, NAME),
    "leftovers": lambda store: store.remove_leftovers(),
    "now": _clock,
    "versions": _lock_looked_at,
}


def fill(store: Backend) -> None:
    if store.object_lock is None:  # moto does not keep what a probe of locks asks for
        store.create()
    for kind in (Kind.PACK, Kind.LOCK, Kind.KEY, Kind.SNAPSHOT):
        store.put(kind, NAME, [CONTENT])
    if not store.exists(Kind.CONFIG, CONFIG_NAME):
        store.put(Kind.CONFIG, CONFIG_NAME, [b"config"])


def judge(operation: str, store: Backend) -> None:
    """Raises Finding, or whatever got through."""
    try:
        OPERATIONS[operation](store)
    except (BackendError, RepositoryError) as error:
        told = f"{error.message} {error.hint}"
        _is(bool(error.message and error.hint), "an error that says nothing")
        _is(len(told) < 4000, f"an error of {len(told)} letters")
        _is(error.message.isprintable(), f"an error with {error.message[:300]!r}")


# --- places ---


class Liar(Protocol):
    """What stands where the store should be."""

    taken: Any

    def be_honest(self) -> None: ...
    def close(self) -> None: ...


def lie_of(liar: Liar, rng: random.Random) -> tuple[str, Callable[[], None]]:
    """A lie by its name, and how it is begun."""
    share = rng.choice((1.0, 1.0, 0.5))
    if isinstance(liar, HostileSftp):
        name, lie = random_lie(rng, share)
        return name, lambda: setattr(liar, "lie", lie)
    name, twist = random_twist(rng, share)
    return name, lambda: setattr(liar, "twist", twist)


@contextmanager
def hostile_places(kinds: tuple[str, ...], folder: Path) -> Iterator[dict[str, tuple[Place, Liar]]]:
    with ExitStack() as ends:
        found: dict[str, tuple[Place, Liar]] = {}
        for kind in kinds:
            if kind == "sftp":
                server = HostileSftp()
                ends.callback(server.close)
                options = {"host-key": server.host_key, "password": "any"}
                found[kind] = Place(f"sftp://joe@127.0.0.1:{server.port}//store", options), server
                continue
            peer = PEERS[kind](folder)  # type: ignore[call-arg]
            ends.callback(peer.stop)
            proxy = HostileProxy(peer.port)
            ends.callback(proxy.close)
            found[kind] = through(peer.place(), peer.port, proxy.port), proxy
        yield found


def through(place: Place, old: int, new: int) -> Place:
    options = {name: value.replace(f":{old}", f":{new}") for name, value in place.options.items()}
    return dataclasses.replace(place, url=place.url.replace(f":{old}", f":{new}"), options=options)


def run(kind: str, place: Place, liar: Liar, rng: random.Random) -> str:
    """One lie, and a few operations that hear it. Returns its name; raises Finding."""
    liar.be_honest()
    opened = place.open(retry_seconds="0", timeout="5")
    told = f"{kind}: opening"
    try:
        fill(opened)
        name, begin = lie_of(liar, rng)
        for operation in rng.sample(list(OPERATIONS), 4):
            told = f"{kind}: {name}, {operation}"
            began = time.monotonic()
            begin()
            judge(operation, opened)
            if operation not in WHOLE:  # a pack may be long
                _is(liar.taken < MOST_TAKEN, f"{liar.taken >> 20} MiB of an answer without end were taken")
            _is(time.monotonic() - began < HANG_S, "took too long")
            liar.be_honest()
    except Exception as error:
        raise Finding(f"{told}: {type(error).__name__}: {str(error)[:500]}") from error
    finally:
        liar.be_honest()
        opened.close()
    return name


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.stores", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--executions", type=int, default=0, help="stop after so many instead")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", metavar="KIND", action="append", default=[])
    parser.add_argument("--all", action="store_true", help="go on after a finding")
    args = parser.parse_args()
    logging.disable()
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    kinds = tuple(args.only or KINDS)
    sftp_client.MAX_OBJECTS = 20_000  # so that what is bounded ends soon
    with tempfile.TemporaryDirectory(prefix="brs-stores-") as folder, hostile_places(kinds, Path(folder)) as places:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        return _run(places, seed, args)


def _run(places: dict[str, Any], seed: int, args: argparse.Namespace) -> int:
    began, counts, findings, number = time.monotonic(), dict.fromkeys(places, 0), 0, 0
    while (not findings or args.all) and (
        number < args.executions if args.executions else time.monotonic() - began < args.seconds
    ):
        rng = random.Random(f"{seed} {number}")
        kind = list(places)[number % len(places)]
        faulthandler.dump_traceback_later(HANG_S * 4, exit=True)  # four operations
        try:
            run(kind, *places[kind], rng)
        except Finding as finding:
            findings += 1
            print(f"FINDING (seed {seed}, number {number}): {finding}", file=sys.stderr)
            traceback.print_exception(finding)
        faulthandler.cancel_dump_traceback_later()
        counts[kind] += 1
        number += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(f"seed {seed}: {number} lies in {time.monotonic() - began:.0f} s, {findings} findings, peak {peak >> 20} MiB")
    print("  " + ", ".join(f"{kind} {count}" for kind, count in counts.items()))
    return 1 if findings or peak > MOST_RSS else 0


if __name__ == "__main__":
    raise SystemExit(main())
