"""Addresses, options, secrets, bandwidth: what can be told without a server."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from node_agent.errors import BackendUnavailable, BrsError, ConfigError
from node_agent.repository.backend import Kind, open_backend, redacted
from node_agent.repository.backend.limits import Bandwidth, LimitedBackend, bandwidth_of
from node_agent.repository.backend.s3 import _parse
from node_agent.repository.backend.settings import Settings, parse_size
from node_agent.repository.backend.sftp_login import login_of
from tests.contracts.backend_peers import ROOT

NAME = "ab" * 32
NOON = datetime(2026, 5, 18, 12, 0)
S3 = {"AWS_ACCESS_KEY_ID": "the-key-id", "AWS_SECRET_ACCESS_KEY": "the-secret"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/srv/x", "local:/srv/x"),
        ("local:/srv/x", "local:/srv/x"),
        ("s3:https://h:9000/b/p/q/", "s3:https://h:9000/b/p/q"),
        ("s3:h/b", "s3:https://h/b"),
        ("s3://h/b/p", "s3:https://h/b/p"),
        ("s3:s3.amazonaws.com/b", "s3:https://s3.amazonaws.com/b"),
        ("azure:c:/p", "azure:c:/p"),
        ("gs:b:/p/", "gs:b:/p"),
        ("rest:https://u:p%40ss@h:8000/a/", "rest:https://h:8000/a/"),
        ("rest:http://h/", "rest:http://h/"),
        ("sftp:joe@h:/srv/x", "sftp:joe@h:/srv/x"),
        ("sftp:h:rel/x/", "sftp:h:rel/x"),
        ("sftp://joe@h:2222//srv/x", "sftp://joe@h:2222//srv/x"),
        ("sftp://joe@[::1]:2222//srv/x", "sftp://joe@[::1]:2222//srv/x"),
        ("sftp://joe@h/rel/x", "sftp:joe@h:rel/x"),
    ],
)
def test_addresses_are_understood_as_restic_does(url: str, shown: str) -> None:
    env = S3 | {"AZURE_ACCOUNT_NAME": "a", "AZURE_ACCOUNT_KEY": "aaaa", "GOOGLE_ACCESS_TOKEN": "t"}
    store = open_backend(url, env=env)
    assert store.url == shown
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp:host/x",
        "s3:",
        "s3:https://host",
        "s3:https://key:secret@host/b",
        "azure:c",
        "azure::/p",
        "gs:b",
        "rest:host/x",
        "sftp:host",
        "sftp:host/path",
        "sftp:joe@h:~/x",
        "sftp://joe:secret@h/x",
        "sftp://h:port/x",
    ],
)
def test_an_address_that_is_none_is_refused_with_advice_and_without_its_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_backend(url, env=S3 | {"AZURE_ACCOUNT_NAME": "a"})
    assert caught.value.hint and "secret" not in caught.value.message


def test_a_path_in_sftp_is_relative_or_absolute_as_in_restic() -> None:
    for address, path in (("//h/a/b", "a/b"), ("//h//a/b", "/a/b"), ("h:/a/../b", "/b"), ("h:a", "a")):
        assert login_of(address, Settings("sftp", {}, {})).path == path


def test_an_amazon_address_keeps_bucket_and_prefix() -> None:
    assert _parse("s3.eu-central-1.amazonaws.com/b/p/q") == ("https", "s3.eu-central-1.amazonaws.com", "b", "p/q")


def test_a_misspelt_option_is_refused_and_options_may_carry_the_kind() -> None:
    with pytest.raises(ConfigError, match="conections"):
        open_backend("s3:https://h/b", {"conections": "3"}, S3)
    with pytest.raises(ConfigError, match="region"):
        open_backend("/srv/x", {"region": "x"}, {})
    open_backend("s3:https://h/b", {"s3.connections": "3", "s3.region": "eu-1", "timeout": "10"}, S3)
    for bad in ("0", "-1", "x"):
        with pytest.raises(ConfigError, match="connections"):
            open_backend("s3:https://h/b", {"connections": bad}, S3)


def test_secrets_come_from_a_profile_and_its_damage_does_not_quote_it(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n[half]\naws_access_key_id = a\n")
    env = {"AWS_SHARED_CREDENTIALS_FILE": str(file)}
    open_backend("s3:https://h/b", env=env)
    with pytest.raises(ConfigError, match="half"):
        open_backend("s3:https://h/b", env=env | {"AWS_PROFILE": "half"})
    file.write_text("the-secret without a section\n")
    with pytest.raises(ConfigError) as caught:
        open_backend("s3:https://h/b", env=env)
    assert "the-secret" not in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rest:https://joe:pa55@host/x", "rest:https://***@host/x"),
        ("GET https://a.blob.core.windows.net/c?sv=1&sig=abc failed", "GET https://a.blob.core.windows.net/c?… failed"),
        ("s3:https://host/b/p", "s3:https://host/b/p"),
        ("sftp:joe@host:/x", "sftp:joe@host:/x"),
    ],
)
def test_secrets_are_taken_out_of_addresses_in_any_text(text: str, expected: str) -> None:
    assert redacted(text) == expected


@pytest.mark.parametrize("url", ["rest:http://joe:pa55word@127.0.0.1:1/x/", "azure:c:/p", "s3:http://127.0.0.1:1/b"])
def test_no_error_of_an_unreachable_store_holds_a_secret(url: str) -> None:
    env = S3 | {"AZURE_ACCOUNT_NAME": "a", "AZURE_ACCOUNT_SAS": "sv=1&sig=pa55word"}
    options = {"retry-seconds": "0"} | ({"endpoint": "http://127.0.0.1:1/a"} if url.startswith("azure") else {})
    store = open_backend(url, options, env)
    for attempt in (lambda: store.get(Kind.CONFIG, "config"), lambda: list(store.list(Kind.PACK)), store.now):
        with pytest.raises(BackendUnavailable) as caught:
            attempt()
        error: BaseException | None = caught.value
        while error is not None:
            assert "pa55word" not in f"{error} {error!r} {getattr(error, 'hint', '')}"
            error = error.__cause__
    assert "pa55word" not in store.url


def test_the_libraries_of_remote_stores_are_not_loaded_for_a_folder() -> None:
    code = "import sys, node_agent.repository.backend as b; b.open_backend('/srv/x'); print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    assert not {"obstore", "paramiko", "httpx"} & set(loaded)


# --- bandwidth and connections ---


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("500K", 500 << 10), ("20M", 20 << 20), ("1.5G", 3 << 29), ("2MiB/s", 2 << 20)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def _bandwidth(**options: str) -> Bandwidth:
    return bandwidth_of(Settings("s3", {name.replace("_", "-"): value for name, value in options.items()}, {}))


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-05-18 07:59", (10 << 20, 0)),  # a Monday
        ("2026-05-18 08:00", (1 << 20, 2 << 20)),
        ("2026-05-18 17:59", (1 << 20, 2 << 20)),
        ("2026-05-18 18:00", (10 << 20, 0)),
        ("2026-05-16 12:00", (10 << 20, 0)),  # a Saturday
        ("2026-05-18 23:00", (0, 0)),
        ("2026-05-19 05:59", (0, 0)),
        ("2026-05-19 06:00", (10 << 20, 0)),
    ],
)
def test_limits_follow_the_time_of_day(moment: str, expected: tuple[int, int]) -> None:
    bandwidth = _bandwidth(limit_upload="10M", limit_windows="mon-fri 08:00-18:00=1M/2M, 22:00-06:00=0")
    assert bandwidth.at(datetime.fromisoformat(moment)) == expected


@pytest.mark.parametrize(
    "text", ["8-18=1M", "xyz 08:00-18:00=1M", "08:00-25:00=1M", "08:00-18:00=fast", "08:60-09:00=1"]
)
def test_a_window_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="bandwidth"):
        _bandwidth(limit_windows=text)


class Line:
    """A clock that waiting and nothing else moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False


