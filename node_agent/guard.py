"""What this node may touch: paths below the roots of its own configuration, nothing else.

Every path that comes from the server passes here before it is used. Symbolic links are resolved
first, and the *resolved* path is what tasks then work with, so that a link inside a root cannot lead
out of it. Among roots of different kinds the deepest one decides: with ``write = ["/srv"]`` and
``repositories = ["/srv/backup"]`` nothing may be restored into ``/srv/backup``.

A remote store passes when its host, and the bucket and folder there, lie in one of ``roots.stores``. Where data goes
is decided by some options as well as by the address, so both are looked at.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from node_agent.config import RootsConfig
from node_agent.errors import RefusedError
from node_agent.items import printable

LOCAL_SCHEME = "local:"
_REMOTE = re.compile(r"(sftp|s3|azure|gs|rest):")
# What the server may say of a store. The others name files of this node, or lead the data elsewhere.
_OPTIONS = {
    "connections", "limit-upload", "limit-download", "limit-windows", "timeout", "cacert", "region",
    "bucket-lookup", "access-key-id", "secret-access-key", "session-token", "host-key", "user", "password",
    "private-key", "key-passphrase", "account-name", "account-key", "account-sas", "tenant-id", "client-id",
    "client-secret", "endpoint", "endpoint-suffix", "access-token", "service-account-key", "object-lock",
    "object-lock-days",
}  # fmt: skip


class Guard:
    """Decides for one node. ``own`` folders (state: token, pinned CA) may never be written by tasks."""

    def __init__(self, roots: RootsConfig, own: Iterable[Path] = (), commands: Iterable[str] = ()) -> None:
        self.roots = roots
        self._commands = tuple(commands)
        self._own = [_real(str(path)) for path in own]
        self._read = [_real(root) for root in roots.read]
        self._write = [_real(root) for root in roots.write]
        self._repositories = [_real(root) for root in roots.repositories]

    def read(self, path: str) -> Path:
        """The resolved path of a source. RefusedError when it lies outside the read roots."""
        real = _checked(path)
        if _deepest(real, self._read) is None:
            raise _refused(path, real, "read", self.roots.read)
        return real

    def write(self, path: str) -> Path:
        """The resolved path of a target. RefusedError outside the write roots or inside the node's own folders."""
        real = _checked(path)
        root = _deepest(real, self._write)
        if root is None:
            raise _refused(path, real, "write", self.roots.write)
        if self._belongs_to_node(real, root):
            raise RefusedError(
                f"{printable(path)} belongs to the node itself or holds repositories.",
                hint="Choose a folder that is only meant for restored data.",
            )
        return real

    def repository(self, url: str, options: Mapping[str, str] | None = None) -> str:
        """The address of a repository, a folder's path resolved. RefusedError outside what may hold repositories."""
        if is_remote(url):
            self._store(url, options or {})
            return url
        real = _checked(url.removeprefix(LOCAL_SCHEME))
        if _deepest(real, self._repositories) is None:
            raise _refused(url, real, "repositories", self.roots.repositories)
        return str(real)

    def platform(self, kind: str, addresses: Iterable[str]) -> None:
        """RefusedError unless each address of the platform is among those that this node may log in to."""
        for address in addresses:
            place = f"{kind}:{address.strip().lower()}"
            if not any(place == root or root == f"{kind}:" for root in self.roots.platforms):
                allowed = ", ".join(self.roots.platforms) or "none"
                raise RefusedError(
                    f"{printable(place)} is not among the platforms that this node may use ({allowed}).",
                    hint=f"Add “{printable(place)}” (or “{kind}:”, for all of the kind) to roots.platforms in this "
                    "node's node.toml if it is meant to be allowed.",
                )

    def command(self, program: str) -> None:
        """RefusedError unless the program, by its whole path, is among those that tasks may run here."""
        if not program.startswith("/") or program not in self._commands:
            allowed = ", ".join(self._commands) or "none"
            raise RefusedError(
                f"{printable(program)} is not among the programs that this node may run ({allowed}).",
                hint="Write its whole path, and add it to commands in this node's node.toml if it is meant to be "
                "allowed.",
            )

    def repository_root(self, url: str) -> Path:
        """The root that allows the repository at ``url``: init makes folders below it, never the root itself."""
        self.repository(url)
        real = _checked(url.removeprefix(LOCAL_SCHEME))
        root = _deepest(real, self._repositories)
        assert root is not None
        return root

    def _store(self, url: str, options: Mapping[str, str]) -> None:
        strange = sorted(
            name
            for name, value in options.items()
            if name not in _OPTIONS or (name == "cacert" and not value.startswith("-----BEGIN"))
        )
        if strange:
            raise RefusedError(
                f"This node takes no option {', '.join(strange)} from the server.",
                hint="Files of the node and proxies are set on the node itself.",
            )
        place = place_of(url, options)
        if not any(place == root or place.startswith(_with_end(root)) for root in self.roots.stores):
            allowed = ", ".join(self.roots.stores) or "none"
            raise RefusedError(
                f"{printable(place)} is not among the stores that this node may use ({allowed}).",
                hint=f"Add “{printable(place)}” to roots.stores in this node's node.toml if it is meant to be allowed.",
            )

    def _belongs_to_node(self, real: Path, write_root: Path) -> bool:
        closed = _deepest(real, [*self._own, *self._repositories])
        return closed is not None and len(closed.parts) > len(write_root.parts)


