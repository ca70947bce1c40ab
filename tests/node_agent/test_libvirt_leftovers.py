"""Leftovers on a hypervisor name processes by their numbers, which may be other programs' when they are removed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import cast

import pytest

from node_agent.drivers.libvirt import import_undo, run_folder
from node_agent.drivers.libvirt.access import HostAccess
from node_agent.drivers.libvirt.host import Host
from node_agent.drivers.libvirt.journal import Entry, Journal


class Here:
    """This machine in the hypervisor's place."""

    def shell(self, script: str, **_options: object) -> str:
        return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout


def by_the_next_run(folder: Path) -> None:
    run_folder.remove(cast(Host, Here()), str(folder))


def by_the_next_import(folder: Path) -> None:
    journal = Journal(folder.parent / "state", HostAccess("host", "SHA256:x"), "import")
    journal.write(Entry("host", "vm", str(folder)))
    import_undo.settle_import(cast(Host, Here()), journal)


def by_the_watchdog(folder: Path) -> None:
    tools = folder.parent.parent / "tools"
    tools.mkdir()
    (tools / "virsh").write_text("#!/bin/sh\nexit 1\n")
    (tools / "virsh").chmod(0o755)
    script = str(resources.files(run_folder.__package__).joinpath("watch.sh"))
    words = ["sh", script, str(folder), "qemu:///system", "vm", "1", "3600", "0", "10"]
    subprocess.run(words, env={"PATH": f"{tools}:/usr/bin:/bin"})


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    made: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(["sh", "-c", "echo; read line", *words], stdin=-1, stdout=-1, text=True)
        made.append(process)
        assert process.stdout is not None and process.stdout.readline() == "\n"
        return process

    yield start
    for process in made:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("remove", [by_the_next_run, by_the_next_import, by_the_watchdog])
def test_a_program_that_has_the_number_of_ours_lives_on(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]], remove: Callable[[Path], None]
) -> None:
    folder = tmp_path / "outer" / "run"
    folder.mkdir(parents=True)
    ours, stranger = started(f"--socket={folder}/import"), started("--socket=/elsewhere")
    (folder / "import.pid").write_text(f"{ours.pid}\n")
    (folder / "other.pid").write_text(f"{stranger.pid}\n")
    if remove is by_the_next_import:  # which knows of one program
        remove(_with(folder.with_name("another"), stranger))
    remove(folder)
    assert ours.wait(60) and stranger.poll() is None and not folder.exists()


def _with(folder: Path, process: subprocess.Popen[str]) -> Path:
    folder.mkdir()
    (folder / "import.pid").write_text(f"{process.pid}\n")
    return folder
