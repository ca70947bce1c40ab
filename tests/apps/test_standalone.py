"""The whole server as one process, as its operator meets it."""

from __future__ import annotations

import signal
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.lab.standalone import Standalone, standalone

pytestmark = pytest.mark.slow
WAIT_S = 60.0
STOP_S = 8.0  # promised are five; a test machine may be busy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    with standalone(tmp_path_factory.mktemp("standalone")) as running:
        yield running


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Standalone]:
    """One that the test may end."""
    with standalone(tmp_path) as running:
        yield running


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def served_serial(server: Standalone) -> int:
    context = ssl.create_default_context(cafile=str(server.data / "pki" / "ca.pem"))
    with socket.create_connection(("127.0.0.1", server.port)) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as wrapped:
            seen = wrapped.getpeercert(binary_form=True)
    assert seen is not None
    return x509.load_der_x509_certificate(seen).serial_number


def test_from_an_empty_folder_it_serves_the_admin_with_its_style_over_tls(server: Standalone) -> None:
    with server.client() as client:
        login = client.get("/", follow_redirects=True)
        assert login.status_code == 200
        assert login.url.path == "/admin/login/"
        assert "csrfmiddlewaretoken" in login.text
        assert client.get("/static/admin/css/base.css").status_code == 200
    assert stat.S_IMODE((server.data / "secret.key").stat().st_mode) == 0o600


def test_the_first_administrator_can_log_in(server: Standalone) -> None:
    made = server.manage("ensure_admin", "--username", "chief", "--generate")
    assert made.returncode == 0, made.stderr
    password = made.stdout.split()[-1]
    again = server.manage("ensure_admin", "--username", "chief", "--generate")
    assert "exists" in again.stdout
    with server.client() as client:
        client.get("/admin/login/")
        form = {"username": "chief", "password": password, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        inside = client.post("/admin/login/?next=/admin/", data=form, headers={"Referer": server.url + "/admin/login/"})
        assert (inside.status_code, inside.headers.get("location")) == (302, "/admin/")
    assert password not in server.log


@pytest.mark.parametrize("password", ["", "short", "password123"])
def test_a_weak_password_or_none_makes_no_administrator(server: Standalone, tmp_path: Path, password: str) -> None:
    file = tmp_path / "password"
    file.write_text(password + "\n")
    refused = server.manage("ensure_admin", "--username", "weak", "--password-file", str(file))
    assert refused.returncode == 1
    assert "CommandError" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_tenant_and_a_code_for_its_node_come_from_the_command_line(server: Standalone) -> None:
    assert server.manage("ensure_admin", "--username", "boss", "--generate").returncode == 0
    for _ in range(2):
        made = server.manage("create_tenant", "Blue Sky", "--owner", "boss")
        assert made.stdout.split() == ["blue-sky"], made.stderr
    code = server.manage("enrolment_code", "--tenant", "blue-sky", "--node-name", "n1")
    secret, _, fingerprint = code.stdout.strip().partition(".")
    assert len(secret) == 32
    assert len(fingerprint) == 64
    assert "blue-sky" in server.manage("enrolment_code", "--tenant", "green").stderr
    assert server.manage("create_tenant", "X", "--owner", "nobody-there").returncode != 0


def test_chores_run_from_the_start(server: Standalone) -> None:
    """Beat sends the planner's tick and the worker plans: a new schedule gets its cursor."""
    made = server.manage(
        "shell",
        "-v0",
        "-c",
        "from tests.world import make_house; print(make_house('Chores').schedule.pk)",
    )
    assert made.returncode == 0, made.stderr
    schedule = made.stdout.split()[-1]
    look = f"from apps.policies.models import Schedule; print(Schedule.objects.get(pk='{schedule}').planned_until)"
    until(
        lambda: "None" not in server.manage("shell", "-v0", "-c", look).stdout,
        f"nothing was planned:\n{server.log[-2000:]}",
    )


def test_a_second_server_on_the_same_database_says_so_and_ends(server: Standalone) -> None:
    second = server.manage("standalone", "--host", "127.0.0.1", "--port", "0")
    assert second.returncode == 1
    assert "Another server runs on this database" in second.stderr
    assert "BRS_DATA_DIR" in second.stderr
    assert server.is_ready()


def test_a_renewed_certificate_is_served_without_a_restart(server: Standalone) -> None:
    before = served_serial(server)
    assert server.manage("renew_certificates").stdout.startswith("Kept")
    assert served_serial(server) == before
    assert server.manage("renew_certificates", "--force").stdout.startswith("Made")
    until(lambda: served_serial(server) != before, "the old certificate is still served")
    assert server.is_ready()


def test_it_ends_soon_after_sigterm_though_somebody_waits_on_it(own_server: Standalone) -> None:
    with own_server.client() as client:
        client.get("/healthz")  # leaves a connection open
        status, took_s = own_server.end()
    assert (status, took_s < STOP_S) == (0, True), took_s
    assert "Traceback" not in own_server.log


def test_after_kill_9_it_starts_again_with_the_same_keys(own_server: Standalone) -> None:
    files = [own_server.data / "secret.key", own_server.data / "pki" / "ca.pem"]
    before = [file.read_bytes() for file in files]
    own_server.end(signal.SIGKILL)
    own_server.start()
    assert [file.read_bytes() for file in files] == before


def test_serve_is_for_large_installations_only(tmp_path: Path) -> None:
    alone = Standalone(tmp_path, 1)
    alone_environment = {**alone.environment(), "BRS_REDIS_URL": ""}
    alone.environment = lambda: alone_environment  # type: ignore[method-assign]
    refused = alone.manage("serve", "--port", "0")
    assert refused.returncode == 1
    assert "manage.py standalone" in refused.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("BRS_DATABASE_URL", "mysql://x"), ("BRS_LEASE_TTL_S", "soon"), ("BRS_DEBUG", "perhaps")],
)
def test_a_wrong_variable_is_named_at_the_start(tmp_path: Path, name: str, value: str) -> None:
    odd = Standalone(tmp_path, 1)
    environment = {**odd.environment(), name: value}
    odd.environment = lambda: environment  # type: ignore[method-assign]
    refused = odd.manage("check")
    assert refused.returncode == 1
    assert name in refused.stderr
    assert "Traceback" not in refused.stderr
