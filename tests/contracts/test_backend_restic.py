"""Stock restic and the engine on one and the same remote store: each reads what the other wrote."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from node_agent.repository.backend import Kind
from tests.contracts.backend_peers import ROOT, Moto, Peers, Place, RcloneRest, Sshd, needed

PASSWORD = "correct horse"


@dataclass
class Both:
    """The two programs, set on one store."""

    place: Place
    restic_url: str
    restic_env: Mapping[str, str]
    restic_options: list[str]

    def restic(self, *args: str) -> str:
        return _run(["restic", "--no-cache", *self.restic_options, *args], self.restic_url, self.restic_env)

    def brs(self, *args: str) -> str:
        options = [part for name, value in self.place.options.items() for part in ("--option", f"{name}={value}")]
        command = [sys.executable, "-m", "node_agent", "repo", *options, "--no-cache", *args]
        return _run(command, self.place.url, self.place.env)


def _run(command: list[str], url: str, env: Mapping[str, str]) -> str:
    given = os.environ | {"RESTIC_REPOSITORY": url, "RESTIC_PASSWORD": PASSWORD} | env
    done = subprocess.run(command, env=given, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, f"{command} ended {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(params=["s3", "sftp", "rest"])
def both(request: pytest.FixtureRequest, peers: Peers) -> Both:
    needed("restic")
    peer = peers[request.param]
    place = peer.place()
    if isinstance(peer, Moto):
        return Both(place, place.url, place.env, [])
    if isinstance(peer, RcloneRest):
        url = place.url.replace(
            "://", f"://joe:{peer.password.replace(' ', '%20').replace('/', '%2F').replace('@', '%40')}@"
        )
        return Both(place, url, {}, [])
    assert isinstance(peer, Sshd)
    ssh = (
        f"ssh -p {peer.port} -i {peer.folder / 'user'} -o UserKnownHostsFile={peer.folder / 'known_hosts'}"
        f" -o IdentitiesOnly=yes {getpass.getuser()}@127.0.0.1 -s sftp"
    )
    return Both(place, place.url, {}, ["-o", f"sftp.command={ssh}"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "large").write_bytes(os.urandom(5 << 20))
    (folder / "sub" / "small").write_text("small\n")
    return folder


def _same(source: Path, target: Path) -> bool:
    return (
        subprocess.run(["diff", "-r", str(source), str(target / source.relative_to("/"))], check=False).returncode == 0
    )


@pytest.mark.parametrize("first", ["restic", "brs"])
def test_each_reads_checks_and_continues_what_the_other_made(
    first: str, both: Both, source: Path, tmp_path: Path
) -> None:
    programs = {"restic": both.restic, "brs": both.brs}
    one, other = programs[first], next(run for name, run in programs.items() if name != first)
    said = one("init") + one("backup", str(source))
    (source / "more").write_bytes(os.urandom(100_000))
    said += other("backup", str(source))
    said += both.restic("check", "--read-data")
    if first == "restic":
        said += both.brs("check", "--read-data")
    said += other("restore", "latest", "--target", str(tmp_path / "restored"))
    assert _same(source, tmp_path / "restored")
    store = both.place.open()
    assert len(list(store.list(Kind.SNAPSHOT))) == 2
    assert list(store.list(Kind.LOCK)) == []
    store.close()
    if both.place.url.startswith("sftp:"):
        root = Path(both.place.url.partition("@127")[2].partition("/")[2])
        packs = [path for path in (root / "data").rglob("*") if path.is_file()]
        assert packs and all(path.parent.name == path.name[:2] for path in packs)
    assert "a-secret" not in said
