"""Commands around a backup: the second one always runs, a failure has the end that the policy says, and the node runs
only what its own configuration lists."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from node_agent.config import RootsConfig
from node_agent.drivers.base import Ran
from node_agent.errors import BrsError, Cancelled, CommandFailed, RefusedError, SourceError
from node_agent.guard import Guard
from node_agent.protocol import BackupSource, BackupSpec, Commands
from node_agent.tasks.dispatch import perform
from tests.node_agent.machine_double import Double
from tests.node_agent.test_machines import UUID, Bench, bench  # noqa: F401 - a fixture

SH = str(shutil.which("sh"))


# --- what they are for: a machine, with commands on its hypervisor ---


@dataclass
class Far:
    """The hypervisor's commands: what each comes to, and the order in which things happen."""

    codes: dict[str, Ran] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    def before(self) -> Ran | None:
        return self.codes.get("before", Ran(0, "held\n"))

    def after(self) -> Ran | None:
        self.order.append("after")
        return self.codes.get("after", Ran(0, "thawed\n"))

    @contextmanager
    def around(self, _double: Double, wanted: Any, before: str, after: str, limit_s: int, _check: Any) -> Iterator[Far]:
        assert wanted.id == UUID
        self.asked.append((before, after, limit_s))
        self.order.append("before")
        yield self
        self.order.append("left")


