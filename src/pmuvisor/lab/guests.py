"""Guests to run: the one that comes with pmuvisor, and Linux, whose kernel comes from Debian's archive.

The kernel is fetched by the machine's own apt-get, which checks its signature, with package lists, cache and settings
of its own below the user's cache folder: nothing of the system changes, and no privilege is needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from pmuvisor.board.images import ImageError, ImageKind, load_image
from pmuvisor.board.initramfs import CharDevice, Directory, File, cpio_newc
from pmuvisor.board.memmap import RAM_BASE
from pmuvisor.numba_cache import cache_root

META_PACKAGE = "linux-image-cloud-arm64"
"""Debian's package that depends on its current arm64 kernel for virtual machines."""

LARGE_MEMORY = 1 << 30
"""Memory enough for any kernel: only whether it is one is asked here, not whether it fits a guest."""

APT_SETTINGS = """\
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
// The folders are this user's: apt's own download user could not write to them.
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
// What a host does after an update (desktop catalogues, cleaning its cache) is not for these lists.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""

UNREACHABLE = re.compile(r"Temporary failure|[Cc]ould not (?:resolve|connect)|[Cc]onnection|timed out|unreachable")
"""What apt-get says of a network that is not there, as against a file that is not there."""

Progress = Callable[[str], None]


class GuestError(Exception):
    """Why there is no such guest, in one line."""


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A Linux kernel in the cache."""

    image: Path
    package: str
    version: str


