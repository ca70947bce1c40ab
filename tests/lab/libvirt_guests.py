"""Tiny bootable guests for the lab: Debian's cloud kernel, busybox and the guest agent on a disk of 160 MiB.

Built without root and without a loop device: a FAT partition with syslinux and the kernel, an ext4 partition
with everything else. The kernel and the agent are unpacked from Debian's packages, never installed.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent / "guest"
CACHE = Path(sys.prefix) / "lab"
MIB = 1 << 20
BOOT_START, BOOT_SIZE = 1 * MIB, 31 * MIB
ROOT_START, ROOT_SIZE = 32 * MIB, 128 * MIB
DISK_SIZE = ROOT_START + ROOT_SIZE
_MODULES = (
    "virtio/virtio_ring", "virtio/virtio", "virtio/virtio_pci_legacy_dev", "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci", "block/virtio_blk", "char/virtio_console",
)  # fmt: skip
_SYSLINUX = (
    "DEFAULT linux\nPROMPT 0\nLABEL linux\n LINUX /vmlinuz.efi\n INITRD /initrd.gz\n "
    "APPEND console=ttyS0,115200 quiet\n"
)
# What UEFI's shell does, which comes up where nothing says what to boot: the kernel is a program of UEFI, too.
_UEFI = "fs0:\\vmlinuz.efi initrd=\\initrd.gz console=ttyS0,115200 quiet\r\n"
_MBR = ("/usr/lib/syslinux/mbr/mbr.bin", "/usr/lib/SYSLINUX/mbr.bin")


def unpacked() -> Path:
    """Folder with the contents of the kernel's and the agent's packages; downloaded once for each environment."""
    ready = CACHE / "unpacked"
    if ready.is_dir():
        return ready
    shutil.rmtree(CACHE, ignore_errors=True)
    downloads, partial = CACHE / "downloads", CACHE / "partial"
    downloads.mkdir(parents=True)
    kernel = _kernel_package()
    _run("apt-get", "-q", "download", kernel, "qemu-guest-agent", cwd=downloads)
    for package in downloads.glob("*.deb"):
        _run("dpkg-deb", "-x", str(package), str(partial))
    shutil.rmtree(downloads)
    return partial.rename(ready)


def _kernel_package() -> str:
    command = ["apt-cache", "depends", "linux-image-cloud-amd64"]
    for update in (False, True):
        if update:
            _run("apt-get", "-q", "update")
        found = re.search(r"Depends: (linux-image-\S+)", subprocess.run(command, capture_output=True, text=True).stdout)
        if found:
            return found[1]
    raise RuntimeError("Debian's cloud kernel (linux-image-cloud-amd64) is not to be had.")


def build(folder: Path) -> Path:
    """A raw disk that boots, made in ``folder``."""
    parts = unpacked()
    root, image = folder / "guest-root", folder / "guest.raw"
    shutil.rmtree(root, ignore_errors=True)
    _fill_root(root, parts)
    image.unlink(missing_ok=True)
    with image.open("wb") as out:
        out.truncate(DISK_SIZE)
    boot, root_part = (
        f"start={BOOT_START // 512}, size={BOOT_SIZE // 512}, type=c",
        f"start={ROOT_START // 512}, type=83",
    )
    table = f"label: dos\n{boot}, bootable\n{root_part}\n"
    _run("sfdisk", "-q", str(image), given=table.encode())
    _boot_partition(folder, parts, image)
    _run(
        "mke2fs", "-q", "-t", "ext4", "-L", "guest", "-d", str(root),
        "-E", f"offset={ROOT_START},root_owner=0:0", str(image), f"{ROOT_SIZE // 1024}k",
    )  # fmt: skip
    mbr = next(Path(path) for path in _MBR if Path(path).exists()).read_bytes()
    with image.open("r+b") as out:
        out.write(mbr[:440])
    shutil.rmtree(root)
    return image


def _fill_root(root: Path, parts: Path) -> None:
    for name in (
        "bin",
        "sbin",
        "etc",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "root",
        "data",
        "usr/bin",
        "usr/sbin",
        "var",
    ):
        (root / name).mkdir(parents=True, exist_ok=True)
    _busybox(root, links=True)
    agent = root / "usr/sbin/qemu-ga"
    shutil.copy(parts / "usr/sbin/qemu-ga", agent)
    for library in sorted(set(re.findall(r"(/\S+) \(0x", _run("ldd", str(agent))))):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    (root / "var/run").symlink_to("/run")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (root / "data/known.txt").write_text("what a guest knows of itself\n")
    for name, place in (("guest-init", "sbin"), ("freeze-hook", "etc")):
        (root / place / name).write_bytes((HERE / name).read_bytes())
        (root / place / name).chmod(0o755)


def _busybox(root: Path, *, links: bool) -> None:
    shutil.copy("/bin/busybox", root / "bin/busybox")
    if links:
        for name in _run("/bin/busybox", "--list").split():
            if name != "busybox":
                (root / "bin" / name).symlink_to("/bin/busybox")


def _boot_partition(folder: Path, parts: Path, image: Path) -> None:
    """FAT with syslinux, the kernel and an initial RAM disk, written into ``image`` at its place."""
    fat = folder / "boot.fat"
    fat.unlink(missing_ok=True)
    with fat.open("wb") as out:
        out.truncate(BOOT_SIZE)
    hidden = str(BOOT_START // 512)  # where the partition begins: syslinux finds itself by it
    _run("mformat", "-i", str(fat), "-T", str(BOOT_SIZE // 512), "-h", "16", "-s", "63", "-H", hidden, "::")
    config, initrd, uefi = folder / "syslinux.cfg", folder / "initrd.gz", folder / "startup.nsh"
    config.write_text(_SYSLINUX)
    uefi.write_bytes(_UEFI.encode())
    initrd.write_bytes(gzip.compress(_initrd(folder, parts), 1))
    kernel = next((parts / "boot").glob("vmlinuz-*"))
    _run("mcopy", "-i", str(fat), str(kernel), "::vmlinuz.efi")
    _run("mcopy", "-i", str(fat), str(initrd), str(config), str(uefi), "::")
    _run("syslinux", "--install", str(fat))
    with image.open("r+b") as out:
        out.seek(BOOT_START)
        out.write(fat.read_bytes())
    for made in (fat, config, initrd, uefi):
        made.unlink()


def _initrd(folder: Path, parts: Path) -> bytes:
    root = folder / "initrd-root"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "lib/modules", "newroot", "dev", "proc", "sys"):
        (root / name).mkdir(parents=True)
    _busybox(root, links=False)
    shutil.copy(HERE / "initrd-init", root / "init")
    (root / "init").chmod(0o755)
    drivers = next((parts / "lib/modules").iterdir()) / "kernel/drivers"
    for module in _MODULES:
        shutil.copy(drivers / f"{module}.ko", root / "lib/modules")
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    done = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
        input=names.encode(), capture_output=True, cwd=root, check=True,
    )  # fmt: skip
    shutil.rmtree(root)
    return done.stdout


def _run(*command: str, given: bytes | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(command, input=given, capture_output=True, cwd=cwd)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended {done.returncode}:\n{(done.stdout + done.stderr).decode()[-2000:]}"
        )
    return done.stdout.decode()
