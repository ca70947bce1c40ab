from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.poly1305 import Poly1305
from hypothesis import given
from hypothesis import strategies as st

from node_agent.repository.crypto import (
    OVERHEAD,
    OWN_SCRYPT,
    Key,
    ScryptParams,
    Unauthenticated,
    key_from_password,
)

KEY = Key.random()


@given(st.binary(max_size=5000))
def test_what_is_sealed_opens_again(message: bytes) -> None:
    sealed = KEY.seal(message)
    assert len(sealed) == len(message) + OVERHEAD
    assert KEY.open(sealed) == message


@given(st.binary(min_size=1, max_size=200), st.data())
def test_any_flipped_bit_is_noticed(message: bytes, data: st.DataObject) -> None:
    sealed = KEY.seal(message)
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Unauthenticated):
        KEY.open(sealed)


@given(st.binary(max_size=100), st.data())
def test_any_cut_is_noticed(message: bytes, data: st.DataObject) -> None:
    sealed = KEY.seal(message)
    with pytest.raises(Unauthenticated):
        KEY.open(sealed[: data.draw(st.integers(0, len(sealed) - 1))])


def test_another_key_opens_nothing() -> None:
    with pytest.raises(Unauthenticated):
        Key.random().open(KEY.seal(b"secret"))


def test_two_seals_of_one_message_differ() -> None:
    assert KEY.seal(b"same") != KEY.seal(b"same")


def test_the_tag_is_poly1305_aes_of_the_paper() -> None:
    """First vector of appendix B of Bernstein's paper."""
    key = Key(
        encrypt=b"e" * 32,
        mac_k=bytes.fromhex("ec074c835580741701425b623235add6"),
        mac_r=bytes.fromhex("851fc40c3467ac0be05cc20404f3f700"),
    )
    one_time = key._one_time_key(bytes.fromhex("fb447350c4e868c52ac3275cf9d4327e"))
    assert one_time[16:] == bytes.fromhex("580b3b0f9447bb1e69d095b5928b6dbc")
    assert Poly1305.generate_tag(one_time, b"\xf3\xf6") == bytes.fromhex("f4c633c3044fc145f84f335cb81953de")


def test_a_key_survives_its_json() -> None:
    assert Key.from_json(KEY.to_json()) == KEY


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"mac":{"k":"","r":""},"encrypt":""}', b"\xff"])
def test_what_is_no_key_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        Key.from_json(content)


def test_a_password_always_yields_the_same_key_with_our_own_parameters() -> None:
    first = key_from_password("pass", b"s" * 64, OWN_SCRYPT)
    assert first == key_from_password("pass", b"s" * 64, OWN_SCRYPT)
    assert first != key_from_password("Pass", b"s" * 64, OWN_SCRYPT)


@pytest.mark.parametrize(
    "params",
    [
        ScryptParams(1 << 30, 8, 1),  # 1 TiB of memory
        ScryptParams(1 << 15, 8, 1 << 20),  # days
        ScryptParams(1 << 15, 1 << 20, 1),
        ScryptParams(3, 8, 1),
        ScryptParams(0, 8, 1),
        ScryptParams(1024, 0, 1),
        ScryptParams(1024, 8, -1),
    ],
)
def test_scrypt_parameters_that_ask_for_too_much_or_make_no_sense_are_refused(params: ScryptParams) -> None:
    with pytest.raises(ValueError):
        key_from_password("pass", b"s" * 64, params)


def test_a_key_does_not_show_itself_in_a_log() -> None:
    assert repr(KEY) == "Key()"


def test_derived_secrets_differ_by_purpose_and_key() -> None:
    assert KEY.derive("a") != KEY.derive("b")
    assert KEY.derive("a") != Key.random().derive("a")


def test_messages_that_are_sealed_together_open_each_for_itself() -> None:
    key = Key.random()
    plains = [b"one", b"", os.urandom(5000), b"one"]
    sealed = key.seal_each(plains)
    opened, nonces, at = [], set(), 0
    for plain in plains:
        part = sealed[at : at + len(plain) + OVERHEAD]
        nonces.add(bytes(part[:16]))
        opened.append(key.open(part))
        at += len(part)
    assert (opened, at) == (plains, len(sealed))
    assert len(nonces) == len(plains)
