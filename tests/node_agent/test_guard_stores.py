"""Which remote stores a node lets the server use: decided by where the data would really go."""

from __future__ import annotations

import pytest

from node_agent.config import RootsConfig
from node_agent.errors import RefusedError
from node_agent.guard import Guard, place_of


@pytest.mark.parametrize(
    ("url", "options", "place"),
    [
        ("sftp:joe@host.example:/srv/backup/t", {}, "sftp:host.example/srv/backup/t"),
        ("sftp:host:backup", {}, "sftp:host/~/backup"),
        ("sftp://joe@host:2222//srv/x", {}, "sftp:host:2222/srv/x"),
        ("sftp://host:22//srv/x", {}, "sftp:host/srv/x"),
        ("s3:https://S3.example/bucket/brs/t", {}, "s3:s3.example/bucket/brs/t"),
        ("s3:s3.amazonaws.com/bucket", {}, "s3:s3.amazonaws.com/bucket"),
        ("rest:https://host:8000/t/", {}, "rest:host:8000/t"),
        ("azure:box:/brs/t", {"account-name": "acc"}, "azure:acc.blob.core.windows.net/box/brs/t"),
        ("azure:box:/t", {"account-name": "acc", "endpoint": "http://evil:1/acc"}, "azure:evil:1/acc/box/t"),
        ("azure:box:/t", {"account-name": "a", "endpoint-suffix": "evil.example"}, "azure:a.blob.evil.example/box/t"),
        ("gs:bucket:/t", {}, "gs:storage.googleapis.com/bucket/t"),
        ("gs:bucket:/t", {"endpoint": "https://evil.example"}, "gs:evil.example/bucket/t"),
    ],
)
def test_a_place_is_where_the_data_goes(url, options, place):
    assert place_of(url, options) == place
    Guard(RootsConfig(stores=[place])).repository(url, options)
    with pytest.raises(RefusedError):
        Guard(RootsConfig()).repository(url, options)


@pytest.mark.parametrize(
    "url",
    [
        "s3:https://good.example/bucket2/x",
        "s3:https://good.example.evil/bucket/x",
        "s3:https://good.example:8443/bucket/x",
        "s3:https://good.example@evil.example/bucket/x",
        "s3:https://good.example/bucket/../other",
        "s3:https://good.example/bucket/%2e%2e/other",
        "s3:https:///bucket/x",
        "s3:https://good.example\\@evil/bucket",
        "sftp:good.example:/bucket",
        "rest:https://good.example/bucket",
        "azure:bucket:/x",
        "gs:good.example/bucket",
        "sftp://good.example:nonsense//x",
    ],
)
def test_what_only_looks_like_an_allowed_place_is_refused(url):
    guard = Guard(RootsConfig(stores=["s3:good.example/bucket"]))
    guard.repository("s3:https://good.example/bucket/x", {})
    with pytest.raises(RefusedError):
        guard.repository(url, {})


def test_a_kind_alone_allows_every_place_of_it():
    guard = Guard(RootsConfig(stores=["s3:"]))
    guard.repository("s3:https://any.example/bucket", {})
    with pytest.raises(RefusedError, match="not among the stores"):
        guard.repository("sftp:any.example:/x", {})


@pytest.mark.parametrize(
    "options",
    [
        {"credentials-file": "/root/.aws/credentials"},
        {"key-file": "/root/.ssh/id_ed25519"},
        {"known-hosts": "/tmp/x"},
        {"profile": "other"},
        {"proxy": "http://evil.example"},
        {"cacert": "/etc/shadow"},
    ],
)
def test_the_server_names_no_files_of_the_node_and_no_proxies(options):
    with pytest.raises(RefusedError, match="takes no option"):
        Guard(RootsConfig(stores=["s3:"])).repository("s3:https://any.example/bucket", options)


@pytest.mark.parametrize("wrong", ["s3", "ftp:host", "s3:user@host/bucket", "/srv", "s3:host bucket"])
def test_a_wrong_entry_stops_the_start(wrong):
    with pytest.raises(ValueError, match="must be a kind"):
        RootsConfig(stores=[wrong])
