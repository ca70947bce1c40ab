"""What a running node does: the repository is open already, then an image's changed extents are stored.

``python -m benchmarks.in_node REPO IMAGE EXTENTS``; prints the seconds from the lock to the snapshot.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from node_agent.cli_repo_backup import read_changes
from node_agent.drivers.image import open_image
from node_agent.items import Issues
from node_agent.progress import Progress
from node_agent.repository.backend import open_backend
from node_agent.repository.image import ImageBackup, backup_images
from node_agent.repository.repository import Repository
from node_agent.repository.snapshot import find_snapshot


def main(repo_path: str, image_path: str, extents_path: str) -> None:
    image = Path(image_path)
    password, cache = os.environ["BRS_REPOSITORY_PASSWORD"], Path(os.environ["BRS_CACHE_DIR"])
    with Repository.open(open_backend(repo_path), password, cache_dir=cache) as repo:
        with repo.lock():
            repo.load_index()
        with open_image(image, roots=[image.parent]) as source:
            began = time.monotonic()
            with repo.lock(early=True) as lock:  # as the backup tasks do
                repo.load_index()
                parent = find_snapshot(repo, "latest")
                backup_images(
                    repo,
                    lock,
                    [ImageBackup(image.stem, source, read_changes(Path(extents_path), source.size)[0])],
                    host=parent.hostname,
                    paths=parent.paths,
                    parent=parent.id,
                    progress=Progress(),
                    issues=Issues(),
                    time=datetime.now(UTC),
                )
            print(time.monotonic() - began)


if __name__ == "__main__":
    main(*sys.argv[1:])
