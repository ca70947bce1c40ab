"""What stores may answer that nobody expects of them, one lie after the other: see stores.py for those by chance."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import socket
import stat as modes
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paramiko.sftp import CMD_ATTRS, CMD_DATA, CMD_NAME, CMD_READDIR, CMD_STAT, CMD_STATUS

from node_agent.errors import BackendError, BackendUnavailable, ConfigError, ObjectMissing
from node_agent.repository.backend import Backend, Kind
from node_agent.repository.backend import rest_listing as rest_listing_module
from node_agent.repository.backend import sftp_client as sftp_client_module
from node_agent.repository.backend.gate import Gate
from node_agent.repository.backend.rest_listing import Listing
from tests.contracts.backend_peers import Place
from tests.fuzz.hostile_http import Answer, HostileProxy, Request
from tests.fuzz.hostile_sftp import HostileSftp, Reply, attributes, names, text
from tests.fuzz.stores import CONTENT, HTTP_KINDS, NAME, fill, hostile_places

PROJECT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
OBJECT_STORES = ("s3", "azure", "gcs-stand-in")
Twist = Callable[[Request, Answer], Answer]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Place, HostileProxy]]]:
    with hostile_places((*OBJECT_STORES, "rest"), tmp_path_factory.mktemp("stores")) as found:
        yield found  # type: ignore[misc]


@pytest.fixture
def store(request: pytest.FixtureRequest, places: dict[str, tuple[Place, HostileProxy]]) -> Iterator[Backend]:
    """One that was filled while it was honest. ``request.param``: its kind."""
    place, liar = places[request.param]
    liar.be_honest()
    opened = place.open(retry_seconds="0", timeout="5")
    fill(opened)
    yield opened
    liar.be_honest()
    opened.close()


@pytest.fixture
def liar(request: pytest.FixtureRequest, places: dict[str, tuple[Place, HostileProxy]]) -> HostileProxy:
    return places[request.node.callspec.params["store"]][1]


every_http_store = pytest.mark.parametrize("store", [*OBJECT_STORES, "rest"], indirect=True)
every_object_store = pytest.mark.parametrize("store", OBJECT_STORES, indirect=True)


def _of(method: str, twisted: Callable[[Answer], Answer], part: str = "") -> Twist:
    return lambda request, answer: twisted(answer) if request.method == method and part in request.path else answer


def _endless(answer: Answer, status: int, more: bytes) -> Answer:
    return dataclasses.replace(answer.with_header("Content-Length"), status=status, endless=more)


@every_http_store
@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_answer_without_end_is_left_after_some_mebibytes(store: Backend, liar: HostileProxy, status: int) -> None:
    operations = {
        "get": lambda: store.get(Kind.KEY, NAME),
        "part": lambda: store.get(Kind.PACK, NAME, 10, 100),
        "list": lambda: list(store.list(Kind.PACK)),
        "put": lambda: store.put(Kind.PACK, NAME, [CONTENT]),
        "delete": lambda: store.delete(Kind.LOCK, NAME),
    }
    for name, operation in operations.items():
        liar.be_honest()
        liar.twist = lambda _, answer: _endless(answer, status, b"<Contents>")
        try:
            operation()
        except BackendError as error:
            assert error.hint, name
        assert liar.taken < 40 * MIB, name


@every_http_store
def test_an_object_is_never_longer_than_what_was_asked_for(store: Backend, liar: HostileProxy) -> None:
    """The whole object, twice the part, another part: whoever asked would take it for his."""
    whole = lambda answer: dataclasses.replace(answer, status=200, body=CONTENT).with_header("Content-Range")  # noqa: E731
    lies: list[Callable[[Answer], Answer]] = [
        whole,
        lambda answer: dataclasses.replace(whole(answer), status=206),
        lambda answer: dataclasses.replace(answer, body=answer.body * 2),
        lambda answer: answer.with_header("Content-Range", f"bytes 0-99/{len(CONTENT)}"),
    ]
    for number, lie in enumerate(lies):
        liar.twist = _of("GET", lie)
        try:
            data = store.get(Kind.PACK, NAME, 1003, 100)
        except BackendError:
            continue
        assert len(data) <= 100, number
        assert number > 1 or data == CONTENT[1003:1103], number  # who has the whole object can cut it right


@every_http_store
def test_a_body_that_is_cut_or_another_length_is_never_taken_for_the_object(store: Backend, liar: HostileProxy) -> None:
    def shortened(answer: Answer) -> Answer:
        told = answer.with_header("Content-Length", str(len(CONTENT)))
        return dataclasses.replace(told, body=CONTENT[:-1], measured=False, cut=True)

    liar.twist = _of("GET", shortened)
    with pytest.raises(BackendUnavailable):
        store.get(Kind.PACK, NAME)


@pytest.mark.parametrize("store", ["s3", "azure", "gcs-stand-in"], indirect=True)
def test_an_error_beneath_a_status_that_says_all_is_well_is_no_empty_listing(
    store: Backend, liar: HostileProxy
) -> None:
    for body in (b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>", b"<html>hello</html>", b"", b"{}"):
        liar.twist = _of("GET", lambda answer, body=body: dataclasses.replace(answer, body=body))  # type: ignore[misc]
        with pytest.raises(BackendError):
            list(store.list(Kind.SNAPSHOT))


@every_object_store
def test_a_listing_that_says_again_and_again_that_there_is_more_comes_to_an_end(
    store: Backend, liar: HostileProxy
) -> None:
    """With the same objects each time, with none, and with a mark that leads nowhere."""
    azure = b"<NextMarker" in _listing_of(store, liar)
    for emptied, mark in itertools.product((False, True), (b"again", b"")):

        def more(answer: Answer, emptied: bool = emptied, mark: bytes = mark) -> Answer:
            body = b"".join(part for part in _without_entries(answer.body)) if emptied else answer.body
            for old in (
                b"<IsTruncated>false</IsTruncated>",
                b"<NextMarker />",
                b"<NextMarker/>",
                b"<NextMarker></NextMarker>",
            ):
                body = body.replace(old, b"")
            told = b"<NextMarker>" + mark + b"</NextMarker>"
            if not azure:
                told = b"<IsTruncated>true</IsTruncated><NextContinuationToken>" + mark + b"</NextContinuationToken>"
            end = body.rfind(b"</")
            return dataclasses.replace(answer, body=body[:end] + told + body[end:])

        liar.twist = _of("GET", more)
        if mark:
            with pytest.raises(BackendError):
                list(store.list(Kind.PACK))
        elif not emptied:
            assert [info.name for info in store.list(Kind.PACK)] == [NAME]


def _listing_of(store: Backend, liar: HostileProxy) -> bytes:
    seen: list[bytes] = []

    def keep(_: Request, answer: Answer) -> Answer:
        seen.append(answer.body)
        return answer

    liar.twist = keep
    list(store.list(Kind.PACK))
    return seen[0]


def _without_entries(body: bytes) -> Iterator[bytes]:
    for name in (b"Contents", b"Blob"):
        while (begin := body.find(b"<" + name + b">")) >= 0:
            end = body.find(b"</" + name + b">", begin) + len(name) + 3
            body = body[:begin] + body[end:]
    yield body


@pytest.mark.parametrize("store", ["s3", "gcs-stand-in"], indirect=True)
def test_a_listing_that_breaks_off_without_a_word_is_gone_on_with(store: Backend, liar: HostileProxy) -> None:
    """The first answer is a login page of a proxy; the others are right."""
    said = itertools.count()
    page = b"<html><body>Please log in</body></html>"
    liar.twist = _of("GET", lambda answer: answer if next(said) else dataclasses.replace(answer, body=page))
    assert [info.name for info in store.list(Kind.PACK)] == [NAME]


@every_http_store
def test_names_that_lead_elsewhere_are_no_objects(store: Backend, liar: HostileProxy) -> None:
    for odd in (
        "../" * 3 + "etc/passwd",
        "a/../" + NAME,
        NAME.upper(),
        f"{NAME}/x",
        "x" * 100_000,
        "..",
        NAME + "&#10;",
    ):
        liar.twist = _of(
            "GET",
            lambda answer, odd=odd: dataclasses.replace(answer, body=answer.body.replace(NAME.encode(), odd.encode())),  # type: ignore[misc]
        )
        try:
            found = [info.name for info in store.list(Kind.PACK)]
        except BackendError:
            continue
        assert found == [], odd[:100]


@every_http_store
def test_who_is_sent_elsewhere_tells_an_error_and_never_goes_round_in_circles(
    store: Backend, liar: HostileProxy
) -> None:
    liar.twist = lambda request, answer: dataclasses.replace(answer, status=307).with_header("Location", request.path)
    for operation in (
        lambda: store.get(Kind.PACK, NAME),
        lambda: list(store.list(Kind.PACK)),
        lambda: store.delete(Kind.LOCK, NAME),
    ):
        liar.seen.requests = 0
        with pytest.raises(BackendError):
            operation()
        assert liar.seen.requests < 50


def test_a_rest_server_that_has_lost_its_folders_is_no_empty_repository(
    places: dict[str, tuple[Place, HostileProxy]],
) -> None:
    """But rclone, which makes them when something is stored."""
    place, liar = places["rest"]
    liar.be_honest()
    store = place.open(retry_seconds="0")
    fill(store)
    lost = _of("GET", lambda answer: dataclasses.replace(answer, status=404, body=b""))
    liar.twist = lambda request, answer: lost(request, answer).with_header("Server", "nginx")
    with pytest.raises(BackendError, match="could not be listed"):
        list(store.list(Kind.SNAPSHOT))
    liar.twist = lambda request, answer: lost(request, answer).with_header("Server", "rclone/v1.60.1")
    assert list(store.list(Kind.SNAPSHOT)) == []
    liar.be_honest()
    store.close()


# --- listings of the REST protocol ---


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_listing_is_read_the_same_in_whatever_pieces_it_comes(step: int) -> None:
    entries = ",".join(f'{{"name":"{number:064x}","size":{number}}}' for number in range(50))
    body = f' [{entries}, {{"size": 5, "name": "config", "more": [1]}} ]\n'.encode()
    found = Listing(body[at : at + step] for at in range(0, len(body), step))
    assert list(found) == [(f"{number:064x}", number) for number in range(50)]
    for empty in (b"[]", b"null", b" [ ] "):
        assert list(Listing([empty])) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"{}",
        b'[{"name":"x","size":1}',
        b'[{"name":"x","size":1} {"name":"x","size":1}]',
        b'[{"name":"x","size":-1}]',
        b'[{"name":"x","size":9223372036854775808}]',
        b'[{"name":"x","size":true}]',
        b'[{"name":7,"size":1}]',
        b'[{"name":"x","size":1}]]',
        b'["' + b"ab" * 32 + b'"]',  # of version 1 of the protocol
        b"[" + b" " * (2 << 20),
    ],
)
def test_what_is_no_listing_is_none(body: bytes) -> None:
    with pytest.raises(ValueError):
        Listing([body])


def test_a_listing_of_more_than_any_repository_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_listing_module, "MAX_OBJECTS", 1000)
    with pytest.raises(ValueError, match="more than"):
        Listing(b'%s{"name":"%064x","size":1}' % (b"," if n else b"[", n) for n in itertools.count())


# --- SFTP ---


@pytest.fixture
def sftp() -> Iterator[tuple[HostileSftp, Backend]]:
    server = HostileSftp()
    url = f"sftp://joe@127.0.0.1:{server.port}//store"
    store = Place(url, {"host-key": server.host_key, "password": "any"}).open(retry_seconds="0", timeout="20")
    fill(store)
    yield server, store
    store.close()
    server.close()


def _answers(kind: int, *replies: Reply) -> Callable[[int, bytes, Reply], Reply]:
    """To that kind of request, in turn, the last for ever."""
    left = list(replies)
    return lambda asked, _, reply: (left.pop(0) if len(left) > 1 else left[0]) if asked == kind else reply


def test_an_honest_sftp_server_is_believed(sftp: tuple[HostileSftp, Backend]) -> None:
    _, store = sftp
    assert store.get(Kind.PACK, NAME) == CONTENT
    assert [(info.name, info.size) for info in store.list(Kind.PACK)] == [(NAME, len(CONTENT))]


_FILE = modes.S_IFREG | 0o600


@pytest.mark.parametrize(
    "entries",
    [
        [(b"ab" * 32, attributes(5, _FILE))],  # the same for ever
        [],  # nothing for ever
        [(b"../../x", attributes(5, _FILE))] * 500,
    ],
)
def test_a_folder_without_end_is_left(entries: list[tuple[bytes, bytes]], sftp: tuple[HostileSftp, Backend]) -> None:
    server, store = sftp
    server.lie = _answers(CMD_READDIR, Reply(CMD_NAME, names(entries)))
    with pytest.raises(BackendError, match="more files than can be there"):
        list(store.list(Kind.SNAPSHOT))


def test_a_folder_that_grows_for_ever_is_left(
    sftp: tuple[HostileSftp, Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, store = sftp
    monkeypatch.setattr(sftp_client_module, "MAX_OBJECTS", 2000)
    count = itertools.count()
    server.lie = lambda kind, _, reply: (
        Reply(CMD_NAME, names([(b"%064x" % next(count), attributes(5, _FILE)) for _ in range(100)]))
        if kind == CMD_READDIR
        else reply
    )
    with pytest.raises(BackendError, match="more files than can be there"):
        list(store.list(Kind.SNAPSHOT))


def test_only_files_with_right_names_are_objects(sftp: tuple[HostileSftp, Backend]) -> None:
    server, store = sftp
    entries = [
        (name, attributes(5, _FILE)) for name in (b"..", b"a/b", b"\xff\xfe", b"\0" * 64, b"AB" * 32, b"x" * 9000)
    ]
    entries += [(b"%064x" % number, attributes(5, kind)) for number, kind in enumerate((modes.S_IFDIR, modes.S_IFIFO))]
    entries += [(b"ab" * 32, attributes(7, _FILE)), (NAME.encode(), attributes(3, modes.S_IFLNK | 0o777))]
    end = Reply(CMD_STATUS, struct.pack(">I", 1) + text("") + text(""))
    server.lie = _answers(CMD_READDIR, Reply(CMD_NAME, names(entries)), end)
    found = {info.name: info.size for info in store.list(Kind.SNAPSHOT)}
    assert found == {"ab" * 32: 7, NAME: len(CONTENT)}  # of the link what it leads to


@pytest.mark.parametrize("body", [struct.pack(">I", 0xFFFFFFFF), names([(b"a", b"")]), attributes(1, 1)[:7], b""])
def test_half_an_answer_is_none(body: bytes, sftp: tuple[HostileSftp, Backend]) -> None:
    server, store = sftp
    server.lie = _answers(CMD_READDIR, Reply(CMD_NAME, body))
    with pytest.raises(BackendUnavailable):
        list(store.list(Kind.SNAPSHOT))
    server.lie = _answers(CMD_STAT, Reply(CMD_ATTRS, body[:3]))
    with pytest.raises(BackendUnavailable):
        store.stat(Kind.PACK, NAME)


@pytest.mark.parametrize("size", [1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_a_size_that_no_object_has_is_not_believed(size: int, sftp: tuple[HostileSftp, Backend]) -> None:
    server, store = sftp
    server.lie = lambda _, __, reply: Reply(CMD_ATTRS, attributes(size, _FILE)) if reply.kind == CMD_ATTRS else reply
    with pytest.raises(BackendUnavailable, match="size"):
        store.get(Kind.PACK, NAME)


@pytest.mark.parametrize("part", [b"", b"x", b"x" * 300_000])
def test_pieces_of_another_length_never_make_an_object(part: bytes, sftp: tuple[HostileSftp, Backend]) -> None:
    server, store = sftp
    server.lie = lambda _, __, reply: Reply(CMD_DATA, text(part)) if reply.kind == CMD_DATA else reply
    with pytest.raises(BackendUnavailable):
        store.get(Kind.PACK, NAME)


def test_answers_that_nobody_asked_for_are_heard_for_a_while_only(sftp: tuple[HostileSftp, Backend]) -> None:
    server, store = sftp
    server.lie = lambda _, __, reply: dataclasses.replace(reply, number=0xFFFFFFF0, endless=True)
    with pytest.raises(BackendUnavailable, match="was not asked"):
        store.stat(Kind.PACK, NAME)


def test_what_a_server_says_is_short_and_on_one_line(sftp: tuple[HostileSftp, Backend]) -> None:
    server, store = sftp
    said = Reply(CMD_STATUS, struct.pack(">I", 4) + text(b"no\n\x1b[31m\xff" + b"x" * 9000) + text(""))
    server.lie = lambda *_: said
    with pytest.raises(BackendError) as caught:
        store.get(Kind.PACK, NAME)
    assert caught.value.message.isprintable() and len(caught.value.message) < 600


# --- the gate ---


def test_a_stranger_does_not_get_through_the_gate() -> None:
    gate = Gate()
    with socket.create_connection(("127.0.0.1", int(gate.url.rpartition(":")[2]))) as knocking:
        knocking.sendall(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nProxy-Authorization: Basic YnJzOng=\r\n\r\n")
        assert knocking.recv(100).startswith(b"HTTP/1.1 407")
    gate.close()


def _gates() -> int:
    return sum(thread.name == "gate" for thread in threading.enumerate())


def test_a_gate_is_closed_when_nobody_holds_it_any_more(places: dict[str, tuple[Place, HostileProxy]]) -> None:
    """Who forgot to close it, or was given settings that cannot be used, leaves no thread and no socket."""
    place, _ = places["s3"]
    gc.collect()
    before = _gates()
    for _ in range(3):
        place.open(retry_seconds="0").exists(Kind.PACK, NAME)
        with pytest.raises(ConfigError):
            place.open(nonsense="1")
    gc.collect()
    deadline = time.monotonic() + 60
    while _gates() > before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.05)
    assert _gates() <= before


@pytest.mark.parametrize("told", ["option", "environment"])
def test_the_gate_goes_on_to_the_proxy_that_is_to_be_used(
    places: dict[str, tuple[Place, HostileProxy]], monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    place, _ = places["s3"]
    heads: list[bytes] = []
    proxy = socket.create_server(("127.0.0.1", 0))
    port = proxy.getsockname()[1]
    proxy.settimeout(30)
    address = f"http://joe:pa55@127.0.0.1:{port}"
    monkeypatch.setenv("HTTP_PROXY", address if told == "environment" else "http://127.0.0.1:1")
    for name in ("http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    store = place.open(retry_seconds="0", **({"proxy": address} if told == "option" else {}))

    def answer() -> None:
        connection, _ = proxy.accept()
        heads.append(connection.recv(1 << 16))
        connection.sendall(b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n")
        connection.close()

    waiting = threading.Thread(target=answer)
    waiting.start()
    with pytest.raises(BackendUnavailable):
        store.get(Kind.PACK, NAME)
    waiting.join()
    assert heads[0].startswith(b"GET http://127.0.0.1") and b"Proxy-Authorization: Basic am9lOnBhNTU=" in heads[0]
    store.close()
    proxy.close()
    if told == "environment":  # but not for what it leaves out
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        place.open(retry_seconds="0").exists(Kind.PACK, NAME)
    with pytest.raises(ConfigError, match="proxy"):
        place.open(proxy="https://")


def test_a_server_that_cannot_be_reached_is_told_with_the_reason() -> None:
    place = Place("s3:http://127.0.0.1:1/buck", {}, {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"})
    store = place.open(retry_seconds="0")
    with pytest.raises(BackendUnavailable, match="refused"):
        store.get(Kind.PACK, NAME)
    store.close()


# --- by chance ---


@pytest.mark.parametrize("kind", [*HTTP_KINDS, "sftp"])
def test_no_lie_of_many_gets_through(kind: str) -> None:
    """A process of its own, with 3 GiB of addresses and a watchdog."""
    command = [sys.executable, "-m", "tests.fuzz.stores", "--executions", "8", "--seed", "20261125", "--only", kind]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "0 findings" in done.stdout


def test_an_object_that_is_gone_is_still_told_as_missing(places: dict[str, tuple[Place, HostileProxy]]) -> None:
    for place, _ in places.values():
        store = place.open(retry_seconds="0")
        with pytest.raises(ObjectMissing):
            store.get(Kind.PACK, "cd" * 32)
        store.close()
