"""The root file system of a Linux guest that runs commands: Debian's busybox and perf, and the libraries of these.

It is one initramfs of what was fetched, uncompressed, since a guest would take longer to inflate it than to copy it.
What is pmuvisor's own, /init and the command, is in a second archive behind it (`command`): so a newer pmuvisor goes
on with what was fetched before. perf needs no kernel of its own version: its system call keeps to old layouts.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pmuvisor.board.initramfs import CharDevice, Directory, Entry, File, Symlink, cpio_newc
from pmuvisor.lab.guests import libraries
from pmuvisor.lab.guests.apt import Apt, Progress, deb_field, deb_files, member_content
from pmuvisor.lab.guests.cache import Slot, guest_folder
from pmuvisor.lab.guests.errors import GuestError

PACKAGES = ("busybox-static", "linux-perf", "ncurses-base")
"""What is fetched, with all that it depends on. ncurses-base describes terminals, for perf's screens."""

LAYOUT = 1
"""Raised when what is taken out of the packages, or its places, change: an older root is then fetched again."""

LIBRARY_FOLDER = "usr/lib/aarch64-linux-gnu"
LOADER = "ld-linux-aarch64.so.1"
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib"}
"""The merged /usr of Debian: links at the top, and where they lead."""
FOLDERS = (
    "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "usr/lib", LIBRARY_FOLDER, "usr/sbin",
    "usr/share",
)  # fmt: skip
FOR_OTHERS = ("libdl.so.2", "libgcc_s.so.1", "libpthread.so.0", "libresolv.so.2", "librt.so.1", "libstdc++.so.6")
"""Libraries for programs that a user adds, and libgcc_s, which the C library opens when a thread is cancelled."""
FILE_LIMIT = 64 << 20
"""Bytes of the largest file that is taken out of a package."""

_PERF = re.compile(r"usr/bin/perf(?:_[\d.]+)?")
_BUSYBOX = re.compile(r"(?:usr/)?bin/busybox")
_LIBRARY = re.compile(r"(?:usr/)?lib/(?:aarch64-linux-gnu/)?([^/]+\.so(?:\.[^/]+)?)")
_TIPS = re.compile(r"usr/share/doc/[^/]+/tips\.txt")
_TERMINAL = re.compile(r"(?:usr/)?(?:lib|share)/terminfo/(./[^/]+)")


@dataclass(frozen=True, slots=True)
class RootFiles:
    """A root in the cache: an initramfs, and the versions of Debian's packages that its programs are from."""

    image: Path
    perf: str
    busybox: str


