"""Certificates of an own authority, at each kind of store that speaks HTTPS: given, not given, and not looked at."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node_agent.errors import BackendError, BackendUnavailable
from node_agent.repository.backend import Kind
from tests.contracts.backend_peers import Peers, Place, RcloneRest, needed
from tests.contracts.tls_front import TlsFront

NAME = "ab" * 32


@dataclass(frozen=True)
class Authority:
    """One with a certificate that it made for this machine: they must be two, the library of S3 (rustls) insists."""

    own: Path
    made: Path
    key: Path


def _authority(folder: Path) -> Authority:
    needed("openssl")
    own, own_key, made, key = (folder / name for name in ("own.pem", "own-key.pem", "made.pem", "key.pem"))
    common = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    for command in (
        f"{common} -subj /CN=brs-authority -keyout {own_key} -out {own}",
        f"{common} -subj /CN=brs-test -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
        f" -CA {own} -CAkey {own_key} -keyout {key} -out {made}",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)
    return Authority(own, made, key)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return _authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["s3", "s3-locked", "azure", "gcs-stand-in", "rest"])
def place(request: pytest.FixtureRequest, peers: Peers, authority: Authority) -> Iterator[Place]:
    """Behind TLS, as it is at every real store."""
    peer = peers[request.param.removesuffix("-locked")]
    front = TlsFront(peer.port, authority.made, authority.key)
    found = peer.place()
    old, new = f"http://127.0.0.1:{peer.port}", f"https://127.0.0.1:{front.port}"
    options = {name: value.replace(old, new) for name, value in found.options.items()}
    if request.param == "s3-locked":
        options |= {"object-lock": "compliance", "object-lock-days": "1"}
    yield dataclasses.replace(found, url=found.url.replace(old, new), options=options)
    front.close()


def _use(place: Place, **options: str) -> None:
    store = place.open(retry_seconds="0", **options)
    try:
        if store.object_lock is not None:  # what does not go through the library of the others
            store.object_lock.now()
        store.put(Kind.LOCK, NAME, [b"x"])
        assert store.get(Kind.LOCK, NAME) == b"x"
        assert [info.name for info in store.list(Kind.LOCK)] == [NAME]
        store.delete(Kind.LOCK, NAME)
    finally:
        store.close()


def test_a_certificate_of_an_own_authority_is_trusted_only_when_it_is_given(place: Place, authority: Authority) -> None:
    with pytest.raises(BackendError, match="not trusted") as caught:
        _use(place)
    assert not isinstance(caught.value, BackendUnavailable) and "cacert" in caught.value.hint
    _use(place, cacert=str(authority.own))
    _use(place, insecure_tls="yes")


def test_another_authority_than_the_given_one_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="not trusted"):
        _use(place, cacert=str(_authority(tmp_path).own))


def test_the_command_line_takes_both_options_for_each_kind(place: Place, authority: Authority) -> None:
    if "object-lock" in place.options:
        return  # moto does not lock
    for more, code in ((["--cacert", str(authority.own)], 0), (["--insecure-tls"], 0), ([], 1)):
        options = [part for name, value in place.options.items() for part in ("--option", f"{name}={value}")]
        command = [sys.executable, "-m", "node_agent", "repo", "--repo", place.url, *options, *more, "--no-cache"]
        done = subprocess.run(
            [*command, "--option", "retry-seconds=0", "snapshots"],
            env={"PATH": "/usr/bin:/bin", "RESTIC_PASSWORD": "x", **place.env},
            capture_output=True,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
            check=False,
        )
        if code:
            assert done.returncode == 1 and "not trusted" in done.stderr, done.stderr
        else:
            assert done.returncode == 10 and "no repository" in done.stderr.lower(), done.stderr


def test_rclone_with_a_certificate_of_its_own(tmp_path: Path, authority: Authority) -> None:
    """A real server's own TLS, besides the front of these tests."""
    rest = RcloneRest(tmp_path, "--cert", str(authority.made), "--key", str(authority.key), scheme="https")
    try:
        _use(rest.place(), cacert=str(authority.own))
        _use(rest.place(), insecure_tls="yes")
    finally:
        rest.stop()
