"""The commands of a node that serves a server: ``enroll``, ``run``, ``status``, ``config``."""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import logging
import platform
import re
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from uuid import uuid4

from node_agent.errors import ConfigError, NotEnrolled, ServerError, ServerNotTrusted, ServerUnreachable

if TYPE_CHECKING:
    from node_agent.config import NodeConfig
    from node_agent.protocol import Capabilities, EnrolReply
    from node_agent.state import State
    from node_agent.worker import Worker

log = logging.getLogger("brs.node")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}\Z")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    enroll = subparsers.add_parser("enroll", aliases=["enrol"], help="make this machine a node of a server")
    enroll.add_argument("--server", required=True, metavar="URL", help="such as https://backup.example.org:8443")
    enroll.add_argument("--code", required=True, help="from the server's page Nodes, or - to read it from stdin")
    enroll.add_argument("--name", default="", help="what the node is called (default: node.toml, else the host's name)")
    enroll.add_argument("--label", action="append", default=[], metavar="KEY:VALUE", help="such as zone:a; repeatable")
    enroll.add_argument("--system-trust", action="store_true", help="the server's certificate is a public one")
    enroll.add_argument("--force", action="store_true", help="replace an earlier enrolment in this state folder")
    _common(enroll, _enroll)
    _common(subparsers.add_parser("run", help="serve the server until stopped"), _run)
    status = subparsers.add_parser("status", help="what this node is and does")
    status.add_argument("--json", action="store_true", help="output for programs")
    _common(status, _status)
    _common(subparsers.add_parser("config", help="show and check the configuration"), _config)


def _common(parser: argparse.ArgumentParser, handler: object) -> None:
    parser.add_argument("--state", type=Path, metavar="DIR", default=None, help="state folder (BRS_NODE_STATE)")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", default=None, help="node.toml (default: in the state folder)"
    )
    parser.set_defaults(handler=handler)


def _opened(args: argparse.Namespace) -> tuple[State, NodeConfig]:
    from node_agent.config import default_state_dir, load  # heavy: it checks by pydantic
    from node_agent.state import State

    folder = (args.state or default_state_dir()).absolute()
    return State(folder), load(args.config, folder)


# --- enroll ---


def _enroll(args: argparse.Namespace) -> int:
    from node_agent.client import server_url
    from node_agent.node import capabilities
    from node_agent.state import Identity

    state, config = _opened(args)
    labels = _labels(args.label)
    server = server_url(args.server)
    code = sys.stdin.readline().strip() if args.code == "-" else args.code.strip()
    state.prepare()
    with state.lock():
        state.clear_temporaries()
        if state.enrolled and not args.force:
            raise ConfigError(
                f"{state.folder} holds an enrolled node already ({state.identity().name}).",
                hint="Use another folder with --state, or replace the enrolment with --force.",
            )
        ca_pem = None if args.system_trust else pinned_ca(server, code)
        reply = _redeem(server, ca_pem, code, args.name or config.name, capabilities(config, labels))
        identity = Identity(
            server=server,
            node_id=str(reply.node_id),
            name=reply.name,
            labels=labels,
            system_trust=args.system_trust,
            token_at=reply.server_time.timestamp(),
        )
        state.keep_enrolment(identity, ca_pem, reply.token)
    print(f"This machine is now the node {reply.name!r} of {server}.")
    print(f"Start it: python -m node_agent run --state {state.folder}")
    return 0


def _redeem(server: str, ca_pem: str | None, code: str, name: str, able: Capabilities) -> EnrolReply:
    from node_agent.client import ServerClient, trust
    from node_agent.protocol import EnrolRequest

    client = ServerClient(server, trust(ca_pem))
    request = EnrolRequest(
        code=code,
        name=name or platform.node(),
        incarnation=uuid4(),
        node_time=datetime.now(UTC),
        capabilities=able,
    )
    try:
        return client.enrol(request)
    except (ServerUnreachable, ServerNotTrusted):
        raise
    except ServerError as error:
        said_more = error.hint not in ("", type(error).default_hint)
        hint = error.hint if said_more else "Make a new code on the page Nodes."
        raise NotEnrolled(f"The server did not accept the enrolment: {error.message}", hint=hint) from error
    finally:
        client.close()


