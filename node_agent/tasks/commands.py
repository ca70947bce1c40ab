"""Commands around a backup, as its policy says: where they run, what they came to, what follows from that.

On the node nothing is run by a shell, and only programs that its own ``node.toml`` lists (``commands``).
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from node_agent.drivers.base import Around, MachinePlatform, MachineRequest, Ran
from node_agent.errors import BrsError, CommandFailed, RefusedError
from node_agent.items import Issue, printable
from node_agent.protocol import BackupSpec, Commands, ExportSpec
from node_agent.tasks.context import TaskContext

_LINES = 20  # of a command's output that go into the job's log
_TAIL = 4000
_LOOK_S = 0.1


@contextmanager
def around(
    context: TaskContext,
    spec: BackupSpec | ExportSpec,
    platform: MachinePlatform | None = None,
    request: MachineRequest | None = None,
) -> Iterator[Callable[[], None]]:
    """Gives what is to be called when the snapshot is there; else the second command runs at the end of the block, also
    when it ends badly. CommandFailed when a command fails that must not."""
    told = spec.commands
    if told is None or not (told.before or told.after):
        yield lambda: None
        return
    with _held(context, told, spec.workload_name, platform, request) as held:
        turn = _Turn(context, told, spec.workload_name, held)
        try:
            turn.judge("before", held.before())
            yield turn.after
        except BaseException:
            turn.after_a_failure()
            raise
        turn.after()


class _Turn:
    def __init__(self, context: TaskContext, told: Commands, name: str, held: Around) -> None:
        self._context, self._told, self._name, self._held = context, told, name, held
        self._over = False

    def after(self) -> None:
        if not self._over:
            self._over = True
            self.judge("after", self._held.after())

    def after_a_failure(self) -> None:
        """What failed first is what the job says; of this one its log."""
        if self._over:
            return
        self._over = True
        try:
            ran = self._held.after()
        except BrsError as error:
            self._context.warn(f"The command after the backup: {error.message}")
        else:
            self._tell("after", ran)

    def judge(self, stage: str, ran: Ran | None) -> None:
        wrong = self._tell(stage, ran)
        if wrong and self._told.on_error == "fail":
            raise CommandFailed(wrong)
        if wrong:
            self._context.issues.add(Issue(self._name, "command-failed", wrong))

    def _tell(self, stage: str, ran: Ran | None) -> str:
        """What is wrong with it; also written to the job's log, with what the command printed."""
        if ran is None:
            return ""
        where = "hypervisor" if self._told.where == "host" else "node"
        name = f"The command {stage} the backup, on the {where},"
        wrong = ""
        if not ran.in_time:
            wrong = f"{name} did not end within {self._told.limit_s} s."
        elif ran.code not in self._told.exit_codes:
            accepted = ", ".join(map(str, self._told.exit_codes))
            wrong = f"{name} ended {ran.code}; accepted is {accepted}."
        (self._context.warn if wrong else self._context.info)(wrong or f"{name} ended {ran.code}.")
        for line in ran.output.splitlines()[-_LINES:]:
            self._context.info(f"  {printable(line)[:500]}")
        return wrong


def _held(
    context: TaskContext,
    told: Commands,
    name: str,
    platform: MachinePlatform | None,
    request: MachineRequest | None,
) -> AbstractContextManager[Around]:
    if told.where == "node":
        return _on_node(context, told, name, request)
    if platform is None or request is None:
        raise RefusedError(
            "Commands on the hypervisor make no sense for what lies on a node.", hint="Run them on the node."
        )
    return platform.around(request, told.before, told.after, told.limit_s, context.progress.check)


# --- on the node ---


class _OnNode:
    def __init__(self, context: TaskContext, told: Commands, environment: Mapping[str, str]) -> None:
        self._context, self._told, self._environment = context, told, environment
        for line in (told.before, told.after):
            if line:
                self._words(line)  # both: a second command that is refused would be known too late

    def before(self) -> Ran | None:
        return self._run("before", self._told.before, self._context.progress.check)

    def after(self) -> Ran | None:
        return self._run("after", self._told.after, lambda: None)

    def _words(self, line: str) -> list[str]:
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise RefusedError(
                f"The command line cannot be read: {error}.", hint="Close its quotes, in the policy."
            ) from error
        self._context.guard.command(words[0] if words else "")
        return words

    def _run(self, stage: str, line: str, check: Callable[[], None]) -> Ran | None:
        if not line:
            return None
        environment = {**self._environment, "BRS_STAGE": stage}
        with tempfile.TemporaryFile() as out:
            try:
                process = subprocess.Popen(
                    self._words(line), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment,
                    cwd="/", start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                return Ran(127, f"It cannot be started: {error.strerror}.")
            try:
                in_time = self._wait(process, check)
            finally:
                _end(process)
            size = out.seek(0, os.SEEK_END)
            out.seek(max(0, size - _TAIL))
            return Ran(process.returncode, out.read().decode("utf-8", "replace"), in_time)

    def _wait(self, process: subprocess.Popen[bytes], check: Callable[[], None]) -> bool:
        until = time.monotonic() + self._told.limit_s
        while time.monotonic() < until:
            try:
                process.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                check()
            else:
                return True
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started, if it has not ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _on_node(context: TaskContext, told: Commands, name: str, request: MachineRequest | None) -> Iterator[Around]:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "BRS_MACHINE": name.replace("\0", "")}
    if request is not None:
        environment["BRS_MACHINE_ID"] = request.id
    yield _OnNode(context, told, environment)