def is_remote(url: str) -> bool:
    return _REMOTE.match(url) is not None


def place_of(url: str, options: Mapping[str, str]) -> str:
    """Where data really goes, as roots.stores names it: ``kind:host[:port]/bucket or folder``. RefusedError."""
    kind, _, address = url.partition(":")
    try:
        host, path = _PLACES[kind](address, options)
    except ValueError:
        host, path = "", ""
    if not host or re.search(r"[@/\s\\]", host) or ".." in path.split("/") or "\0" in path:
        raise RefusedError(f"The address of the {kind} store is not understood.", hint="Correct the destination.")
    path = posixpath.normpath("/" + path.lstrip("/")) if path.strip("/") else ""
    return f"{kind}:{host.lower()}{path}"


def _url_place(address: str, _options: Mapping[str, str]) -> tuple[str, str]:
    parts = urlsplit(address if "://" in address else f"https://{address}")
    return parts.netloc, unquote(parts.path)


def _sftp_place(address: str, _options: Mapping[str, str]) -> tuple[str, str]:
    if not address.startswith("//"):
        host, _, path = address.rpartition("@")[2].partition(":")
        return host, path if path.startswith("/") else f"~/{path}"
    parts = urlsplit(f"sftp:{address}")
    port = f":{parts.port}" if parts.port not in (None, 22) else ""
    path = unquote(parts.path[1:])
    return f"{parts.hostname or ''}{port}", path if path.startswith("/") else f"~/{path}"


def _azure_place(address: str, options: Mapping[str, str]) -> tuple[str, str]:
    host = f"{options.get('account-name', '')}.blob.{options.get('endpoint-suffix') or 'core.windows.net'}"
    return _bucket_place(address, options, host)


def _gs_place(address: str, options: Mapping[str, str]) -> tuple[str, str]:
    return _bucket_place(address, options, "storage.googleapis.com")


def _bucket_place(address: str, options: Mapping[str, str], host: str) -> tuple[str, str]:
    bucket, _, prefix = address.partition(":")
    front = ""
    if endpoint := options.get("endpoint"):
        parts = urlsplit(endpoint)
        host, front = parts.netloc, parts.path.strip("/")
    return host, "/".join(part for part in (front, bucket, prefix.strip("/")) if part)


_PLACES = {"sftp": _sftp_place, "s3": _url_place, "rest": _url_place, "azure": _azure_place, "gs": _gs_place}


def _with_end(root: str) -> str:
    """So that ``s3:host`` does not allow ``s3:host.evil``; a kind alone ends with its colon."""
    return root if root.endswith(":") else f"{root.rstrip('/')}/"


def _checked(path: str) -> Path:
    if "\0" in path:
        raise RefusedError("A path with a zero byte in it is refused.", hint="Correct the path.")
    if not path.startswith("/"):
        raise RefusedError(f"{printable(path)!r} is not an absolute path.", hint="Give the path from the root, /….")
    return _real(path)


def _real(path: str) -> Path:
    return Path(os.path.realpath(path))


def _deepest(path: Path, roots: Iterable[Path]) -> Path | None:
    holding = [root for root in roots if path == root or root in path.parents]
    return max(holding, key=lambda root: len(root.parts), default=None)


def _refused(asked: str, real: Path, kind: str, roots: list[str]) -> RefusedError:
    where = printable(asked)
    if printable(str(real)) != where.removeprefix(LOCAL_SCHEME):
        where += f" (which is {printable(str(real))})"
    allowed = ", ".join(roots) or "none"
    return RefusedError(
        f"{where} is outside the folders that this node may use ({kind}: {allowed}).",
        hint=f"Add the folder to roots.{kind} in this node's node.toml if it is meant to be allowed.",
    )
