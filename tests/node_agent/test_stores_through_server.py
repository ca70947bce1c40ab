"""Server and node, each a process of its own, with real stores of each kind: test, backup, restore, verification, and
stock restic as the judge of what the jobs wrote."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from brs.demo import Api
from brs.local import TENANT_SLUG, Local
from tests.contracts.backend_peers import Peers, Place, RcloneRest, Sshd
from tests.node_agent.nodes import same_trees
from tests.ports import port_of_its_own

ENDED = {"succeeded", "partial", "failed", "cancelled"}
WITHIN_S = 120
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass
class Running:
    local: Local
    api: Api
    base: Path
    tenant: str
    node: str

    @cached_property
    def source(self) -> Path:
        """A tree with all that a restore must bring back."""
        dice, root = random.Random(5), self.base / "source"
        for number in range(30):
            folder = root / f"d{number % 4}" / f"e{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"f{number}"
            file.write_bytes(dice.randbytes(dice.randrange(300_000)))
            file.chmod(dice.choice([0o600, 0o644, 0o755, 0o4755]))
            os.utime(file, ns=(10**18 + number, 10**18 + 12345 * number))
            if os.geteuid() == 0:
                os.chown(file, 1000 + number, 2000 + number, follow_symlinks=False)
        os.setxattr(root / "d0" / "e0" / "f0", "user.note", b"kept \x00 whole")
        (root / "empty folder").mkdir()
        (root / "empty").touch()
        os.link(root / "empty", root / "hard link")
        (root / "link").symlink_to("d0/e0/f0")
        (root / "dangling").symlink_to("../nowhere")
        os.mkfifo(root / "pipe")
        with (root / "sparse").open("wb") as out:
            out.truncate(5_000_000)
            out.seek(2_000_000)
            out.write(b"in the middle")
        Path(os.fsdecode(os.fsencode(root) + b"/odd-\xff\xfe\n")).write_bytes(b"not utf-8")
        return root

    @cached_property
    def image(self) -> Path:
        file, dice = self.base / "disk.raw", random.Random(6)
        with file.open("wb") as out:
            out.truncate(24 << 20)
            for start in (0, 5 << 20, 20 << 20):
                out.seek(start)
                out.write(dice.randbytes(1 << 20))
        return file

    def job(self, path: str, body: Any = None, state: str = "succeeded") -> dict[str, Any]:
        """Start it and see it end in this state."""
        pk, deadline = self.api.post(path, body or {})["id"], time.monotonic() + WITHIN_S
        while (job := self.api.get(f"jobs/{pk}/"))["state"] not in ENDED:
            assert time.monotonic() < deadline, f"the job did not end: {job}"
            time.sleep(0.1)
        assert job["state"] == state, (job["error_message"], job["error_hint"], job["tasks"])
        return job

    def destination(self, name: str, kind: str, **facts: Any) -> str:
        told = {"tenant": self.tenant, "name": name, "kind": kind, "nodes": [self.node], **facts}
        return str(self.api.post("destinations/", told)["id"])

    def workload(self, name: str, destination: str, kind: str = "files") -> str:
        common = {"tenant": self.tenant}
        policy = self.api.post("policies/", common | {"name": name, "destination": destination, "schedules": []})
        platform = self.api.post("platforms/", common | {"kind": kind, "name": name, "node": self.node})
        source = {"paths": [str(self.source)]} if kind == "files" else {"path": str(self.image)}
        made = self.api.post("workloads/", common | {"platform": platform["id"], "name": name, "source": source})
        self.api.post(f"workloads/{made['id']}/assign/", {"policy": policy["id"]})
        return str(made["id"])

    def password(self, destination: str) -> str:
        (repository,) = self.api.get("repositories/", destination=destination)["results"]
        code = (
            "from apps.inventory.models import Repository; from apps.inventory import repositories; "
            f"print(repositories.access(Repository.objects.get(pk='{repository['id']}')).password)"
        )
        return self.local.manage("shell", "-v", "0", "-c", code).splitlines()[-1]

    def restic(self, destination: str, repository: str, *words: str, options: list[str], env: dict[str, str]) -> str:
        """Stock restic, with what the recovery kit tells; locks of ours are gone, or it would say so."""
        command = ["restic", "--no-cache", *options, "-r", repository, *words]
        told = os.environ | env | {"RESTIC_PASSWORD": self.password(destination)}
        done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("stores")
    local = Local(data=base / "brs", port=port_of_its_own(), read=[str(base)])
    local.data.mkdir()
    try:
        local.start_server()
        password = local.ensure_people()
        assert password is not None
        local.start_node()
        api = Api.login(local, password)
        (tenant,) = [row["id"] for row in api.get("tenants/")["results"] if row["slug"] == TENANT_SLUG]
        yield Running(local, api, base, tenant, api.get("nodes/")["results"][0]["id"])
    finally:
        local.stop()


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    started = Peers(tmp_path_factory.mktemp("peers"))
    yield started
    started.stop()


def as_destination(kind: str, place: Place, peers: Peers) -> dict[str, Any]:
    """The peer's place in the words of the API."""
    told: dict[str, Any] = {"path": place.url.partition(":")[2], "options": {}, "secrets": {}}
    if kind == "s3":
        told["secrets"] = {
            "access-key-id": place.env["AWS_ACCESS_KEY_ID"],
            "secret-access-key": place.env["AWS_SECRET_ACCESS_KEY"],
        }
    elif kind == "sftp":
        Path("/" + place.url.rpartition("//")[2]).mkdir()  # the folder of the destination is the operator's to make
        told["options"] = {"host-key": place.options["host-key"], "limit-upload": "50M", "connections": "2"}
        told["secrets"] = {"private-key": Path(place.options["key-file"]).read_text()}
    elif kind == "rest":
        told["options"], told["secrets"] = {"user": "joe"}, {"password": RcloneRest.password}
    elif kind == "azure":
        told["options"] = {
            "account-name": place.env["AZURE_ACCOUNT_NAME"],
            "endpoint": place.options["azure.endpoint"],
        }
        told["secrets"] = {"account-key": place.env["AZURE_ACCOUNT_KEY"]}
    elif kind == "gs":
        told["options"] = {"endpoint": place.options["endpoint"]}
        told["secrets"] = {"access-token": place.options["access-token"]}
    return told


