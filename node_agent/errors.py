"""What can go wrong on a node, as one tree.

    BrsError                    code, message, hint, retryable
    ├── ConfigError             the node's own configuration is unusable
    ├── RefusedError            the node's own rules forbid what the server asked
    ├── SourceError             what should be protected cannot be read
    │   ├── SourceMissing
    │   ├── SourceChanged
    │   └── CommandFailed       a command around the backup
    ├── TargetError             what should be written cannot be written
    │   ├── TargetExists
    │   └── TargetFull
    ├── RepositoryError         the repository, as a whole
    │   ├── RepositoryMissing   nothing there, or the destination is not mounted
    │   ├── RepositoryExists
    │   ├── WrongPassword
    │   ├── RepositoryLocked
    │   ├── RepositoryUnsupported
    │   ├── SnapshotNotFound
    │   └── DamagedError        names the object that is hurt
    ├── BackendError            the store behind the repository
    │   ├── ObjectMissing
    │   ├── BackendFull
    │   ├── BackendReadOnly
    │   ├── ObjectLocked        its retention is not over
    │   ├── LockRefused         what should be locked is not
    │   └── BackendUnavailable  (retryable)
    ├── ServerError             the control plane's answer
    │   ├── ServerUnreachable   (retryable)
    │   ├── NotEnrolled
    │   ├── ServerNotTrusted
    │   └── LeaseLost
    ├── WorkerDied              a process that a run had started (retryable)
    ├── Cancelled
    └── Interrupted             the node is stopping; the task goes back to the queue (retryable)

Every class has a stable ``code`` (part of the wire protocol), one plain sentence and a hint that
says what to do. Foreign exceptions are translated where they enter; a traceback belongs in the log.
"""

from __future__ import annotations

from typing import ClassVar


