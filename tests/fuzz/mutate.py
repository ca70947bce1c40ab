"""Mutations of bytes and of JSON. All chance comes from the given generator, so that a seed repeats a run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

NASTY_NUMBERS = (
    *(0, -1, 1, 2, 3, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63),
    *((1 << 64) - 1, 1 << 64, -(1 << 63), 10**30, 0.5, -0.0, 1e300, True, False),
)
NASTY_TEXTS = (
    *("", " ", "\0", "a\0b", "/", "..", ".", "../x", "a/b", "\\", "\\x", '\\"', "\\ud800", "\\U00110000", "\\400"),
    *("\ud800", "\udcff", "é", "\u202e", "x" * 300, "0" * 64, "f" * 63, "zz" * 32, "٣" * 64, "AA==", "A", "==="),
    *(
        "0000-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999999-23:59",
        "2026-13-45T99:99:99Z",
        "0001-01-01T00:00:00+23:59",
    ),
    *("2026-05-17T12:00:00+99:99", "NaN", "dir", "file", "symlink", "chardev", "data", "tree", "scrypt"),
)
RAW_JSON = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "9" * 5000,
    "[" * 100_000,
    '{"a":' * 100_000,
    "[" * 900 + "]" * 900,
    '"\\ud800"',
    '"\\uDFFF\\uD800"',
    '{"id":1,"id":2}',
    "nul",
    "",
)


def mutate(rng: random.Random, seed: bytes) -> bytes:
    """Sometimes several, mostly one; JSON mostly stays JSON."""
    value = _parsed(seed)
    if value is not None and rng.random() < 0.8:
        return _mutate_json(rng, value)
    content = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        content = rng.choice(_BYTES)(rng, content)
    return bytes(content)


def _parsed(seed: bytes) -> Any:
    if seed[:1] not in (b"{", b"["):
        return None
    try:
        return json.loads(seed)
    except ValueError:
        return None


def _mutate_json(rng: random.Random, value: Any) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _change(rng, value)
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.1:  # what no encoder would write
        marks = [i for i, c in enumerate(text) if c in ":,["]
        at = rng.choice(marks) + 1 if marks else 0
        end = next((i for i in range(at, len(text)) if text[i] in ",]}"), len(text))
        text = text[:at] + rng.choice(RAW_JSON) + text[end:]
    return text.encode("utf-8", "surrogatepass")


def _change(rng: random.Random, value: Any) -> Any:
    """Somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(NASTY_TEXTS)] = changed.pop(key)
            case _:
                changed[key] = _change(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        match rng.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[:at] + [value[at]] * rng.choice((2, 3, 50)) + value[at:]
            case 2:
                return [*value[:at], *reversed(value[at:])]
            case _:
                return [*value[:at], _change(rng, value[at]), *value[at + 1 :]]
    return _other(rng, value)


def _other(rng: random.Random, value: Any) -> Any:
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(("", "0", "\\", "\0", "é", "\ud800", value)) + value[at + 1 :]
    choices: tuple[Callable[[], Any], ...] = (
        lambda: rng.choice(NASTY_NUMBERS),
        lambda: rng.choice(NASTY_TEXTS),
        lambda: None,
        list,
        dict,
        lambda: [value],
        lambda: {"id": value},
        lambda: [[]] * 3,
    )
    return rng.choice(choices)()


def _flip(rng: random.Random, content: bytearray) -> bytearray:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def _set(rng: random.Random, content: bytearray) -> bytearray:
    if content:
        content[rng.randrange(len(content))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return content


def _cut(rng: random.Random, content: bytearray) -> bytearray:
    return content[: rng.randrange(len(content) + 1)]


def _drop(rng: random.Random, content: bytearray) -> bytearray:
    begin, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:begin] + content[min(end, begin + 64) :]


def _insert(rng: random.Random, content: bytearray) -> bytearray:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 2, 4, 32, 1000))) + content[at:]


def _repeat(rng: random.Random, content: bytearray) -> bytearray:
    begin, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[begin : min(end, begin + 4096)] + content[end:]


def _number(rng: random.Random, content: bytearray) -> bytearray:
    """Four bytes become a length that lies."""
    if len(content) >= 4:
        at = rng.choice((len(content) - 4, rng.randrange(len(content) - 3)))
        number = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFE0, len(content), 1 << 24))
        content[at : at + 4] = number.to_bytes(4, rng.choice(("little", "big")))
    return content


_BYTES = (_flip, _flip, _set, _cut, _drop, _insert, _repeat, _number)
