"""How the repository commands show an entry: mode, owner, size, time and name in one line."""

from __future__ import annotations

import stat
from datetime import UTC, datetime

from node_agent.items import printable
from node_agent.repository.rfc3339 import format_ns
from node_agent.repository.tree import Node

_TYPE_LETTERS = {"dir": "d", "symlink": "L", "dev": "D", "chardev": "Dc", "fifo": "p", "socket": "S"}  # as Go has them


def permissions(node: Node) -> str:
    """As Go prints a mode: letters for type and special bits, then rwx three times."""
    mode = node.st_mode
    special = "".join(
        letter for bit, letter in ((stat.S_ISUID, "u"), (stat.S_ISGID, "g"), (stat.S_ISVTX, "t")) if mode & bit
    )
    bits = "".join("rwxrwxrwx"[i] if mode & (1 << (8 - i)) else "-" for i in range(9))
    return (_TYPE_LETTERS.get(node.type, "") + special or "-") + bits


def local_time(time_ns: int) -> str:
    try:
        return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError):  # years that datetime cannot hold
        return format_ns(time_ns)


def long_line(path: bytes, node: Node) -> str:
    """One entry as ``ls -l`` has it."""
    link = f" -> {printable(node.linktarget)}" if node.linktarget else ""
    facts = f"{permissions(node)} {node.uid:5d} {node.gid:5d} {node.size:12d} {local_time(node.mtime)}"
    return f"{facts} {printable(path)}{link}"
