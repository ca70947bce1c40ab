"""The server is killed at random moments of backups, and nothing is stuck, lost or invented.

A real standalone server, a real node that talks HTTPS to it, and stock restic as the judge of the repository.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from brs.demo import Api, Json
from brs.local import TENANT_SLUG, Local
from tests.lab.standalone import _database as database_of_its_own
from tests.ports import port_of_its_own

pytestmark = pytest.mark.slow
ROUNDS = int(os.environ.get("BRS_KILL_ROUNDS", "5"))
LEASE_S = 6
ENDS_WITHIN_S = LEASE_S + 60 + 60  # the promise, and what a busy test machine takes for the backups themselves
ENDED = {"succeeded", "partial", "failed", "cancelled"}
DATA_BYTES = 96 * 1024 * 1024


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    with database_of_its_own() as database_url:
        environ = {"BRS_LEASE_TTL_S": str(LEASE_S), "BRS_LEASE_MARGIN_S": "1", "BRS_DATABASE_URL": database_url}
        data = tmp_path / "brs"
        data.mkdir()
        made = Local(data, port_of_its_own(), read=[str(tmp_path)], environ=environ)
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def api(local: Local) -> Api:
    local.start_server()
    password = local.ensure_people()
    assert password
    local.start_node()
    return Api.login(local, password)


def make_workloads(local: Local, api: Api, folders: list[Path]) -> list[Json]:
    (tenant,) = [row["id"] for row in api.get("tenants/")["results"] if row["slug"] == TENANT_SLUG]
    (node,) = [row["id"] for row in api.get("nodes/")["results"]]
    common = {"tenant": tenant}
    place = api.post("destinations/", common | {"name": "Store", "path": str(local.backups), "nodes": [node]})
    # Every point is kept, so that the hourly expiry has nothing to do with what is compared at the end.
    rule = {"name": "Nightly", "destination": place["id"], "schedules": [], "keep_last": 1000}
    policy = api.post("policies/", common | rule)
    platform = api.post("platforms/", common | {"kind": "files", "name": "Files", "node": node})
    made = []
    for folder in folders:
        row = common | {"platform": platform["id"], "name": folder.name, "source": {"paths": [str(folder)]}}
        made.append(api.post("workloads/", row))
        api.post(f"workloads/{made[-1]['id']}/assign/", {"policy": policy["id"]})
    return made


def fill(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(12):
        (folder / f"file-{number}").write_bytes(os.urandom(DATA_BYTES // 12))


def kill_server(local: Local) -> None:
    assert local.server is not None and local.server.poll() is None
    local.server.kill()
    local.server.wait()


def every(api: Api, path: str, **query: str) -> list[Json]:
    rows: list[Json] = []
    while True:
        page = api.get(path, limit="200", offset=str(len(rows)), **query)
        rows += page["results"]
        if not page["next"]:
            return rows


def wait_for_ends(api: Api, jobs: list[str]) -> dict[str, Json]:
    deadline = time.monotonic() + ENDS_WITHIN_S
    while True:
        found = {pk: api.get(f"jobs/{pk}/") for pk in jobs}
        if all(job["state"] in ENDED for job in found.values()):
            return found
        stuck = [(job["title"], job["state"], job["waiting_for"]) for job in found.values()]
        assert time.monotonic() < deadline, f"jobs are stuck: {stuck}"
        time.sleep(0.3)


def wait_until_one_runs(api: Api, jobs: list[str]) -> None:
    deadline = time.monotonic() + ENDS_WITHIN_S
    while all(api.get(f"jobs/{pk}/")["state"] in ("queued", "leased") for pk in jobs):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hits(killed_while: list[list[str]]) -> int:
    """Kills that came in the middle of a backup."""
    return sum("running" in states for states in killed_while)


def start_backup(api: Api, workload: Json) -> str | None:
    """The job's id; None when the server died before it answered."""
    try:
        return str(api.post(f"workloads/{workload['id']}/backup/", {})["id"])
    except httpx.HTTPError:
        return None


def restic(local: Local, password: str, *words: str) -> Any:
    (repository,) = [path for path in local.backups.iterdir() if path.is_dir()]
    command = ["restic", "--no-lock", "--no-cache", "-r", str(repository), *words]
    environ = {**os.environ, "RESTIC_PASSWORD": password}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout) if "--json" in words else done.stdout


def repository_password(local: Local) -> str:
    """As the recovery kit tells it."""
    code = (
        "from apps.inventory.models import Repository; from apps.inventory import repositories; "
        "print(repositories.access(Repository.objects.get()).password)"
    )
    return local.manage("shell", "-v", "0", "-c", code).splitlines()[-1]


@pytest.mark.timeout(900)
def test_killed_at_random_moments_it_leaves_no_job_stuck_and_catalogue_and_repository_agree(local, api, tmp_path):
    dice = random.Random(os.environ.get("BRS_KILL_SEED", str(time.time_ns())))
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        fill(folder)
    workloads = make_workloads(local, api, folders)
    first = [start_backup(api, workload) for workload in workloads]
    wait_for_ends(api, [pk for pk in first if pk])
    killed_while: list[list[str]] = []

    while len(killed_while) < ROUNDS or (hits(killed_while) < 2 and len(killed_while) < 4 * ROUNDS):
        for folder in folders:
            fill(folder)
        started = [pk for pk in (start_backup(api, workload) for workload in workloads) if pk]
        if dice.random() < 0.7:
            wait_until_one_runs(api, started)
        time.sleep(dice.uniform(0, 0.6))  # the moment of the kill is what the test varies
        killed_while.append(sorted(str(api.get(f"jobs/{pk}/")["state"]) for pk in started))
        kill_server(local)
        time.sleep(dice.choice([0, 0, LEASE_S + 2]))  # longer than a lease: the node carries on without a server
        local.start_server()
        ended = wait_for_ends(api, started)
        assert {job["state"] for job in ended.values()} == {"succeeded"}, ended

    print("killed while the jobs were", killed_while)
    assert hits(killed_while) >= 2, "no kill came in the middle of a backup"
    wait_for_ends(api, [str(job["id"]) for job in every(api, "jobs/")])  # also those that the server made itself
    succeeded = {job["restore_point"] for job in every(api, "jobs/", kind="backup") if job["state"] == "succeeded"}
    points = every(api, "restore-points/")
    assert {point["id"] for point in points} == succeeded

    password = repository_password(local)
    in_catalogue = {copy["snapshot_id"] for point in points for copy in point["copies"]}
    in_repository = {snapshot["id"] for snapshot in restic(local, password, "snapshots", "--json")}
    assert in_catalogue == in_repository
    restic(local, password, "check", "--read-data")
