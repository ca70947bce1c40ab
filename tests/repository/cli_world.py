"""The node's command line as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.repository.core_world import PASSWORD

PROJECT = Path(__file__).resolve().parents[2]


class Cli:
    """``python -m node_agent repo`` on one repository, with an environment of its own."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.repo = folder / "repo"
        self.cache = folder / "cache"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RESTIC_", "BRS_"))}
        self.env = kept | {
            "PYTHONPATH": str(PROJECT),
            "RESTIC_REPOSITORY": str(self.repo),
            "BRS_REPOSITORY_PASSWORD": PASSWORD,
            "BRS_CACHE_DIR": str(self.cache),
        }
        self.env |= env

    def start(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "node_agent", "repo", *args]
        return subprocess.Popen(
            command, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )

    def run(self, *args: str, expect: int = 0, **options: Any) -> subprocess.CompletedProcess[bytes]:
        process = self.start(*args, **options)
        out, errors = process.communicate()
        text = f"{args} ended {process.returncode}:\n{out.decode(errors='replace')}\n{errors.decode(errors='replace')}"
        assert process.returncode == expect, text
        assert b"Traceback" not in errors, text
        return subprocess.CompletedProcess(args, process.returncode, out, errors)

    def json(self, *args: str, expect: int = 0) -> Any:
        return json.loads(self.run(*args, "--json", expect=expect).stdout)

    def lines(self, *args: str) -> list[Any]:
        return [json.loads(line) for line in self.run(*args, "--json").stdout.splitlines()]

    def error(self, *args: str, expect: int = 1) -> str:
        """What a command that must fail says."""
        return self.run(*args, expect=expect).stderr.decode()
