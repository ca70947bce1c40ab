from __future__ import annotations

import ipaddress
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from apps.inventory import enrolment
from brs import pki


@pytest.fixture(autouse=True)
def known_names(settings) -> None:
    settings.BRS_PUBLIC_URL = "https://backup.example.org:8443"
    settings.ALLOWED_HOSTS = ["backup.example.org", "[::1]", ".inside.example", "*"]


def alternatives() -> x509.SubjectAlternativeName:
    return pki.server_certificate().extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """Both ends in memory; returns the client's."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for side in (one, other):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
        if len(done) == 2:
            return one
    raise AssertionError("no handshake")


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(pki.server_file().with_name("ca.pem")))


def test_a_client_that_trusts_the_ca_reaches_the_server_by_every_name_of_it() -> None:
    pki.ensure()
    for name in ("backup.example.org", "localhost", "127.0.0.1", "::1"):
        handshake(pki.RunningContext().context, trusting(), name)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pki.RunningContext().context, trusting(), "elsewhere.example.org")
    assert x509.IPAddress(ipaddress.ip_address("::1")) in alternatives()
    assert x509.DNSName("*") not in alternatives()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_tls_below_1_2_is_refused() -> None:
    pki.ensure()
    assert pki.RunningContext().context.minimum_version >= ssl.TLSVersion.TLSv1_2
    old = trusting()
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        handshake(pki.RunningContext().context, old, "localhost")


def test_certificates_are_valid_for_a_node_whose_clock_is_a_day_behind() -> None:
    now = datetime(2030, 1, 10, tzinfo=UTC)
    pki.ensure(now=now)
    ca = x509.load_pem_x509_certificate(pki.server_file().with_name("ca.pem").read_bytes())
    for certificate in (pki.server_certificate(), ca):
        assert certificate.not_valid_before_utc <= now - timedelta(days=2)


def test_private_keys_are_readable_by_their_owner_only() -> None:
    pki.ensure()
    for name in ("ca.key", "server.pem"):
        assert stat.S_IMODE(pki.server_file().with_name(name).stat().st_mode) == 0o600


def test_a_good_certificate_is_kept_and_one_near_its_end_renewed_under_the_same_ca() -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    assert pki.ensure(now=start)
    fingerprint, first = pki.ca_fingerprint(), pki.server_certificate().serial_number
    assert not pki.ensure(now=start + timedelta(days=59))
    assert pki.server_certificate().serial_number == first
    assert pki.ensure(now=start + timedelta(days=61))
    assert pki.server_certificate().serial_number != first
    assert pki.ca_fingerprint() == fingerprint


def test_a_new_public_name_brings_a_new_certificate(settings) -> None:
    pki.ensure()
    settings.BRS_PUBLIC_URL = "https://moved.example.org"
    assert pki.ensure()
    assert x509.DNSName("moved.example.org") in alternatives()


@pytest.mark.parametrize("junk", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_damaged_certificate_is_replaced(junk: bytes) -> None:
    pki.ensure()
    pki.server_file().write_bytes(junk)
    assert pki.ensure()
    handshake(pki.RunningContext().context, trusting(), "localhost")


def test_a_new_ca_replaces_the_servers_certificate_too() -> None:
    pki.ensure()
    before = pki.ca_fingerprint()
    old = trusting()
    pki.ensure(new_ca=True)
    assert pki.ca_fingerprint() != before
    handshake(pki.RunningContext().context, trusting(), "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pki.RunningContext().context, old, "localhost")


def test_a_running_context_takes_up_the_renewed_certificate() -> None:
    pki.ensure()
    running = pki.RunningContext()

    def served() -> int:
        seen = handshake(running.context, trusting(), "localhost").getpeercert(binary_form=True)
        assert seen is not None
        return x509.load_der_x509_certificate(seen).serial_number

    before = served()
    assert not running.refresh()
    pki.ensure(force=True)
    assert running.refresh()
    assert served() == pki.server_certificate().serial_number != before


def test_two_that_start_at_once_make_one_authority() -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: (pki.ensure(), found.append(pki.ca_fingerprint()))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1


def test_the_code_for_a_node_carries_the_same_fingerprint() -> None:
    pki.ensure()
    assert enrolment.ca_fingerprint() == pki.ca_fingerprint()
    pem = enrolment.ca_pem()
    assert pem.startswith("-----BEGIN CERTIFICATE-----")
    assert "PRIVATE" not in pem
