"""``make demo``: protect real data, change something, restore both states, compare every byte, and say so.

Everything goes the way a user's work goes: objects are made and jobs started through the REST API of a standalone
server, the work is done by a node that is a process of its own. The user's files and image are only read: what the
demo changes lies in its own folder, in an image of its own, or in an overlay over the given image.
Ends with 0 only if every comparison held.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from brs import demo_compare, demo_image
from brs.local import ROOT, TENANT_SLUG, Local, LocalError, free_port, stopping_on_signals, wait_until_interrupted

MARK = "brs-demo-folder"
JOB_S = 3600
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

Json = dict[str, Any]


def size(count: float) -> str:
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def say(text: str = "") -> None:
    print(text, flush=True)


@dataclass(slots=True)
class Api:
    """The REST API as a program uses it: a token, JSON, 202 with a job for long work."""

    client: httpx.Client

    @classmethod
    def login(cls, local: Local, password: str) -> Api:
        """Signs in as a browser does and makes a token for the rest."""
        client = local.client()
        page = client.get("/admin/login/").text
        csrf = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
        if csrf is None:
            raise LocalError("The login page has no form.")
        form = {"username": "admin", "password": password, "csrfmiddlewaretoken": csrf[1], "next": "/admin/"}
        reply = client.post("/admin/login/", data=form, headers={"Referer": f"{local.address}/admin/login/"})
        if reply.status_code != 302:
            raise LocalError(f"The login was refused (HTTP {reply.status_code}).")
        headers = {"X-CSRFToken": client.cookies["csrftoken"], "Referer": local.address}
        token = cls._checked(client.post("/api/v1/api-tokens/", json={"name": "demo"}, headers=headers))["token"]
        client.close()
        return cls(local.client(headers={"Authorization": f"Bearer {token}"}))

    @staticmethod
    def _checked(reply: httpx.Response) -> Json:
        if reply.is_success:
            return reply.json() if reply.content else {}
        raise LocalError(
            f"{reply.request.method} {reply.request.url.path}: HTTP {reply.status_code} {reply.text[:1000]}"
        )

    def get(self, path: str, **query: str) -> Json:
        return self._checked(self.client.get(f"/api/v1/{path}", params=query))

    def post(self, path: str, body: Json) -> Json:
        return self._checked(self.client.post(f"/api/v1/{path}", json=body))

    def run(self, path: str, body: Json) -> Json:
        """Start a job and wait for its end. A failed one raises with its message and hint."""
        job = self.post(path, body)
        deadline = time.monotonic() + JOB_S
        while job["state"] not in {"succeeded", "partial", "failed", "cancelled"}:
            if time.monotonic() > deadline:
                raise LocalError(f"The job “{job['title']}” did not end: {job.get('waiting_for') or job['state']}")
            time.sleep(0.2)
            job = self.get(f"jobs/{job['id']}/")
        if job["state"] in {"failed", "cancelled"}:
            raise LocalError(f"The job “{job['title']}” {job['state']}: {job['error_message']} {job['error_hint']}")
        return job


@dataclass(slots=True)
class Demo:
    local: Local
    api: Api
    source: Path
    given_image: Path | None
    work: Path
    held: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    workloads: dict[str, Json] = field(default_factory=dict)

    @property
    def notes(self) -> Path:
        return self.work / "notes"

    def prepare(self) -> Path:
        """The demo's own folder that changes, and the image. Returns the image's path."""
        self.notes.mkdir(parents=True)
        (self.notes / "stays.txt").write_text("This file does not change.\n" * 500)
        (self.notes / "edited.txt").write_text("The first version.\n" * 500)
        (self.notes / "removed.txt").write_text("This file is deleted before the second backup.\n")
        (self.notes / "random.bin").write_bytes(os.urandom(3 * 2**20))
        if self.given_image:
            return demo_image.overlay(self.work, self.given_image)
        return demo_image.build(self.work, self.notes)

    def change(self, image: Path) -> None:
        (self.notes / "edited.txt").write_text("The second version.\n" * 500)
        (self.notes / "removed.txt").unlink()
        (self.notes / "added.txt").write_text("This file is new in the second backup.\n")
        with (self.notes / "random.bin").open("r+b") as file:
            file.seek(2**20)
            file.write(os.urandom(4096))
        say(f"\nChanged: one file edited, one deleted, one added, 4 KiB of another overwritten;\n         image: "
            f"{demo_image.change(image, self.work)}.")  # fmt: skip

    def configure(self, image: Path) -> None:
        tenant = next(row["id"] for row in self.api.get("tenants/")["results"] if row["slug"] == TENANT_SLUG)
        node = self.api.get("nodes/")["results"][0]["id"]
        common = {"tenant": tenant}
        destination = self.api.post(
            "destinations/", common | {"name": "Local folder", "path": str(self.local.backups), "nodes": [node]}
        )
        policy = self.api.post(
            "policies/",
            common | {"name": "Every night", "destination": destination["id"], "schedules": [{"cron": "0 22 * * *"}]},
        )
        sources = {
            "files": ("Files of this machine", {"paths": [str(self.source), str(self.notes)], "excludes": []}),
            "image": ("Disk image", {"path": str(image)}),
        }
        for kind, (name, source) in sources.items():
            platform = self.api.post("platforms/", common | {"kind": kind, "name": f"{name} (local)", "node": node})
            row = self.api.post("workloads/", common | {"platform": platform["id"], "name": name, "source": source})
            self.api.post(f"workloads/{row['id']}/assign/", {"policy": policy["id"]})
            self.workloads[kind] = row

    def back_up(self, kind: str) -> Json:
        """One backup; prints what it did and returns its restore point."""
        began = time.monotonic()
        job = self.api.run(f"workloads/{self.workloads[kind]['id']}/backup/", {})
        took = time.monotonic() - began
        point = self.api.get(f"restore-points/{job['restore_point']}/")
        stored = sum(copy["stored_bytes"] for copy in point["copies"])
        what = "incremental" if point["incremental"] else "first"
        known = max(0, point["size_bytes"] - point["new_bytes"])  # new_bytes counts folders' lists, too
        say(
            f"  {kind:6} {what:12} {size(point['size_bytes']):>10} protected, {size(point['read_bytes']):>10} read, "
            f"{size(known):>10} known already, {size(stored):>10} stored, {took:5.1f} s"
        )
        if point["outcome"] != "complete":
            say(f"         partial: {point['left_out_count']} items were left out, such as {point['left_out'][:3]}")
        return point

    def restore(self, point: Json, kind: str, name: str) -> Path:
        """Restore a point to an empty place below the node's folder for restores."""
        folder = self.local.restored / name
        target = folder / "disk.raw" if kind == "image" else folder
        folder.mkdir(mode=0o700)
        self.api.run(f"restore-points/{point['id']}/restore/", {"target": {"path": str(target)}, "chosen": []})
        return target

    def compare_files(self, expected: dict[Path, demo_compare.Facts], folder: Path, label: str) -> None:
        for root, facts in expected.items():
            restored = demo_compare.facts(folder / str(root).lstrip("/"))
            found = demo_compare.differences(facts, restored)
            count = sum(fact.kind == "file" for fact in facts.values())
            total = sum(fact.size for fact in facts.values())
            self.judge(not found, f"{label}: {root} ({count} files, {size(total)})", found)

    def judge(self, good: bool, what: str, found: Sequence[str] = ()) -> None:
        say(f"  {'same   ' if good else 'DIFFERS'}  {what}")
        for line in found[:10]:
            say(f"           {line}")
        (self.held if good else self.broken).append(what)

    def state(self) -> dict[Path, demo_compare.Facts]:
        return {root: demo_compare.facts(root) for root in (self.source, self.notes)}

    def run(self) -> None:
        image = self.prepare()
        self.configure(image)
        say(f"\nProtecting {self.source}, {self.notes}\n       and {self.given_image or image}\n")
        points: dict[str, tuple[Json, Json]] = {}
        states = []
        for number in (1, 2):
            if number == 2:
                self.change(image)
            states.append(self.state())
            demo_image.keep_copy(image, self.work / f"expected-{number}.raw")
            say(f"\nBackup {number}:")
            points[f"{number}"] = (self.back_up("files"), self.back_up("image"))
        say("\nRestoring both states into empty folders and comparing with what was there:")
        for number in (1, 2):
            files, disk = points[f"{number}"]
            label = f"state {number}"
            folder = self.restore(files, "files", f"files-{number}")
            self.compare_files(states[number - 1], folder, label)
            restored = self.restore(disk, "image", f"image-{number}")
            expected = self.work / f"expected-{number}.raw"
            self.judge(demo_image.same(expected, restored), f"{label}: disk image ({size(restored.stat().st_size)})")
        self.report(points)

    def report(self, points: dict[str, tuple[Json, Json]]) -> None:
        every = [point for pair in points.values() for point in pair]
        protected = sum(point["size_bytes"] for point in every)
        stored = sum(copy["stored_bytes"] for point in every for copy in point["copies"])
        saving = f"{protected / max(stored, 1):.1f} to 1 by deduplication and compression"
        say(f"\nFour full restore points, {size(protected)} in all, take {size(stored)} at the destination ({saving}).")


