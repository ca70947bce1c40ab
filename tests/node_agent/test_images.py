"""Disk images of every format are read as the disk they hold, and a hostile one leads nowhere."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node_agent.drivers.image import open_image
from node_agent.drivers.nbd import ALLOCATION, NbdClient, NbdError
from node_agent.errors import BrsError, RefusedError, SourceChanged, SourceError, SourceMissing

MIB = 1 << 20
SIZE = 20 * MIB


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for block in (0, 5, 6):
            file.seek(block * MIB)
            file.write(os.urandom(MIB))
        file.seek(SIZE - 5)
        file.write(b"hello")
    return path


def qemu_img(*args: object) -> None:
    subprocess.run(["qemu-img", *map(str, args)], check=True, capture_output=True)


def converted(raw: Path, format: str, suffix: str) -> Path:
    target = raw.with_suffix(suffix)
    qemu_img("convert", "-f", "raw", "-O", format, raw, target)
    return target


def whole(path: Path, **options: object) -> tuple[bytes, int]:
    """An image's content by its extents, and how many bytes were no zeros to it."""
    with open_image(path, **options) as image:  # type: ignore[arg-type]
        content, data = bytearray(image.size), 0
        position = 0
        for extent in image.extents():
            assert extent.offset == position
            position = extent.end
            if not extent.zero:
                content[extent.offset : extent.end] = image.read(extent.offset, extent.length)
                data += extent.length
        assert position == image.size
        return bytes(content), data


@pytest.mark.parametrize(
    ("format", "suffix"), [("qcow2", ".qcow2"), ("vmdk", ".vmdk"), ("vhdx", ".vhdx"), ("vdi", ".vdi")]
)
def test_an_image_is_read_as_the_disk_it_holds(raw: Path, format: str, suffix: str) -> None:
    content, _ = whole(converted(raw, format, suffix))
    assert content == raw.read_bytes()


def test_holes_of_raw_and_qcow2_images_are_known(raw: Path) -> None:
    for path in (raw, converted(raw, "qcow2", ".qcow2")):
        content, data = whole(path)
        assert content == raw.read_bytes()
        assert data < 4 * MIB


def test_an_overlay_is_read_with_what_lies_below_it(raw: Path) -> None:
    base = converted(raw, "qcow2", ".qcow2")
    overlay = raw.with_name("overlay.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", base.name, "-F", "qcow2", overlay)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 9M 1M", str(overlay)], check=True, capture_output=True)
    expected = bytearray(raw.read_bytes())
    expected[9 * MIB : 10 * MIB] = b"\x07" * MIB
    assert whole(overlay)[0] == expected


