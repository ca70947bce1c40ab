"""Who is at the other end of an SFTP connection, and who we are: address, host key, credentials.

Address: ``sftp:user@host:/path`` or ``sftp://user@host:port//path`` (one slash after the host: relative to the
user's home; two: absolute), as restic's. The host key must be known: pinned by the option ``host-key`` (a
line ``ssh-ed25519 AAAA…`` or a fingerprint ``SHA256:…``), or listed in the known hosts. Nobody is asked, and
an unknown key is never taken on trust.

Credentials: option ``private-key`` (the key itself), or ``key-file`` (BRS_SFTP_KEY_FILE; passphrase of both:
``key-passphrase``, BRS_SFTP_KEY_PASSPHRASE), or ``password`` (BRS_SFTP_PASSWORD), else the agent and the usual keys
in ``~/.ssh``.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import paramiko

from node_agent.errors import BackendError, BackendUnavailable, ConfigError
from node_agent.repository.backend.settings import Settings
from node_agent.repository.backend.sftp_client import Broken
from node_agent.repository.backend.sftp_session import Session
from node_agent.ssh_trust import SILENT, fingerprint, is_pinned, parse_host_key, parse_private_key, quick_transport

_CONNECT_S = 15


@dataclass(frozen=True, slots=True)
class Login:
    host: str
    port: int
    user: str | None
    path: str
    host_key: str | None
    known_hosts: tuple[str, ...]
    key_file: str | None
    timeout_s: int
    private_key: str | None = field(repr=False)
    passphrase: str | None = field(repr=False)
    password: str | None = field(repr=False)

    @property
    def url(self) -> str:
        user = f"{self.user}@" if self.user else ""
        if self.port == 22 and ":" not in self.host:
            return f"sftp:{user}{self.host}:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"sftp://{user}{host}:{self.port}/{self.path}"

    def connect(self) -> Session:
        """Raises BackendUnavailable when nobody answers, BackendError when one side does not trust the other."""
        client = paramiko.SSHClient()
        client.set_log_channel(SILENT)
        try:
            self._trust(client)
            self._log_in(client)
            return Session(client, self.timeout_s)
        except BaseException:
            client.close()
            raise

    def _trust(self, client: paramiko.SSHClient) -> None:
        if self.host_key is None:
            for file in self.known_hosts:
                if Path(file).is_file():
                    client.load_system_host_keys(file)
            client.set_missing_host_key_policy(_Pinned(None, self.url))
        elif self.host_key.startswith("SHA256:"):
            client.set_missing_host_key_policy(_Pinned(self.host_key, self.url))
        else:
            key = parse_host_key(self.host_key)
            client.get_host_keys().add(self._listed_as, key.get_name(), key)

    @property
    def _listed_as(self) -> str:
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"

    def _log_in(self, client: paramiko.SSHClient) -> None:
        key = parse_private_key(self.private_key, self.passphrase) if self.private_key else None
        named = key is not None or self.key_file is not None or self.password is not None
        try:
            client.connect(
                self.host,
                self.port,
                self.user,
                self.password,
                key,
                key_filename=self.key_file,
                passphrase=self.passphrase,
                timeout=_CONNECT_S,
                banner_timeout=_CONNECT_S,
                auth_timeout=_CONNECT_S,
                channel_timeout=_CONNECT_S,
                allow_agent=not named,
                look_for_keys=not named,
                transport_factory=quick_transport,
            )
        except paramiko.BadHostKeyException as error:
            raise _not_pinned(self.url, error.key) from error
        except paramiko.AuthenticationException as error:
            if "saw EOF" in str(error) or "timeout" in str(error).lower():  # cut off in the middle, not refused
                self._raise(error)
            raise BackendError(
                f"{self.url} refuses the login: {error}.", hint="Check the user, and the key or the password."
            ) from error
        except (paramiko.PasswordRequiredException, paramiko.SSHException, EOFError, OSError, Broken) as error:
            self._raise(error)

    def _raise(self, error: Exception) -> None:
        if isinstance(error, FileNotFoundError | PermissionError | paramiko.PasswordRequiredException):
            raise ConfigError(f"The key {self.key_file} cannot be used: {error}.", hint="Check the file.") from error
        text = str(error)
        if "Incompatible ssh" in text or "no acceptable" in text or "No authentication methods" in text:
            raise BackendError(f"{self.url} cannot be talked to: {text}.", hint="Check key and user.") from error
        raise BackendUnavailable(
            f"The destination {self.url} does not answer: {text or type(error).__name__}."
        ) from error


class _Pinned(paramiko.MissingHostKeyPolicy):
    def __init__(self, fingerprint: str | None, url: str) -> None:
        self._fingerprint = fingerprint
        self._url = url

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        if self._fingerprint is None or not is_pinned(self._fingerprint, key):
            raise _not_pinned(self._url, key)


def _not_pinned(url: str, key: paramiko.PKey) -> BackendError:
    return BackendError(
        f"The host key of {url} is not a known one: it is {key.get_name()} {fingerprint(key)}.",
        hint="Compare it with the server's own; if it is right, give it as option host-key, or add it to known_hosts.",
    )


def login_of(address: str, settings: Settings) -> Login:
    """``address`` is what follows ``sftp:``."""
    user, host, port, path = _parse_url(address) if address.startswith("//") else _parse_short(address)
    home = settings.env.get("HOME", "")
    known = settings.text("known-hosts") or f"{home}/.ssh/known_hosts"
    return Login(
        host=host,
        port=settings.number("port", port, least=1),
        user=user or settings.text("user"),
        path=posixpath.normpath(path),
        host_key=settings.text("host-key", "BRS_SFTP_HOST_KEY"),
        known_hosts=("/etc/ssh/ssh_known_hosts", known),
        key_file=settings.text("key-file", "BRS_SFTP_KEY_FILE"),
        private_key=settings.text("private-key"),
        passphrase=settings.text("key-passphrase", "BRS_SFTP_KEY_PASSPHRASE"),
        password=settings.text("password", "BRS_SFTP_PASSWORD"),
        timeout_s=settings.number("timeout", 60, least=1),
    )


def _parse_url(address: str) -> tuple[str | None, str, int, str]:
    parts = urlsplit(f"sftp:{address}")
    try:
        port = parts.port or 22
    except ValueError:
        raise _incomplete() from None
    if parts.password is not None:
        raise ConfigError("A password does not belong into an SFTP address.", hint="Set BRS_SFTP_PASSWORD.")
    if not parts.hostname or len(parts.path) < 2:
        raise _incomplete()
    return (unquote(parts.username) if parts.username else None), parts.hostname, port, parts.path[1:]


def _parse_short(address: str) -> tuple[str | None, str, int, str]:
    place, colon, path = address.partition(":")
    user, _, host = place.rpartition("@")
    if not colon or not host or not path or path.startswith("~"):
        raise _incomplete()
    return user or None, host, 22, path


def _incomplete() -> ConfigError:
    return ConfigError(
        "The SFTP address is incomplete.", hint="Write sftp:user@host:/path, or sftp://user@host:port//path."
    )
