"""A node installs and runs without the server: neither its code nor its requirements know Django."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FORBIDDING = """
import importlib.abc, pkgutil, sys
sys.path.insert(0, {root!r})
class Forbidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"django", "rest_framework", "celery", "channels", "apps", "brs"}}:
            raise ImportError("a node may not import " + name)
sys.meta_path.insert(0, Forbidden())
import node_agent
for module in pkgutil.walk_packages(node_agent.__path__, "node_agent."):
    # librbd_child is a program for the system's Python, whose bindings it needs.
    if module.name not in ("node_agent.__main__", "node_agent.drivers.ceph.librbd_child"):
        __import__(module.name)
print(len([name for name in sys.modules if name.startswith("node_agent")]))
"""


def test_every_module_of_the_node_imports_without_django_and_the_server() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", FORBIDDING.format(root=str(ROOT))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


@pytest.mark.slow
def test_the_nodes_requirements_suffice_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """Needs the package index. The command line starts, makes a repository and backs up."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-r", ROOT / "requirements-node.txt"]
    subprocess.run(install, check=True, timeout=280)
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout.lower()
    assert "django" not in listed and "celery" not in listed
    (tmp_path / "node_agent").symlink_to(ROOT / "node_agent")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("content")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "BRS_REPOSITORY_PASSWORD": "a password for this test"}
    for command in (["init"], ["backup", str(tmp_path / "source")], ["check", "--read-data"]):
        repo = ["--repo", str(tmp_path / "repo")]
        done = subprocess.run(
            [python, "-m", "node_agent", "repo", *command, *repo], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    status = [python, "-m", "node_agent", "status", "--state", tmp_path / "state"]
    done = subprocess.run(status, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "enroll --server" in done.stderr
