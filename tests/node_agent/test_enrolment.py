"""Becoming a node: the code pins the server's CA; every way it can go wrong says what to do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from node_agent.cli import main
from tests.node_agent.certificates import Authority
from tests.node_agent.nodes import Place
from tests.node_agent.server_double import ServerDouble


def enroll(place: Place, server: str, code: str, *more: str) -> int:
    return main(["enroll", "--server", server, "--code", code, "--state", str(place.state), *more])


def test_enrolment_pins_the_ca_and_keeps_the_token_private(
    server: ServerDouble, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enroll(place, server.url, server.code, "--name", "rack 7", "--label", "zone:a") == 0
    assert "rack 7" in capsys.readouterr().out
    assert (place.state / "ca.pem").read_text() == server.authority.pem
    assert (place.state / "token").read_text() == server.node_tokens[0]
    for name in ("ca.pem", "token", "node.json"):
        assert (place.state / name).stat().st_mode & 0o777 == 0o600
    told = server.enrolments[0]
    assert told.name == "rack 7"
    assert told.capabilities.labels == ["zone:a"]
    assert told.capabilities.roots.read == [str(place.source)]
    assert main(["status", "--json", "--state", str(place.state)]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["name"] == "rack 7" and status["running"] is False


def test_a_wrong_fingerprint_ends_before_the_code_is_shown_to_anybody(
    server: ServerDouble, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enroll(place, server.url, f"good-code.{'0' * 64}") == 1
    assert "does not show the certificate" in capsys.readouterr().err
    assert server.codes == {"good-code"}
    assert not any(b"good-code" in body for _, body in server.seen)
    assert not (place.state / "token").exists()


@pytest.mark.parametrize("code", ["good-code", "good-code.abc", ".", ""])
def test_half_a_code_is_named_as_such(
    server: ServerDouble, place: Place, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    assert enroll(place, server.url, code) == 1
    assert "not complete" in capsys.readouterr().err


def test_an_expired_code_says_to_make_a_new_one(
    server: ServerDouble, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    server.codes.clear()
    assert enroll(place, server.url, server.code) == 1
    text = capsys.readouterr().err
    assert "expired" in text and "new code" in text


def test_a_server_that_is_not_there_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert enroll(place, f"https://localhost:{port}", f"x.{'0' * 64}") == 1
    assert f"https://localhost:{port} does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["http://localhost:1", "https://", "https://h/path", "https://u:p@h", "ftp://h"])
def test_an_address_that_is_none_is_refused(place: Place, capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert enroll(place, address, f"x.{'0' * 64}") == 1
    assert "is not" in capsys.readouterr().err


@pytest.fixture
def early(authority: Authority) -> Iterator[ServerDouble]:
    authority.issue("early", valid_from=timedelta(hours=1))
    double = ServerDouble(authority, "early")
    yield double
    double.close()


def test_a_clock_that_is_behind_is_told_from_a_wrong_server(
    early: ServerDouble, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enroll(place, early.url, early.code) == 1
    text = capsys.readouterr().err
    assert "not valid yet" in text and "clock" in text


def test_a_server_of_another_authority_is_not_trusted(
    server: ServerDouble, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody in between shows the right CA but cannot show a certificate made by it."""
    other = Authority(tmp_path / "other")
    other.issue("server")
    between = ServerDouble(other)
    between.authority = server.authority
    try:
        assert enroll(place, between.url, server.code) == 1
    finally:
        between.close()
    assert "not from the authority" in capsys.readouterr().err
    assert between.enrolments == []


def test_system_trust_does_not_trust_our_own_ca(
    server: ServerDouble, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enroll(place, server.url, server.code, "--system-trust") == 1
    assert "not from the authority" in capsys.readouterr().err


def test_a_second_enrolment_needs_force(
    server: ServerDouble, enrolled: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    server.codes.add("good-code")
    left = enrolled.state / ".token-abcdefgh"
    left.write_text("half of a token, by a process that was killed")
    assert enroll(enrolled, server.url, server.code) == 1
    assert "already" in capsys.readouterr().err
    assert enroll(enrolled, server.url, server.code, "--force") == 0
    assert not left.exists()
    assert (enrolled.state / "token").read_text() == server.node_tokens[-1]


def test_running_without_enrolment_says_how_to_enrol(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--state", str(place.state)]) == 1
    assert "enroll --server" in capsys.readouterr().err


def test_proxies_and_authorities_of_the_environment_are_ignored(
    server: ServerDouble, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    assert enroll(place, server.url, server.code) == 0
