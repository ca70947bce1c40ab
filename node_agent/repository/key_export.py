"""Keys and config in one file, to be kept elsewhere: without them nothing of a repository can be read.

Both are sealed as they lie in the repository (keys by their passwords, the config by the master key), so the file opens
nothing by itself. A repository has one copy of each; this is the second.

    {"brs_repository_keys": 1, "repository": id, "config": base64, "keys": {name: base64, …}}
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from node_agent.errors import BrsError, ConfigError, DamagedError, ObjectMissing, RepositoryError
from node_agent.repository.backend.base import CONFIG_NAME, Backend, Kind, is_object_name
from node_agent.repository.keys import open_key
from node_agent.repository.repository import Config, Repository
from node_agent.repository.sealed import SealedFiles
from node_agent.repository.strict_json import parse_json

_HINT = "Give a file that 'key export' wrote for this repository."


def export_keys(repo: Repository) -> bytes:
    """Of an open repository. Keys whose name does not prove their content are left out; raises if that leaves none."""
    found = {}
    for info in list(repo.backend.list(Kind.KEY)):
        content = repo.files.read(Kind.KEY, info.name)
        if hashlib.sha256(content).hexdigest() == info.name:
            found[info.name] = base64.b64encode(content).decode()
    if not found:
        raise DamagedError("No key of the repository is whole; nothing was exported.")
    config = base64.b64encode(repo.files.read(Kind.CONFIG, CONFIG_NAME)).decode()
    value = {"brs_repository_keys": 1, "repository": repo.id, "config": config, "keys": found}
    return json.dumps(value, indent=1).encode() + b"\n"


@dataclass(slots=True)
class Restored:
    """What was put back; empty if all was as it should be."""

    config: bool = False
    keys: list[str] = field(default_factory=list)


def restore_keys(backend: Backend, exported: bytes, password: str) -> Restored:
    """Put back the config and those keys that are missing or damaged in the store.

    Proves before that the password opens the export, and that what lies in the store was sealed with its master key.
    Raises ConfigError (no export), WrongPassword, RepositoryError (of another repository).
    """
    config, keys = _decode(exported)
    master = open_key(keys, password).master
    files = SealedFiles(backend, master)
    Config.from_json(files.unseal(Kind.CONFIG, CONFIG_NAME, config))
    _must_belong(files)
    result = Restored()
    for name, content in keys.items():
        if _stored(backend, Kind.KEY, name) != content:
            backend.delete(Kind.KEY, name)
            backend.put(Kind.KEY, name, [content])
            result.keys.append(name)
    if _stored(backend, Kind.CONFIG, CONFIG_NAME) != config:
        backend.delete(Kind.CONFIG, CONFIG_NAME)
        backend.put(Kind.CONFIG, CONFIG_NAME, [config])
        result.config = True
    return result


def _decode(exported: bytes) -> tuple[bytes, dict[str, bytes]]:
    try:
        value: dict[str, Any] = parse_json(exported)
        if value["brs_repository_keys"] != 1:
            raise ValueError("it is of another version")
        config = base64.b64decode(value["config"], validate=True)
        keys = {name: base64.b64decode(content, validate=True) for name, content in value["keys"].items()}
        if not keys or not all(is_object_name(n) and hashlib.sha256(c).hexdigest() == n for n, c in keys.items()):
            raise ValueError("a key is damaged")
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ConfigError(f"The file holds no exported keys, or is damaged: {error}.", hint=_HINT) from error
    return config, keys


def _must_belong(files: SealedFiles) -> None:
    """Some file of the store opens with this master key; none may be there at all."""
    failed = ""
    for kind in (Kind.SNAPSHOT, Kind.INDEX):
        for info in list(files.backend.list(kind)):
            try:
                files.load(kind, info.name)
            except BrsError as error:
                failed = error.message
            else:
                return
    if failed:
        raise RepositoryError(f"Nothing in the store opens with these keys: {failed}", hint=_HINT)


def _stored(backend: Backend, kind: Kind, name: str) -> bytes | None:
    try:
        return backend.get(kind, name)
    except ObjectMissing:
        return None
