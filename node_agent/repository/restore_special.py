"""Making what is no file and no folder: links, pipes, devices. Each is whole before it has its name."""

from __future__ import annotations

import os
import stat

from node_agent.repository.restore_meta import Notes, apply_to_name
from node_agent.repository.restore_target import Folder, InTheWay, put_in_place, temporary_name
from node_agent.repository.tree import Node


def make_special(folder: Folder, node: Node, path: bytes, notes: Notes) -> bool:
    """False for a type that nobody knows. Raises InTheWay, OSError."""
    if folder.fresh and node.type == "symlink" and _link_at_once(folder, node, path, notes):
        return True
    temporary = temporary_name()
    if node.type == "symlink":
        os.symlink(node.linktarget, temporary, dir_fd=folder.fd)
    elif node.type == "fifo":
        os.mkfifo(temporary, 0o600, dir_fd=folder.fd)
    elif node.type in ("dev", "chardev"):
        kind = stat.S_IFBLK if node.type == "dev" else stat.S_IFCHR
        try:
            os.mknod(temporary, kind | 0o600, node.device, dir_fd=folder.fd)
        except (OverflowError, ValueError) as error:
            raise InTheWay(f"No device has the number {node.device}.") from error
    else:
        return False
    apply_to_name(folder.fd, temporary, node, path, notes)
    put_in_place(folder, temporary, node.name)
    return True


def _link_at_once(folder: Folder, node: Node, path: bytes, notes: Notes) -> bool:
    """A symbolic link in a folder that nobody else may change; False if something has its name after all.

    It is whole from the start, so it needs no other name before.
    """
    try:
        os.symlink(node.linktarget, node.name, dir_fd=folder.fd)
    except FileExistsError:
        return False
    apply_to_name(folder.fd, node.name, node, path, notes)
    return True
