"""What a server may answer, and what is told then: one scripted HTTP server plays S3, Azure and REST stores."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from node_agent.errors import (
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
    ObjectMissing,
    RepositoryExists,
    RepositoryMissing,
)
from node_agent.repository.backend import Backend, Kind, open_backend

NAME = "ab" * 32
Answer = tuple[int, dict[str, str], bytes]


class Scripted:
    """Answers each request by ``answer(method, path, headers)`` and remembers them."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.answers: list[Answer] = []
        self.last: Answer = (200, {}, b"")
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                self._answer()

            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                script.requests.append((self.command, self.path))
                status, headers, body = script.answers.pop(0) if script.answers else script.last
                self.send_response_only(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def store(self, kind: str) -> Backend:
        here = f"http://127.0.0.1:{self.port}"
        url, env, options = {
            "s3": (f"s3:{here}/buck/p", {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}, {}),
            "azure": ("azure:buck:/p", {"AZURE_ACCOUNT_NAME": "a", "AZURE_ACCOUNT_KEY": "aaaa"}, {"endpoint": here}),
            "rest": (f"rest:{here}/p/", {}, {}),
        }[kind]
        return open_backend(url, {"retry-seconds": "0", **options}, env)


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


def _error(code: str, message: str = "as said") -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


@pytest.mark.parametrize(
    ("kind", "status", "body", "expected"),
    [
        ("s3", 403, _error("AccessDenied"), BackendReadOnly),
        ("s3", 403, _error("SignatureDoesNotMatch"), BackendReadOnly),
        ("s3", 400, _error("ObjectLockedByBucketPolicy", "ObjectLocked"), BackendReadOnly),
        ("s3", 404, _error("NoSuchBucket"), RepositoryMissing),
        ("s3", 503, _error("SlowDown"), BackendUnavailable),
        ("s3", 429, b"", BackendUnavailable),
        ("s3", 500, _error("InternalError"), BackendUnavailable),
        ("s3", 507, _error("XMinioStorageFull"), BackendFull),
        ("s3", 403, _error("QuotaExceeded"), BackendFull),
        ("s3", 400, _error("EntityTooLarge"), BackendError),
        ("azure", 404, _error("ContainerNotFound"), RepositoryMissing),
        ("azure", 403, _error("AuthorizationPermissionMismatch"), BackendReadOnly),
        ("azure", 409, _error("BlobImmutableDueToPolicy"), BackendReadOnly),
        ("azure", 503, _error("ServerBusy"), BackendUnavailable),
        ("rest", 401, b"", BackendError),
        ("rest", 403, b"", BackendReadOnly),
        ("rest", 405, b"", BackendReadOnly),
        ("rest", 413, b"", BackendFull),
        ("rest", 507, b"", BackendFull),
        ("rest", 500, b"", BackendUnavailable),
        ("rest", 502, b"", BackendUnavailable),
        ("rest", 301, b"", BackendError),
        ("rest", 400, b"", BackendError),
    ],
)
def test_what_a_refused_put_means(kind: str, status: int, body: bytes, expected: type, server: Scripted) -> None:
    server.last = (status, {}, body)
    if kind == "rest" and status == 403:
        server.answers = [server.last, (404, {}, b"")]  # and it is not there already either
    with pytest.raises(Exception) as caught:
        server.store(kind).put(Kind.PACK, NAME, [b"content"])
    assert type(caught.value) is expected
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["s3", "azure", "rest"])
def test_a_read_without_the_right_to_read_is_no_missing_object(kind: str, server: Scripted) -> None:
    server.last = (403, {}, _error("AccessDenied"))
    for attempt in ("get", "stat"):
        with pytest.raises(BackendError) as caught:
            getattr(server.store(kind), attempt)(Kind.PACK, NAME)
        assert type(caught.value) is BackendError


