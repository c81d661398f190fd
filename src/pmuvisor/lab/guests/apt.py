"""Packages of Debian's arm64 archive, by the machine's own apt-get, which checks their signatures.

It works with package lists, a cache and settings of its own: nothing of the system changes, and no privilege is
needed. Packages are only read: none of their scripts runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pmuvisor.lab.guests.errors import GuestError

SETTINGS = """\
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


class Apt:
    """apt-get for arm64, with the host's sources and keys but nothing else of the host's; its files are in `work`."""

    def __init__(self, work: Path) -> None:
        """Make the folders that it needs. Raises GuestError where apt-get or dpkg-deb is not there."""
        if not shutil.which("apt-get"):
            raise GuestError("apt-get not found: Linux guests come from Debian's archive, on a Debian machine")
        if not shutil.which("dpkg-deb"):
            raise GuestError("dpkg-deb not found: it unpacks the packages of Linux guests")
        for folder in ("lists/partial", "cache/archives/partial"):
            (work / folder).mkdir(parents=True)
        (work / "status").touch()
        (work / "apt.conf").write_text(SETTINGS)
        places = {"Dir::State::Lists": "lists", "Dir::Cache": "cache", "Dir::State::status": "status"}
        options = [word for name, place in places.items() for word in ("-o", f"{name}={work / place}")]
        self._command = ["apt-get", "-q", "-c", str(work / "apt.conf"), *options]
        self._work = work
        self._said = ""

    def update(self) -> None:
        """Fetch the package lists. That apt-get could not is only known when a package is asked for."""
        self._said = run([*self._command, "update"], self._work).stdout

    def download(self, package: str) -> Path:
        """Fetch one package. Raises GuestError if that fails."""
        result = run([*self._command, "download", package], self._work)
        found = sorted(self._work.glob(f"{package}_*.deb"))
        if result.returncode == 0 and found:
            return found[0]
        raise GuestError(self._why_none(package, result))

    def download_all(self, packages: Sequence[str]) -> list[Path]:
        """Fetch packages with all that they depend on, as apt-get resolves it for an empty system, by name.

        Raises GuestError if that fails, or if one of `packages` is not among what came.
        """
        words = ["install", "--download-only", "--assume-yes", "--no-install-recommends", *packages]
        result = run([*self._command, *words], self._work)
        found = sorted((self._work / "cache" / "archives").glob("*.deb"))
        names = {deb.name.partition("_")[0] for deb in found}
        missing = [package for package in packages if package not in names]
        if result.returncode or missing:
            unknown = [package for package in packages if f"Unable to locate package {package}" in result.stdout]
            raise GuestError(self._why_none([*unknown, *missing, packages[0]][0], result))
        return found

    def _why_none(self, package: str, download: subprocess.CompletedProcess[str]) -> str:
        """apt-get update succeeds although nothing was reachable: only both outputs together tell the reason."""
        said = [line.strip() for line in (self._said + download.stdout).splitlines()]
        complaints = [line for line in said if line.startswith(("E:", "W:", "Err:"))]
        for line in [*complaints, *said]:
            if UNREACHABLE.search(line):
                return f"no network to fetch {package}: apt-get says {line[:160]!r}"
        if any("Unable to locate package" in line or "Can't select candidate" in line for line in complaints):
            system = system_name()
            if system != "debian":
                return f"no package {package}: the package sources of this machine ({system}) are not Debian's"
            return f"no package {package} in the package sources of this machine"
        if complaints:
            return f"apt-get fetched no {package}: {complaints[-1][:160]}"
        return f"apt-get fetched no {package} (it ended with status {download.returncode} and no reason)"


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run it in `folder` to its end; what it said, in English, is in stdout. Raises GuestError if it cannot start."""
    try:
        return subprocess.run(
            command,
            cwd=folder,
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


def system_name() -> str:
    """Return what /etc/os-release says that this machine's distribution is."""
    try:
        release = Path("/etc/os-release").read_text()
    except OSError:
        return "unknown"
    found = re.search(r'^ID="?([\w.-]+)', release, re.MULTILINE)
    return found[1] if found else "unknown"


def deb_field(deb: Path, field: str) -> str:
    """Return a field of a package's control file. Raises GuestError where there is none."""
    result = run(["dpkg-deb", "-f", str(deb), field], deb.parent)
    text = result.stdout.strip()
    if result.returncode or not text:
        raise GuestError(f"{deb.name} is not a Debian package with a field {field}")
    return text


def member_content(tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    """Return a regular file of a package, of at most `limit` bytes. Raises GuestError for a larger one."""
    if not 0 <= member.size <= limit:
        raise GuestError(f"{member.name[:120]!r} has {member.size} bytes, expected at most {limit >> 20} MiB")
    file = tar.extractfile(member)
    assert file is not None  # of a regular file
    return file.read()


@contextmanager
def deb_files(deb: Path) -> Iterator[tarfile.TarFile]:
    """Give the files of a package, to be read in their order, without unpacking them. Raises tarfile.TarError."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpack:
        assert unpack.stdout
        # dpkg-deb ends when its pipe is closed, though not all was read.
        with tarfile.open(fileobj=unpack.stdout, mode="r|") as tar:
            yield tar
