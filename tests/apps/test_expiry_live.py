"""Retention with everything real: server, beat, node, repository; stock restic says what is left."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from brs.demo import Api
from brs.local import TENANT_SLUG, Local
from tests.ports import port_of_its_own

WAIT_S = 120
KEEP = {f"keep_{name}": 0 for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly", "within_days")}


class House:
    """A running server with a node, and one workload under a policy that keeps the last point."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.source.mkdir(parents=True)
        self.local = Local(data=folder / "brs", port=port_of_its_own(), read=[str(self.source)])
        self.local.data.mkdir()

    def open(self) -> None:
        self.local.start_server()
        password = self.local.ensure_people()
        assert password is not None
        self.local.start_node()
        self.api = Api.login(self.local, password)
        tenant = next(row["id"] for row in self.api.get("tenants/")["results"] if row["slug"] == TENANT_SLUG)
        node = self.api.get("nodes/")["results"][0]["id"]
        self.destination = self._post("destinations/", tenant, name="store", path=str(self.local.backups), nodes=[node])
        rule = {**KEEP, "keep_last": 1, "schedules": []}
        self.policy = self._post("policies/", tenant, name="last", destination=self.destination["id"], **rule)
        platform = self._post("platforms/", tenant, kind="files", name="files", node=node)
        source = {"paths": [str(self.source)]}
        self.workload = self._post("workloads/", tenant, name="documents", platform=platform["id"], source=source)
        self.api.post(f"workloads/{self.workload['id']}/assign/", {"policy": self.policy["id"]})

    def _post(self, place: str, tenant: str, /, **body: Any) -> dict[str, Any]:
        return self.api.post(place, {"tenant": tenant, **body})

    def back_up(self, text: str) -> dict[str, Any]:
        (self.source / "note.txt").write_text(text)
        return self.api.run(f"workloads/{self.workload['id']}/backup/", {})

    def points(self) -> list[dict[str, Any]]:
        return self.api.get("restore-points/", workload=self.workload["id"])["results"]

    def state(self) -> str:
        return self.api.get(f"workloads/{self.workload['id']}/")["protection"]["state"]

    def finish(self, job: dict[str, Any]) -> dict[str, Any]:
        return eventually(
            lambda: self.api.get(f"jobs/{job['id']}/"), lambda now: now["state"] not in {"queued", "leased", "running"}
        )

    def restic(self, *arguments: str) -> str:
        password = self.local.manage("shell", "-v", "0", "-c", _REVEAL)
        environment = {
            **os.environ,
            "RESTIC_PASSWORD": password.splitlines()[-1],
            "XDG_CACHE_HOME": str(self.local.data),
        }
        repository = self.local.backups / TENANT_SLUG
        command = ["restic", "--no-lock", "-r", str(repository), *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


_REVEAL = (
    "from apps.inventory.models import Repository; from apps.iam.secrets import reveal;"
    "print(reveal(Repository.objects.get().password))"
)


def eventually(look: Callable[[], Any], fits: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not fits(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    try:
        made.open()
        yield made
    finally:
        made.local.stop()


@pytest.mark.slow
def test_what_expires_is_gone_from_repository_and_catalogue_and_what_is_lost_is_noticed(house: House):
    for text in ("one", "two", "three"):
        assert house.back_up(text)["state"] == "succeeded"
    newest = house.points()[0]
    assert len(house.points()) == 3

    (job,) = house.api.post(f"policies/{house.policy['id']}/expire/", {})["jobs"]
    assert house.finish(job)["state"] == "succeeded"
    assert [point["id"] for point in house.points()] == [newest["id"]]
    (snapshot,) = [line for line in house.restic("snapshots", "--compact").splitlines() if "documents" in line]
    assert newest["copies"][0]["snapshot_id"].startswith(snapshot.split()[0])
    house.restic("check", "--read-data")

    repository = house.api.get("repositories/")["results"][0]["id"]
    lost = next((house.local.backups / TENANT_SLUG / "snapshots").iterdir())
    lost.rename(house.local.data / lost.name)
    house.finish(house.api.post(f"repositories/{repository}/verify/", {}))
    assert house.points()[0]["copies"][0]["state"] == "missing"
    assert house.state() == "unprotected"

    (house.local.data / lost.name).rename(lost)
    house.finish(house.api.post(f"repositories/{repository}/verify/", {}))
    assert house.points()[0]["copies"][0]["state"] == "present"
    assert house.state() == "protected"

    deleted = house.api.post(f"restore-points/{newest['id']}/delete/", {"typed_name": "documents"})
    assert house.finish(deleted)["state"] == "succeeded"
    assert house.points() == []
    assert "documents" not in house.restic("snapshots", "--compact")
    assert house.state() == "unprotected"
