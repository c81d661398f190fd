"""Linux: Debian's arm64 kernel with its driver for SPE, and the initramfs that comes with pmuvisor."""

from __future__ import annotations

import lzma
import re
import tarfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from elftools.elf.enums import ENUM_E_MACHINE

from pmuvisor.board.images import ImageError, ImageKind, load_image
from pmuvisor.board.initramfs import CharDevice, Directory, File, cpio_newc
from pmuvisor.board.memmap import RAM_BASE
from pmuvisor.lab.guests.apt import Apt, Progress, deb_field, deb_files, member_content
from pmuvisor.lab.guests.cache import Cached, Slot, guest_folder
from pmuvisor.lab.guests.errors import GuestError
from pmuvisor.lab.guests.libraries import ELF_MAGIC

META_PACKAGE = "linux-image-cloud-arm64"
"""Debian's package that depends on its current arm64 kernel for virtual machines."""

LAYOUT = 2
"""Raised when what is taken out of the package changes: an older kernel is then fetched again."""

LARGE_MEMORY = 1 << 30
"""Memory enough for any kernel: only whether it is one is asked here, not whether it fits a guest."""
KERNEL_LIMIT = 256 << 20
"""Bytes of the largest kernel that is taken out of a package."""
MODULE_LIMIT = 8 << 20
"""The same of a module, also once it is inflated; Debian's has 34 KB."""
INFLATE_MEMORY = 64 << 20
"""Bytes that inflating a module may take."""
SPE_MODULE: Final = "arm_spe_pmu.ko"
"""Linux's driver for the Statistical Profiling Extension, which Debian's kernels have as a module."""
MODULE_ROLE: Final = "module"
"""What the note of the cache calls it."""

_KERNEL = re.compile(r"(?:\./)?boot/vmlinuz-[^/]+")
_SPE_MODULE = re.compile(rf"(?:\./)?(?:usr/)?lib/modules/[^/]+/kernel/drivers/perf/{re.escape(SPE_MODULE)}(?:\.xz)?")


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A Linux kernel in the cache, and the driver for SPE that is its own, where its package has it as a module."""

    image: Path
    package: str
    version: str
    spe_module: Path | None

    def modules(self) -> tuple[tuple[str, bytes], ...]:
        """Return the modules that came with it, by their names. Raises GuestError if one cannot be read any more."""
        if self.spe_module is None:
            return ()
        try:
            return ((SPE_MODULE, self.spe_module.read_bytes()),)
        except OSError as error:
            raise GuestError(f"{self.spe_module}: {error.strerror}") from None


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
    """The kernel that was fetched before, if it is there in full and of this layout."""
    found = _slot().cached()
    if found is None or found.facts.get("layout") != LAYOUT:
        return None
    try:
        return _kernel_files(found)
    except KeyError:
        return None


def _kernel_files(found: Cached) -> KernelFiles:
    return KernelFiles(found.image, found.facts["package"], found.facts["version"], found.beside.get(MODULE_ROLE))


def fetch_linux(progress: Progress, *, force: bool = False) -> KernelFiles:
    """The kernel, fetched if it is not there yet (or in any case, by `force`); GuestError if that fails."""
    kernel = cached_linux()
    if kernel and not force:
        return kernel
    with _slot().fetching() as work:
        fetched = _fetch_into(work, progress)
        facts = {"layout": LAYOUT, "package": fetched.package, "version": fetched.version}
        beside = {MODULE_ROLE: fetched.spe_module} if fetched.spe_module else {}
        return _kernel_files(_slot().commit(fetched.image, facts, beside))


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
    release = f"{package.removeprefix('linux-image-')}_{version.replace(':', '.')}"
    image, module = work / f"vmlinuz-{release}", work / f"arm_spe_pmu-{release}.ko"
    has_module = _unpack(deb, image, module)
    return KernelFiles(image, package, version, module if has_module else None)


def _unpack(deb: Path, image: Path, module: Path) -> bool:
    """Take the kernel out of its package, without unpacking its modules; and one of these, or return False."""
    kernel = driver = None
    try:
        with deb_files(deb) as tar:
            for member in tar:
                if kernel is None and _KERNEL.fullmatch(member.name) and member.isreg():
                    kernel = member_content(tar, member, KERNEL_LIMIT)
                elif driver is None and _SPE_MODULE.fullmatch(member.name) and member.isreg():
                    driver = _module(member_content(tar, member, MODULE_LIMIT), member.name)
                if kernel is not None and driver is not None:
                    break  # the rest is not read
        if kernel is None:
            raise LookupError("no boot/vmlinuz in it")
        image.write_bytes(kernel)
        if load_image(kernel, RAM_BASE, LARGE_MEMORY).kind is not ImageKind.LINUX:
            raise GuestError(f"{deb.name} holds a boot/vmlinuz that is no arm64 kernel")
    except (tarfile.TarError, LookupError, ImageError) as error:
        raise GuestError(f"{deb.name} holds no kernel: {error}") from error
    if driver is not None:
        module.write_bytes(driver)
    return driver is not None


def _module(data: bytes, name: str) -> bytes:
    """Return a module as a kernel takes it, inflated if its name says so. Raises GuestError for what is none."""
    if name.endswith(".xz"):
        try:
            inflate = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=INFLATE_MEMORY)
            data = inflate.decompress(data, MODULE_LIMIT)
        except lzma.LZMAError as error:
            raise GuestError(f"{name[:120]!r} cannot be inflated: {error}") from None
        if not inflate.eof:
            raise GuestError(f"{name[:120]!r} is cut short, or inflates to more than {MODULE_LIMIT >> 20} MiB")
    if not data.startswith(ELF_MAGIC) or int.from_bytes(data[18:20], "little") != ENUM_E_MACHINE["EM_AARCH64"]:
        raise GuestError(f"{name[:120]!r} is no module of an arm64 kernel")
    return data
