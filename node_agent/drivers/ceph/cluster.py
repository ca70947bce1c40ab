"""A connection to one cluster: the node's side of :mod:`node_agent.drivers.ceph.librbd_child`, which see for why.

    with Cluster(access) as cluster:
        cluster.call("list_images", pool="rbd")

The cluster's fsid is compared before anything else is asked. For one thread at a time; a call may be sent ahead
(:meth:`Cluster.send`) and its answer taken later (:meth:`Cluster.receive`), with other calls in between.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import subprocess
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from node_agent.drivers.ceph.access import CephAccess
from node_agent.drivers.ceph.monitors import answering
from node_agent.errors import BrsError, SourceError, SourceMissing
from node_agent.items import printable

CONNECT_S = 60.0
CALL_S = 600.0
PYTHONS = ("/usr/bin/python3", "/usr/libexec/platform-python")
INSTALL = "Install it on the node (Debian: apt install python3-rbd; RHEL: dnf install python3-rbd)."
_CHILD = Path(__file__).with_name("librbd_child.py")
_FRAME = struct.Struct(">II")
_MAX_ANSWER = 1 << 30


class CephError(SourceError):
    default_message = "The Ceph cluster refused what was asked."
    default_hint = "Run the platform's connection test."


class CephMissing(SourceMissing):
    default_message = "The image, snapshot or pool does not exist in the Ceph cluster."
    default_hint = "Look with “rbd ls” and “rbd snap ls”; discover the platform anew."


class CephDenied(CephError):
    code: ClassVar[str] = "ceph-denied"
    default_message = "The Ceph cluster denies this to the user."
    default_hint = "Give it the rights: ceph auth caps client.NAME mon 'profile rbd' osd 'profile rbd pool=POOL'."


class CephUnreachable(CephError):
    code: ClassVar[str] = "ceph-unreachable"
    retryable: ClassVar[bool] = True
    default_message = "The Ceph cluster does not answer."
    default_hint = "Check the monitors' addresses and the network from this node to monitors and OSDs."


class CephNotInstalled(CephError):
    code: ClassVar[str] = "ceph-not-installed"
    default_message = "This node lacks Ceph's library for RBD (python3-rbd)."
    default_hint = INSTALL


class CephOther(CephError):
    code: ClassVar[str] = "ceph-other-cluster"
    default_message = "Another Ceph cluster answers at these addresses."
    default_hint = "Correct the addresses or the fsid of the platform; nothing was touched."


class CephBusy(CephError):
    code: ClassVar[str] = "ceph-busy"
    default_message = "The image is in use."
    default_hint = "Shut down what uses it (“rbd status POOL/IMAGE” says who), or choose another target."


class CephExists(CephError):
    code: ClassVar[str] = "ceph-exists"
    default_message = "The image or snapshot exists already."


class CephReadOnly(CephError):
    code: ClassVar[str] = "ceph-read-only"
    default_message = "The image cannot be written, so no snapshot of it can be made."
    default_hint = "A mirrored image that is not primary here is protected where it is primary."


_BY_NUMBER: dict[int, type[BrsError]] = {
    errno.ENOENT: CephMissing,
    errno.EACCES: CephDenied,
    errno.EPERM: CephDenied,
    errno.ETIMEDOUT: CephUnreachable,
    errno.EBUSY: CephBusy,
    errno.EEXIST: CephExists,
    errno.EROFS: CephReadOnly,
}


def usable_python() -> str | None:
    """The system's Python, which the bindings belong to."""
    return next((path for path in PYTHONS if os.access(path, os.X_OK)), None)


