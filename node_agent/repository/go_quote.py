"""Names as restic writes them into trees: Go's strconv.Quote without its quotes. A file name is bytes.

What is not printable, or not UTF-8, is escaped, so that every name survives JSON and stays one line.
"""

from __future__ import annotations

import re
import unicodedata

_PLAIN = re.compile(rb"[ !#-\[\]-~]*\Z")  # printable ASCII but " and \
_SHORT = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}
_UNSHORT = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|([abfnrtv\\\"]))")


def encode_name(name: bytes) -> str:
    if _PLAIN.match(name):
        return name.decode("ascii")
    # Each byte that is not part of valid UTF-8 becomes a lone surrogate here, and \xNN below.
    return "".join(map(_quote, name.decode("utf-8", "surrogateescape")))


def decode_name(quoted: str) -> bytes:
    """Raises ValueError for what strconv.Unquote refuses as well."""
    if "\\" not in quoted:
        if '"' in quoted or "\n" in quoted:
            raise ValueError(f"{quoted!r} is not a quoted name")
        return quoted.encode("utf-8", "surrogatepass")
    out = bytearray()
    position = 0
    while position < len(quoted):
        character = quoted[position]
        if character == "\\":
            match = _ESCAPE.match(quoted, position)
            if match is None:
                raise ValueError(f"{quoted!r} is not a quoted name")
            out += _unescape(match)
            position = match.end()
        elif character in '"\n':
            raise ValueError(f"{quoted!r} is not a quoted name")
        else:
            out += character.encode("utf-8", "surrogatepass")
            position += 1
    return bytes(out)


def _quote(character: str) -> str:
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if character == " " or unicodedata.category(character)[0] in "LMNPS":
        return character
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _unescape(match: re.Match[str]) -> bytes:
    byte, short_code, long_code, octal, letter = match.groups()
    if letter:
        return bytes([_UNSHORT[letter]])
    if byte or octal:
        value = int(byte, 16) if byte else int(octal, 8)
        if value > 0xFF:
            raise ValueError("octal escape beyond a byte")
        return bytes([value])
    return chr(int(short_code or long_code, 16)).encode()  # a surrogate raises UnicodeEncodeError, a ValueError
