"""The programs that are measured, each asked for the same work in its own words."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

PASSWORD = "benchmark"


class Program(Protocol):
    name: str
    env: dict[str, str]
    memory: Path  # what it remembers of its repositories outside of them

    def init(self, repo: Path) -> Sequence[str]: ...
    def backup_image(self, repo: Path, image: Path) -> Sequence[str]: ...
    def backup_tree(self, repo: Path, tree: Path) -> Sequence[str]: ...
    def restore(self, repo: Path, target: Path) -> Sequence[str]: ...
    def prune(self, repo: Path) -> Sequence[str]: ...
    def version(self) -> str: ...


class Brs:
    name = "brs"

    def __init__(self, work: Path) -> None:
        self.memory = work / "cache-brs"
        self.env = {"BRS_REPOSITORY_PASSWORD": PASSWORD, "BRS_CACHE_DIR": str(self.memory)}

    def command(self, repo: Path, *args: str) -> list[str]:
        return [sys.executable, "-m", "node_agent", "repo", *args, "--repo", str(repo), "--quiet"]

    def init(self, repo: Path) -> list[str]:
        return self.command(repo, "init")

    def backup_image(self, repo: Path, image: Path) -> list[str]:
        return self.command(repo, "backup-image", str(image))

    def backup_tree(self, repo: Path, tree: Path) -> list[str]:
        return self.command(repo, "backup", str(tree))

    def restore(self, repo: Path, target: Path) -> list[str]:
        return self.command(repo, "restore", "latest", "--target", str(target))

    def prune(self, repo: Path) -> list[str]:
        return self.command(repo, "prune", "--max-unused", "0")

    def version(self) -> str:
        from node_agent import __version__

        return f"BRS {__version__}"


class Restic:
    """Debian's, or another one by its path; that is new enough to restore sparsely."""

    def __init__(self, work: Path, program: str = "restic", name: str = "restic") -> None:
        self.name = name
        self._program = program
        self.memory = work / f"cache-{name.replace(' ', '-')}"
        self.env = {"RESTIC_PASSWORD": PASSWORD, "RESTIC_CACHE_DIR": str(self.memory)}

    def command(self, repo: Path, *args: str) -> list[str]:
        return [self._program, "-q", "-r", str(repo), *args]

    def init(self, repo: Path) -> list[str]:
        return self.command(repo, "init")

    def backup_image(self, repo: Path, image: Path) -> list[str]:
        return self.command(repo, "backup", str(image))

    def backup_tree(self, repo: Path, tree: Path) -> list[str]:
        return self.command(repo, "backup", str(tree))

    def restore(self, repo: Path, target: Path) -> list[str]:
        sparse = [] if self.name == "restic" else ["--sparse"]
        return self.command(repo, "restore", "latest", "--target", str(target), *sparse)

    def prune(self, repo: Path) -> list[str]:
        return self.command(repo, "prune", "--max-unused", "0")

    def version(self) -> str:
        return _said(self._program, "version").split(" compiled")[0]


class Borg:
    """zstd 1 as the others; images in fixed blocks of 4 MiB and sparse, which is what its manual advises."""

    name = "borg"

    def __init__(self, work: Path) -> None:
        self.memory = work / "base-borg"
        self.env = {
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_BASE_DIR": str(self.memory),
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }

    def init(self, repo: Path) -> list[str]:
        return ["borg", "init", "-e", "repokey", str(repo)]

    def backup_image(self, repo: Path, image: Path) -> list[str]:
        fixed = ["--chunker-params", "fixed,4194304", "--sparse"]
        return ["borg", "create", "--compression", "zstd,1", *fixed, f"{repo}::{{now:%s.%f}}", str(image)]

    def backup_tree(self, repo: Path, tree: Path) -> list[str]:
        return ["borg", "create", "--compression", "zstd,1", f"{repo}::{{now:%s.%f}}", str(tree)]

    def restore(self, repo: Path, target: Path) -> list[str]:
        where, what = shlex.quote(str(target)), shlex.quote(str(repo))
        archive = f"$(borg list --short --last 1 {what})"
        return ["sh", "-c", f"mkdir -p {where} && cd {where} && borg extract --sparse {what}::{archive}"]

    def prune(self, repo: Path) -> list[str]:
        return ["borg", "compact", "--threshold", "0", str(repo)]

    def version(self) -> str:
        return _said("borg", "--version")


def installed(work: Path, other_restic: str) -> list[Program]:
    """BRS last; ``other_restic`` is the path of a second restic, or empty."""
    peers: list[Program] = [Restic(work)]
    if other_restic:
        peers.append(Restic(work, other_restic, "restic (new)"))
    if shutil.which("borg"):
        peers.append(Borg(work))
    return [*peers, Brs(work)]


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
