"""Disks that are RBD images: how a machine's description names them, and how programs on the hypervisor open them.

The key is libvirt's secret, or in Ceph's own files there. It is handed from one program of the hypervisor to another
through a file in the run's private folder, and never comes here.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Any
from xml.etree.ElementTree import Element

from node_agent.drivers.libvirt.host import Host, is_uuid
from node_agent.errors import BrsError

KEY = "cephx"  # qemu's name of the secret
_PORT = "6789"


@dataclass(frozen=True, slots=True)
class RbdSource:
    """``hosts`` as ``host:port``, empty where Ceph's configuration on the hypervisor (``conf``, or the usual file)
    names them. ``secret``: UUID of libvirt's secret; ``usage`` instead of it: the name it is known by."""

    pool: str
    image: str
    namespace: str = ""
    hosts: tuple[str, ...] = ()
    user: str = ""
    secret: str = ""
    usage: str = ""
    conf: str = ""

    @property
    def name(self) -> str:
        """As libvirt and rbd write it."""
        return "/".join(filter(None, (self.pool, self.namespace, self.image)))

    @property
    def path(self) -> str:
        """As a disk's source is shown everywhere."""
        return f"rbd:{self.name}"

    def called(self, image: str, pool: str = "") -> RbdSource:
        """Another image beside this one, or in another pool of the cluster."""
        moved = bool(pool) and pool != self.pool
        return replace(self, image=image, pool=pool or self.pool, namespace="" if moved else self.namespace)


def source_of(disk: Element) -> RbdSource | None:
    """None for a disk that is none, or that is a snapshot."""
    source = disk.find("source")
    if disk.get("type") != "network" or source is None or source.get("protocol") != "rbd":
        return None
    parts = source.get("name", "").split("/")
    if len(parts) not in (2, 3) or not all(parts) or source.find("snapshot") is not None:
        return None
    hosts = []
    for host in source.iterfind("host"):
        name = host.get("name", "")
        hosts.append(f"{f'[{name}]' if ':' in name else name}:{host.get('port', _PORT)}")
    auth = disk.find("auth")
    if auth is None:
        auth = source.find("auth")
    secret = auth.find("secret") if auth is not None else None
    config = source.find("config")
    return RbdSource(
        pool=parts[0],
        namespace=parts[1] if len(parts) == 3 else "",
        image=parts[-1],
        hosts=tuple(hosts),
        user=auth.get("username", "") if auth is not None else "",
        secret=secret.get("uuid", "") if secret is not None else "",
        usage=secret.get("usage", "") if secret is not None else "",
        conf=config.get("file", "") if config is not None else "",
    )


def key_of(host: Host, source: RbdSource) -> str:
    """The key in clear, as ``ceph auth get-key`` prints it; empty where Ceph's own files on the hypervisor hold it."""
    uuid = secret_of(host, source)
    return host.virsh("secret-get-value", uuid).strip() if uuid else ""


def lay_down_key(host: Host, source: RbdSource, path: str) -> bool:
    """Put the key into a file on the hypervisor. False if there is none to put there."""
    uuid = secret_of(host, source)
    if uuid:
        host.shell(f"umask 077\n{key_line(host, uuid, path)}")
    return bool(uuid)


def key_line(host: Host, uuid: str, path: str) -> str:
    """A line of the shell; without the line's end in the file, which rbd and qemu both take as it is."""
    get, file = host.virsh_words("secret-get-value", uuid), shlex.quote(path)
    return f'key=$({get}) || exit $?; printf %s "$key" >{file}'


def secret_of(host: Host, source: RbdSource) -> str:
    if is_uuid(source.secret):
        return source.secret
    if not source.usage:
        return ""
    for line in host.virsh("secret-list").splitlines():
        words = line.split(maxsplit=2)
        if len(words) == 3 and is_uuid(words[0]) and words[2].strip() == source.usage:
            return words[0]
    return ""


def address(source: RbdSource, *, with_key: bool) -> dict[str, Any]:
    """As qemu opens it; the key's file is given beside it (:func:`qemu_words`)."""
    found: dict[str, Any] = {"driver": "rbd", "pool": source.pool, "image": source.image}
    if source.namespace:
        found["namespace"] = source.namespace
    if source.hosts:
        found["server"] = [
            {"host": host.rpartition(":")[0].strip("[]"), "port": host.rpartition(":")[2]} for host in source.hosts
        ]
    if source.user:
        found["user"] = source.user
    if source.conf:
        found["conf"] = source.conf
    if with_key:
        found |= {"key-secret": KEY, "auth-client-required": ["cephx"]}
    return {"driver": "raw", "file": found}


def qemu_words(key_file: str) -> list[str]:
    return ["--object", f"secret,id={KEY},format=base64,file={key_file}"]


def rbd_words(source: RbdSource, key_file: str) -> list[str]:
    """The program rbd, as this disk's user. ``key_file`` empty: Ceph's own files are relied on."""
    words = ["rbd", "--client_mount_timeout=20", "--rados_mon_op_timeout=60"]  # or it waits for ever
    if source.hosts:
        words += ["-m", ",".join(source.hosts)]
        if not source.conf:
            words += ["-c", "/dev/null"]
    if source.conf:
        words += ["-c", source.conf]
    if source.user:
        words += ["--id", source.user]
    return [*words, *(["--keyfile", key_file] if key_file else [])]


def has_program(host: Host) -> bool:
    return host.connection.run("command -v rbd").code == 0


def opens_rbd(host: Host) -> str:
    """Why qemu's programs on the hypervisor do not open RBD images; empty if they do."""
    try:
        formats = host.shell("qemu-img --help | sed -n 's/^Supported formats://p'").split()
    except BrsError as error:
        return error.message
    return "" if "rbd" in formats else "qemu there has no driver for RBD (Debian: apt install qemu-block-extra)."
