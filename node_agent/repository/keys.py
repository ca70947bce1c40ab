"""Key files: the master key, sealed by a password. Opening tries each; the file's name proves its content.

A repository holds few keys: stock restic gives up after twenty, we make sixteen at most.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from os import uname, urandom

from node_agent.errors import (
    DamagedError,
    ObjectLocked,
    ObjectMissing,
    RepositoryError,
    RepositoryMissing,
    WrongPassword,
)
from node_agent.repository.backend.base import CONFIG_NAME, Backend, Kind
from node_agent.repository.crypto import OWN_SCRYPT, SALT_SIZE, Key, ScryptParams, Unauthenticated, key_from_password
from node_agent.repository.identity import username
from node_agent.repository.rfc3339 import format_ns, from_datetime
from node_agent.repository.strict_json import parse_json

MAX_OWN_KEYS = 16
_MAX_TRIED = 20
_MAX_FILE = 64 << 10


class _BadKeyFile(Exception):
    """The file is no key file, or asks for what we refuse."""


@dataclass(frozen=True, slots=True)
class OpenedKey:
    name: str
    master: Key


def open_master_key(
    backend: Backend, password: str, hint: str = "", fits: Callable[[Key], bool] = lambda _key: True
) -> OpenedKey:
    """The master key; names that begin with ``hint`` are tried first.

    One that does not fit is taken only if there is no better: who lost the race for a new repository, and was killed
    then, leaves a key that the same password opens.
    Raises RepositoryMissing, WrongPassword, DamagedError (naming the key file).
    """
    names = sorted((info.name for info in backend.list(Kind.KEY)), key=lambda n: (not n.startswith(hint), n))
    if not names:
        raise RepositoryMissing(f"There is no repository at {backend.url}: it holds no keys.")
    damaged: list[str] = []
    unfit: OpenedKey | None = None
    for name in names[:_MAX_TRIED]:
        try:
            content = backend.get(Kind.KEY, name, length=_MAX_FILE)
        except ObjectMissing:
            continue  # a key removed just now
        try:
            opened = OpenedKey(name, _open(content, password))
        except Unauthenticated:
            # A flipped salt looks like a wrong password; the name tells them apart.
            if hashlib.sha256(content).hexdigest() != name:
                damaged.append(f"key {name} is damaged: its name is not the SHA-256 of its content")
        except _BadKeyFile as error:
            damaged.append(f"key {name} is damaged: {error}")
        else:
            if fits(opened.master):
                return opened
            unfit = unfit or opened
    if unfit is not None:
        return unfit
    if len(damaged) == len(names):
        raise DamagedError(
            f"No key of the repository can be used: {'; '.join(damaged)}.",
            hint="Put exported keys back with 'key restore FILE', or the key file from the recovery kit.",
        )
    raise WrongPassword(f"{WrongPassword.default_message} {'; '.join(damaged)}".strip() if damaged else None)


def open_key(keys: Mapping[str, bytes], password: str) -> OpenedKey:
    """One of several key files (name to content). Raises WrongPassword."""
    for name, content in keys.items():
        with contextlib.suppress(Unauthenticated, _BadKeyFile):
            return OpenedKey(name, _open(content, password))
    raise WrongPassword("None of these keys opens with this password.")


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What a key file says about itself; nothing of that is authenticated."""

    name: str
    username: str = ""
    hostname: str = ""
    created: str = ""
    damaged: str = ""  # what is wrong with the file


def list_keys(backend: Backend) -> list[KeyInfo]:
    found = []
    for name in sorted(info.name for info in backend.list(Kind.KEY)):
        try:
            content = backend.get(Kind.KEY, name, length=_MAX_FILE)
        except ObjectMissing:
            continue
        if hashlib.sha256(content).hexdigest() != name:
            found.append(KeyInfo(name, damaged="its name is not the SHA-256 of its content"))
            continue
        try:
            value = parse_json(content)
            texts = [str(value.get(field) or "") for field in ("username", "hostname", "created")]
            found.append(KeyInfo(name, *texts))
        except (ValueError, AttributeError):
            found.append(KeyInfo(name, damaged="it is not a key file"))
    return found


