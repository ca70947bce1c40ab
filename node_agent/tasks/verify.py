"""Check a repository: its structure, and with ``read_data`` every byte of it, or a share that rolls over all of it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from node_agent.errors import BrsError
from node_agent.items import printable
from node_agent.protocol import LIST_KEEP, VerifyResult, VerifySpec
from node_agent.repository.backend.base import Kind
from node_agent.repository.check import CheckReport, check
from node_agent.repository.check_choice import ReadChoice, VerifiedPacks
from node_agent.repository.pack import BlobKind
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import load_snapshot
from node_agent.repository.tree import load_tree
from node_agent.tasks.context import TaskContext
from node_agent.tasks.opening import open_for_reading

ERRORS_KEPT = 1000
SNAPSHOTS_LISTED = 50  # whose damaged files are named; the others are only named themselves
PATHS_KEPT = LIST_KEEP  # of all of them together


def run(context: TaskContext, spec: VerifySpec) -> VerifyResult:
    """Damage is the result, not a failure. The index is not loaded first: it may be what is damaged."""
    context.phase("verify")
    choice = None
    if spec.share or spec.max_duration_s:
        choice = ReadChoice(share=spec.share or None, max_duration_s=spec.max_duration_s or None)
    with open_for_reading(context, spec.repository, index=False) as repo:
        with VerifiedPacks(repo.cache_path("verified")) as verified:
            report = check(repo, read_data=spec.read_data, choice=choice, verified=verified, progress=context.progress)
            proven = dict(verified.times())
        snapshots = sorted(info.name for info in repo.backend.list(Kind.SNAPSHOT))
        packs = {info.name: info.size for info in repo.backend.list(Kind.PACK)}
        damaged = sorted({snapshot for problem in report.errors for snapshot in problem.snapshots})
        paths = _damaged_paths(context, repo, report, damaged[:SNAPSHOTS_LISTED])
    for note in report.notes[:100]:
        context.info(note)
    for problem in report.errors[:100]:
        context.progress.log("error", problem.message)
    debt = _debt(packs, proven, spec.cycle_s) if spec.cycle_s else None
    _tell(context, report, damaged, debt)
    return VerifyResult(
        checked_bytes=report.read_bytes,
        snapshots=snapshots,
        damaged_snapshots=damaged,
        errors=[p.message[:2000] for p in report.errors[:ERRORS_KEPT]],
        stored_bytes=sum(packs.values()),
        packs=report.packs,
        read_packs=report.read_packs if choice else report.packs if spec.read_data else 0,
        complete=spec.read_data and choice is None,
        debt_bytes=debt,
        damaged_paths=paths,
    )


def _debt(packs: Mapping[str, int], proven: Mapping[str, float], cycle_s: float) -> int:
    """Bytes that this node has not found whole within the cycle."""
    since = time.time() - cycle_s
    return sum(size for pack, size in packs.items() if proven.get(pack, 0.0) < since)


def _tell(context: TaskContext, report: CheckReport, damaged: list[str], debt: int | None) -> None:
    context.info(
        f"{report.snapshots} snapshots and {report.packs} packs checked, "
        f"{report.read_bytes / (1 << 20):.1f} MiB of data read."
    )
    if debt is not None:
        context.info(f"Verification debt: {debt / (1 << 20):.1f} MiB not read within the cycle.")
    if damaged:
        context.progress.log("error", f"{len(damaged)} restore points are damaged.")


def _damaged_paths(
    context: TaskContext, repo: Repository, report: CheckReport, damaged: list[str]
) -> dict[str, list[str]]:
    """As far as trees can be read; a folder whose own tree is lost is named for what lies in it."""
    if not damaged:
        return {}
    lost = {blob for kind, blob in report.lost if kind is BlobKind.DATA}
    found: dict[str, list[str]] = {}
    room = PATHS_KEPT
    try:
        repo.load_index()
        for snapshot in damaged:
            tree = bytes.fromhex(load_snapshot(repo, snapshot).tree)
            found[snapshot] = _paths_of(context, repo, tree, lost, room)
            room -= len(found[snapshot])
    except BrsError as error:
        context.warn(f"Which files are damaged cannot be told: {error.message}")
    return found


def _paths_of(context: TaskContext, repo: Repository, tree: bytes, lost: set[bytes], room: int) -> list[str]:
    paths: list[str] = []
    stack = [(b"", tree)]
    while stack and len(paths) < room:
        folder, tree_id = stack.pop()
        context.progress.check()
        try:
            nodes = load_tree(repo, tree_id)
        except BrsError:
            paths.append(f"{printable(folder.decode('utf-8', 'surrogateescape'))}/ (the whole folder)")
            continue
        for node in nodes:
            path = folder + b"/" + node.name
            if node.subtree is not None:
                stack.append((path, node.subtree))
            elif any(blob in lost for blob in node.content):
                paths.append(printable(path.decode("utf-8", "surrogateescape")))
    return sorted(paths[:room])