def stock(kind: str, place: Place, peers: Peers) -> tuple[str, list[str], dict[str, str]] | None:
    """How stock restic reaches the tenant's repository; None where it cannot."""
    if kind in ("azure", "gs"):
        return None  # restic 0.14 knows no emulator
    url, options, env = f"{place.url.rstrip('/')}/{TENANT_SLUG}", [], dict(place.env)
    if kind == "rest":
        url = url.replace("://", f"://joe:{_quoted(RcloneRest.password)}@") + "/"
    if kind == "sftp":
        peer = peers["sftp"]
        assert isinstance(peer, Sshd)
        known = f"-o UserKnownHostsFile={peer.folder / 'known_hosts'} -o StrictHostKeyChecking=yes"
        user = f"-i {peer.folder / 'user'} -p {peer.port} {known}"
        options = ["-o", f"sftp.command=ssh {user} {place.url.split('@')[0].removeprefix('sftp://')}@127.0.0.1 -s sftp"]
    return url, options, env


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


@pytest.mark.parametrize("kind", ["s3", "sftp", "rest", "azure", "gs"])
def test_a_remote_store_is_tested_written_restored_from_and_verified(running: Running, peers: Peers, kind: str) -> None:
    place = peers["gcs-stand-in" if kind == "gs" else kind].place()
    told = as_destination(kind, place, peers)
    store = running.destination(f"at {kind}", kind, **told)
    tested = running.job(f"destinations/{store}/test/")
    checks = [check["name"] for check in tested["tasks"][0]["outcome"]["checks"]]
    assert "An object can be written" in checks and "It can be deleted" in checks
    workload = running.workload(f"tree to {kind}", store)
    points = [running.job(f"workloads/{workload}/backup/")["restore_point"] for _ in range(2)]
    again = running.job(f"destinations/{store}/test/")
    assert "A lock can be written, read and removed" in [c["name"] for c in again["tasks"][0]["outcome"]["checks"]]

    target = running.local.restored / kind
    running.job(f"restore-points/{points[1]}/restore/", {"target": {"path": str(target)}, "chosen": []})
    assert same_trees(running.source, target / str(running.source).lstrip("/"))
    (repository,) = running.api.get("repositories/", destination=store)["results"]
    running.job(f"repositories/{repository['id']}/verify/", {"read_data": True})

    if (judge := stock(kind, place, peers)) is not None:
        url, options, env = judge
        running.restic(store, url, "check", "--read-data", options=options, env=env)
        out = running.base / f"restic-{kind}"
        running.restic(store, url, "restore", "latest", "--target", str(out), options=options, env=env)
        assert same_trees(running.source, out / str(running.source).lstrip("/"))
    everything = [path.read_bytes() for path in (running.local.data / "log").rglob("*") if path.is_file()]
    secret = max(told["secrets"].values(), key=len).strip().splitlines()[-1].encode()
    assert not any(secret in text for text in everything)


