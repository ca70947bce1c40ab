"""The ways in which objects are hurt. Each yields mutations: the files to write (None: to remove)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from tests.flips.world import World

Mutation = dict[Path, bytes | None]
_BITS = (0x01, 0x10, 0x80)


def flips(world: World, name: str) -> Iterator[Mutation]:
    """One bit each, at both ends, in the middle and anywhere."""
    rng = random.Random(name)
    for place in world.places[name][:4]:
        content = place.path.read_bytes()
        last = place.end - 1
        for number, at in enumerate(
            sorted({place.begin, last, (place.begin + last) // 2, rng.randint(place.begin, last)})
        ):
            hurt = bytearray(content)
            hurt[at] ^= _BITS[number % len(_BITS)]
            if name == "key: comments" and hurt[at] in b'"\\':  # those are punctuation
                hurt[at] = ord("x")
            yield {place.path: bytes(hurt)}


def deletes(world: World, name: str) -> Iterator[Mutation]:
    for place in world.places[name][:2]:
        yield {place.path: None}


def truncations(world: World, name: str) -> Iterator[Mutation]:
    for place in world.places[name][:2]:
        content = place.path.read_bytes()
        for size in {0, 1, len(content) // 2} if name == "pack" else {0, 1, len(content) // 2, len(content) - 1}:
            yield {place.path: content[:size]}


def cuts(world: World, name: str) -> Iterator[Mutation]:
    """The last byte is missing."""
    for place in world.places[name]:
        yield {place.path: place.path.read_bytes()[:-1]}


def extensions(world: World, name: str) -> Iterator[Mutation]:
    for place in world.places[name][:2]:
        for extra in (b"\0", b"more of it", bytes(5000)):
            yield {place.path: place.path.read_bytes() + extra}


def swaps(world: World, name: str) -> Iterator[Mutation]:
    """Two of a kind take each other's place."""
    found = [place.path for place in world.places[name][:3]]
    for one, two in pairwise(found):
        yield {one: two.read_bytes(), two: one.read_bytes()}


def duplicates(world: World, name: str) -> Iterator[Mutation]:
    """The same content under another name."""
    for place in world.places[name][:2]:
        other = hashlib.sha256(place.path.name.encode()).hexdigest()
        folder = place.path.parent
        if folder.parent.name == "data":
            folder = folder.parent / other[:2]
        yield {folder / other: place.path.read_bytes()}


def deletes_together(world: World, name: str) -> Iterator[Mutation]:
    """As if the store were put back to an older state."""
    yield dict.fromkeys((place.path for place in world.places[name]), None)


def replays(world: World, name: str) -> Iterator[Mutation]:
    """What lay there once is put back."""
    for path, old in world.replays[name]:
        yield {path: old}
