"""Node and real server, each a process of its own: killed at random moments, every run still ends well by itself.

BRS_TEST_KILLS sets how often; the phase of each kill is printed. A release runs

    BRS_TEST_KILLS=20 pytest -s tests/node_agent/test_with_server.py -k killed
    BRS_KILL_ROUNDS=10 pytest -s tests/e2e/test_server_kill.py          (and once more under tests.lab.services)
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from brs.demo import Api
from brs.local import TENANT_SLUG, Local
from tests.node_agent.nodes import same_trees

KILLS = int(os.environ.get("BRS_TEST_KILLS", "3"))
LEASE_S = 8
MARGIN_S = 2
ENDED = {"succeeded", "partial", "failed", "cancelled"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass
class Running:
    local: Local
    api: Api
    source: Path
    workload: str

    def back_up(self) -> str:
        return str(self.api.post(f"workloads/{self.workload}/backup/", {})["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return self.api.get(f"jobs/{job_id}/")

    def wait(self, job_id: str, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (job := self.job(job_id))["state"] not in ENDED:
            assert time.monotonic() < deadline, f"the job did not end: {job}"
            time.sleep(0.2)
        return job

    def slow_down(self) -> None:
        """A ceiling on the bandwidth, so that a run lasts long enough to be struck in its middle."""
        policy = self.api.get("policies/")["results"][0]["id"]
        self.api._checked(self.api.client.patch(f"/api/v1/policies/{policy}/", json={"bandwidth_mib_s": 24}))

    @property
    def repository(self) -> Path:
        return next(config.parent for config in self.local.backups.rglob("config"))

    def points(self) -> int:
        return len(self.api.get("restore-points/", limit="100")["results"])

    def packs(self) -> int:
        return sum(path.is_file() for path in (self.repository / "data").rglob("*"))

    def restic(self, *args: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"RESTIC_PASSWORD": self.password, "HOME": str(self.local.data)}
        command = ["restic", "--no-cache", "--no-lock", "-r", str(self.repository), *args]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    @cached_property
    def password(self) -> str:
        code = (
            "from apps.inventory.models import Repository\n"
            "from apps.iam import secrets\n"
            "r = Repository.objects.select_related('password').get()\n"
            "print('PW=' + secrets.reveal(r.password))"
        )
        out = self.local.manage("shell", "-c", code)
        return next(line[3:] for line in out.splitlines() if line.startswith("PW="))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    base = tmp_path_factory.mktemp("with-server")
    source = base / "source"
    source.mkdir()
    dice = random.Random(1)
    for number in range(300):
        (source / f"f{number}").write_bytes(dice.randbytes(800_000))
    environ = {"BRS_LEASE_TTL_S": str(LEASE_S), "BRS_LEASE_MARGIN_S": str(MARGIN_S)}
    local = Local(data=base / "brs", port=_port(), read=[str(source)], environ=environ)
    local.data.mkdir()
    try:
        local.start_server()
        password = local.ensure_people()
        assert password is not None
        local.start_node()
        api = Api.login(local, password)
        yield Running(local, api, source, _workload(api, local, source))
    finally:
        local.stop()


def _port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _workload(api: Api, local: Local, source: Path) -> str:
    tenant = next(row["id"] for row in api.get("tenants/")["results"] if row["slug"] == TENANT_SLUG)
    node = api.get("nodes/")["results"][0]["id"]
    where = {"tenant": tenant, "name": "d", "path": str(local.backups), "nodes": [node]}
    destination = api.post("destinations/", where)
    rule = {"tenant": tenant, "name": "p", "destination": destination["id"], "schedules": [{"cron": "0 22 * * *"}]}
    policy = api.post("policies/", rule)
    platform = api.post("platforms/", {"tenant": tenant, "kind": "files", "name": "f", "node": node})
    made = {
        "tenant": tenant,
        "platform": platform["id"],
        "name": "w",
        "source": {"paths": [str(source)], "excludes": []},
    }
    workload = api.post("workloads/", made)
    api.post(f"workloads/{workload['id']}/assign/", {"policy": policy["id"]})
    return str(workload["id"])


def change(running: Running, dice: random.Random) -> None:
    for number in dice.sample(range(300), 120):
        (running.source / f"f{number}").write_bytes(dice.randbytes(800_000))


def kill_node(local: Local) -> None:
    assert local.node is not None
    local.node.send_signal(signal.SIGKILL)
    local.node.wait()


def test_disk_staging_a_download_and_a_check_through_the_server(running: Running) -> None:
    small = running.source / "small"
    small.write_bytes(b"to be downloaded")
    policy = running.api.get("policies/")["results"][0]["id"]
    for staging in ("disk", "stream"):
        running.api._checked(running.api.client.patch(f"/api/v1/policies/{policy}/", json={"staging": staging}))
        job = running.wait(running.back_up(), 120)
        assert job["state"] == "succeeded", job
        assert len(job["tasks"]) == (2 if staging == "disk" else 1)
        point = job["restore_point"]
        target = running.local.restored / staging
        body = {"target": {"path": str(target)}, "chosen": [], "staging": staging}
        job = running.wait(running.api.post(f"restore-points/{point}/restore/", body)["id"], 120)
        assert job["state"] == "succeeded", job
        assert same_trees(running.source, target / str(running.source).lstrip("/"))
        shutil.rmtree(target)
        assert list((running.local.node_state / "staging").iterdir()) == []
    for verb, body in (("download", {"path": str(small)}), ("browse", {})):
        job = running.wait(running.api.post(f"restore-points/{point}/{verb}/", body)["id"], 60)
        assert job["state"] == "succeeded", job
    small.unlink()


def test_a_node_killed_at_random_moments_leaves_good_jobs_and_a_clean_repository(running: Running) -> None:
    dice = random.Random(2)
    first = running.wait(running.back_up(), 120)
    assert first["state"] == "succeeded", first
    running.slow_down()
    points_before = running.points()
    strikes: list[int] = []  # packs that the struck run had written
    for number in range(KILLS * 2 + 4):
        if len(strikes) == KILLS:
            break
        change(running, dice)
        before = running.packs()
        job_id = running.back_up()
        _moment(running, dice, before, wait_for_pack=number % 2 == 0)
        kill_node(running.local)
        packs, struck = running.packs() - before, running.job(job_id)
        killed = time.monotonic()
        running.local.start_node()
        job = running.wait(job_id, LEASE_S + MARGIN_S + 60)
        took = time.monotonic() - killed
        phase = ", ".join(task["phase"] or task["state"] for task in struck["tasks"])
        print(f"kill {number}: job {struck['state']} ({phase}), {packs} new packs; {job['state']} after {took:.1f} s")
        assert job["state"] == "succeeded", job
        checked = running.restic("check", "--read-data")
        assert checked.returncode == 0, checked.stdout + checked.stderr
        if struck["state"] == "running":  # a kill before its start or after its end does not count
            strikes.append(packs)
    assert len(strikes) == KILLS, "too many kills came before the start or after the end of the job"
    assert sum(packs > 0 for packs in strikes) >= max(1, KILLS // 4)
    snapshots = json.loads(running.restic("snapshots", "--json").stdout)
    assert len(snapshots) == running.points() == points_before + number + (len(strikes) < KILLS)


def _moment(running: Running, dice: random.Random, before: int, *, wait_for_pack: bool) -> None:
    if wait_for_pack:
        deadline = time.monotonic() + 30
        while running.packs() == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.5))
    else:
        time.sleep(dice.uniform(0, 2.5))


def test_a_server_killed_in_the_middle_of_a_backup_loses_nothing(running: Running) -> None:
    dice = random.Random(3)
    for _ in range(max(1, KILLS // 3)):
        change(running, dice)
        job_id = running.back_up()
        time.sleep(dice.uniform(0.2, 3))
        server = running.local.server
        assert server is not None
        server.kill()
        server.wait()
        running.local.start_server()
        job = running.wait(job_id, LEASE_S + MARGIN_S + 60)
        assert job["state"] == "succeeded", job
    snapshots = json.loads(running.restic("snapshots", "--json").stdout)
    assert len(snapshots) == running.points()
    assert running.restic("check", "--read-data").returncode == 0
