"""Every step of every operation that changes a repository is a crash point: see tests/repository/cuts.py."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from node_agent.errors import RepositoryExists
from node_agent.items import Extent
from node_agent.progress import Progress
from node_agent.repository import pack as pack_module
from node_agent.repository import writer as writer_module
from node_agent.repository.backend import Kind, open_backend
from node_agent.repository.backend.local import LocalBackend
from node_agent.repository.check import check
from node_agent.repository.copy import copy_snapshots
from node_agent.repository.image import Comparison, ImageBackup
from node_agent.repository.index import Index
from node_agent.repository.keys import add_key, change_password, list_keys, open_master_key, remove_key
from node_agent.repository.lock import Locks
from node_agent.repository.maintenance import KeepPolicy, TagChange, forget, tag_snapshots
from node_agent.repository.prune import PruneOptions, prune
from node_agent.repository.repair_index import repair_index
from node_agent.repository.repair_packs import repair_packs
from node_agent.repository.repair_snapshots import repair_snapshots
from node_agent.repository.repository import BlobKind, Repository
from node_agent.repository.snapshot import list_snapshots, remove_snapshot
from node_agent.repository.writer import BlobWriter
from tests.repository import cuts as cuts_module
from tests.repository.core_world import FAST, NOON, PASSWORD, flip, make_snapshot, new_repo, open_repo, store, stored
from tests.repository.cuts import Operation, cut_everywhere, opens_with
from tests.repository.data_world import MIB, back_up, back_up_images
from tests.repository.power import Model, Step
from tests.repository.test_image import Disk

RNG = random.Random(20)
BLOBS = [RNG.randbytes(1500) for _ in range(12)]
LATER = NOON + timedelta(hours=1)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "engine-maintenance.md"
PACK_SIZE = 4000  # so that three blobs fill a pack


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    make_packs_small(monkeypatch)


def make_packs_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many packs, each named by an index file of its own: more steps, and more ways to be cut between."""
    monkeypatch.setattr(pack_module, "TARGET_SIZE", PACK_SIZE)
    monkeypatch.setattr(writer_module, "MAX_AGE_S", 0.0)
    # One thread that stores: else chance decides which blobs share a pack, and how many there are.
    monkeypatch.setattr(Repository.writer, "__kwdefaults__", Repository.writer.__kwdefaults__ | {"workers": 1})


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    make_locks_quick(monkeypatch)


