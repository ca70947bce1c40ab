"""One node's folders and the specs that tests hand to it."""

from __future__ import annotations

import os
import random
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from node_agent.protocol import (
    BackupSource,
    BackupSpec,
    InitSpec,
    Parent,
    RepositoryAccess,
    RestoreSpec,
    RestoreTarget,
    TaskKind,
)
from tests.node_agent.server_double import ServerDouble, Task

PASSWORD = "correct horse battery staple 0815"


def open_below(folder: Path) -> list[str]:
    """What this process holds open below a folder; other tests' leftovers are collected at any time."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return [link for link in links if link.startswith(f"{folder}/")]


@dataclass
class Place:
    base: Path
    state: Path
    source: Path
    target: Path
    repositories: Path
    workload: UUID

    @classmethod
    def make(cls, base: Path) -> Place:
        place = cls(base, base / "state", base / "source", base / "target", base / "repositories", uuid4())
        for folder in (place.state, place.source, place.target, place.repositories):
            folder.mkdir()
        place.configure()
        return place

    def configure(self, extra: str = "") -> None:
        (self.state / "node.toml").write_text(
            f'{extra}\n[roots]\nread = ["{self.source}"]\n'
            f'write = ["{self.target}", "{self.source}"]\nrepositories = ["{self.repositories}"]\n'
        )

    @property
    def log(self) -> Path:
        return self.base / "node.log"

    @property
    def repository(self) -> Path:
        return self.repositories / "tenant"

    def access(self, repository_id: str = "", password: str = PASSWORD) -> RepositoryAccess:
        return RepositoryAccess(
            repository=uuid4(), url=str(self.repository), password=password, repository_id=repository_id
        )

    def init(self) -> InitSpec:
        return InitSpec(repository=self.access())

    def backup(
        self, *, parent: Parent | None = None, driver: str = "files", path: str = "", **more: object
    ) -> BackupSpec:
        where = path or str(self.source)
        source = {"driver": driver, "paths": [where]} | more.pop("source", {})  # type: ignore[operator]
        return BackupSpec(
            workload=self.workload,
            workload_name="w",
            point=uuid4(),
            source=BackupSource.model_validate(source),
            repository=self.access(),
            host=f"w-{self.workload.hex[:8]}",
            snapshot_paths=[where],
            tags=[],
            parent=parent,
            **more,  # type: ignore[arg-type]
        )

    def restore(self, snapshot_id: str, *, driver: str = "files", path: str = "", **more: object) -> RestoreSpec:
        target = {"driver": driver, "path": path or str(self.target)} | more.pop("target", {})  # type: ignore[operator]
        spec = {"kind": TaskKind.RESTORE, "repository": self.access()} | more
        return RestoreSpec(
            workload_name="w",
            snapshot_id=snapshot_id,
            target=RestoreTarget.model_validate(target),
            **spec,  # type: ignore[arg-type]
        )

    def fill(self, dice: random.Random, *, files: int = 40, size: int = 200_000) -> None:
        """Real bytes of every kind that a tree has."""
        for number in range(files):
            folder = self.source / f"d{number % 5}" / f"e{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"f{number}").write_bytes(dice.randbytes(dice.randrange(size)))
        (self.source / "empty").touch()
        (self.source / "link").symlink_to("d0")
        os.link(self.source / "empty", self.source / "hard")
        with (self.source / "sparse").open("wb") as out:
            out.truncate(3_000_000)
            out.seek(1_000_000)
            out.write(b"in the middle")
        (Path(os.fsdecode(os.fsencode(self.source) + b"/odd-\xff\xfe"))).write_bytes(b"not utf-8")


def ready(server: ServerDouble, place: Place) -> None:
    """A repository, made by a task."""
    done = server.wait(server.add(place.init()))
    assert done.state == "succeeded", done.failure


def done_well(server: ServerDouble, task: Task) -> Task:
    server.wait(task)
    assert task.state == "succeeded", (task.failure, task.result and task.result.left_out)
    return task


def restic(place: Place, *args: str) -> subprocess.CompletedProcess[str]:
    """Stock restic on the repository, as an independent judge."""
    env = os.environ | {
        "RESTIC_PASSWORD": PASSWORD,
        "RESTIC_REPOSITORY": str(place.repository),
        "HOME": str(place.base),
    }
    return subprocess.run(["restic", "--no-cache", *args], env=env, capture_output=True, text=True)


def facts_of(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that must survive: kind, mode, owner, size, time, link target, attributes, content, hard links."""
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[int, int] = {}
    for folder, folders, files in sorted(os.walk(os.fsencode(root))):
        for name in sorted([*folders, *files]):
            path = os.path.join(folder, name)
            st = os.lstat(path)
            link = os.readlink(path) if stat.S_ISLNK(st.st_mode) else b""
            content = Path(os.fsdecode(path)).read_bytes() if stat.S_ISREG(st.st_mode) else b""
            attributes = {
                n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)
            }
            group = (
                inodes.setdefault(st.st_ino, len(inodes)) if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode) else -1
            )
            key = path[len(os.fsencode(root)) :]
            found[key] = (
                st.st_mode,
                st.st_uid,
                st.st_gid,
                len(content),
                st.st_mtime_ns,
                link,
                attributes,
                content,
                group,
            )
    return found


def same_trees(left: Path, right: Path) -> bool:
    ours, theirs = facts_of(left), facts_of(right)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            print("differs:", key, (ours.get(key) or ())[:6], (theirs.get(key) or ())[:6])
    return ours == theirs
