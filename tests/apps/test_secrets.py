from __future__ import annotations

import pytest

from apps.errors import Unsealable
from apps.iam import secrets
from apps.iam.models import Secret
from tests.world import World


def test_what_was_sealed_opens_again_and_differs_each_time() -> None:
    sealed = secrets.seal("pässwörd")
    assert secrets.unseal(sealed) == "pässwörd"
    assert secrets.unseal(memoryview(sealed)) == "pässwörd"
    assert "pässwörd".encode() not in sealed
    assert sealed != secrets.seal("pässwörd")


def test_another_server_key_is_told_apart_from_damage(settings) -> None:
    sealed = secrets.seal("value")
    with pytest.raises(Unsealable) as damaged:
        secrets.unseal(sealed[:-1] + bytes([sealed[-1] ^ 1]))
    assert damaged.value.error_code == "secret-damaged"
    settings.SECRET_KEY = "another key"
    with pytest.raises(Unsealable) as other:
        secrets.unseal(sealed)
    assert other.value.error_code == "sealed-with-another-key"
    assert "BRS_SECRET_KEY" in other.value.hint


@pytest.mark.parametrize("junk", [b"", b"\x01", b"\x02" * 60, b"plain text"])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(Unsealable):
        secrets.unseal(junk)


def test_an_earlier_key_still_opens_what_it_sealed(settings) -> None:
    sealed = secrets.seal("value")
    settings.SECRET_KEY_FALLBACKS = ["older", settings.SECRET_KEY]
    settings.SECRET_KEY = "the next key"
    assert secrets.unseal(sealed) == "value"
    assert secrets.unseal(secrets.seal("new")) == "new"


def test_a_kept_secret_is_not_readable_in_the_database(world: World) -> None:
    kept = secrets.keep(world.alpha.tenant, "test", "canary-42")
    stored = Secret.objects.get(pk=kept.pk)
    assert b"canary-42" not in bytes(stored.sealed)
    assert secrets.reveal(stored) == "canary-42"
    assert "canary" not in repr(stored) + str(stored)


def test_keys_for_different_purposes_differ() -> None:
    assert secrets.derive("a") != secrets.derive("b")
    assert len(secrets.derive("a")) == 32