def test_a_backing_file_outside_of_the_allowed_folders_is_refused(raw: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", "/etc/hostname", "-F", "raw", overlay)
    with pytest.raises(RefusedError, match="/etc/hostname"):
        whole(overlay)
    with pytest.raises(RefusedError):
        whole(overlay, roots=[tmp_path])
    assert whole(overlay, roots=[tmp_path, Path("/etc")])[0].startswith(Path("/etc/hostname").read_bytes())


def test_a_link_in_the_folder_does_not_smuggle_a_backing_file_in(tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to("/etc/hostname")
    overlay = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", "base", "-F", "raw", overlay)
    with pytest.raises(RefusedError):
        whole(overlay)


@pytest.mark.parametrize(
    "backing", ['json:{"driver":"file","filename":"/etc/hostname"}', "nbd:localhost:1", "file:/etc/x"]
)
def test_a_backing_file_that_is_an_address_is_refused(tmp_path: Path, backing: str) -> None:
    overlay = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", overlay, "1M")
    with pytest.raises(RefusedError, match="not a plain path"):
        whole(overlay)


def test_an_external_data_file_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = tmp_path / "in" / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/outside.raw", image, "1M")
    with pytest.raises(RefusedError, match="outside"):
        whole(image)


def test_backing_files_in_a_loop_are_refused(tmp_path: Path) -> None:
    for name, below in (("a.qcow2", "b.qcow2"), ("b.qcow2", "a.qcow2")):
        qemu_img("create", "-f", "qcow2", "-u", "-b", below, "-F", "qcow2", tmp_path / name, "1M")
    with pytest.raises(SourceError, match="loop"):
        whole(tmp_path / "a.qcow2")


@pytest.mark.parametrize("name", ["guest.raw", "guest.img", "guest"])
def test_a_raw_disk_in_which_the_guest_wrote_a_qcow2_header_is_not_followed(
    raw: Path, tmp_path: Path, name: str
) -> None:
    overlay = tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", raw, "-F", "raw", overlay)
    disk = tmp_path / name
    disk.write_bytes(overlay.read_bytes())
    with pytest.raises(SourceError, match="not clear"):
        whole(disk)
    assert whole(disk, format="raw")[0] == overlay.read_bytes()


def test_a_qcow2_image_without_a_telling_name_is_recognised(raw: Path) -> None:
    image = converted(raw, "qcow2", ".img")
    assert whole(image)[0] == raw.read_bytes()


def test_an_image_outside_of_the_roots_is_refused(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "link.raw").symlink_to(raw)
    with pytest.raises(RefusedError):
        whole(tmp_path / "allowed" / "link.raw", roots=[tmp_path / "allowed"])


@pytest.mark.parametrize("suffix", [".raw", ".qcow2"])
def test_an_image_that_a_machine_uses_is_refused_with_a_hint(raw: Path, suffix: str) -> None:
    path = raw if suffix == ".raw" else converted(raw, "qcow2", ".qcow2")
    format = suffix[1:]
    command = ["qemu-io", "-f", format, str(path)]
    user = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                whole(path)
            except SourceError as error:
                assert "in use by a virtual machine" in error.message
                assert "Shut" in error.hint
                return
            if user.poll() is not None:  # it came while we read, and was refused in turn
                user = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            time.sleep(0.3)
        pytest.fail("the image was read although a machine had it open")
    finally:
        user.communicate(b"quit\n")


def test_an_image_that_is_written_meanwhile_says_so(raw: Path) -> None:
    with open_image(raw) as image:
        assert not image.changed()
        with raw.open("r+b") as file:
            file.write(b"x")
        assert image.changed()


def test_an_image_that_shrinks_meanwhile_is_an_error(raw: Path) -> None:
    with open_image(raw) as image:
        os.truncate(raw, MIB)
        with pytest.raises(SourceChanged):
            image.read(0, SIZE)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "broken.qcow2").write_bytes(b"QFI\xfb" + bytes(200))
    (tmp_path / "short.qcow2").write_bytes(b"QFI\xfb")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "broken.qcow2", tmp_path / "short.qcow2"):
        with pytest.raises(SourceError):
            whole(path)
    with pytest.raises(SourceMissing):
        whole(tmp_path / "nowhere")


def test_no_server_is_left_behind(raw: Path) -> None:
    def ours() -> str:
        return subprocess.run(
            ["pgrep", "-f", f"qemu-nbd.*{raw.parent}"], capture_output=True, text=True, check=False
        ).stdout

    with pytest.raises(RuntimeError):
        with open_image(converted(raw, "qcow2", ".qcow2")):
            assert ours()
            raise RuntimeError("the run failed")
    assert ours() == ""


# --- the wire ---


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[bytes], NbdClient]]:
    """A server that says certain bytes to whoever connects, and hangs up."""
    threads: list[threading.Thread] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "nbd"))
    listener.listen()

    def say(answer: bytes) -> NbdClient:
        def talk() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(ConnectionResetError):  # the client may hang up first
                peer.sendall(answer)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(4096):
                    pass

        threads.append(threading.Thread(target=talk, daemon=True))
        threads[-1].start()
        return NbdClient(tmp_path / "nbd", timeout_s=10)

    yield say
    listener.close()


GREETING = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


SESSION = (
    GREETING
    + reply(8, 1)
    + reply(10, 4, struct.pack(">I", 1) + ALLOCATION.encode())
    + reply(10, 1)
    + reply(7, 3, struct.pack(">HQH", 0, SIZE, 1))
    + reply(7, 1)
)