def _limited(folder: Path, line: Line, bandwidth: Bandwidth, connections: int = 4) -> LimitedBackend:
    store = open_backend(str(folder / "store"))
    store.create()
    return LimitedBackend(
        store,
        connections=connections,
        bandwidth=bandwidth,
        clock=lambda: line.now,
        wait=line.wait,
        local_time=lambda: NOON + timedelta(seconds=line.now),
    )


def test_transfers_keep_to_the_limit_of_their_direction(tmp_path: Path) -> None:
    line = Line()
    store = _limited(tmp_path, line, Bandwidth(upload=1000, download=4000))
    for number in range(10):
        store.put(Kind.PACK, f"{number:064x}", [b"x" * 1000])
    assert 8.5 <= line.now <= 10.0
    line.now = 100.0
    for number in range(10):
        store.get(Kind.PACK, f"{number:064x}")
    assert 2.0 <= line.now - 100 <= 2.6


def test_a_lock_never_waits_for_bandwidth(tmp_path: Path) -> None:
    line = Line()
    store = _limited(tmp_path, line, Bandwidth(upload=1, download=1))
    store.put(Kind.PACK, NAME, [b"x" * 1000])
    store.put(Kind.LOCK, NAME, [b"x" * 1000])
    store.get(Kind.LOCK, NAME)
    assert line.now == 0.0


def test_somebody_who_waits_notices_that_the_limit_was_lifted(tmp_path: Path) -> None:
    line = Line()
    store = _limited(tmp_path, line, _bandwidth(limit_windows="11:00-12:01=1"))
    store.put(Kind.PACK, NAME, [b"x" * 1_000_000])
    store.put(Kind.PACK, "cd" * 32, [b"x"])  # would wait for eleven days
    assert 60 <= line.now <= 61


def test_no_more_connections_than_allowed_are_used_at_once(tmp_path: Path) -> None:
    store = _limited(tmp_path, Line(), Bandwidth(), connections=2)
    running, most, gate = [0], [0], threading.Lock()
    both_in = threading.Barrier(2, timeout=30)
    real = store.inner.stat

    def stat(kind: Kind, name: str) -> object:
        with gate:
            running[0] += 1
            most[0] = max(most[0], running[0])
        both_in.wait()
        with gate:
            running[0] -= 1
        return real(kind, name)

    store.inner.stat = stat  # type: ignore[method-assign, assignment]
    threads = [threading.Thread(target=lambda: _quietly(store)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2


def _quietly(store: LimitedBackend) -> None:
    try:
        store.stat(Kind.PACK, NAME)
    except BrsError:
        return


def test_the_store_may_be_used_while_its_listing_is_read(tmp_path: Path) -> None:
    store = _limited(tmp_path, Line(), Bandwidth(), connections=1)
    for number in range(3):
        store.put(Kind.INDEX, f"{number:064x}", [b"x"])
    assert [store.get(Kind.INDEX, info.name) for info in store.list(Kind.INDEX)] == [b"x"] * 3