def make_locks_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is at work on these repositories, and nobody wants to guess their passwords."""
    monkeypatch.setattr(Locks.acquire, "__kwdefaults__", Locks.acquire.__kwdefaults__ | {"settle_s": 0})
    monkeypatch.setattr(add_key, "__defaults__", (FAST,))


@pytest.fixture
def in_memory() -> Iterator[Path]:
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="brs-cuts-", dir=place))
    yield folder
    shutil.rmtree(folder)


# --- backups ---


def _files(world: Path) -> None:
    new_repo(world / "repo").close()
    source = world.parent / "files"
    (world / "files").symlink_to(source)  # the same place, and the same stats, for every state
    (source / "below").mkdir(parents=True)
    for number, blob in enumerate(BLOBS[:5]):
        (source / "below" / f"file{number}").write_bytes(blob)
    (source / "zero").touch()


def _more_files(world: Path) -> None:
    _files(world)
    _back_up(world)
    (world / "files" / "below" / "file1").write_bytes(BLOBS[5])
    (world / "files" / "new").write_bytes(BLOBS[6] + BLOBS[7])


def _back_up(world: Path, *, host: str = "first") -> None:
    """Of a path that is the same wherever the world lies."""
    repo = open_repo(world / "repo")
    parents = list_snapshots(repo)
    back_up(
        repo,
        Path("/source"),
        found_at={Path("/source"): (world / "files").resolve()},
        host=host,
        time=LATER if host == "second" else NOON,
        parent=parents[0].id if parents else None,
    )


def _image(changed: bool) -> bytes:
    """Eight blocks that compress to almost nothing; two of them zeros."""
    content = bytearray(b"".join(blob[:512] * 2048 for blob in BLOBS[:6]) + bytes(2 * MIB))
    if changed:
        content[MIB + 100 : MIB + 600] = BLOBS[7][:500]
        content[7 * MIB : 8 * MIB] = BLOBS[8][:512] * 2048
    return bytes(content)


def _image_backed_up(world: Path) -> None:
    new_repo(world / "repo").close()
    _back_up_image(world)


def _back_up_image(world: Path) -> None:
    back_up_images(open_repo(world / "repo"), ImageBackup("sda", Disk(_image(changed=False))), host="first", time=NOON)


def _back_up_image_again(world: Path) -> None:
    repo = open_repo(world / "repo")
    parent = list_snapshots(repo)[0].id
    changed = [Extent(MIB + 100, 500), Extent(7 * MIB, MIB)]
    image = ImageBackup("sda", Disk(_image(changed=True)), changed=changed)
    back_up_images(repo, image, host="first", time=LATER, parent=parent, compare=Comparison(2))


# --- maintenance ---


def _with_waste(world: Path) -> None:
    """Packs to keep, to remove and to rewrite, one blob twice, and one pack that no index names."""
    repo = new_repo(world / "repo")
    with repo.lock(exclusive=True) as lock:
        store(repo, [BLOBS[0], BLOBS[6], BLOBS[1]])
        make_snapshot(repo, lock, {b"f": BLOBS[:5]}, host="first")
        make_snapshot(repo, lock, {b"f": [*BLOBS[:2], BLOBS[5]]}, host="second", time=LATER)
        gone = make_snapshot(repo, lock, {b"g": BLOBS[6:]}, host="gone")
        remove_snapshot(repo, gone.id)
        with BlobWriter(repo.files, Index(repo.files, "empty"), repo.guard, Progress()) as writer:
            writer.save(BlobKind.DATA, BLOBS[2])
    orphan = b"named by nobody" * 100
    repo.backend.put(Kind.PACK, hashlib.sha256(orphan).hexdigest(), [orphan])
    repo.close()


def _prune(world: Path) -> None:
    prune(open_repo(world / "repo"), PruneOptions(max_unused="0"))


def _history(world: Path) -> None:
    repo = new_repo(world / "repo")
    with repo.lock() as lock:
        for number in range(3):
            make_snapshot(
                repo, lock, {b"f": BLOBS[number : number + 3]}, host="old", time=NOON - timedelta(days=number)
            )
        make_snapshot(repo, lock, {b"f": BLOBS[:2]}, host="first")
    repo.close()


def _forget(world: Path) -> None:
    repo = open_repo(world / "repo")
    with repo.lock(exclusive=True):
        forget(repo, KeepPolicy(last=1))


def _tag(world: Path) -> None:
    repo = open_repo(world / "repo")
    with repo.lock(exclusive=True) as lock:
        tag_snapshots(repo, lock, list_snapshots(repo), TagChange(add=["kept"]))
        assert all("kept" in snapshot.tags for snapshot in list_snapshots(repo))


def _with_source(world: Path) -> None:
    _history(world)
    shutil.move(world / "repo", world / "theirs")
    repo = new_repo(world / "repo")
    with repo.lock() as lock:
        make_snapshot(repo, lock, {b"f": BLOBS[1:3]}, host="ours")
    repo.close()


def _copy(world: Path) -> None:
    source, target = open_repo(world / "theirs"), open_repo(world / "repo")
    with target.lock() as lock:
        source.load_index()
        target.load_index()
        copy_snapshots(source, target, lock, list_snapshots(source))


def _refresh_lock(world: Path) -> None:
    with open_repo(world / "repo").lock() as lock:
        lock.refresh()
        lock.refresh()


# --- keys ---

PASSWORDS = (PASSWORD, "changed")


def _one_snapshot(world: Path) -> None:
    repo = new_repo(world / "repo")
    with repo.lock() as lock:
        make_snapshot(repo, lock, {b"f": BLOBS[:2]}, host="first")
    repo.close()


def _init(world: Path) -> None:
    with contextlib.suppress(RepositoryExists):
        Repository.init(open_backend(str(world / "repo")), PASSWORD, scrypt=FAST).close()


def _change_password(world: Path) -> None:
    """Run again, it changes it once more; what matters is that one opens, always, and in the end the new one alone."""
    repo = Repository.open(open_backend(str(world / "repo")), opens_with(world / "repo", PASSWORDS))
    with repo.lock(exclusive=True):
        change_password(repo.backend, open_master_key(repo.backend, opens_with(world / "repo", PASSWORDS)), "changed")
    open_master_key(repo.backend, "changed")


def _add_key(world: Path) -> None:
    repo = open_repo(world / "repo")
    with repo.lock():
        add_key(repo.backend, repo.files.key, "changed", FAST)
    open_master_key(repo.backend, "changed")


def _two_keys(world: Path) -> None:
    _one_snapshot(world)
    _add_key(world)


def _remove_key(world: Path) -> None:
    repo = open_repo(world / "repo")
    with repo.lock(exclusive=True):
        current = open_master_key(repo.backend, PASSWORD).name
        for key in list_keys(repo.backend):
            if key.name != current:
                remove_key(repo.backend, key.name, current=current)
        assert [key.name for key in list_keys(repo.backend)] == [current]


# --- repairs ---


def _hurt_index(world: Path) -> None:
    _with_waste(world)
    damaged, lost, *_ = stored(world / "repo", "index")
    flip(damaged, 50)
    lost.unlink()


def _repair_index(world: Path) -> None:
    repo = open_repo(world / "repo")
    with repo.lock(exclusive=True) as lock:
        repair_index(repo, lock)


def _hurt_packs(world: Path) -> None:
    """One pack with a flipped blob, one that is gone; another repository has all the data."""
    _history(world)
    shutil.copytree(world / "repo", world / "theirs")
    _harm(world, BLOBS[1])
    _harm(world, BLOBS[3], gone=True)


def _harm(world: Path, content: bytes, *, gone: bool = False) -> None:
    (place,) = open_repo(world / "repo").index.locations(BlobKind.DATA, hashlib.sha256(content).digest())
    path = world / "repo" / "data" / place.pack[:2] / place.pack
    if gone:
        path.unlink()
    else:
        flip(path, place.blob.offset + 30)


def _heal(world: Path) -> None:
    source, repo = open_repo(world / "theirs"), open_repo(world / "repo")
    source.load_index()
    with repo.lock(exclusive=True) as lock:
        packs = [problem.name for problem in check(repo, read_data=True).errors if problem.kind == "pack"]
        assert repair_packs(repo, lock, packs, sources=[source]).lost_blobs == []


def _hurt_snapshots(world: Path) -> None:
    _history(world)
    _harm(world, BLOBS[3], gone=True)
    _repair_index(world)


def _repair_snapshots(world: Path) -> None:
    repo = open_repo(world / "repo")
    with repo.lock(exclusive=True) as lock:
        lost = check(repo).lost
        repo.load_index()
        repair_snapshots(repo, lock, list_snapshots(repo), lost, forget=True, progress=Progress())


OPERATIONS = {
    "init": Operation(lambda world: (world / "repo").mkdir(), _init, makes=True),
    "backup of files, first": Operation(_files, _back_up, adds=True),
    "backup of files, incremental": Operation(_more_files, lambda world: _back_up(world, host="second"), adds=True),
    "backup of an image, first": Operation(lambda world: new_repo(world / "repo").close(), _back_up_image, adds=True),
    "backup of an image, incremental": Operation(_image_backed_up, _back_up_image_again, adds=True),
    "forget": Operation(_history, _forget, replaces=["old"]),
    "tag": Operation(_history, _tag),
    "prune": Operation(_with_waste, _prune, removes_blobs=True),
    "copy": Operation(_with_source, _copy),
    "lock refresh": Operation(_one_snapshot, _refresh_lock),
    "key add": Operation(_one_snapshot, _add_key, PASSWORDS),
    "key passwd": Operation(_one_snapshot, _change_password, PASSWORDS),
    "key remove": Operation(_two_keys, _remove_key),
    "repair index": Operation(_hurt_index, _repair_index, hurt=True),
    "repair packs": Operation(_hurt_packs, _heal, hurt=True),
    "repair snapshots": Operation(_hurt_snapshots, _repair_snapshots, hurt=True, replaces=["old"]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_cut_at_any_step_nothing_is_lost_and_the_operation_can_be_repeated(name: str, in_memory: Path) -> None:
    judged = cut_everywhere(OPERATIONS[name], in_memory)
    found = [judged.steps + 1, *(judged.states[model] for model in Model), judged.judged]
    row = f"| {name} | {' | '.join(map(str, found))} |"
    print(row)
    (shown,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} |")]
    numbers = [int(cell) for cell in shown.split("|")[2:-1]]
    # Threads take turns: which blobs share a pack, and so how many there are, differs a little from run to run.
    close = all(abs(new - old) <= max(4, old // 3) for new, old in zip(found, numbers, strict=True))
    assert close, f"{PAGE.name} must say: {row}"


@pytest.mark.parametrize("harm", ["folders of packs are not synced", "files are not synced", "the index comes first"])
def test_the_judges_see_a_store_that_keeps_less_than_it_promises(
    harm: str, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = cuts_module.run_recorded

    def harmed(operation: Operation, world: Path, out: Path) -> list[Step]:
        if harm == "the index comes first":
            with pytest.MonkeyPatch.context() as patch:
                _write_packs_late(patch)
                return recorded(operation, world, out)
        call, folder = ("sync", "") if harm == "files are not synced" else ("sync-folder", "data/")
        steps = recorded(operation, world, out)
        return [step for step in steps if step.call != call or not step.path.startswith(folder)]

    monkeypatch.setattr(cuts_module, "run_recorded", harmed)
    with pytest.raises(AssertionError, match="cut after"):
        cut_everywhere(OPERATIONS["backup of files, first"], in_memory)


def _write_packs_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pack waits for the next index file to be written."""
    put, waiting = LocalBackend.put, []

    def late(self: LocalBackend, kind: Kind, name: str, parts: object) -> None:
        if kind is Kind.PACK:
            waiting.append((kind, name, parts))
            return
        put(self, kind, name, parts)  # type: ignore[arg-type]
        if kind is Kind.INDEX:
            while waiting:
                put(self, *waiting.pop())

    monkeypatch.setattr(LocalBackend, "put", late)
