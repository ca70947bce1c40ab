"""A node's own configuration: ``node.toml``, read once at the start, typed and loud.

What stands here is decided by whoever runs the node and by nobody else: the server can ask for
anything, the node does only what its roots allow (see :mod:`node_agent.guard`). Without a file there
are no roots but the node's own data folders. docs/node.md is the reference.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from node_agent.errors import ConfigError

STORE = re.compile(r"^(sftp|s3|azure|gs|rest):([^/@\s]+(/[^\s]*)?)?$")
PLATFORM = re.compile(r"^(kvm|rbd):([^\s/@]+)?$")
LABEL = re.compile(r"^[a-z][a-z0-9_-]*:[A-Za-z0-9._-]+$")


def _absolute(value: str) -> str:
    if "\0" in value or not value.startswith("/"):
        raise ValueError("must be an absolute path, such as /srv/data")
    return os.path.normpath(value)


def _store(value: str) -> str:
    if not STORE.match(value):
        raise ValueError("must be a kind such as s3: or a place such as sftp:host, s3:host/bucket/prefix")
    return value.rstrip("/")


def _platform(value: str) -> str:
    if not PLATFORM.match(value):
        raise ValueError("must be a kind such as kvm: or an address such as kvm:host or kvm:host:22")
    return value.lower()


def _label(value: str) -> str:
    if not LABEL.match(value):
        raise ValueError("must look like key:value, such as zone:a")
    return value


AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Store = Annotated[str, AfterValidator(_store)]
Platform = Annotated[str, AfterValidator(_platform)]
Label = Annotated[str, AfterValidator(_label)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RootsConfig(_Section):
    """Folders that tasks may touch, remote stores, platforms of machines. A task outside is refused, whoever asks."""

    read: list[AbsolutePath] = []
    write: list[AbsolutePath] = []
    repositories: list[AbsolutePath] = []
    stores: list[Store] = []
    platforms: list[Platform] = []


class NodeConfig(_Section):
    """``node.toml``. Every entry has a default that is safe."""

    name: str = Field(default="", max_length=100)  # "" = the host's name
    slots: int = Field(default=2, ge=1, le=64)  # tasks at the same time
    labels: list[Label] = []
    roots: RootsConfig = RootsConfig()
    commands: list[str] = []  # programs that tasks may run; none
    staging: AbsolutePath = ""  # folder for disk staging; "" = <state>/staging
    staging_max_bytes: int = Field(default=0, ge=0)  # 0 = what the file system holds
    cache: AbsolutePath = ""  # "" = <state>/cache
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    drain_grace_s: float = Field(default=20, ge=0, le=86_400)  # running tasks may end by themselves
    server_away_h: float = Field(default=24, gt=0, le=24 * 14)  # how long backups go on without the server


def load(path: Path | None, state_dir: Path) -> NodeConfig:
    """The configuration of ``path``, or ``<state>/node.toml`` if that exists, with defaults filled in."""
    chosen = path or state_dir / "node.toml"
    data: dict[str, object] = {}
    if path is not None or chosen.exists():
        data = _parse(chosen)
    try:
        config = NodeConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{chosen}: {_first(error)}", hint="docs/node.md lists every entry of node.toml.") from None
    return _filled(config, state_dir)


def _parse(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", hint="Check the path and its rights.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.", hint="Correct the named line.") from error


def _first(error: ValidationError) -> str:
    problems = []
    for found in error.errors(include_url=False):
        where = ".".join(str(part) for part in found["loc"])
        words = "there is no such entry" if found["type"] == "extra_forbidden" else found["msg"]
        problems.append(f"{where}: {words.removeprefix('Value error, ')}")
    return "; ".join(problems) + "."


def _filled(config: NodeConfig, state_dir: Path) -> NodeConfig:
    roots = config.roots
    if not (roots.read or roots.write or roots.repositories):
        data = str(state_dir / "data")
        roots = RootsConfig(
            read=[data],
            write=[data],
            repositories=[str(state_dir / "repositories")],
            stores=roots.stores,
            platforms=roots.platforms,
        )
    return config.model_copy(
        update={
            "roots": roots,
            "staging": config.staging or str(state_dir / "staging"),
            "cache": config.cache or str(state_dir / "cache"),
        }
    )


def default_state_dir() -> Path:
    """``BRS_NODE_STATE``, else /var/lib/brs-node for root, else the user's own state folder."""
    given = os.environ.get("BRS_NODE_STATE")
    if given:
        return Path(given).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/brs-node")
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "brs-node"