def builtin_guest(name: str) -> Path:
    """The ELF file of a bare-metal guest that comes with pmuvisor."""
    folder = Path(str(files("pmuvisor.guests")))
    elf = folder / name / f"{name}.elf"
    if not elf.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*/*.elf")))
        raise GuestError(f"no guest {name!r} comes with pmuvisor; there are: {known}")
    return elf


def linux_initrd() -> bytes:
    """An initramfs whose /init counts, samples and multiplexes, and powers off."""
    init = files("pmuvisor.guests").joinpath("linux", "init").read_bytes()
    folders = [Directory(name) for name in ("dev", "proc", "sys")]
    # The kernel opens /dev/console for init before there is a devtmpfs to find it in.
    return cpio_newc([*folders, CharDevice("dev/console", 5, 1), File("init", init, 0o755)])


def linux_folder() -> Path:
    """Where the kernel is kept."""
    return cache_root() / "guests" / "linux"


def cached_linux() -> KernelFiles | None:
    """The kernel that was fetched before, if it is there in full."""
    folder = linux_folder()
    try:
        note = json.loads((folder / "kernel.json").read_text())
        kernel = KernelFiles(folder / note["image"], note["package"], note["version"])
        complete = kernel.image.stat().st_size == note["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kernel if complete else None


def fetch_linux(progress: Progress, *, force: bool = False) -> KernelFiles:
    """The kernel, fetched if it is not there yet (or in any case, by `force`); GuestError if that fails.

    The note kernel.json is written last, in one step, and names the image that it belongs to: whenever this is
    interrupted, the cache holds a whole kernel or none.
    """
    kernel = cached_linux()
    if kernel and not force:
        return kernel
    folder = linux_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as work:
            return _fetch_into(folder, Path(work), progress)
    except OSError as error:
        raise GuestError(f"{folder}: {error.strerror or error}") from error


def _fetch_into(folder: Path, work: Path, progress: Progress) -> KernelFiles:
    apt = _apt_command(work)
    progress("package lists of arm64")
    update = _run([*apt, "update"], work)
    progress(META_PACKAGE)
    meta = _download(apt, META_PACKAGE, work, update)
    depends = _deb_field(meta, "Depends")
    named = re.search(r"linux-image-[\w.+-]+", depends)
    if not named:
        raise GuestError(f"{META_PACKAGE} names no kernel package; it depends on {depends[:80]!r}")
    package = named[0]
    progress(package)
    deb = _download(apt, package, work, update)
    version = _deb_field(deb, "Version")
    progress(f"unpacking {package} {version}")
    image = work / f"vmlinuz-{package.removeprefix('linux-image-')}_{version.replace(':', '.')}"
    _unpack_kernel(deb, image)
    return _commit(folder, work, KernelFiles(image, package, version))


def _commit(folder: Path, work: Path, fetched: KernelFiles) -> KernelFiles:
    before = cached_linux()
    kernel = KernelFiles(folder / fetched.image.name, fetched.package, fetched.version)
    note = asdict(kernel) | {"image": kernel.image.name, "size": fetched.image.stat().st_size}
    (work / "kernel.json").write_text(json.dumps(note, indent=2) + "\n")
    fetched.image.replace(kernel.image)
    (work / "kernel.json").replace(folder / "kernel.json")
    if before and before.image != kernel.image:
        before.image.unlink(missing_ok=True)
    return kernel


def _apt_command(work: Path) -> list[str]:
    """apt-get for arm64, with the host's sources and keys but nothing else of the host's."""
    if not shutil.which("apt-get"):
        raise GuestError("apt-get not found: the Linux guest's kernel comes from Debian's archive, on a Debian machine")
    if not shutil.which("dpkg-deb"):
        raise GuestError("dpkg-deb not found: it unpacks the Linux guest's kernel")
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    (work / "apt.conf").write_text(APT_SETTINGS)
    places = {"Dir::State::Lists": "lists", "Dir::Cache": "cache", "Dir::State::status": "status"}
    options = [word for name, place in places.items() for word in ("-o", f"{name}={work / place}")]
    return ["apt-get", "-q", "-c", str(work / "apt.conf"), *options]


def _run(command: list[str], work: Path) -> subprocess.CompletedProcess[str]:
    """Runs it to its end; what it said, in English, is in stdout."""
    try:
        return subprocess.run(
            command,
            cwd=work,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise GuestError(f"{command[0]}: {error.strerror}") from error


def _download(apt: list[str], package: str, work: Path, update: subprocess.CompletedProcess[str]) -> Path:
    result = _run([*apt, "download", package], work)
    found = sorted(work.glob(f"{package}_*.deb"))
    if result.returncode == 0 and found:
        return found[0]
    raise GuestError(_why_no_package(package, update, result))


def _why_no_package(
    package: str, update: subprocess.CompletedProcess[str], download: subprocess.CompletedProcess[str]
) -> str:
    """apt-get update succeeds although nothing was reachable: only both outputs together tell the reason."""
    said = [line.strip() for line in (update.stdout + download.stdout).splitlines()]
    complaints = [line for line in said if line.startswith(("E:", "W:", "Err:"))]
    for line in [*complaints, *said]:
        if UNREACHABLE.search(line):
            return f"no network to fetch {package}: apt-get says {line[:160]!r}"
    if any("Unable to locate package" in line or "Can't select candidate" in line for line in complaints):
        system = _system_name()
        if system != "debian":
            return f"no package {package}: the package sources of this machine ({system}) are not Debian's"
        return f"no package {package} in the package sources of this machine"
    if complaints:
        return f"apt-get fetched no {package}: {complaints[-1][:160]}"
    return f"apt-get fetched no {package} (it ended with status {download.returncode} and no reason)"


def _system_name() -> str:
    try:
        release = Path("/etc/os-release").read_text()
    except OSError:
        return "unknown"
    found = re.search(r'^ID="?([\w.-]+)', release, re.MULTILINE)
    return found[1] if found else "unknown"


def _deb_field(deb: Path, field: str) -> str:
    result = _run(["dpkg-deb", "-f", str(deb), field], deb.parent)
    text = result.stdout.strip()
    if result.returncode or not text:
        raise GuestError(f"{deb.name} is not a Debian package with a field {field}")
    return text


def _unpack_kernel(deb: Path, image: Path) -> None:
    """Takes the one file that is wanted out of the package, without unpacking its modules."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpack:
            assert unpack.stdout
            # The kernel comes early; the rest is not read, and dpkg-deb ends when its pipe is closed.
            with tarfile.open(fileobj=unpack.stdout, mode="r|") as tar:
                _copy_kernel(tar, image)
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