def fresh_folder(folder: Path) -> None:
    """An empty folder of the demo's own; refuses to remove what it did not make."""
    if folder.exists():
        if not (folder / MARK).exists():
            raise LocalError(f"{folder} exists and was not made by the demo. Move it away, or set BRS_DEMO_DIR.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, mode=0o700)
    (folder / MARK).touch()


def checked(args: argparse.Namespace, folder: Path) -> tuple[Path, Path | None]:
    source = Path(args.source or sysconfig.get_paths()["stdlib"]).resolve()
    image = Path(args.image).resolve() if args.image else None
    if not source.is_dir():
        raise LocalError(f"SOURCE={args.source}: there is no such folder.")
    if image and not image.is_file():
        raise LocalError(f"IMAGE={args.image}: there is no such file.")
    if folder.is_relative_to(source):
        raise LocalError(f"SOURCE={source} contains the demo's own folder {folder}. Set BRS_DEMO_DIR to one outside.")
    return source, image


def demonstrate(args: argparse.Namespace, folder: Path) -> int:
    source, image = checked(args, folder)
    fresh_folder(folder)
    read = [str(source), *([str(image.parent)] if image else [])]
    local = Local(data=folder / "brs", port=free_port(args.port), read=[*read, str(folder / "work")])
    try:
        say("Starting the server and a node …")
        local.data.mkdir()
        local.start_server()
        password = local.ensure_people()
        if password is None:
            raise LocalError("A fresh server already had an administrator.")
        local.start_node()
        demo = Demo(local, Api.login(local, password), source, image, folder / "work")
        demo.run()
        good = not demo.broken
        say(f"\n{len(demo.held)} of {len(demo.held) + len(demo.broken)} comparisons held." if good else
            f"\n{len(demo.broken)} comparisons did NOT hold: {'; '.join(demo.broken)}")  # fmt: skip
        say(
            f"\n  BRS runs at  {local.url}/\n  user         admin\n  password     {password}\n  its CA       {local.ca}"
        )
        if not args.once:
            say("\nHave a look round. Ctrl-C stops it.")
            wait_until_interrupted(local)
        return 0 if good else 1
    finally:
        local.stop()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--source", help="folder to protect (default: Python's standard library)")
    parser.add_argument("--image", help="disk image to protect, raw or qcow2 (default: a small one is built)")
    parser.add_argument("--port", type=int, help="port of the server (default 8443, or a free one)")
    parser.add_argument("--once", action="store_true", help="end after the comparisons")
    args = parser.parse_args(argv)
    folder = Path(os.environ.get("BRS_DEMO_DIR", ROOT / "var" / "demo")).resolve()
    try:
        with stopping_on_signals():
            return demonstrate(args, folder)
    except KeyboardInterrupt:
        say()
        return 130
    except (LocalError, demo_image.ImageError, httpx.HTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
