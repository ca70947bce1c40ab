"""What a node can do, and how it enrols."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import Field

from node_agent.protocol.wire import API_VERSION, Bytes, Wire


class TaskKind(StrEnum):
    PROBE = "probe"  # connection test: looks at paths and rights
    DISCOVER = "discover"  # what machines a platform has
    INIT = "init"  # make a repository at a destination
    BACKUP = "backup"  # Export and Store in one (staging: stream)
    EXPORT = "export"  # copy the source to the node's staging space (staging: disk)
    STORE = "store"  # put what was exported into the repository (staging: disk)
    RESTORE = "restore"  # Restore and Import in one (staging: stream)
    FETCH = "fetch"  # Restore into the node's staging space (staging: disk)
    IMPORT = "import"  # put what was fetched in place (staging: disk)
    DOWNLOAD = "download"  # one file of a restore point, sent to the server's spool in pieces
    BROWSE = "browse"  # directories of a restore point that the server has no list of
    FORGET = "forget"  # remove snapshots from a repository
    VERIFY = "verify"  # check a repository
    PRUNE = "prune"  # give the space of removed snapshots back
    REMOVE_TRACES = "remove-traces"  # what backups of a machine keep on its platform


class LeaseClass(StrEnum):
    APPEND = "append"  # carries on while the server is away; may renew an expired lease
    EXCLUSIVE = "exclusive"  # stops itself before the lease ends


LEASE_CLASS: dict[TaskKind, LeaseClass] = {
    kind: LeaseClass.EXCLUSIVE
    if kind
    in {TaskKind.INIT, TaskKind.RESTORE, TaskKind.IMPORT, TaskKind.FORGET, TaskKind.PRUNE, TaskKind.REMOVE_TRACES}
    else LeaseClass.APPEND
    for kind in TaskKind
}


class Roots(Wire):
    """What a node's own configuration allows, as absolute paths; told to the server for its forms."""

    read: list[str] = []
    write: list[str] = []
    repositories: list[str] = []
    platforms: list[str] = []  # "kvm:" (all of the kind), "kvm:host"
    stores: list[str] = []  # remote ones: "s3:" (all of the kind), "sftp:host", "s3:host/bucket/prefix"


class Capabilities(Wire):
    version: str
    protocol: int = API_VERSION
    hostname: str
    system: str = ""  # for people: "Debian 12, x86_64"
    kinds: list[str]  # values of TaskKind; a server passes over those that it does not know yet
    drivers: list[str]  # those it can run: "files", "image", "kvm", "rbd"
    labels: list[str] = []  # from node.toml, such as "zone:a"
    roots: Roots = Roots()
    slots: int = 2
    staging_bytes: Bytes = 0  # free bytes in the staging folder; 0 = no disk staging


# --- enrolment ------------------------------------------------------------------------------------


class EnrolRequest(Wire):
    code: str = Field(max_length=200)
    name: str = Field(default="", max_length=100)
    incarnation: UUID
    node_time: datetime
    capabilities: Capabilities


class EnrolReply(Wire):
    node_id: UUID
    name: str
    token: str
    server_time: datetime


class TokenRequest(Wire):
    request_id: UUID


class TokenReply(Wire):
    token: str  # the old one stays valid until this one is used for the first time