class BrsError(Exception):
    """Base of everything this package raises on purpose."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    default_message: ClassVar[str] = "Something went wrong."
    default_hint: ClassVar[str] = "Look at the node's log for the details."

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        self.message = message or self.default_message
        self.hint = hint if hint is not None else self.default_hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class ConfigError(BrsError):
    code = "config"
    default_message = "The node's configuration cannot be used."
    default_hint = "Correct the named entry in node.toml and start the node again."


class RefusedError(BrsError):
    code = "refused"
    default_message = "The node's own rules do not allow this."
    default_hint = "Add the path to the roots in this node's node.toml if it is meant to be allowed."


class SourceError(BrsError):
    code = "source"
    default_message = "The data to protect cannot be read."
    default_hint = "Check that the path exists on the node and that the node's user may read it."


class SourceMissing(SourceError):
    code = "source-missing"
    default_message = "The path to protect does not exist on the node."
    default_hint = "Correct the workload's path, or mount the file system it lies on."


class SourceChanged(SourceError):
    code = "source-changed"
    default_message = "The data changed while it was read."
    default_hint = "Run the backup again at a quieter time, or protect a snapshot of it."


class CommandFailed(SourceError):
    code = "command-failed"
    default_message = "A command around the backup failed."
    default_hint = "What it printed is in the job's log; correct it in the policy."


class TargetError(BrsError):
    code = "target"
    default_message = "The target cannot be written."
    default_hint = "Check that the folder exists and that the node's user may write there."


class TargetExists(TargetError):
    code = "target-exists"
    default_message = "The target already holds data."
    default_hint = "Choose an empty folder, or allow overwriting."


class TargetFull(TargetError):
    code = "target-full"
    default_message = "The target has no space left."
    default_hint = "Free space on the target's file system or choose another target."


class RepositoryError(BrsError):
    code = "repository"
    default_message = "The repository cannot be used."
    default_hint = "Run a check of the repository."


class RepositoryMissing(RepositoryError):
    code = "repository-missing"
    default_message = "There is no repository at this place."
    default_hint = "Check that the destination is mounted and the address is right."


class RepositoryExists(RepositoryError):
    code = "repository-exists"
    default_message = "There is already a repository at this place."
    default_hint = "Use the existing repository, or choose an empty folder."


class WrongPassword(RepositoryError):
    code = "wrong-password"
    default_message = "No key of the repository opens with this password."
    default_hint = "Give the password the repository was made with; the recovery kit holds it."


class RepositoryLocked(RepositoryError):
    code = "repository-locked"
    retryable = True
    default_message = "The repository is in use by another program."
    default_hint = "Wait until the other program has ended; a lock left behind ends by itself after 30 minutes."


class SnapshotsMissing(RepositoryError):
    code = "snapshots-missing"
    default_message = "Snapshots that should be in the repository are missing."
    default_hint = (
        "Somebody removed them past BRS, or the store did not list them; what they hold may still be there. Find out"
        " why before space is reclaimed. If they are not to come back, delete their restore points from the catalogue."
    )


class RepositoryUnsupported(RepositoryError):
    code = "repository-unsupported"
    default_message = "This repository's format is not supported for this operation."
    default_hint = "Only repositories of format version 2 are written."


class SnapshotNotFound(RepositoryError):
    code = "snapshot-not-found"
    default_message = "There is no such snapshot in the repository."
    default_hint = "List the snapshots and give a full id, an unambiguous beginning of one, or 'latest'."


class DamagedError(RepositoryError):
    code = "damaged"
    default_message = "Data in the repository is damaged."
    default_hint = "Run a check with reading of all data; restore from another copy of this point."


class BackendError(BrsError):
    code = "backend"
    default_message = "The destination reported an error."
    default_hint = "Check the destination."


class ObjectMissing(BackendError):
    code = "object-missing"
    default_message = "An object is missing from the destination."
    default_hint = "Run a check of the repository."


class BackendFull(BackendError):
    code = "destination-full"
    default_message = "The destination has no space left."
    default_hint = "Free space at the destination, add capacity or shorten the retention."


class BackendReadOnly(BackendError):
    code = "destination-read-only"
    default_message = "The destination cannot be written."
    default_hint = "Check the mount options and the rights of the node's user at the destination."


class ObjectLocked(BackendError):
    code = "object-locked"
    default_message = "The object is locked and cannot be removed yet."
    default_hint = "Wait for the named time: nobody can shorten it."


class LockRefused(BackendError):
    code = "lock-refused"
    default_message = "The destination does not lock what is stored there."
    default_hint = "Object Lock must be on at the bucket and the node allowed to set retention: docs/destinations.md."


class BackendUnavailable(BackendError):
    code = "destination-unavailable"
    retryable = True
    default_message = "The destination does not answer."
    default_hint = "Check the connection to the destination; the run is tried again."


class WorkerDied(BrsError):
    code = "worker-died"
    retryable = True
    default_message = "A worker process ended before its work was done."
    default_hint = "Most often memory ran out: look at the kernel's log. What is stored is not stored again."


class ServerError(BrsError):
    code = "server"
    default_message = "The server refused the request."
    default_hint = "Look at the server's log."


class ServerUnreachable(ServerError):
    code = "server-unreachable"
    retryable = True
    default_message = "The server does not answer."
    default_hint = "Check the address and the network; the node keeps trying."


class NotEnrolled(ServerError):
    code = "not-enrolled"
    default_message = "The server does not know this node."
    default_hint = "Enrol the node again with a new code."


class ServerNotTrusted(ServerError):
    code = "server-not-trusted"
    default_message = "The server's certificate is not the one this node was enrolled with."
    default_hint = "Check that the address is right; enrol again if the server was set up anew."


class LeaseLost(ServerError):
    code = "lease-lost"
    default_message = "The task is no longer leased to this node."
    default_hint = "Nothing to do: another run of the task continues."


class Cancelled(BrsError):
    code = "cancelled"
    default_message = "The task was cancelled."
    default_hint = "Start it again when it is wanted."


class Interrupted(BrsError):
    code = "interrupted"
    retryable = True
    default_message = "The node was stopped while the task ran."
    default_hint = "Nothing to do: the task is queued again."
