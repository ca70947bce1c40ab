"""The node's state folder: who it is, whom it trusts, and what must outlive the process.

    node.json   server address, node id and name, labels; nothing secret
    ca.pem      the server's CA, pinned at enrolment (absent with --system-trust)
    token       this node's token, the only secret on disk
    lock        held while a node runs: two nodes never share a state folder
    status.json what the running node last knew, for ``status``
    outbox/     results that the server has not acknowledged yet (see :mod:`node_agent.outbox`)
    holder/     journal of this node's own repository locks
    cache/ staging/ data/ repositories/   see node.toml

Folders are 0700, files 0600; every file is replaced whole (temp, fsync, rename).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from node_agent.errors import ConfigError, NotEnrolled

NODE_FILE, CA_FILE, TOKEN_FILE, LOCK_FILE, STATUS_FILE = "node.json", "ca.pem", "token", "lock", "status.json"
_TEMPORARY = re.compile(r"\..+\.json-[a-z0-9_]{8}")  # see replace_file
_OWN = "|".join(map(re.escape, (NODE_FILE, CA_FILE, TOKEN_FILE, STATUS_FILE)))
_OWN_TEMPORARY = re.compile(rf"\.({_OWN})-[a-z0-9_]{{8}}")


@dataclass(frozen=True)
class Identity:
    """What enrolment gave. ``token_at`` is when the token was taken, in seconds since the epoch."""

    server: str
    node_id: str
    name: str
    labels: list[str] = field(default_factory=list)
    system_trust: bool = False
    token_at: float = 0.0


class State:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        try:
            for sub in ("", "outbox", "holder", "cache", "staging", "data", "repositories"):
                (self.folder / sub).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The state folder {self.folder} cannot be made: {error.strerror}.",
                hint="Give a folder that the node's user owns, with --state DIR.",
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder. ConfigError when another process holds it; freed by the kernel when this one dies."""
        handle = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"Another node is running with the state folder {self.folder}.",
                    hint="Stop it first, or give this one a folder of its own with --state DIR.",
                ) from None
            yield
        finally:
            os.close(handle)

    def locked(self) -> bool:
        """Whether a node runs with this folder right now."""
        try:
            with self.lock():
                return False
        except ConfigError:
            return True

    def clear_temporaries(self) -> int:
        """Remove what a killed process left of files that it was replacing. Only under :meth:`lock`: nobody writes."""
        found = [path for path in self.folder.glob(".*") if _OWN_TEMPORARY.fullmatch(path.name)]
        for folder in (self.folder / "outbox", self.folder / "platforms"):
            found += [path for path in folder.rglob(".*") if _TEMPORARY.fullmatch(path.name)]
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    # --- identity

    @property
    def enrolled(self) -> bool:
        return (self.folder / NODE_FILE).exists() and (self.folder / TOKEN_FILE).exists()

    def identity(self) -> Identity:
        if not self.enrolled:
            raise NotEnrolled(
                f"There is no enrolled node in {self.folder}.",
                hint="Run: python -m node_agent enroll --server https://host:port --code CODE",
            )
        try:
            return Identity(**json.loads((self.folder / NODE_FILE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{self.folder / NODE_FILE} is damaged.", hint="Enrol the node again.") from error

    def token(self) -> str:
        try:
            return (self.folder / TOKEN_FILE).read_text().strip()
        except OSError as error:
            raise ConfigError(
                f"{self.folder / TOKEN_FILE} cannot be read: {error.strerror}.", hint="Run as the node's own user."
            ) from error

    def ca_pem(self) -> str | None:
        """The pinned CA, or None when the system's authorities are trusted."""
        if self.identity().system_trust:
            return None
        try:
            return (self.folder / CA_FILE).read_text()
        except OSError as error:
            raise ConfigError(f"{self.folder / CA_FILE} cannot be read.", hint="Enrol the node again.") from error

    def keep_enrolment(self, identity: Identity, ca_pem: str | None, token: str) -> None:
        """The token is written last: with it the enrolment is complete. An older one goes first: whatever a power cut
        leaves, a token is never shown to another server than its own."""
        (self.folder / TOKEN_FILE).unlink(missing_ok=True)
        sync_folder(self.folder)
        if ca_pem is not None:
            replace_file(self.folder / CA_FILE, ca_pem.encode())
        replace_file(self.folder / NODE_FILE, json.dumps(asdict(identity), indent=1).encode())
        replace_file(self.folder / TOKEN_FILE, token.encode())

    def keep_token(self, token: str, at: float) -> None:
        replace_file(self.folder / TOKEN_FILE, token.encode())
        facts = asdict(self.identity()) | {"token_at": at}
        replace_file(self.folder / NODE_FILE, json.dumps(facts, indent=1).encode())

    # --- status

    def keep_status(self, facts: dict[str, Any]) -> None:
        replace_file(self.folder / STATUS_FILE, json.dumps(facts).encode(), durable=False)

    def status(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / STATUS_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def replace_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Readers see the old content or the new, also after a crash (``durable``). Mode 0600."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        try:
            written = 0
            while written < len(content):
                written += os.write(handle, content[written:])
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """What was made, renamed or removed in it stays so."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
