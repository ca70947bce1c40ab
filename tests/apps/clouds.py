"""A tenant's KVM platform, and a node that finds machines on it and says what the test tells it to."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.utils import timezone

from apps.inventory import platforms
from apps.inventory.models import Platform, PlatformKind, Workload
from apps.jobs import discovered, lease, requests
from apps.jobs.models import Job, Task
from node_agent.protocol import CompleteReport, DiscoverResult, DiskFacts, LeasedTask, MachineFacts
from tests.apps.acting import ActingNode
from tests.world import House

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKeyOfKvm1"
SECRET = "canary-of-the-platform-4711"


def make_platform(house: House, name: str = "kvm", **facts: Any) -> Platform:
    house.node.drivers = ["files", "image", "kvm"]
    house.node.save()
    told: dict[str, Any] = {"addresses": ["kvm1.example"], "login": "root", "host_keys": {"kvm1.example": KEY}}
    told |= {"kind": PlatformKind.KVM, "node": house.node}
    platform = Platform(tenant=house.tenant, name=name, **{**told, **facts})
    platforms.set_secrets(platform, {"password": SECRET})
    platform.save()
    return platform


def machine(number: int = 1, name: str = "", **facts: Any) -> MachineFacts:
    told: dict[str, Any] = {
        "id": f"4dea22b3-1d52-d8f3-2516-{number:012d}",
        "name": name or f"web{number:02d}",
        "state": "running",
        "host": "kvm1.example",
        "disks": [
            DiskFacts(name="vda", size_bytes=10 << 30, format="qcow2"),
            DiskFacts(name="vdb", size_bytes=1 << 30),
        ],
    }
    return MachineFacts(**{**told, **facts})


def find(
    house: House,
    platform: Platform,
    machines: list[MachineFacts],
    now: datetime | None = None,
    **result: Any,
) -> LeasedTask:
    """One look for machines, from the click to the result."""
    requests.discover(_owner(house), platform)
    now = now or timezone.now()
    node = ActingNode(house.node)
    task = node.take(now)
    assert task is not None and task.spec.kind == "discover", task
    row = Task.objects.select_related("job").get(pk=task.task_id)
    for start in range(0, len(machines), 100):
        discovered.piece(row, machines[start : start + 100], now)
    said = DiscoverResult(**{"found": len(machines), **result})
    lease.complete(house.node, task.task_id, CompleteReport(token=task.token, result=said), now)
    return task


def workload(platform: Platform, number: int = 1) -> Workload:
    return Workload.objects.get(platform=platform, external_id=machine(number).id)


def last_job() -> Job:
    return Job.objects.order_by("-created_at").first()


def _owner(house: House) -> Any:
    return house.tenant.memberships.get(role="owner").user
