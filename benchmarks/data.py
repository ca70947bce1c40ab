"""The data that is backed up: an image of real files, its change, a mailbox, and many small files."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks import settings
from benchmarks.settings import EXTENT, MIB

_SOURCES = ("/usr/share", "/usr/lib", "/usr/bin", "/opt", "/usr/local", "/root/.pyenv", "/var/lib")


def build_image(work: Path, image: Path) -> str:
    """An ext4 image with real files of this machine and random data, the rest empty. Returns what it took."""
    files = work / "files"
    files.mkdir()
    left, count = settings.FILES_MIB * MIB, 0
    for path in real_files():
        size = path.stat().st_size
        if size > left:
            continue
        target = files / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        left -= size
        count += 1
        if left < MIB:
            break
    rng = random.Random(1)
    with (files / "random.bin").open("wb") as file:
        for _ in range(settings.RANDOM_MIB):
            file.write(rng.randbytes(MIB))
    with image.open("wb") as made:
        made.truncate(settings.IMAGE_MIB * MIB)
    env = os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(files), str(image)], env=env, check=True)
    shutil.rmtree(files)
    real = settings.FILES_MIB - (left >> 20)
    return (
        f"image of {settings.IMAGE_MIB} MiB, ext4: {count:,} real files of {real} MiB, {settings.RANDOM_MIB} MiB random"
    )


def real_files() -> Iterator[Path]:
    for source in _SOURCES:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                    yield path


def change(image: Path, listing: Path, seed: int = 2) -> None:
    """Overwrite scattered extents with random data, and write down which."""
    rng = random.Random(seed)
    places = sorted({rng.randrange(settings.IMAGE_MIB * MIB // EXTENT) * EXTENT for _ in range(settings.CHANGED)})
    with image.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(rng.randbytes(EXTENT))
    listing.write_text(json.dumps([{"offset": place, "length": EXTENT} for place in places]))


def enlarge(image: Path, larger: Path, size: int) -> None:
    """A sparse copy of more bytes."""
    subprocess.run(["cp", "--sparse=always", str(image), str(larger)], check=True)
    with larger.open("r+b") as file:
        file.truncate(size)


def build_mailbox(folder: Path) -> None:
    """A Maildir: one folder of messages of some KiB, alike in their headers."""
    rng = random.Random(3)
    words = [rng.randbytes(rng.randrange(2, 9)).hex().encode() for _ in range(3000)]
    inbox = folder / "cur"
    inbox.mkdir(parents=True)
    for number in range(settings.MESSAGES):
        body = b" ".join(rng.choices(words, k=min(20_000, int(rng.lognormvariate(5.5, 1.2)))))
        head = b"From: someone@example.org\r\nMessage-ID: <%d@example.org>\r\nSubject: %s\r\n\r\n" % (
            number,
            words[number % 3000],
        )
        (inbox / f"{1_700_000_000 + number}.M{number}.host:2,S").write_bytes(head + body)


def build_small_files(folder: Path) -> None:
    """A hundred files in each folder, up to 2 KiB."""
    rng = random.Random(4)
    for number in range(settings.SMALL_FILES):
        if number % 100 == 0:
            below = folder / f"{number // 10_000}" / f"{number // 100}"
            below.mkdir(parents=True)
        (below / f"f{number}").write_bytes(rng.randbytes(rng.randrange(64, 1024)).hex().encode())


def count_tree(tree: Path) -> str:
    files = total = 0
    for folder, _, names in os.walk(tree):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
            files += 1
    return f"tree {tree}: {files:,} files, {total / 1e9:.1f} GB"
