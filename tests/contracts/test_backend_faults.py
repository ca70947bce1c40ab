"""What goes wrong on the way to a store and at the store: everything is stored all the same, or a clear error told."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest

from node_agent.errors import (
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    ConfigError,
    ObjectMissing,
    RepositoryExists,
)
from node_agent.repository.backend import Backend, Kind, open_backend
from node_agent.repository.backend.retry import RetryingBackend
from node_agent.repository.repository import BlobKind, Repository
from tests.contracts.backend_faults import CuttingProxy, Fault, FaultyBackend, random_plan
from tests.contracts.backend_peers import KINDS_OF_PEERS, Peers, Place, RcloneRest, Sshd, missing
from tests.repository.core_world import FAST, PASSWORD, make_snapshot, restic
from tests.repository.core_world import store as store_blobs

NAME = "ab" * 32


class Patience:
    """A clock that waiting moves on, so that no test waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.now += seconds
        return False


def _retrying(inner: Backend, patience: Patience, **options: float) -> RetryingBackend:
    return RetryingBackend(inner, clock=patience.clock, wait=patience.wait, **options)  # type: ignore[arg-type]


def _faulty(folder: Path, *faults: Fault | None) -> FaultyBackend:
    store = open_backend(str(folder / "store"))
    store.create()
    return FaultyBackend(store, iter(faults))


# --- trying again ---


@pytest.mark.parametrize("fault", [Fault.BEFORE, Fault.AFTER, Fault.THROTTLED, Fault.LOST, Fault.SLOW, Fault.TORN])
@pytest.mark.parametrize("kind", list(KINDS_OF_PEERS))
def test_every_operation_succeeds_in_spite_of(fault: Fault, kind: str, peers: Peers) -> None:
    """On every kind of store. What its crash model rules out (a torn object) is still overcome by the next attempt."""
    if fault is Fault.TORN and kind == "radosgw-locked":
        return  # the store proves the digest that comes with a lock: half an object is refused
    content = b"content"
    name = hashlib.sha256(content).hexdigest()
    inner = peers[kind].place().open()
    inner.create()
    store = FaultyBackend(inner, chain.from_iterable(repeat((fault, fault, None))))
    retrying = _retrying(store, Patience())
    retrying.create()
    retrying.put(Kind.LOCK, name, [content])
    retrying.put(Kind.CONFIG, "config", [b"c"])
    assert retrying.get(Kind.LOCK, name, 2, 3) == b"nte"
    assert retrying.stat(Kind.LOCK, name).size == len(content)
    assert [info.name for info in retrying.list(Kind.LOCK)] == [name]
    assert retrying.now() > 0
    retrying.delete(Kind.LOCK, name)
    assert not store.inner.exists(Kind.LOCK, name)
    assert fault in {what for _, what in store.happened}


def test_a_config_of_somebody_else_is_never_taken_for_ours_after_an_error(tmp_path: Path) -> None:
    store = _faulty(tmp_path, Fault.BEFORE)
    store.inner.put(Kind.CONFIG, "config", [b"theirs"])
    with pytest.raises(RepositoryExists):
        _retrying(store, Patience()).put(Kind.CONFIG, "config", [b"ours"])


def test_a_listing_that_breaks_off_again_and_again_names_everything_once(tmp_path: Path) -> None:
    store = _faulty(tmp_path)
    names = {hashlib.sha256(b"%d" % i).hexdigest() for i in range(50)}
    for name in names:
        store.inner.put(Kind.PACK, name, [b"x"])
    store._plan = iter([Fault.LOST, Fault.BEFORE, Fault.LOST])
    found = [info.name for info in _retrying(store, Patience()).list(Kind.PACK)]
    assert len(found) == 50 and set(found) == names


def test_only_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    patience = Patience()
    retrying = _retrying(_faulty(tmp_path), patience)
    with pytest.raises(ObjectMissing):
        retrying.get(Kind.PACK, NAME)
    assert patience.pauses == []


def test_the_time_of_retries_is_bounded_and_shorter_before_the_store_ever_answered(tmp_path: Path) -> None:
    for answered, bound in ((False, 20.0), (True, 300.0)):
        patience = Patience()
        store = _faulty(tmp_path)
        retrying = _retrying(store, patience)
        if answered:
            retrying.create()
        store._plan = repeat(Fault.THROTTLED)
        with pytest.raises(BackendUnavailable):
            retrying.stat(Kind.PACK, NAME)
        assert bound - 1e-6 <= patience.now <= bound + 1e-6


