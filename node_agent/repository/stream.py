"""What a program writes, as one file of a snapshot: read once, in bounded memory, into chunks as those of files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.repository.files_meta import group_name, user_name
from node_agent.repository.files_read import Content
from node_agent.repository.publish import BackupResult, Facts, publish
from node_agent.repository.repository import BlobKind, Lock, Repository
from node_agent.repository.tree import FILE, EncodedNode, Node, encode_node, encode_tree, go_mode


class Stream(Protocol):
    def readinto(self, b: memoryview, /) -> int: ...


def backup_stream(
    repo: Repository,
    lock: Lock,
    stream: Stream,
    name: str,
    *,
    host: str,
    tags: Sequence[str] = (),
    progress: Progress,
    issues: Issues,
    time: datetime,
    compression: str = "auto",
    ended: Callable[[], None] = lambda: None,
    dry_run: bool = False,
) -> BackupResult:
    """Store the stream as ``/name``; with ``dry_run`` only find out what that would add.

    ``ended`` is called at its end, and raises if what came is not the whole: then there is no snapshot.
    """
    content = Content()
    with repo.writer(progress, compression=compression, dry_run=dry_run) as writer:
        for chunk in repo.chunker.cut(stream):
            progress.check()
            content.add(writer.submit(BlobKind.DATA, chunk), len(chunk))
            progress.add(done_bytes=len(chunk), read_bytes=len(chunk))
        ended()
        node = _node(name, time, content)
        tree_id = writer.submit(BlobKind.TREE, encode_tree([EncodedNode(node.name, encode_node(node))])).result().id
        writer.flush()
        facts = Facts(host, [f"/{name}"], tags, time)
        snapshot_id = "" if dry_run else publish(repo, lock, tree_id, content.ids(), facts, issues, progress=progress)
        return BackupResult(
            snapshot_id=snapshot_id,
            tree_id=tree_id.hex(),
            parent_id=None,
            size_bytes=content.size,
            read_bytes=content.size,
            new_bytes=writer.new_bytes,
            stored_bytes=writer.stored_bytes,
            files=1,
            files_new=1,
            partial=issues.left_out > 0,
        )


def _node(name: str, time: datetime, content: Content) -> Node:
    instant = int(time.timestamp() * 1e9)
    uid, gid = os.geteuid(), os.getegid()
    return Node(
        name=os.fsencode(name),
        type=FILE,
        mode=go_mode(stat.S_IFREG | 0o644),
        mtime=instant,
        atime=instant,
        ctime=instant,
        uid=uid,
        gid=gid,
        user=user_name(uid),
        group=group_name(gid),
        size=content.size,
        links=1,
        content=content.ids(),
    )
