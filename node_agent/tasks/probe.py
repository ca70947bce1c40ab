"""Connection test: looks at a path or a destination as this node's user, and says in words what it found."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from node_agent.drivers.base import Finding
from node_agent.errors import BrsError, Cancelled, Interrupted, LeaseLost, RepositoryMissing
from node_agent.guard import is_remote
from node_agent.items import printable
from node_agent.protocol import PlatformAccess, ProbeCheck, ProbeResult, ProbeSpec, fingerprint
from node_agent.repository.backend import open_backend
from node_agent.repository.repository import Repository
from node_agent.tasks.context import TaskContext
from node_agent.tasks.probe_store import probe_store
from node_agent.tasks.sources import driver_for, platform_for
from node_agent.tasks.space import placed


def run(context: TaskContext, spec: ProbeSpec) -> ProbeResult:
    context.phase("probe")
    if spec.platform is not None:
        return _platform(context, spec.platform)
    if spec.driver:
        findings, place = _source(context, spec)
    else:
        findings, place = _destination(context, spec)
    checks = [ProbeCheck(name=f.name, ok=f.ok, detail=f.detail, hint=f.hint) for f in findings]
    result = ProbeResult(checks=checks)
    return placed(result, place) if place is not None else result


def _source(context: TaskContext, spec: ProbeSpec) -> tuple[list[Finding], Path | None]:
    try:
        driver = driver_for(spec.driver, context.guard)
    except BrsError as error:
        return [Finding.of("Driver", error)], None
    findings = driver.probe(spec.path)
    good = all(finding.ok for finding in findings)
    return findings, Path(os.path.realpath(spec.path)) if good else None


def _platform(context: TaskContext, access: PlatformAccess) -> ProbeResult:
    """First who answers there; nobody is told a password before the user has confirmed that."""
    findings: list[Finding] = []

    def add(finding: Finding) -> None:
        findings.append(finding)
        context.progress.set(checks=tuple((f.name, f.ok, f.detail, f.hint) for f in findings))
        context.info(f"{'passed' if finding.ok else 'FAILED'}: {finding.name}. {finding.detail}".strip())

    keys: dict[str, str] = {}
    try:
        platform = platform_for(context, access)
        add(Finding("This node may and can use the platform", ok=True))
        keys = dict(platform.host_keys())
        for address, key in keys.items():
            add(_known(address, key, access.host_keys.get(address, "")))
        if all(finding.ok for finding in findings):
            for finding in platform.probe():
                context.progress.check()
                add(finding)
    except (Cancelled, Interrupted, LeaseLost):
        raise
    except BrsError as error:
        add(Finding.of("The platform answers" if findings else "This node may and can use the platform", error))
    checks = [ProbeCheck(name=f.name, ok=f.ok, detail=f.detail, hint=f.hint) for f in findings]
    return ProbeResult(checks=checks, host_keys=keys)


def _known(address: str, met: str, pinned: str) -> Finding:
    name = f"{address} is who it should be"
    if not pinned:
        return Finding(
            name,
            ok=False,
            detail=f"It shows the key {fingerprint(met)}, which nobody has confirmed yet.",
            hint="Compare it with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then confirm it.",
        )
    if pinned == met:
        return Finding(name, ok=True, detail=fingerprint(met))
    return Finding(
        name,
        ok=False,
        detail=f"It shows the key {fingerprint(met)}, but {fingerprint(pinned)} was confirmed.",
        hint="Somebody may be in between. If the host was installed anew, confirm its new key.",
    )


def _destination(context: TaskContext, spec: ProbeSpec) -> tuple[list[Finding], Path | None]:
    url = spec.repository_url or spec.path
    if is_remote(url):
        return probe_store(context, url, spec.options, spec.password), None
    inside = "Inside the folders this node may keep repositories in"
    try:
        place = Path(context.guard.repository(url))
        root = context.guard.repository_root(url)
    except BrsError as error:
        return [Finding.of(inside, error)], None
    findings = [Finding(inside, ok=True, detail=printable(str(place)))]
    there = _folder_there(place, root)
    findings.append(there)
    if not there.ok:
        return findings, None
    existing = place if place.is_dir() else root
    findings.append(_writable(existing))
    if spec.password:
        findings.append(_opens(place, spec.password))
    return findings, existing


def _folder_there(place: Path, root: Path) -> Finding:
    name = "The folder exists"
    if place.is_dir():
        return Finding(name, ok=True, detail=printable(str(place)))
    if root.is_dir() and not os.path.lexists(place):
        return Finding(name, ok=True, detail=f"{printable(str(place))} will be made.")
    return Finding(
        name,
        ok=False,
        detail=f"{printable(str(root if not root.is_dir() else place))} is not a folder on this node.",
        hint="Mount the file system it stands for, or make the folder.",
    )


def _writable(folder: Path) -> Finding:
    name = "The node's user may write there"
    trial = folder / f".brs-probe-{secrets.token_hex(8)}"
    try:
        with trial.open("xb") as out:
            out.write(b"brs")
            out.flush()
            os.fsync(out.fileno())
        trial.unlink()
    except OSError as error:
        trial.unlink(missing_ok=True) if os.path.lexists(trial) else None
        return Finding(
            name,
            ok=False,
            detail=f"{printable(str(folder))}: {error.strerror}.",
            hint="Check the mount options, the free space and the rights of the node's user.",
        )
    return Finding(name, ok=True)


def _opens(place: Path, password: str) -> Finding:
    name = "The repository opens"
    try:
        with Repository.open(open_backend(str(place)), password) as repo:
            return Finding(name, ok=True, detail=f"Repository {repo.id[:8]}.")
    except RepositoryMissing:
        return Finding(name, ok=True, detail="There is none yet; it will be made.")
    except BrsError as error:
        return Finding.of(name, error)