class Cluster:
    def __init__(self, access: CephAccess) -> None:
        access.check()
        self.access = access
        self.librbd = self.fsid = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._sent: deque[tuple[int, str]] = deque()  # not answered yet
        self._answers: dict[int, tuple[str, dict[str, Any], bytearray]] = {}  # not taken yet
        self._number = 0

    def __enter__(self) -> Cluster:
        monitors = answering(self.access.mon_hosts, CephUnreachable)
        self._start()
        try:
            self._connect(monitors)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def call(self, op: str, payload: bytes | memoryview = b"", timeout_s: float = CALL_S, **args: Any) -> Any:
        """The answer's value; for those that answer with bytes, these. Raises a CephError or CephMissing."""
        return self.receive(self.send(op, payload, **args), timeout_s)

    def send(self, op: str, payload: bytes | memoryview = b"", **args: Any) -> int:
        """The number to :meth:`receive` the answer by."""
        if self._socket is None:
            raise CephUnreachable("The connection to the Ceph cluster is closed.")
        raw = json.dumps({"op": op, **args}).encode()
        while payload and self._sent:
            self._take_answer(CALL_S)  # or both sides would wait for the other to take what it is sent
        try:
            self._socket.settimeout(CALL_S)
            self._socket.sendall(_FRAME.pack(len(raw), len(payload)) + raw)
            if payload:
                self._socket.sendall(payload)
        except OSError as error:
            raise self._gone(op) from error
        self._number += 1
        what = f"{op} {args.get('name') or args.get('image_id') or args.get('pool') or ''}".strip()
        self._sent.append((self._number, what))
        return self._number

    def receive(self, number: int, timeout_s: float = CALL_S) -> Any:
        while number not in self._answers:
            self._take_answer(timeout_s)
        what, answer, data = self._answers.pop(number)
        if "error" in answer:
            raise self._translated(what, answer["error"])
        return data if answer["result"] is None and data else answer["result"]

    def _take_answer(self, timeout_s: float) -> None:
        if self._socket is None:
            raise CephUnreachable("The connection to the Ceph cluster is closed.")
        number, what = self._sent.popleft()
        try:
            self._socket.settimeout(timeout_s)
            text_size, data_size = _FRAME.unpack(self._bytes(_FRAME.size))
            if text_size + data_size > _MAX_ANSWER:
                raise CephError("The process that speaks with Ceph answered nonsense.")
            answer = json.loads(self._bytes(text_size))
            data = self._bytes(data_size)
        except TimeoutError as error:
            self.close(kill=True)  # its answer would come in the place of the next
            raise CephUnreachable(f"The Ceph cluster did not answer for {timeout_s:.0f} s ({what}).") from error
        except OSError as error:
            raise self._gone(what) from error
        self._answers[number] = (what, answer, data)

    def close(self, *, kill: bool = False) -> None:
        """Hang up; the process gives its watches and locks back and ends. Safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        if process is None:
            return
        if kill:
            process.kill()
        try:
            process.wait(30)  # it ends itself before that
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # --- parts ---

    def _start(self) -> None:
        python = usable_python()
        if python is None:
            raise CephNotInstalled("The system's Python 3 is not there, which Ceph's library belongs to.")
        ours, theirs = socket.socketpair()
        with theirs:
            # An environment of its own: CEPH_ARGS, LD_LIBRARY_PATH or PYTHONPATH must not lead it elsewhere.
            self._process = subprocess.Popen(
                [python, "-I", str(_CHILD)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the node, which then removes what it made through this process
            )
        self._socket = ours

    def _connect(self, monitors: str) -> None:
        access = self.access
        try:
            told = self.call("connect", timeout_s=CONNECT_S, mon_host=monitors, user=access.user, key=access.key)
        except CephDenied as error:
            raise CephDenied(
                f"The Ceph cluster does not let client.{access.user} in with this key.",
                hint="Correct the user's name or key: ceph auth get client.NAME.",
            ) from error
        self.fsid = str(told["fsid"])
        if self.fsid != access.fsid and not access.any_cluster:
            raise CephOther(f"The cluster {self.fsid} answers, but {access.fsid} is meant.")
        self.librbd = told["librbd"]

    def _bytes(self, length: int) -> bytearray:
        assert self._socket is not None
        data = bytearray(length)
        view, done = memoryview(data), 0
        while done < length:
            step = self._socket.recv_into(view[done:])
            if not step:
                raise ConnectionResetError
            done += step
        return data

    def _gone(self, what: str) -> BrsError:
        process = self._process
        code = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(5)
        self.close(kill=True)
        if code == 1 and what.startswith("connect"):
            return CephNotInstalled()
        return CephUnreachable(f"The process that speaks with Ceph ended ({what}; exit code {code}).")

    def _translated(self, what: str, error: dict[str, Any]) -> BrsError:
        text = printable(str(error["text"]))[:500]
        kind = _BY_NUMBER.get(error["errno"], CephError)
        return kind(f"Ceph: {what}: {text}")