def test_a_store_without_conditions_is_asked_first_and_then_written(server: Scripted) -> None:
    not_there: Answer = (404, {}, _error("NoSuchKey"))
    listing: Answer = (
        200,
        {},
        b"<ListBucketResult><Name>buck</Name><IsTruncated>false</IsTruncated></ListBucketResult>",
    )
    done: Answer = (200, {"ETag": '"x"'}, b"")
    refused: Answer = (501, {}, _error("NotImplemented"))
    # Of nothing a listing is asked for twice, and then for the config, which it would have to show.
    claim, gone = [done, listing, listing, not_there], [(204, {}, b"")]
    server.answers = [*claim, not_there, listing, refused, not_there, listing, done, *gone]
    server.store("s3").put(Kind.CONFIG, "config", [b"c"])
    asked = [(method, "claim" if "init-tmp-" in path else path.rpartition("/")[2]) for method, path in server.requests]
    looked = [("HEAD", "config"), ("GET", "buck?list-type=2&prefix=p%2Fkeys%2F")]
    assert asked[0] == ("PUT", "claim")
    assert asked[4:] == [*looked, ("PUT", "config"), *looked, ("PUT", "config"), ("DELETE", "claim")]
    there: Answer = (200, {"ETag": '"x"', "Last-Modified": "Mon, 18 May 2026 12:00:00 GMT"}, b"config")
    server.answers = [*claim, not_there, listing, refused, there, *gone]
    with pytest.raises(RepositoryExists):
        server.store("s3").put(Kind.CONFIG, "config", [b"c"])


def test_an_object_that_ends_early_is_never_taken_for_whole(server: Scripted) -> None:
    headers = {"Content-Length": "100", "ETag": '"x"', "Last-Modified": "Mon, 18 May 2026 12:00:00 GMT"}
    for kind in ("s3", "azure", "rest"):
        server.last = (200, {**headers, "Connection": "close"}, b"only half")
        with pytest.raises(BackendUnavailable):
            server.store(kind).get(Kind.PACK, NAME)


def test_a_rest_server_that_knows_no_ranges_is_read_all_the_same(server: Scripted) -> None:
    server.last = (200, {}, b"0123456789")
    store = server.store("rest")
    assert store.get(Kind.PACK, NAME, 3, 4) == b"3456"
    assert store.get(Kind.PACK, NAME, 8, 5) == b"89"
    assert store.get(Kind.PACK, NAME, 4) == b"456789"


def test_a_rest_server_that_refuses_to_replace_has_the_object_already(server: Scripted) -> None:
    server.answers = [(403, {}, b""), (200, {"Content-Length": "7"}, b"")]
    server.store("rest").put(Kind.PACK, NAME, [b"content"])
    server.answers = [(403, {}, b""), (200, {"Content-Length": "3"}, b"")]  # another size: torn, or forbidden
    with pytest.raises(BackendReadOnly):
        server.store("rest").put(Kind.PACK, NAME, [b"content"])
    server.answers = [(404, {}, b""), (403, {}, b""), (200, {"Content-Length": "7"}, b"")]
    with pytest.raises(RepositoryExists):
        server.store("rest").put(Kind.CONFIG, "config", [b"content"])


def test_a_lock_whose_age_a_rest_server_does_not_tell_counts_as_fresh(server: Scripted) -> None:
    date = {"Date": "Mon, 18 May 2026 12:00:00 GMT"}
    listing = b'[{"name": "%s", "size": 7}, {"name": "clock", "size": 1}]' % NAME.encode()
    server.answers = [(200, {}, listing), (200, {**date, "Content-Length": "7"}, b""), (404, date, b"")]
    store = server.store("rest")
    (lock,) = store.list(Kind.LOCK)
    assert lock.modified == store.now() == 1779105600.0


@pytest.mark.parametrize("listing", [b"<html>", b"{}", b'["a"]', b'[{"name": "x"}]', b'[{"name": 1, "size": "a"}]'])
def test_a_listing_that_is_none_is_an_error_not_an_empty_store(listing: bytes, server: Scripted) -> None:
    server.last = (200, {}, listing)
    with pytest.raises(BackendError, match="listing"):
        list(server.store("rest").list(Kind.PACK))


def test_a_missing_object_is_told_with_its_name(server: Scripted) -> None:
    server.last = (404, {}, _error("NoSuchKey"))
    for kind in ("s3", "rest"):
        with pytest.raises(ObjectMissing, match=NAME):
            server.store(kind).get(Kind.PACK, NAME)