def pinned_ca(server: str, code: str) -> str:
    """The server's CA, proven by the fingerprint in the code. Raises ServerNotTrusted, ConfigError."""
    import ssl

    from node_agent.client import fetch_ca

    fingerprint = code.rpartition(".")[2].lower()
    if "." not in code or not _FINGERPRINT.match(fingerprint):
        raise ConfigError(
            "The code is not complete: it has the form CODE.FINGERPRINT.",
            hint="Copy the whole code from the server's page Nodes.",
        )
    for pem in _CERTIFICATE.findall(fetch_ca(server)):
        try:
            found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
        except ValueError:
            continue
        if hmac.compare_digest(found, fingerprint):
            return str(pem)
    raise ServerNotTrusted(
        f"{server} does not show the certificate that the code was made for.",
        hint="Check the address: another server may answer there, or somebody stands in between. "
        "If the server was set up anew, make a new code.",
    )


def _labels(given: list[str]) -> list[str]:
    from node_agent.config import LABEL

    for label in given:
        if not LABEL.match(label):
            raise ConfigError(f"{label!r} is not a label.", hint="Give it like zone:a.")
    return given


# --- run ---


def _run(args: argparse.Namespace) -> int:
    from node_agent.node import build_worker, tidy

    state, config = _opened(args)
    _log_to_stderr(config.log_level)
    state.identity()
    state.prepare()
    with state.lock():
        if cleared := state.clear_temporaries():
            log.info("half-written files of a node that was killed removed: %d", cleared)
        tidy(config)
        worker = build_worker(config, state)
        _obey_signals(worker)
        log.info("node started incarnation=%s state=%s slots=%d", worker.incarnation, state.folder, config.slots)
        worker.run()
    log.info("node stopped")
    return 0


def _obey_signals(worker: Worker) -> None:
    def stop(number: int, _frame: FrameType | None) -> None:
        log.info("signal %s", signal.Signals(number).name)
        worker.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # stock "restic unlock" sends it to whoever holds a lock


def _log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore"):  # they would log every poll
        logging.getLogger(noisy).setLevel(logging.WARNING)


# --- status and config ---


def _status(args: argparse.Namespace) -> int:
    state, _ = _opened(args)
    identity = state.identity()
    running = state.locked()
    known = state.status()
    waiting = len(list((state.folder / "outbox").glob("*.json")))
    facts = {
        "server": identity.server,
        "node_id": identity.node_id,
        "name": identity.name,
        "running": running,
        "last_contact": _instant(known.get("contact_at")),
        "clock_offset_s": known.get("clock_offset_s"),
        "message": known.get("message", ""),
        "tasks": known.get("tasks", []) if running else [],
        "results_waiting": waiting,
    }
    if args.json:
        print(json.dumps(facts))
        return 0
    print(f"node          {facts['name']} ({facts['node_id']})")
    print(f"server        {facts['server']}")
    print(f"state         {'running' if running else 'not running'} ({state.folder})")
    print(f"last contact  {facts['last_contact'] or 'never'}")
    offset = known.get("clock_offset_s")
    if isinstance(offset, int | float):
        print(f"clock         {abs(offset):.1f} s {'behind' if offset > 0 else 'ahead of'} the server")
    if facts["message"]:
        print(f"server says   {facts['message']}")
    for task in facts["tasks"]:
        print(f"task          {task['kind']} {task['id']}")
    if waiting:
        print(f"waiting       {waiting} results to be acknowledged")
    return 0


def _instant(seconds: object) -> str | None:
    if not isinstance(seconds, int | float) or not seconds:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _config(args: argparse.Namespace) -> int:
    """Exit 1 when a root is missing: the node would start, and refuse or fail each task that needs it."""
    state, config = _opened(args)
    print(f"state folder  {state.folder}")
    for name, value in config.model_dump(exclude={"roots"}).items():
        print(f"{name:<18}{value if value not in ('', []) else '-'}")
    missing = 0
    for kind in ("read", "write", "repositories"):
        for root in getattr(config.roots, kind):
            there = Path(root).is_dir()
            missing += not there
            print(f"{'roots.' + kind:<18}{root}{'' if there else '   (missing)'}")
    return 1 if missing else 0
