"""Linux: Debian's arm64 kernel, and the initramfs that comes with pmuvisor."""

from __future__ import annotations

import re
import shutil
import tarfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pmuvisor.board.images import ImageError, ImageKind, load_image
from pmuvisor.board.initramfs import CharDevice, Directory, File, cpio_newc
from pmuvisor.board.memmap import RAM_BASE
from pmuvisor.lab.guests.apt import Apt, Progress, deb_field, deb_files
from pmuvisor.lab.guests.cache import Slot, guest_folder
from pmuvisor.lab.guests.errors import GuestError

META_PACKAGE = "linux-image-cloud-arm64"
"""Debian's package that depends on its current arm64 kernel for virtual machines."""

LARGE_MEMORY = 1 << 30
"""Memory enough for any kernel: only whether it is one is asked here, not whether it fits a guest."""


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A Linux kernel in the cache."""

    image: Path
    package: str
    version: str


def linux_initrd() -> bytes:
    """An initramfs whose /init counts, samples and multiplexes, and powers off."""
    init = files("pmuvisor.guests").joinpath("linux", "init").read_bytes()
    folders = [Directory(name) for name in ("dev", "proc", "sys")]
    # The kernel opens /dev/console for init before there is a devtmpfs to find it in.
    return cpio_newc([*folders, CharDevice("dev/console", 5, 1), File("init", init, 0o755)])


def linux_folder() -> Path:
    """Where the kernel is kept."""
    return guest_folder("linux")


def _slot() -> Slot:
    return Slot(linux_folder(), "kernel.json")


def cached_linux() -> KernelFiles | None:
    """The kernel that was fetched before, if it is there in full."""
    found = _slot().cached()
    try:
        return None if found is None else KernelFiles(found[0], found[1]["package"], found[1]["version"])
    except KeyError:
        return None


def fetch_linux(progress: Progress, *, force: bool = False) -> KernelFiles:
    """The kernel, fetched if it is not there yet (or in any case, by `force`); GuestError if that fails."""
    kernel = cached_linux()
    if kernel and not force:
        return kernel
    with _slot().fetching() as work:
        fetched = _fetch_into(work, progress)
        image = _slot().commit(fetched.image, {"package": fetched.package, "version": fetched.version})
    return KernelFiles(image, fetched.package, fetched.version)


def _fetch_into(work: Path, progress: Progress) -> KernelFiles:
    apt = Apt(work)
    progress("package lists of arm64")
    apt.update()
    progress(META_PACKAGE)
    depends = deb_field(apt.download(META_PACKAGE), "Depends")
    named = re.search(r"linux-image-[\w.+-]+", depends)
    if not named:
        raise GuestError(f"{META_PACKAGE} names no kernel package; it depends on {depends[:80]!r}")
    package = named[0]
    progress(package)
    deb = apt.download(package)
    version = deb_field(deb, "Version")
    progress(f"unpacking {package} {version}")
    image = work / f"vmlinuz-{package.removeprefix('linux-image-')}_{version.replace(':', '.')}"
    _unpack_kernel(deb, image)
    return KernelFiles(image, package, version)


def _unpack_kernel(deb: Path, image: Path) -> None:
    """Takes the one file that is wanted out of the package, without unpacking its modules."""
    try:
        with deb_files(deb) as tar:
            _copy_kernel(tar, image)  # which comes early: the rest is not read
        if load_image(image.read_bytes(), RAM_BASE, LARGE_MEMORY).kind is not ImageKind.LINUX:
            raise GuestError(f"{deb.name} holds a boot/vmlinuz that is no arm64 kernel")
    except (tarfile.TarError, LookupError, ImageError) as error:
        raise GuestError(f"{deb.name} holds no kernel: {error}") from error


def _copy_kernel(tar: tarfile.TarFile, image: Path) -> None:
    for member in tar:
        if not re.fullmatch(r"(?:\./)?boot/vmlinuz-[^/]+", member.name):
            continue
        content = tar.extractfile(member)
        if content:
            with image.open("wb") as file:
                shutil.copyfileobj(content, file)
            return
    raise LookupError("no boot/vmlinuz in it")