@pytest.fixture
def far(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Far:  # noqa: F811
    made = Far()
    monkeypatch.setattr(Double, "around", lambda double, *told: made.around(double, *told))
    opened = Double.open

    @contextmanager
    def noted(double: Double, *told: Any) -> Iterator[Any]:
        made.order.append("open")
        with opened(double, *told) as machine:
            yield machine

    monkeypatch.setattr(Double, "open", noted)
    return made


def spec(bench: Bench, **told: Any) -> BackupSpec:  # noqa: F811
    commands = Commands(before="lock the tables", after="unlock them", **told)
    return bench.backup_spec().model_copy(update={"commands": commands})


def test_the_snapshot_is_taken_between_the_two_and_what_they_said_is_in_the_log(bench: Bench, far: Far) -> None:  # noqa: F811
    context = bench.context()
    perform(context, spec(bench, limit_s=7))
    assert far.order == ["before", "open", "after", "left"]
    assert far.asked == [("lock the tables", "unlock them", 7)]
    said = "\n".join(bench.said)
    assert "The command before the backup, on the hypervisor, ended 0." in said
    assert "held" in said and "thawed" in said
    assert not [issue for issue in context.issues.items if issue.code == "command-failed"]


@pytest.mark.parametrize("ran", [Ran(3, "no such table\n"), Ran(124, "", in_time=False)])
def test_a_first_command_that_fails_ends_the_backup_and_the_second_one_runs(
    bench: Bench,  # noqa: F811
    far: Far,
    ran: Ran,
) -> None:
    far.codes["before"] = ran
    with pytest.raises(CommandFailed, match=r"ended 3; accepted is 0|did not end within 300 s"):
        perform(bench.context(), spec(bench))
    assert far.order == ["before", "after"]  # nothing was opened


def test_a_second_command_that_fails_ends_it_too(bench: Bench, far: Far) -> None:  # noqa: F811
    far.codes["after"] = Ran(1, "")
    with pytest.raises(CommandFailed, match="The command after the backup"):
        perform(bench.context(), spec(bench))
    assert far.order == ["before", "open", "after"]


@pytest.mark.parametrize("stage", ["before", "after"])
def test_or_the_backup_goes_on_and_the_point_is_partial_with_the_reason(bench: Bench, far: Far, stage: str) -> None:  # noqa: F811
    far.codes[stage] = Ran(9, "")
    context = bench.context()
    perform(context, spec(bench, on_error="go-on"))
    (issue,) = [issue for issue in context.issues.items if issue.code == "command-failed"]
    assert stage in issue.message and issue.severity.value != "note"


def test_what_is_accepted_is_no_failure(bench: Bench, far: Far) -> None:  # noqa: F811
    far.codes = {"before": Ran(9, ""), "after": Ran(4, "")}
    context = bench.context()
    perform(context, spec(bench, exit_codes=[4, 9]))
    assert not [issue for issue in context.issues.items if issue.code == "command-failed"]


@pytest.mark.parametrize("error", [Cancelled(), SourceError("The hypervisor refused.")])
def test_after_a_backup_that_failed_or_was_cancelled_it_runs_nevertheless(
    bench: Bench,  # noqa: F811
    far: Far,
    error: BrsError,
) -> None:
    bench.there.refuses = error
    far.codes["after"] = Ran(1, "still locked\n")
    with pytest.raises(type(error)):
        perform(bench.context(), spec(bench))
    assert far.order == ["before", "open", "after"]
    assert "still locked" in "\n".join(bench.said)  # the first failure is the job's, this one is in its log


def test_a_platform_that_cannot_run_commands_says_so(bench: Bench) -> None:  # noqa: F811
    with pytest.raises(SourceError, match="no commands can be run"):
        perform(bench.context(), spec(bench))


# --- on the node ---


def of_files(bench: Bench, folder: Path, **told: Any) -> BackupSpec:  # noqa: F811
    source = BackupSource(driver="files", paths=[str(folder)])
    commands = Commands(where="node", **told)
    given = {"source": source, "snapshot_paths": [str(folder)], "platform": None, "commands": commands}
    return bench.backup_spec().model_copy(update=given)


def allowing(bench: Bench, folder: Path, *commands: str) -> Any:  # noqa: F811
    roots = RootsConfig(repositories=[str(bench.place.repositories)], read=[str(folder)])
    return bench.context(guard=Guard(roots, commands=commands))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    (made / "one").write_text("1")
    return made


def script(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_node_runs_what_its_configuration_lists_and_tells_it_the_machine(
    bench: Bench,  # noqa: F811
    folder: Path,
    tmp_path: Path,
) -> None:
    noting = script(tmp_path, "note", f'echo "$BRS_STAGE $BRS_MACHINE $1" >>{tmp_path}/noted; echo "$1"')
    context = allowing(bench, folder, noting)
    perform(context, of_files(bench, folder, before=f"{noting} 'a b;$(id)'", after=f"{noting} c"))
    assert (tmp_path / "noted").read_text() == "before web01 a b;$(id)\nafter web01 c\n"  # no shell has read it
    assert "a b;$(id)" in "\n".join(bench.said)


@pytest.mark.parametrize("line", ["/bin/true", "true", "{} && rm", "'unclosed"])
def test_other_programs_are_refused_before_anything_is_run(
    bench: Bench,  # noqa: F811
    folder: Path,
    tmp_path: Path,
    line: str,
) -> None:
    allowed = script(tmp_path, "note", f"echo ran >>{tmp_path}/noted")
    context = allowing(bench, folder, allowed)
    if "{}" in line:  # words to an allowed program, not a second command
        perform(context, of_files(bench, folder, before=line.format(allowed)))
        assert (tmp_path / "noted").read_text() == "ran\n"
        return
    with pytest.raises(RefusedError):
        perform(context, of_files(bench, folder, before=allowed, after=line))
    assert not (tmp_path / "noted").exists()


def test_a_command_that_does_not_end_is_ended_with_all_it_started(bench: Bench, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    slow = script(tmp_path, "slow", f"echo $$ >{tmp_path}/pid; sleep 600 & wait")
    with pytest.raises(CommandFailed, match="did not end within 10 s"):
        perform(allowing(bench, folder, slow), of_files(bench, folder, before=slow, limit_s=10))
    group = (tmp_path / "pid").read_text().strip()
    deadline = time.monotonic() + 60
    while subprocess.run(["pgrep", "-r", "S,R,D", "-g", group], capture_output=True).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_cancel_while_the_first_one_runs_runs_the_second_one(bench: Bench, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """What the first one holds is let go of."""
    first, second = (
        script(tmp_path, "first", f"touch {tmp_path}/held; sleep 600"),
        script(tmp_path, "second", f"touch {tmp_path}/free"),
    )
    context = allowing(bench, folder, first, second)
    spec = of_files(bench, folder, before=first, after=second, limit_s=60)
    run = threading.Thread(target=lambda: (_until(tmp_path / "held"), context.progress.stop(Cancelled())))
    run.start()
    with pytest.raises(Cancelled):
        perform(context, spec)
    run.join()
    assert (tmp_path / "free").exists()


def _until(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_one_that_cannot_be_started_says_so(bench: Bench, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    absent = str(tmp_path / "absent")
    with pytest.raises(CommandFailed, match="ended 127"):
        perform(allowing(bench, folder, absent), of_files(bench, folder, before=absent))
    assert "cannot be started" in "\n".join(bench.said)


def test_commands_of_a_hypervisor_make_no_sense_for_files(bench: Bench, folder: Path) -> None:  # noqa: F811
    wrong = of_files(bench, folder, before="x")
    wrong = wrong.model_copy(update={"commands": Commands(before="x")})
    with pytest.raises(RefusedError, match="make no sense"):
        perform(allowing(bench, folder), wrong)


# --- the hypervisor's script ---


def held_script(before: str, after: str, hold: int = 60) -> subprocess.Popen[bytes]:
    text = resources.files("node_agent.drivers.libvirt").joinpath("commands.sh").read_text()
    environment = {"PATH": "/usr/bin:/bin", "mark": "M", "limit": "30", "hold": str(hold)}
    return subprocess.Popen(
        [SH, "-c", text],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**environment, "before": before, "after": after},
    )  # fmt: skip


def test_its_second_command_runs_when_told_to() -> None:
    process = held_script("echo one; exit 3", "echo two $BRS_STAGE")
    out, _ = process.communicate(b"go\n", timeout=60)
    assert out == b"M before 3\none\n\nM end\nM after 0\ntwo after\n\nM end\n"


@pytest.mark.parametrize("how", ["hang up", "hang up both ways", "SIGHUP"])
def test_its_second_command_runs_when_the_other_side_is_gone(tmp_path: Path, how: str) -> None:
    process = held_script("echo one", f"echo two >{tmp_path}/two")
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"M before 0\n"
    if how == "hang up both ways":
        process.stdout.close()
    if how == "SIGHUP":
        process.send_signal(signal.SIGHUP)
    process.stdin.close()
    process.wait(60)
    assert (tmp_path / "two").read_text() == "two\n"


def test_its_second_command_runs_when_nobody_says_anything_and_that_is_told(tmp_path: Path) -> None:
    process = held_script("", f"echo two >{tmp_path}/two", hold=1)
    assert process.stdin is not None and process.stdout is not None
    out = process.stdout.read()  # its input stays open
    process.stdin.close()
    process.wait(60)
    assert out == b"M before none\n\nM end\nM late\nM after 0\n\nM end\n"
    assert (tmp_path / "two").exists()