def test_a_wrong_host_key_an_unknown_bucket_and_a_silent_host_are_told(running: Running, peers: Peers) -> None:
    place = peers["sftp"].place()
    told = as_destination("sftp", place, peers)
    told["options"]["host-key"] = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    job = running.job(f"destinations/{running.destination('pinned', 'sftp', **told)}/test/", state="failed")
    assert "host key" in job["error_message"] and "option host-key" in job["error_hint"]

    nowhere = peers["s3"].nowhere()
    assert nowhere is not None
    told = as_destination("s3", nowhere, peers)
    job = running.job(f"destinations/{running.destination('no bucket', 's3', **told)}/test/", state="failed")
    assert "nowhere" in job["error_message"] and "does not exist" in job["error_message"]

    told = {"path": f"http://127.0.0.1:{port_of_its_own()}/x/", "options": {}, "secrets": {}}
    silent = running.destination("silent", "rest", **told)
    job = running.job(f"destinations/{silent}/test/", state="failed")
    assert "does not answer" in job["error_message"]
    assert "does not answer" in running.api.get(f"destinations/{silent}/")["problem"]


def test_stock_restic_restores_what_jobs_wrote_and_jobs_restore_what_stock_restic_wrote(running: Running) -> None:
    folder = str(running.local.backups)
    store = running.destination("folder", "local", path=folder)
    tree, disk = running.workload("tree", store), running.workload("disk", store, "image")
    for workload in (tree, disk):
        running.job(f"workloads/{workload}/backup/")
    url = f"{folder}/{TENANT_SLUG}"

    def restic(*words: str) -> str:
        return running.restic(store, url, *words, options=[], env={})

    assert restic("check", "--read-data")
    listed = restic("snapshots")
    assert str(running.source) in listed and str(running.image) in listed
    assert "/disks/disk.raw" in restic("ls", "latest", "--path", str(running.image))
    out = running.base / "restic"
    restic("restore", "latest", "--path", str(running.source), "--target", str(out))
    assert same_trees(running.source, out / str(running.source).lstrip("/"))
    restic("restore", "latest", "--path", str(running.image), "--target", str(out))
    assert (out / "disks" / "disk.raw").read_bytes() == running.image.read_bytes()

    # What stock restic adds to the same repository is read by our own program, and a verification reports it.
    restic("backup", str(running.source / "d1"))
    ours = running.base / "ours"
    command = [sys.executable, "-m", "node_agent", "repo", "restore", "latest", "--target", str(ours)]
    env = os.environ | {"RESTIC_REPOSITORY": url, "RESTIC_PASSWORD": running.password(store)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert same_trees(running.source / "d1", ours / str(running.source / "d1").lstrip("/"))
    (repository,) = running.api.get("repositories/", destination=store)["results"]
    running.job(f"repositories/{repository['id']}/verify/", {"read_data": True})
    problem = running.api.get(f"repositories/{repository['id']}/")["problem"]
    assert "1 snapshot that the catalogue does not know" in problem
