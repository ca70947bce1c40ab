"""Lies that a store may tell over HTTP. Each takes an answer and gives a worse one; chance comes from the generator."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

from tests.fuzz.hostile_http import Answer, Request
from tests.fuzz.mutate import NASTY_TEXTS, mutate

Twisting = Callable[[random.Random, Request, Answer], Answer]

_STATUSES = (
    *(100, 199, 200, 201, 204, 206, 207, 226, 300, 301, 302, 304, 307, 308, 399, 400, 401, 403, 404, 405, 406, 408),
    *(409, 411, 412, 413, 416, 418, 421, 423, 425, 429, 431, 499, 500, 501, 502, 503, 504, 507, 508, 511, 599, 999),
)
_CODES = (
    *("NoSuchKey", "NoSuchBucket", "NoSuchVersion", "AccessDenied", "SlowDown", "InternalError", "PreconditionFailed"),
    *("InvalidRange", "QuotaExceeded", "ContainerNotFound", "BlobNotFound", "ObjectLocked", "", "x" * 5000, "a\nb"),
)
_LENGTHS = ("0", "1", "-1", "99999999999999999999", "9223372036854775807", "4000000", "x", "", "1, 2", " 7 ", "0x10")
_MOMENTS = (
    *("", "now", "0", "-1", "Mon, 99 Foo 2026 99:99:99 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "x" * 70_000),
    *("Mon, 01 Jan 0001 00:00:00 GMT", "Mon, 18 May 2026 12:00:00 +9999", "Mon, 18 May 99999 12:00:00 GMT"),
    *("2026-05-18T12:00:00Z", "9999-12-31T23:59:59Z", "\x00", "Mon, 18 May 2026 12:00:00 GMT, again"),
)
_RANGES = ("bytes 0-9/10", "bytes 5-2/3", "bytes */*", "bytes 0-99999999999999999999/9", "items 1-2/3", "", "bytes -1")
_MARK_UP = re.compile(rb"<(Key|Name|Size|Content-Length|LastModified|Last-Modified|ETag|VersionId|NextContinuationToken"
                      rb"|NextMarker|IsTruncated|NextKeyMarker|NextVersionIdMarker|RetainUntilDate|Mode|Code|IsLatest)>"
                      rb"([^<]*)</\1>")  # fmt: skip
_TEXTS = (
    *(
        b"",
        b"-1",
        b"18446744073709551616",
        b"1e9",
        b"NaN",
        b"true",
        b"false",
        b"TRUE",
        b"../../etc/passwd",
        b"/",
        b"..",
    ),
    *(
        b"p/data/ab/" + b"ab" * 32 + b"/../x",
        b"a" * 100_000,
        b"\x00",
        b"\xff\xfe",
        b"&#0;",
        b"&#x110000;",
        b"&unknown;",
    ),
    *(b"&lt;", b"p/data/ab/" + b"AB" * 32, b"9999-12-31T23:59:59.999Z", b"0000-00-00T00:00:00Z", b"null", b"0"),
)


def status(rng: random.Random, _: Request, answer: Answer) -> Answer:
    return replace(answer, status=rng.choice(_STATUSES))


def redirect(rng: random.Random, request: Request, answer: Answer) -> Answer:
    target = rng.choice((request.path, "http://127.0.0.1:1/", "", "//", "file:///etc/passwd", "/" * 9000, "http://[::"))
    return replace(answer, status=rng.choice((300, 301, 302, 303, 307, 308))).with_header("Location", target)


def error_text(rng: random.Random, _: Request, answer: Answer) -> Answer:
    """Also beneath a status that says that all is well."""
    code = rng.choice(_CODES)
    text = (
        f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{'no ' * rng.choice((0, 1, 9000))}</Message></Error>"
    )
    return replace(answer, status=rng.choice((200, 206, *_STATUSES)), body=text.encode())


def length(rng: random.Random, _: Request, answer: Answer) -> Answer:
    return replace(
        answer.with_header("Content-Length", *rng.sample(_LENGTHS, rng.choice((0, 1, 1, 1, 2)))), measured=False
    )


def header(rng: random.Random, _: Request, answer: Answer) -> Answer:
    if not answer.headers:
        return answer
    name = rng.choice(answer.headers)[0]
    values = [rng.choice(_MOMENTS if name.lower() in ("date", "last-modified") else (*_RANGES, *_TEXT_HEADERS))]
    return answer.with_header(name, *values * rng.choice((0, 1, 1, 2)))


_TEXT_HEADERS = ("", "x", "x" * 60_000, "é", "application/json", "text/html", "gzip", "chunked", "close", '"', "W/")


def moment(rng: random.Random, _: Request, answer: Answer) -> Answer:
    return answer.with_header(rng.choice(("Date", "Last-Modified")), rng.choice(_MOMENTS))


def encoded(rng: random.Random, _: Request, answer: Answer) -> Answer:
    kind = rng.choice((("Content-Encoding", "gzip"), ("Content-Encoding", "zstd"), ("Transfer-Encoding", "chunked")))
    return replace(answer.with_header(*kind), measured=rng.random() < 0.5)


def chunks(rng: random.Random, _: Request, answer: Answer) -> Answer:
    sizes = (b"%x" % len(answer.body), b"-5", b"ffffffffffffffffffff", b"zz", b"%x" % (len(answer.body) * 2 + 9), b"")
    body = rng.choice(sizes) + b"\r\n" + answer.body + rng.choice((b"\r\n0\r\n\r\n", b"", b"\r\n"))
    unmeasured = answer.with_header("Content-Length").with_header("Transfer-Encoding", "chunked")
    return replace(unmeasured, body=body, measured=False)


def ranged(rng: random.Random, _: Request, answer: Answer) -> Answer:
    """Another part, all of it, or more than was asked for."""
    body = rng.choice((answer.body[1:], answer.body * 2, answer.body[:-1], b"", b"x" * 3_000_000, answer.body[::-1]))
    told = answer.with_header("Content-Range", *rng.sample(_RANGES, rng.choice((0, 1, 1))))
    return replace(told, status=rng.choice((200, 206, 416, answer.status)), body=body)


def cut(rng: random.Random, _: Request, answer: Answer) -> Answer:
    told = answer.with_header("Content-Length", str(len(answer.body) + rng.choice((0, 1, 5000))))
    return replace(told, body=answer.body[: rng.randrange(len(answer.body) + 1)], measured=False, cut=True)


def emptied(_: random.Random, __: Request, answer: Answer) -> Answer:
    return replace(answer, body=b"")


def damaged(rng: random.Random, _: Request, answer: Answer) -> Answer:
    return replace(answer, body=mutate(rng, answer.body))


def told_otherwise(rng: random.Random, _: Request, answer: Answer) -> Answer:
    """One element of an XML text."""
    found = list(_MARK_UP.finditer(answer.body))
    if not found:
        return damaged(rng, _, answer)
    at = rng.choice(found)
    begin, end = at.span(2)
    return replace(answer, body=answer.body[:begin] + rng.choice(_TEXTS) + answer.body[end:])


def repeated(rng: random.Random, _: Request, answer: Answer) -> Answer:
    """Entries of a listing a thousand times, or one taken away with its end."""
    found = list(re.finditer(rb"<(Contents|Version|Blob|DeleteMarker)>.*?</\1>", answer.body, re.DOTALL))
    if not found:
        return damaged(rng, _, answer)
    at = rng.choice(found)
    again = at[0] * rng.choice((2, 1000)) if rng.random() < 0.7 else at[0][: len(at[0]) // 2]
    return replace(answer, body=answer.body[: at.start()] + again + answer.body[at.end() :])


def bombs(rng: random.Random, _: Request, answer: Answer) -> Answer:
    entities = b"<!ENTITY a0 'ha'>" + b"".join(
        b"<!ENTITY a%d '%s'>" % (n, b"&a%d;" % (n - 1) * 20) for n in range(1, 12)
    )
    document = b"<?xml version='1.0'?><!DOCTYPE x [" + entities + b"]><ListBucketResult><Name>&a11;</Name>"
    deep = b"<a>" * 50_000
    outside = b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><ListBucketResult>&e;"
    return replace(answer, body=rng.choice((document, deep, outside, b"[" * 100_000, b"<" * 100_000)))


def names(rng: random.Random, _: Request, answer: Answer) -> Answer:
    """A REST listing of names that lead elsewhere."""
    told = [(_json(rng.choice((*NASTY_TEXTS, "../../x", "ab" * 32))), rng.choice(_LENGTHS[:5])) for _ in range(5)]
    entries = ",".join(f'{{"name": "{name}", "size": {size}}}' for name, size in told)
    return replace(answer, body=f"[{entries}]".encode("utf-8", "surrogatepass"))


def _json(text: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else letter for letter in text)


def endless(rng: random.Random, _: Request, answer: Answer) -> Answer:
    """A body without end: of the kind that the client is about to parse."""
    unmeasured = answer.with_header("Content-Length", *([] if rng.random() < 0.5 else ["999999999999"]))
    more = rng.choice(
        (b"\0", b" ", b"<Contents><Key>x</Key></Contents>", b'{"name": "x", "size": 1},', b"<", b"[", b"x")
    )
    statuses = (answer.status, answer.status, 200, 403, 404, 409, 500)
    return replace(unmeasured, status=rng.choice(statuses), endless=more)


def endless_head(rng: random.Random, _: Request, answer: Answer) -> Answer:
    head = rng.choice((b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 ", b"", b"HTTP/1.1 200 OK\r\n"))
    more = rng.choice((b"a", b"X-More: again\r\n", b" "))
    return replace(answer, raw_head=head, endless=more, body=b"")


def no_http(rng: random.Random, _: Request, answer: Answer) -> Answer:
    head = rng.choice(
        (b"", b"\0" * 100, b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/9.9 200 OK\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\r\n\r\n")
    )
    return replace(answer, raw_head=head, body=b"")


def interim(rng: random.Random, _: Request, answer: Answer) -> Answer:
    return replace(answer, raw_head=b"HTTP/1.1 100 Continue\r\n\r\n" * rng.choice((1, 2000)), body=b"")


TWISTS: dict[str, Twisting] = {
    twist.__name__: twist
    for twist in (
        *(status, redirect, error_text, length, header, moment, encoded, chunks, ranged, cut, emptied, damaged),
        *(told_otherwise, repeated, bombs, names, endless, endless_head, no_http, interim),
    )
}
RARE = {"endless": 0.25, "endless_head": 0.25}  # they cost seconds each


def random_twist(rng: random.Random, share: float) -> tuple[str, Callable[[Request, Answer], Answer]]:
    """One lie, told to that share of the requests."""
    name = rng.choices(list(TWISTS), [RARE.get(name, 1.0) for name in TWISTS])[0]
    twisting = TWISTS[name]

    def twist(request: Request, answer: Answer) -> Answer:
        return twisting(rng, request, answer) if rng.random() < share else answer

    return name, twist