def chunk(kind: int, data: bytes, flags: int = 1, handle: int = 1) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, handle, len(data)) + data


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH",
        b"NBDMAGIC" + bytes(10),
        GREETING,
        GREETING + reply(8, 0x80000001, b"no"),
        GREETING + reply(9, 1),
        GREETING + struct.pack(">QIII", 0x3E889045565A9, 8, 3, 1 << 31),
        GREETING + reply(8, 1) + reply(10, 1) + reply(7, 1),
    ],
)
def test_a_malformed_handshake_is_an_error(serve: Callable[[bytes], NbdClient], answer: bytes) -> None:
    with pytest.raises(NbdError):
        serve(answer).connect()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 40,
        chunk(1, struct.pack(">Q", 0) + b"xx", handle=9),
        chunk(1, struct.pack(">Q", 0) + b"only five"),
        chunk(1, struct.pack(">Q", 0) + b"x" * 200),
        chunk(1, struct.pack(">Q", 1 << 50) + b"x" * 100),
        chunk(2, struct.pack(">QI", 0, 1 << 31)),
        chunk(0x8001, struct.pack(">IH", 5, 3) + b"EIO"),
        struct.pack(">IHHQI", 0x668E33EF, 1, 1, 1, 1 << 31),
        struct.pack(">IIQ", 0x67446698, 5, 1),
    ],
)
def test_a_malformed_answer_to_a_read_is_an_error(serve: Callable[[bytes], NbdClient], answer: bytes) -> None:
    client = serve(SESSION + answer)
    client.connect()
    with pytest.raises(NbdError):
        client.read(0, 100)
    client.close()


def test_data_holes_and_status_in_pieces_are_put_together(serve: Callable[[bytes], NbdClient]) -> None:
    data = chunk(1, struct.pack(">Q", 10) + b"a" * 5, flags=0) + chunk(2, struct.pack(">QI", 15, 5))
    status = chunk(5, struct.pack(">IIIII", 1, MIB, 0, SIZE, 3), handle=2)
    client = serve(SESSION + data + status)
    client.connect()
    assert client.size == SIZE
    assert client.read(10, 10) == b"a" * 5 + bytes(5)
    assert list(client.status(ALLOCATION)) == [(0, MIB, 0), (MIB, SIZE - MIB, 3)]
    client.close()
    with pytest.raises(BrsError, match="closed"):
        client.read(0, 1)


def test_digest_of_a_block_device_is_that_of_its_file(raw: Path) -> None:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("NEEDS ROOT and loop devices")
    done = subprocess.run(["losetup", "--find", "--show", str(raw)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NEEDS loop devices: {done.stderr}")
    device = Path(done.stdout.strip())
    try:
        content, data = whole(device)
        assert hashlib.sha256(content).digest() == hashlib.sha256(raw.read_bytes()).digest()
        assert data == SIZE
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


def test_a_cut_off_or_damaged_container_is_told_and_a_sound_one_is_not(raw: Path) -> None:
    # qemu reads what lies beyond the file's end as zeros, without an error.
    sound = converted(raw, "qcow2", ".qcow2")
    overlay = raw.with_name("over.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", sound, "-F", "qcow2", overlay)
    for path in (raw, sound, overlay, converted(raw, "vhdx", ".vhdx"), converted(raw, "vpc", ".vhd")):
        with open_image(path) as image:
            assert image.damage == "", path
    os.truncate(sound, 2 * MIB)
    for path in (sound, overlay):
        with open_image(path) as image:
            assert str(sound) in image.damage and "qemu-img check" in image.damage


def test_leaked_clusters_are_no_damage(raw: Path) -> None:
    path = converted(raw, "qcow2", ".qcow2")
    with path.open("r+b") as file:
        file.seek(40)
        (table,) = struct.unpack(">Q", file.read(8))
        file.seek(table)
        (second,) = struct.unpack(">Q", file.read(8))
        file.seek(second & 0x00FFFFFFFFFFFE00)
        file.write(bytes(8))  # the first cluster is given up, but still counted
    assert subprocess.run(["qemu-img", "check", str(path)], capture_output=True).returncode == 3
    with open_image(path) as image:
        assert image.damage == ""
