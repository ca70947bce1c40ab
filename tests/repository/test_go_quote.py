from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.repository.go_quote import decode_name, encode_name

# What Go's strconv.Quote gives, without its quotes.
KNOWN = [
    (b"plain name.txt", "plain name.txt"),
    (b'with "quotes"', 'with \\"quotes\\"'),
    (b"back\\slash", "back\\\\slash"),
    (b"a\nb\tc\rd\x07\x08\x0b\x0c", "a\\nb\\tc\\rd\\a\\b\\v\\f"),
    (b"\x01\x1f\x7f", "\\x01\\x1f\\x7f"),
    ("é日😀".encode(), "é日😀"),
    (b"\xff\xfe", "\\xff\\xfe"),
    (b"caf\xe9", "caf\\xe9"),
    ("\u200b".encode(), "\\u200b"),  # zero width space is not printable
    ("\u00a0".encode(), "\\u00a0"),  # of all spaces only the ASCII one is
    ("\ufffd".encode(), "\ufffd"),  # a real replacement character is not an error
    ("\U000e0001".encode(), "\\U000e0001"),
    (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),  # a surrogate is no UTF-8
]


@pytest.mark.parametrize(("name", "quoted"), KNOWN)
def test_known_names_are_quoted_as_go_does(name: bytes, quoted: str) -> None:
    assert encode_name(name) == quoted
    assert decode_name(quoted) == name


@given(st.binary(min_size=1, max_size=60))
def test_every_name_survives(name: bytes) -> None:
    assert decode_name(encode_name(name)) == name


@given(st.text(min_size=1, max_size=40))
def test_every_text_survives(text: str) -> None:
    name = text.encode("utf-8", "surrogatepass")
    assert decode_name(encode_name(name)) == name


@given(st.binary(min_size=1, max_size=60))
def test_a_quoted_name_is_printable_and_one_line(name: bytes) -> None:
    quoted = encode_name(name)
    assert quoted.isprintable()


@pytest.mark.parametrize("quoted", ['"', "a\nb", "\\", "\\q", "\\x1", "\\u12", "\\ud800", "\\777", "\\U00110000"])
def test_what_go_cannot_unquote_is_refused(quoted: str) -> None:
    with pytest.raises(ValueError):
        decode_name(quoted)


@pytest.mark.parametrize(("quoted", "name"), [("\\101", b"A"), ("\\u00e9", "é".encode()), ("\\xe9", b"\xe9")])
def test_every_escape_of_go_is_read(quoted: str, name: bytes) -> None:
    assert decode_name(quoted) == name
