"""A server double, a node in this process, and nodes as processes of their own."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node_agent import cli_node
from node_agent.cli import build_parser
from node_agent.config import load
from node_agent.node import build_worker
from node_agent.state import State
from node_agent.worker import Worker
from tests.node_agent.certificates import Authority
from tests.node_agent.nodes import Place
from tests.node_agent.server_double import ServerDouble

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("pki"))
    made.issue("server")
    return made


@pytest.fixture
def server(authority: Authority) -> Iterator[ServerDouble]:
    double = ServerDouble(authority)
    yield double
    double.close()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Folders of one node: state, source, target, repositories, with a node.toml that allows them."""
    return Place.make(tmp_path)


@pytest.fixture
def enrolled(server: ServerDouble, place: Place) -> Place:
    args = build_parser().parse_args(
        ["enroll", "--server", server.url, "--code", server.code, "--state", str(place.state), "--name", "n1"]
    )
    assert cli_node._enroll(args) == 0
    return place


@pytest.fixture
def start(enrolled: Place) -> Iterator[Callable[..., Worker]]:
    """Start a node in this process: ``start()`` gives its worker, running on a thread."""
    workers: list[tuple[Worker, threading.Thread]] = []

    def begin(**options: object) -> Worker:
        state = State(enrolled.state)
        state.prepare()
        worker = build_worker(load(None, enrolled.state), state)
        worker._poll_s = 2.0
        for name, value in options.items():
            setattr(worker, name, value)
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        workers.append((worker, thread))
        return worker

    yield begin
    for worker, thread in workers:
        if thread.is_alive():
            worker.stop() if not worker._draining.is_set() else None
            worker._hurry.set()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def process(enrolled: Place) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a node as a process; its log lies in ``place.log``."""
    running: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        with enrolled.log.open("ab") as log:
            node = subprocess.Popen(
                [sys.executable, "-m", "node_agent", "run", "--state", str(enrolled.state)],
                cwd=ROOT,
                stderr=log,
                stdout=log,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        running.append(node)
        return node

    yield begin
    for node in running:
        if node.poll() is None:
            node.kill()
        node.wait()


@pytest.fixture
def dice() -> random.Random:
    return random.Random(7)