def test_pauses_grow_and_are_spread_over_their_whole_range(tmp_path: Path) -> None:
    drawn: list[tuple[float, float]] = []

    def jitter(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    patience = Patience()
    retrying = RetryingBackend(
        FaultyBackend(open_backend(str(tmp_path)), repeat(Fault.BEFORE)),
        clock=patience.clock,
        wait=patience.wait,
        jitter=jitter,
        first_s=300,
    )
    with pytest.raises(BackendUnavailable):
        retrying.now()
    assert all(low == 0 for low, _ in drawn)
    assert [high for _, high in drawn[:8]] == [0.25, 0.5, 1, 2, 4, 8, 16, 30]


def test_closing_ends_the_waiting(tmp_path: Path) -> None:
    retrying = RetryingBackend(FaultyBackend(open_backend(str(tmp_path)), repeat(Fault.BEFORE)))
    retrying.close()
    with pytest.raises(BackendUnavailable):
        retrying.now()


def test_under_random_faults_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    faults = [Fault.BEFORE, Fault.AFTER, Fault.THROTTLED, Fault.LOST]
    chance = random.Random(7)
    expected: dict[str, bytes] = {}
    store = _faulty(tmp_path)
    store._plan = random_plan(11, 0.4, faults)
    retrying = _retrying(store, Patience())
    for _ in range(400):
        if expected and chance.random() < 0.3:
            name = chance.choice(sorted(expected))
            retrying.delete(Kind.PACK, name)
            del expected[name]
        else:
            content = chance.randbytes(100)
            name = hashlib.sha256(content).hexdigest()
            retrying.put(Kind.PACK, name, [content])
            expected[name] = content
    assert {info.name for info in retrying.list(Kind.PACK)} == set(expected)
    assert all(retrying.get(Kind.PACK, name) == content for name, content in expected.items())
    assert len(store.happened) > 100


def test_a_stale_listing_costs_space_but_never_data(tmp_path: Path) -> None:
    store = _faulty(tmp_path)
    repo = Repository.init(store, PASSWORD, scrypt=FAST)
    with repo.lock():
        repo.load_index()
        (blob,) = store_blobs(repo, [b"content"])
    repo.close()
    store.hidden = {info.name for info in store.inner.list(Kind.INDEX)}
    repo = Repository.open(store, PASSWORD)
    with repo.lock() as lock:
        repo.load_index()
        assert not repo.has(BlobKind.DATA, blob)
        make_snapshot(repo, lock, {b"file": [b"content"]})  # stores it once more
    repo.close()
    store.hidden = set()
    assert "no errors were found" in restic(tmp_path / "store", "check", "--read-data").stdout


# --- connections to real servers that are cut ---


@pytest.fixture(params=["s3", "radosgw", "radosgw-locked", "azure", "gcs-stand-in", "sftp", "rest"])
def cut(request: pytest.FixtureRequest, peers: Peers) -> Iterator[tuple[Place, CuttingProxy]]:
    peer = peers[request.param]
    proxy = CuttingProxy(peer.port)
    place = peer.place()
    old, new = f":{peer.port}", f":{proxy.port}"
    options = {key: value.replace(old, new) for key, value in place.options.items()}
    yield dataclasses.replace(place, url=place.url.replace(old, new), options=options), proxy
    proxy.close()


def test_a_connection_cut_at_any_point_of_a_put_or_get_does_no_harm(cut: tuple[Place, CuttingProxy]) -> None:
    place, proxy = cut
    store = place.open()
    store.create()
    content = os.urandom(600_000)
    name = hashlib.sha256(content).hexdigest()
    for after in (0, 3000, 100_000, 590_000):
        proxy.cut_next(after, after // 2)
        store.put(Kind.PACK, name, [content])
        proxy.cut_next(after, after // 2)
        assert store.get(Kind.PACK, name) == content
        assert [(i.name, i.size) for i in store.list(Kind.PACK)] == [(name, len(content))]
    assert proxy.cut >= 6
    store.close()


def test_a_server_that_is_not_there_is_told_within_the_bound(peers: Peers, cut: tuple[Place, CuttingProxy]) -> None:
    place, proxy = cut
    proxy.close()
    store = place.open(retry_seconds="1")
    with pytest.raises(BackendUnavailable, match="does not answer"):
        store.get(Kind.CONFIG, "config")


def test_a_name_that_does_not_resolve_is_a_store_that_does_not_answer() -> None:
    env = {"AZURE_ACCOUNT_NAME": "a", "AZURE_ACCOUNT_KEY": "aaaa", "AWS_ACCESS_KEY_ID": "k"}
    env |= {"AWS_SECRET_ACCESS_KEY": "s", "GOOGLE_ACCESS_TOKEN": "t"}
    for url, options in (
        ("s3:https://store.invalid/bucket", {}),
        ("azure:bucket:/", {"endpoint": "https://store.invalid"}),
        ("gs:bucket:/", {"endpoint": "https://store.invalid"}),
        ("sftp:joe@store.invalid:/x", {}),
        ("rest:https://store.invalid/x/", {}),
    ):
        with pytest.raises(BackendUnavailable, match="does not answer"):
            open_backend(url, {"retry-seconds": "0", **options}, env).get(Kind.CONFIG, "config")


# --- credentials, rights, space ---


@pytest.mark.parametrize("kind", ["azure", "gcs-stand-in", "sftp", "rest"])
def test_wrong_credentials_are_named_and_never_shown(kind: str, peers: Peers) -> None:
    place = peers[kind].place()
    secret = "c2VjcmV0LW9mLW1pbmU="
    options, env = dict(place.options), dict(place.env)
    if isinstance(peer := peers[kind], Sshd):
        options["key-file"] = str(peer.folder / "stranger")
    for values in (options, env):
        for name in ("access-token", "AZURE_ACCOUNT_KEY", "RESTIC_REST_PASSWORD"):
            if name in values:
                values[name] = secret
    store = open_backend(place.url, options, env)
    for attempt in (
        lambda: store.get(Kind.CONFIG, "config"),
        lambda: store.put(Kind.PACK, NAME, [b"x"]),
        lambda: list(store.list(Kind.LOCK)),
    ):
        with pytest.raises(BackendError) as caught:
            attempt()
        assert not isinstance(caught.value, BackendUnavailable | ObjectMissing)
        assert secret not in caught.value.message + caught.value.hint + repr(caught.value.__cause__)
        assert "credentials" in caught.value.hint or "password" in caught.value.hint


def test_a_server_with_another_host_key_is_refused_and_its_key_shown(peers: Peers, tmp_path: Path) -> None:
    sshd = peers["sftp"]
    assert isinstance(sshd, Sshd)
    place = sshd.place()
    other = " ".join((sshd.folder / "stranger.pub").read_text().split()[:2])
    (tmp_path / "known").write_text(f"[127.0.0.1]:{sshd.port} {other}\n")
    key = {"key-file": place.options["key-file"]}
    shown = subprocess.check_output(["ssh-keygen", "-lf", str(sshd.folder / "host.pub")], text=True).split()[1]
    for pin in ({"host-key": other}, {"known-hosts": str(tmp_path / "known")}, {"host-key": "SHA256:AAAA"}, {}):
        store = open_backend(place.url, key | pin, {"HOME": str(tmp_path)})
        with pytest.raises(BackendError, match="host key") as caught:
            store.create()
        assert not isinstance(caught.value, BackendUnavailable)
        assert shown in caught.value.message
    for pin in ({"host-key": shown}, {"known-hosts": str(sshd.folder / "known_hosts")}):
        open_backend(place.url, key | pin, {"HOME": str(tmp_path)}).create()


def test_an_append_only_server_keeps_what_is_there_but_lets_locks_go(tmp_path: Path) -> None:
    rest = RcloneRest(tmp_path, "--append-only")
    try:
        store = rest.place().open()
        store.create()
        for kind in (Kind.PACK, Kind.LOCK):
            store.put(kind, NAME, [b"x"])
        with pytest.raises(BackendReadOnly, match="deleted"):
            store.delete(Kind.PACK, NAME)
        store.put(Kind.PACK, NAME, [b"x"])  # the same object once more, as after a lost answer: done
        store.delete(Kind.LOCK, NAME)
        assert store.exists(Kind.PACK, NAME)
    finally:
        rest.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        missing("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=755", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_behind_sftp_is_named_and_nothing_of_the_object_stays(peers: Peers, small_disk: Path) -> None:
    sshd = peers["sftp"]
    assert isinstance(sshd, Sshd)
    store = sshd.at(small_disk / "repo").open()
    store.create()
    with pytest.raises(BackendFull):
        store.put(Kind.PACK, NAME, [os.urandom(4 << 20)])
    assert [p for p in small_disk.rglob("*") if p.is_file()] == []
    store.put(Kind.PACK, NAME, [b"small"])
    store.close()


def test_what_sftp_says_of_a_read_only_mount_and_of_one_that_is_gone(peers: Peers, small_disk: Path) -> None:
    sshd = peers["sftp"]
    assert isinstance(sshd, Sshd)
    store = sshd.at(small_disk / "repo").open()
    store.create()
    store.put(Kind.INDEX, NAME, [b"x"])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(BackendError):
        store.put(Kind.PACK, NAME, [b"x"])
    assert store.get(Kind.INDEX, NAME) == b"x"
    store.close()


def test_after_a_restart_of_the_ssh_server_the_run_goes_on(peers: Peers, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    sshd = Sshd(tmp_path / "own")
    try:
        store = sshd.place().open()
        store.create()
        store.put(Kind.PACK, NAME, [b"x"])
        sshd.stop()
        sshd.start()
        assert store.get(Kind.PACK, NAME) == b"x"
        store.close()
    finally:
        sshd.stop()


def test_two_processes_of_one_store_do_not_share_a_connection(peers: Peers) -> None:
    store = peers["sftp"].place().open()
    store.create()
    store.put(Kind.PACK, NAME, [b"x"])
    child = os.fork()
    if child == 0:
        os._exit(0 if store.get(Kind.PACK, NAME) == b"x" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.get(Kind.PACK, NAME) == b"x"
    store.close()


def test_an_s3_key_that_lacks_its_half_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match="half"):
        open_backend("s3:https://host/bucket", env={"AWS_ACCESS_KEY_ID": "k"})