def remove_key(backend: Backend, spec: str, *, current: str) -> str:
    """Remove the key whose name begins with ``spec``; never the ``current`` one, so never the last that opens."""
    names = [info.name for info in backend.list(Kind.KEY) if spec and info.name.startswith(spec)]
    if len(names) != 1:
        problem = f"is the beginning of {len(names)} keys' names" if names else "is no key of the repository"
        raise RepositoryError(f"{spec} {problem}.", hint="List the keys and give more of the name.")
    if names[0] == current:
        raise RepositoryError(
            "The key that opened the repository cannot be removed.",
            hint="Open the repository with another password, or change this one with 'key passwd'.",
        )
    backend.delete(Kind.KEY, names[0])
    return names[0]


def change_password(backend: Backend, opened: OpenedKey, password: str) -> str:
    """Replace the key that opened the repository: the new one is stored and proven to open before the old one goes."""
    name = add_key(backend, opened.master, password, limit=MAX_OWN_KEYS + 1)
    if _open(backend.get(Kind.KEY, name), password) != opened.master:
        backend.delete(Kind.KEY, name)
        raise RepositoryError("The new key did not open as it was stored; the password was not changed.")
    lock_keys(backend)
    try:
        backend.delete(Kind.KEY, opened.name)
    except ObjectLocked as error:
        raise ObjectLocked(
            f"The new password opens the repository, but so does the old one still: {error.message}",
            hint="Remove the old key with 'key remove' when its lock is over.",
        ) from None
    return name


def add_key(
    backend: Backend, master: Key, password: str, params: ScryptParams = OWN_SCRYPT, *, limit: int = MAX_OWN_KEYS
) -> str:
    """Store the master key once more under another password; proven to open before it is stored."""
    if sum(1 for _ in backend.list(Kind.KEY)) >= limit:
        raise RepositoryError(
            f"The repository has {MAX_OWN_KEYS} keys already.", hint="Remove a key that is no longer needed."
        )
    salt = urandom(SALT_SIZE)
    data = bytes(key_from_password(password, salt, params).seal(master.to_json()))
    content = json.dumps(
        {
            "created": format_ns(from_datetime(datetime.now(UTC))),
            "username": username(),
            "hostname": uname().nodename,
            "kdf": "scrypt",
            "N": params.n,
            "r": params.r,
            "p": params.p,
            "salt": base64.b64encode(salt).decode(),
            "data": base64.b64encode(data).decode(),
        },
        separators=(",", ":"),
    ).encode()
    if _open(content, password) != master:
        raise RepositoryError("A new key did not open again; nothing was stored.")
    name = hashlib.sha256(content).hexdigest()
    backend.put(Kind.KEY, name, [content])
    return name


def lock_keys(backend: Backend, names: Sequence[str] | None = None) -> None:
    """Config and keys (all, or these) locked as a new object is, where objects are; backups extend that.

    Raises LockRefused.
    """
    lock = backend.object_lock
    if lock is None:
        return
    lock.lock(Kind.CONFIG, CONFIG_NAME)
    for name in [info.name for info in backend.list(Kind.KEY)] if names is None else names:
        lock.lock(Kind.KEY, name)


def _open(content: bytes, password: str) -> Key:
    try:
        # Damage to what a key says about its maker must lock nobody out: Go replaces what is not UTF-8 as well.
        value = parse_json(content.decode("utf-8", "replace").encode())
        if value["kdf"] != "scrypt":
            raise _BadKeyFile(f"its key derivation {value['kdf']!r} is unknown")
        params = ScryptParams(int(value["N"]), int(value["r"]), int(value["p"]))
        salt, data = (base64.b64decode(value[field], validate=True) for field in ("salt", "data"))
        user_key = key_from_password(password, salt, params)
    except (KeyError, TypeError, OverflowError, binascii.Error) as error:
        raise _BadKeyFile("it is not a key file") from error
    except ValueError as error:
        raise _BadKeyFile(str(error)) from error
    plain = user_key.open(data)
    try:
        return Key.from_json(plain)
    except ValueError as error:
        raise _BadKeyFile("its content is not a key") from error
