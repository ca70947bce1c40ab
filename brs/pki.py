"""The server's own certificate authority and its certificate.

Files in ``settings.PKI_DIR``: ``ca.pem`` (what nodes and browsers trust), ``ca.key``, and ``server.pem`` with key,
certificate and chain in one, so that a renewal swaps them together by one rename. Certificates begin two days
ago: a node whose clock is behind would fail at TLS before anybody could tell it so. The server's own is good for
90 days and renewed 30 days before its end, or when the names change that it has to bear.
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import os
import secrets
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from django.conf import settings

BACKDATE = timedelta(days=2)
CA_LIFE = timedelta(days=365 * 20)
SERVER_LIFE = timedelta(days=90)
RENEW_BEFORE = timedelta(days=30)


def ensure(*, force: bool = False, new_ca: bool = False, now: datetime | None = None) -> bool:
    """Makes what is missing and renews the server's certificate when it is due (``force``: in any case).
    ``new_ca`` starts over with another authority: every node must then enrol anew. True when it wrote one."""
    now = now or datetime.now(UTC)
    with _locked():
        if new_ca or not (_ca_file().exists() and _ca_key_file().exists()):
            _make_ca(now)
            force = True
        if not force and not _is_due(now):
            return False
        _make_server(now)
        return True


def ca_fingerprint() -> str:
    """SHA-256 of the CA's certificate in DER form, as nodes pin it."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(_ca_file().read_text("ascii"))).hexdigest()


def server_file() -> Path:
    return settings.PKI_DIR / "server.pem"


def server_certificate() -> x509.Certificate:
    return x509.load_pem_x509_certificate(server_file().read_bytes())


class RunningContext:
    """A TLS context that takes up a renewed certificate: new connections get it, those that are open go on."""

    def __init__(self) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
        self._loaded = 0
        self.refresh()

    def refresh(self) -> bool:
        """Loads the certificate if its file has changed since."""
        changed = server_file().stat().st_mtime_ns
        if changed == self._loaded:
            return False
        self.context.load_cert_chain(server_file())
        self._loaded = changed
        return True


def names() -> list[str]:
    """The names and addresses by which the server may be called."""
    wanted = [urlsplit(settings.BRS_PUBLIC_URL).hostname or "", *settings.ALLOWED_HOSTS]
    plain = [name.strip("[]").lstrip(".") for name in [*wanted, "localhost", "127.0.0.1", "::1"]]
    return list(dict.fromkeys(name for name in plain if name and "*" not in name))


def _ca_file() -> Path:
    return settings.PKI_DIR / "ca.pem"


def _ca_key_file() -> Path:
    return settings.PKI_DIR / "ca.key"


@contextmanager
def _locked() -> Iterator[None]:
    """One at a time, over all processes: two that start together must not make two authorities."""
    settings.PKI_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (settings.PKI_DIR / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_due(now: datetime) -> bool:
    try:
        certificate = server_certificate()
        ca = x509.load_pem_x509_certificate(_ca_file().read_bytes())
        certificate.verify_directly_issued_by(ca)
        bears = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return True  # none, none that can be read, or another authority's
    return now > certificate.not_valid_after_utc - RENEW_BEFORE or not set(_alternatives()) <= set(bears)


def _make_ca(now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"BRS CA {secrets.token_hex(4)}")])
    certificate = (
        _builder(name, name, key.public_key(), now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(_ca_key_file(), _key_pem(key), 0o600)
    _write(_ca_file(), certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _make_server(now: datetime) -> None:
    ca = x509.load_pem_x509_certificate(_ca_file().read_bytes())
    ca_key = serialization.load_pem_private_key(_ca_key_file().read_bytes(), password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{_ca_key_file()} holds a key of another kind than BRS makes")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names()[0][:64])])
    certificate = (
        _builder(name, ca.subject, key.public_key(), now, SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternatives()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    chain = certificate.public_bytes(serialization.Encoding.PEM) + ca.public_bytes(serialization.Encoding.PEM)
    _write(server_file(), _key_pem(key) + chain, 0o600)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + life)
    )


def _usage(**wanted: bool) -> x509.KeyUsage:
    kinds = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{kind: wanted.get(kind, False) for kind in kinds})


def _alternatives() -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names():
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(file: Path, content: bytes, mode: int) -> None:
    """Complete or not at all, and never readable by others for a moment."""
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as new:
        new.write(content)
        new.flush()
        os.fsync(new.fileno())
    fresh.rename(file)
