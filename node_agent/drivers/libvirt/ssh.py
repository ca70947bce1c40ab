"""Commands on the hypervisor, through one SSH connection whose host key is pinned."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import paramiko

from node_agent.drivers.libvirt.access import HostAccess
from node_agent.drivers.libvirt.errors import HypervisorError, HypervisorUnreachable
from node_agent.errors import ConfigError
from node_agent.ssh_trust import SILENT, fingerprint, is_pinned, parse_host_key, parse_private_key, quick_transport

_CONNECT_S = 15
MAX_OUTPUT = 64 << 20


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    errors: str


class Connection:
    """Logged in from the first command on; may be used by several threads."""

    def __init__(self, access: HostAccess) -> None:
        self.access = access
        self._lock = threading.Lock()
        self._client: paramiko.SSHClient | None = None
        self.host_key: paramiko.PKey | None = None  # as the host showed it, once connected

    def __enter__(self) -> Connection:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def connect(self) -> None:
        """Raises HypervisorUnreachable when nobody answers, HypervisorError when one side does not trust the other."""
        with self._lock:
            if self._client is None:
                self._client = self._logged_in()

    def run(self, script: str, *, given: bytes = b"", timeout_s: float = 120.0) -> Result:
        """Run a script of ``sh``; its end is waited for. Output is text, what is no UTF-8 replaced."""
        code, out, errors = self.run_bytes(script, given=given, timeout_s=timeout_s)
        return Result(code, out.decode("utf-8", "replace"), errors.decode("utf-8", "replace"))

    def run_bytes(self, script: str, *, given: bytes = b"", timeout_s: float = 120.0) -> tuple[int, bytes, bytes]:
        try:
            channel = self._begun(script, timeout_s)
            try:
                return _conversation(channel, given, timeout_s)
            finally:
                channel.close()
        except TimeoutError as error:
            raise HypervisorUnreachable(
                f"A command on {self.access.shown} did not end within {timeout_s:.0f} s.",
                hint="Look whether libvirtd on the hypervisor answers (virsh list).",
            ) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._lost(error) from error

    def begin(self, script: str) -> paramiko.Channel:
        """A script that goes on: its input stays open, its output is the caller's to read. Raises like :meth:`run`."""
        try:
            return self._begun(script, _CONNECT_S)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> HypervisorUnreachable:
        why = f": {error}" if str(error) else ", or the server ended it"
        return HypervisorUnreachable(f"The connection to {self.access.shown} was lost{why}.")

    def _begun(self, script: str, timeout_s: float) -> paramiko.Channel:
        self.connect()
        client = self._client
        assert client is not None
        transport = client.get_transport()
        if transport is None or not transport.is_active():
            raise EOFError("the connection was lost")
        channel = transport.open_session(timeout=_CONNECT_S)
        try:
            channel.settimeout(timeout_s)
            channel.exec_command(f"exec /bin/sh -c {shlex.quote(script)}")  # whatever the login shell is
        except BaseException:
            channel.close()
            raise
        return channel

    def _logged_in(self) -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        client.set_log_channel(SILENT)
        try:
            self._trust(client)
            self._log_in(client)
        except BaseException:
            client.close()
            raise
        transport = client.get_transport()
        assert transport is not None
        self.host_key = transport.get_remote_server_key()
        return client

    def _trust(self, client: paramiko.SSHClient) -> None:
        access = self.access
        client.set_missing_host_key_policy(_Pinned(access))
        if not access.host_key.startswith("SHA256:"):
            key = parse_host_key(access.host_key)  # listed, so that this kind of key is asked for
            listed = access.host if access.port == 22 else f"[{access.host}]:{access.port}"
            client.get_host_keys().add(listed, key.get_name(), key)

    def _log_in(self, client: paramiko.SSHClient) -> None:
        access = self.access
        if access.private_key is None and access.password is None:
            raise ConfigError("There is neither a key nor a password for the hypervisor.", hint="Give one of them.")
        key = parse_private_key(access.private_key, access.passphrase) if access.private_key else None
        try:
            client.connect(
                access.host,
                access.port,
                access.user,
                access.password,
                key,
                timeout=_CONNECT_S,
                banner_timeout=_CONNECT_S,
                auth_timeout=_CONNECT_S,
                channel_timeout=_CONNECT_S,
                allow_agent=False,
                look_for_keys=False,
                transport_factory=quick_transport,
            )
        except paramiko.BadHostKeyException as error:
            raise _not_pinned(access, error.key) from error
        except paramiko.AuthenticationException as error:
            raise HypervisorError(
                f"{access.shown} refuses the login: {error}.", hint="Check the user, and the key or the password."
            ) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise HypervisorUnreachable(
                f"The hypervisor {access.shown} does not answer: {error or type(error).__name__}."
            ) from error


def _conversation(channel: paramiko.Channel, given: bytes, timeout_s: float) -> tuple[int, bytes, bytes]:
    """Hand over the input and take the output; all flow at once, so that neither side waits for the other."""
    with ThreadPoolExecutor(2) as pool:
        out, errors = pool.submit(_all_of, channel.recv), pool.submit(_all_of, channel.recv_stderr)
        try:
            _give(channel, given)
            taken = out.result(), errors.result()
        except BaseException:
            channel.close()  # so that the other one ends, too
            raise
    if not channel.status_event.wait(timeout_s):
        raise TimeoutError
    if (code := channel.recv_exit_status()) < 0:
        raise EOFError("the host hung up in the middle of a command")
    return code, *taken


def _all_of(receive: Callable[[int], bytes]) -> bytes:
    taken = bytearray()
    while piece := receive(1 << 20):
        taken += piece
        if len(taken) > MAX_OUTPUT:
            raise EOFError(f"a command printed more than {MAX_OUTPUT >> 20} MiB")
    return bytes(taken)


def _give(channel: paramiko.Channel, given: bytes) -> None:
    try:
        if given:
            channel.sendall(given)
        channel.shutdown_write()
    except (OSError, EOFError):
        return  # the command ended without reading it all: its status tells


class _Pinned(paramiko.MissingHostKeyPolicy):
    def __init__(self, access: HostAccess) -> None:
        self._access = access

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002
        if not is_pinned(self._access.host_key, key):
            raise _not_pinned(self._access, key)


def _not_pinned(access: HostAccess, key: paramiko.PKey) -> HypervisorError:
    return HypervisorError(
        f"The host key of {access.shown} is not the one that is pinned: it is {key.get_name()} {fingerprint(key)}.",
        hint="Compare it with the hypervisor's own (ssh-keygen -lf); if it is right, enter it in the platform's form.",
    )
