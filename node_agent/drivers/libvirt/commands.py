"""Commands on the hypervisor around the instant of a backup, by one script that outlives this node.

The script (``commands.sh``) runs the first command, waits on its input, and runs the second: when told to, and just as
well when the connection ends because this process was killed, or when nobody says anything for a quarter of an hour. So
what the first one holds (a database, an application) is let go in any case.

Only the command lines that were given, and the machine's name and UUID as environment variables, reach the shell.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources

import paramiko

from node_agent.drivers.base import Ran
from node_agent.drivers.libvirt.access import HostAccess
from node_agent.drivers.libvirt.errors import HypervisorError, HypervisorUnreachable
from node_agent.drivers.libvirt.host import checked_uuid
from node_agent.drivers.libvirt.ssh import Connection
from node_agent.errors import SourceError

HOLD_S = 900  # from the end of the first command to the second, if nobody says anything
_LOOK_S = 0.5
_SLACK_S = 30.0
_MOST = 64 << 10


class _Held:
    def __init__(self, channel: paramiko.Channel, mark: str, limit_s: int, shown: str) -> None:
        self._channel, self._mark, self._limit_s, self._shown = channel, mark.encode(), limit_s, shown
        self._taken = b""
        self._before: Ran | None = None

    def begin(self, check: Callable[[], None]) -> None:
        """What stops the run meanwhile is raised before the block begins: the script then goes on by itself."""
        self._before = self._result("before", check)

    def before(self) -> Ran | None:
        return self._before

    def after(self) -> Ran | None:
        with contextlib.suppress(OSError):  # the script has ended by itself: what it said is still to be read
            self._channel.sendall(b"go\n")
        ran = self._result("after", lambda: None)
        if self._mark + b" late" in self._taken:
            raise HypervisorError(
                f"The snapshot was not there within {HOLD_S} s, so the command after it was run before.",
                hint="Look at the job's log for what took so long.",
            )
        return ran

    def _result(self, stage: str, check: Callable[[], None]) -> Ran | None:
        head, end = self._mark + f" {stage} ".encode(), b"\n" + self._mark + b" end\n"
        until = time.monotonic() + self._limit_s + _SLACK_S
        while (begun := self._taken.find(head)) < 0 or self._taken.find(end, begun) < 0:
            check()
            self._read_on(until)
        words, _, output = self._taken[begun + len(head) : self._taken.find(end, begun)].partition(b"\n")
        if words == b"none":
            return None
        code = int(words)
        return Ran(code, output.decode("utf-8", "replace"), in_time=code not in (124, 137))

    def _read_on(self, until: float) -> None:
        self._channel.settimeout(_LOOK_S)
        try:
            piece = self._channel.recv(1 << 14)
        except TimeoutError:
            if time.monotonic() > until:
                raise self._lost() from None
            return
        except OSError as error:
            raise self._lost() from error
        self._taken += piece
        if not piece or len(self._taken) > _MOST:
            raise self._lost()

    def _lost(self) -> SourceError:
        return HypervisorUnreachable(
            f"What became of a command on {self._shown} is not known: the connection to it was lost.",
            hint="The command after the backup is run there by itself. Check sshd there, and run the backup again.",
        )


@contextmanager
def commands_on(
    access: HostAccess,
    machine: str,
    name: str,
    before: str,
    after: str,
    limit_s: int,
    check: Callable[[], None],
    hold_s: int = HOLD_S,
) -> Iterator[_Held]:
    mark = f"brs-{secrets.token_hex(16)}"
    told = {
        "mark": mark,
        "before": before,
        "after": after,
        "limit": str(limit_s),
        "hold": str(hold_s),
        "BRS_MACHINE": name,
        "BRS_MACHINE_ID": checked_uuid(machine),
    }
    lines = [f"{variable}={shlex.quote(value)}" for variable, value in told.items()]
    script = resources.files(__package__).joinpath("commands.sh").read_text()
    with Connection(access) as connection:
        channel = connection.begin("\n".join([*lines, "export BRS_MACHINE BRS_MACHINE_ID", script]))
        try:
            held = _Held(channel, mark, limit_s, access.shown)
            held.begin(check)
            yield held
        finally:
            channel.close()