@dataclass
class Taken:
    """What was taken out of packages so far; libraries by their file's name, and links as what they lead to."""

    perf: bytes = b""
    busybox: bytes = b""
    libraries: dict[str, bytes] = field(default_factory=dict)
    library_links: dict[str, str] = field(default_factory=dict)
    data: dict[str, Entry] = field(default_factory=dict)
    """What the programs read, by its path: descriptions of terminals, and the tips at the end of perf's reports."""

    def take(self, tar: tarfile.TarFile) -> None:
        """Look through the files of a package. Raises tarfile.TarError, and GuestError for a file too large."""
        for member in tar:
            path = posixpath.normpath(member.name)
            if found := _LIBRARY.fullmatch(path):
                self._take_library(tar, member, found[1])
            elif found := _TERMINAL.fullmatch(path):
                self._take_data(tar, member, f"usr/share/terminfo/{found[1]}")
            elif _TIPS.fullmatch(path):
                self._take_data(tar, member, path)
            elif _BUSYBOX.fullmatch(path) and member.isreg():
                self.busybox = _content(tar, member)
            elif _PERF.fullmatch(path) and member.isreg():
                data = _content(tar, member)
                # In older releases /usr/bin/perf is a script that looks for the kernel's own version.
                self.perf = data if data.startswith(libraries.ELF_MAGIC) else self.perf

    def _take_library(self, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
        if member.issym():
            self.library_links[name] = posixpath.basename(member.linkname)
        elif member.isreg():
            data = _content(tar, member)
            if data.startswith(libraries.ELF_MAGIC):  # a few are scripts of the linker
                self.libraries[name] = data

    def _take_data(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.isreg():
            self.data[path] = File(path, _content(tar, member))
        elif member.issym() and "/../" not in f"/{member.linkname.removeprefix('../')}/":
            self.data[path] = Symlink(path, member.linkname)

    def by_soname(self) -> dict[str, bytes]:
        """Return the libraries with their links followed: what the loader finds under each name."""
        out = dict(self.libraries)
        for name in self.library_links:
            target, steps = name, 0
            while target in self.library_links and steps < len(self.library_links):
                target, steps = self.library_links[target], steps + 1
            if target in self.libraries:
                out[name] = self.libraries[target]
        return out


def _slot() -> Slot:
    return Slot(guest_folder("perf"), "root.json")


def cached_root() -> RootFiles | None:
    """The root that was fetched before, if it is there in full and of this layout."""
    found = _slot().cached()
    if found is None or found.facts.get("layout") != LAYOUT:
        return None
    try:
        return RootFiles(found.image, found.facts["perf"], found.facts["busybox"])
    except KeyError:
        return None


def fetch_root(progress: Progress, *, force: bool = False) -> RootFiles:
    """The root, fetched if it is not there yet (or in any case, by `force`); GuestError if that fails."""
    root = cached_root()
    if root and not force:
        return root
    with _slot().fetching() as work:
        fetched = _fetch_into(work, progress)
        facts = {"layout": LAYOUT, "perf": fetched.perf, "busybox": fetched.busybox}
        image = _slot().commit(fetched.image, facts).image
    return RootFiles(image, fetched.perf, fetched.busybox)


def _fetch_into(work: Path, progress: Progress) -> RootFiles:
    apt = Apt(work)
    progress("package lists of arm64")
    apt.update()
    progress(f"{', '.join(PACKAGES)} and what they depend on")
    packages = apt.download_all(PACKAGES)
    versions = {name: _version(packages, name) for name in PACKAGES}
    progress(f"unpacking {len(packages)} packages, linux-perf {versions['linux-perf']}")
    taken = Taken()
    for deb in packages:
        try:
            with deb_files(deb) as tar:
                taken.take(tar)
        except tarfile.TarError as error:
            raise GuestError(f"{deb.name} cannot be unpacked: {error}") from error
    name = "_".join(versions[package].replace(":", ".") for package in ("linux-perf", "busybox-static"))
    image = work / f"root_{name}.cpio"
    image.write_bytes(cpio_newc(root_entries(taken)))
    return RootFiles(image, versions["linux-perf"], versions["busybox-static"])


def _version(packages: Iterable[Path], name: str) -> str:
    return deb_field(next(deb for deb in packages if deb.name.startswith(f"{name}_")), "Version")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return member_content(tar, member, FILE_LIMIT)


def root_entries(taken: Taken) -> list[Entry]:
    """Return the files of the root, in their order. Raises GuestError where a program or a library is missing."""
    for name, data in (("busybox", taken.busybox), ("perf", taken.perf)):
        if not data:
            raise GuestError(f"no {name} in the packages that were fetched")
    available = taken.by_soname()
    programs = {"busybox": taken.busybox, "perf": taken.perf}
    entries: list[Entry] = [Directory(path) for path in FOLDERS]
    entries += [Symlink(path, target) for path, target in LINKS.items()]
    # The kernel opens /dev/console for init before there is a devtmpfs to find it in.
    entries.append(CharDevice("dev/console", 5, 1))
    entries += [
        File("etc/group", b"root:x:0:\n"),
        File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        File("usr/bin/busybox", taken.busybox, 0o755),
        Symlink("usr/bin/sh", "busybox"),
        File("usr/bin/perf", taken.perf, 0o755),
    ]
    for name in libraries.closure(programs, available, FOR_OTHERS):
        folder = "usr/lib" if name == LOADER else LIBRARY_FOLDER
        entries.append(File(f"{folder}/{name}", available[name], 0o755))
    return entries + _data_entries(taken.data)


def _data_entries(data: dict[str, Entry]) -> list[Entry]:
    """What the programs read, and the folders of it that are not there yet."""
    folders = {str(folder) for path in data for folder in PurePosixPath(path).parents} - {".", *FOLDERS}
    return [*(Directory(path) for path in sorted(folders)), *(data[path] for path in sorted(data))]
