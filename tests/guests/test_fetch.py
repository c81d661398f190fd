"""Fetching a kernel: from an archive that is only pretended here, by an apt-get that is only pretended too."""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from board.test_initramfs import parse
from guests.elves import library, program
from pmuvisor.lab.guests import GuestError, apt, cached_linux, cached_root, fetch_linux, fetch_root, linux, linux_folder
from pmuvisor.lab.guests.cache import guest_folder

KERNEL_PACKAGE = "linux-image-9.9.0-1-cloud-arm64"
MODULE = "lib/modules/9.9.0-1-cloud-arm64/kernel/drivers/perf/arm_spe_pmu.ko"

OFFLINE = """\
case "$*" in
*update) echo "Err:1 http://deb.example/debian stable InRelease"
    echo "  Temporary failure resolving 'deb.example'"
    echo "W: Failed to fetch http://deb.example/debian/InRelease  Temporary failure resolving 'deb.example'";;
*) echo "E: Unable to locate package linux-image-cloud-arm64" >&2; exit 100;;
esac
"""
NO_SUCH_PACKAGE = """\
case "$*" in *update) ;; *) echo "E: Unable to locate package linux-image-cloud-arm64" >&2; exit 100;; esac
"""

Tool = Callable[[str, str], None]
needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb here")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Makes the only tools that there are from then on."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, script: str) -> None:
        (folder / name).write_text("#!/bin/sh\n" + script)
        (folder / name).chmod(0o755)

    return make


def failure() -> str:
    """The one line that a fetch fails with; it leaves nothing behind."""
    before = {path: path.read_bytes() for path in linux_folder().glob("*")}
    with pytest.raises(GuestError) as error:
        fetch_linux(lambda _: None, force=True)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
    assert {path: path.read_bytes() for path in linux_folder().glob("*")} == before
    return str(error.value)


def test_no_apt_get(tool: Tool) -> None:
    assert failure().startswith("apt-get not found")


def test_no_dpkg_deb(tool: Tool) -> None:
    tool("apt-get", "exit 0\n")
    assert failure().startswith("dpkg-deb not found")


def test_no_network(tool: Tool) -> None:
    tool("apt-get", OFFLINE)
    tool("dpkg-deb", "exit 2\n")
    assert failure() == (
        'no network to fetch linux-image-cloud-arm64: apt-get says "W: Failed to fetch '
        "http://deb.example/debian/InRelease  Temporary failure resolving 'deb.example'\""
    )


@pytest.mark.parametrize(
    ("system", "message"),
    [
        ("debian", "no package linux-image-cloud-arm64 in the package sources of this machine"),
        (
            "ubuntu",
            "no package linux-image-cloud-arm64: the package sources of this machine (ubuntu) are not Debian's",
        ),
    ],
)
def test_no_such_package(tool: Tool, monkeypatch: pytest.MonkeyPatch, system: str, message: str) -> None:
    monkeypatch.setattr(apt, "system_name", lambda: system)
    tool("apt-get", NO_SUCH_PACKAGE)
    tool("dpkg-deb", "exit 2\n")
    assert failure() == message


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 100\n", "apt-get fetched no linux-image-cloud-arm64 (it ended with status 100 and no reason)"),
        ("exit 0\n", "apt-get fetched no linux-image-cloud-arm64 (it ended with status 0 and no reason)"),
        (
            "echo 'E: The list of sources could not be read.'; exit 100\n",
            "apt-get fetched no linux-image-cloud-arm64: E: The list of sources could not be read.",
        ),
        (
            "printf '\\377\\000garbage' | tee linux-image-cloud-arm64_1_arm64.deb\n",
            "linux-image-cloud-arm64_1_arm64.deb is not a Debian package with a field Depends",
        ),
    ],
)
def test_an_apt_get_that_does_not_work(tool: Tool, script: str, message: str) -> None:
    tool("apt-get", "PATH=/usr/bin:/bin\n" + script)
    tool("dpkg-deb", "PATH=/usr/bin:/bin\necho 'dpkg-deb: error: not a Debian format archive' >&2; exit 2\n")
    assert failure() == message


class Archive:
    """Real packages, made here, given out by an apt-get that knows where they are."""

    @pytest.fixture(autouse=True)
    def archive(self, tmp_path: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        self.folder = tmp_path / "archive"
        self.folder.mkdir()
        tool(
            "apt-get",
            f'for last; do :; done\ncase "$*" in *update) ;; *" install "*) cp {self.folder}/* cache/archives;; '
            f'*) cp {self.folder}/"$last"_* .;; esac\n',
        )

    def package(
        self, name: str, version: str, fields: str, content: dict[str, bytes], links: dict[str, str] | None = None
    ) -> None:
        tree = self.folder / "tree"
        for old in self.folder.glob(f"{name}_*"):
            old.unlink()
        (tree / "DEBIAN").mkdir(parents=True)
        control = (
            f"Package: {name}\nVersion: {version}\nArchitecture: arm64\nMaintainer: n <n@example>\nDescription: -\n"
        )
        (tree / "DEBIAN" / "control").write_text(control + fields)
        for path, data in content.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
        for path, target in (links or {}).items():
            (tree / path).symlink_to(target)
        deb = self.folder / f"{name}_{version.replace(':', '%3a')}_arm64.deb"
        subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, deb], check=True, capture_output=True)
        shutil.rmtree(tree)


@needs_dpkg
class TestKernel(Archive):
    @pytest.fixture(autouse=True)
    def meta_package(self, archive: None) -> None:
        self.package("linux-image-cloud-arm64", "9.9.1", f"Depends: {KERNEL_PACKAGE} (= 9.9.1)\n", {})

    def kernel_package(self, version: str, kernel: bytes, modules: dict[str, bytes] | None = None) -> None:
        path = f"boot/vmlinuz-{KERNEL_PACKAGE.removeprefix('linux-image-')}"
        self.package(KERNEL_PACKAGE, version, "", {path: kernel, "lib/modules/a.ko": bytes(1 << 20), **(modules or {})})

    @staticmethod
    def kernel(fill: int) -> bytes:
        """The header of an arm64 Image (Documentation/arch/arm64/booting) and as much behind it as it says."""
        head = bytes(16) + (4096).to_bytes(8, "little") + bytes(32) + b"ARM\x64" + bytes(4)
        return head + bytes([fill]) * (4096 - len(head))

    def test_the_kernel_that_the_meta_package_names(self) -> None:
        self.kernel_package("9.9.1", self.kernel(1))
        steps: list[str] = []
        fetched = fetch_linux(steps.append)
        assert (fetched.package, fetched.version) == (KERNEL_PACKAGE, "9.9.1")
        assert fetched.image.read_bytes() == self.kernel(1)
        assert sorted(path.name for path in linux_folder().iterdir()) == ["kernel.json", fetched.image.name]
        assert cached_linux() == fetched
        assert steps == [
            "package lists of arm64", "linux-image-cloud-arm64", KERNEL_PACKAGE, f"unpacking {KERNEL_PACKAGE} 9.9.1"
        ]  # fmt: skip

    def test_what_is_there_is_not_fetched_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel_package("9.9.1", self.kernel(1))
        fetched = fetch_linux(lambda _: None)
        monkeypatch.setenv("PATH", "")
        assert fetch_linux(pytest.fail) == fetched

    def test_force_replaces_it_and_a_failure_keeps_it(self) -> None:
        self.kernel_package("9.9.1", self.kernel(1))
        first = fetch_linux(lambda _: None)
        self.kernel_package("9.9.2", b"#!/bin/sh\n")
        assert failure().startswith(f"{KERNEL_PACKAGE}_9.9.2_arm64.deb holds no kernel: ")
        assert cached_linux() == first
        self.kernel_package("9.9.2", self.kernel(2))
        second = fetch_linux(lambda _: None, force=True)
        assert second.version == "9.9.2"
        assert sorted(path.name for path in linux_folder().iterdir()) == ["kernel.json", second.image.name]

    def test_a_kernel_that_was_cut_short_does_not_count(self) -> None:
        self.kernel_package("9.9.1", self.kernel(1))
        fetched = fetch_linux(lambda _: None)
        fetched.image.write_bytes(self.kernel(1)[:100])
        assert cached_linux() is None
        assert fetch_linux(lambda _: None).image.read_bytes() == self.kernel(1)

    def test_its_driver_for_spe_is_kept_beside_it(self) -> None:
        others = {"lib/modules/9/kernel/drivers/perf/arm-ccn.ko": b"ccn", f"usr/src/{MODULE}": b"src"}
        self.kernel_package("9.9.1", self.kernel(1), {MODULE: library("spe"), **others})
        fetched = fetch_linux(lambda _: None)
        assert fetched.image.read_bytes() == self.kernel(1)
        assert fetched.modules() == (("arm_spe_pmu.ko", library("spe")),)
        assert fetched.spe_module
        names = sorted(path.name for path in linux_folder().iterdir())
        assert names == [fetched.spe_module.name, "kernel.json", fetched.image.name]
        assert cached_linux() == fetched

    @pytest.mark.parametrize("check", [lzma.CHECK_NONE, lzma.CHECK_CRC32])
    def test_a_driver_that_is_compressed_is_inflated(self, check: int) -> None:
        """Debian 13 has its modules so, below /usr/lib."""
        self.kernel_package("9.9.1", self.kernel(1), {f"usr/{MODULE}.xz": lzma.compress(library(), check=check)})
        assert fetch_linux(lambda _: None).modules() == (("arm_spe_pmu.ko", library()),)

    def test_a_kernel_without_the_driver_has_no_module(self) -> None:
        self.kernel_package("9.9.1", self.kernel(1), {MODULE: library()})
        fetch_linux(lambda _: None)
        self.kernel_package("9.9.2", self.kernel(2))
        second = fetch_linux(lambda _: None, force=True)
        assert (second.spe_module, second.modules()) == (None, ())
        assert cached_linux() == second
        assert sorted(path.name for path in linux_folder().iterdir()) == ["kernel.json", second.image.name]

    def test_a_driver_that_is_gone_or_cut_short_has_both_fetched_again(self) -> None:
        self.kernel_package("9.9.1", self.kernel(1), {MODULE: library()})
        fetched = fetch_linux(lambda _: None)
        assert fetched.spe_module
        fetched.spe_module.write_bytes(library()[:-1])
        assert cached_linux() is None
        fetched.spe_module.unlink()
        assert cached_linux() is None
        with pytest.raises(GuestError, match=r"arm_spe_pmu[^/]*\.ko: No such file or directory$"):
            fetched.modules()
        assert fetch_linux(lambda _: None) == fetched
        assert fetched.modules() == (("arm_spe_pmu.ko", library()),)

    def test_a_kernel_of_an_older_layout_is_fetched_again(self) -> None:
        """The first one had no driver and did not say which layout it was."""
        self.kernel_package("9.9.1", self.kernel(1), {MODULE: library()})
        image = linux_folder() / "vmlinuz-9.9.0-1-cloud-arm64_9.9.0"
        image.parent.mkdir(parents=True)
        image.write_bytes(self.kernel(0))
        note = {"package": KERNEL_PACKAGE, "version": "9.9.0", "image": image.name, "size": 4096}
        (linux_folder() / "kernel.json").write_text(json.dumps(note))
        assert cached_linux() is None
        fetched = fetch_linux(lambda _: None)
        assert (fetched.version, len(fetched.modules())) == ("9.9.1", 1)
        assert not image.exists()

    @pytest.mark.parametrize("beside", [None, 7, "x", ["module"], {"module": "x"}, {"module": [1, 2]}, {"module": {}}])
    def test_a_note_that_makes_no_sense_is_no_kernel(self, beside: object) -> None:
        self.kernel_package("9.9.1", self.kernel(1), {MODULE: library()})
        fetched = fetch_linux(lambda _: None)
        path = linux_folder() / "kernel.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"beside": beside}))
        assert cached_linux() is None
        assert fetch_linux(lambda _: None) == fetched

    @pytest.mark.parametrize(
        ("path", "data", "message"),
        [
            (MODULE, b"#!/bin/sh\n", "is no module of an arm64 kernel"),
            (MODULE, b"", "is no module of an arm64 kernel"),
            (MODULE, library(machine=62), "is no module of an arm64 kernel"),
            (MODULE, bytes(linux.MODULE_LIMIT + 1), "has 8388609 bytes, expected at most 8 MiB"),
            (MODULE + ".xz", library(), "cannot be inflated: Input format not supported by decoder"),
            (MODULE + ".xz", lzma.compress(library())[:-9], "is cut short, or inflates to more than 8 MiB"),
            (
                MODULE + ".xz",
                lzma.compress(bytes(linux.MODULE_LIMIT + 1)),
                "is cut short, or inflates to more than 8 MiB",
            ),
        ],
    )
    def test_a_driver_that_is_none(self, path: str, data: bytes, message: str) -> None:
        self.kernel_package("9.9.1", self.kernel(1), {path: data})
        assert failure() == f"'./{path}' {message}"

    def test_a_kernel_larger_than_any(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(linux, "KERNEL_LIMIT", 4095)
        self.kernel_package("9.9.1", self.kernel(1))
        assert failure() == "'./boot/vmlinuz-9.9.0-1-cloud-arm64' has 4096 bytes, expected at most 0 MiB"

    def test_a_package_without_a_kernel(self) -> None:
        self.package(KERNEL_PACKAGE, "9.9.1", "", {"usr/share/doc/readme": b""})
        assert failure() == f"{KERNEL_PACKAGE}_9.9.1_arm64.deb holds no kernel: no boot/vmlinuz in it"

    def test_a_meta_package_that_names_no_kernel(self) -> None:
        self.package("linux-image-cloud-arm64", "9.9.1", "Depends: linux-base\n", {})
        assert failure() == "linux-image-cloud-arm64 names no kernel package; it depends on 'linux-base'"


LIBRARIES = "usr/lib/aarch64-linux-gnu"


@needs_dpkg
class TestRoot(Archive):
    """Programs of a root, with one library in the old place, one in the new, and one that only a library needs."""

    @pytest.fixture(autouse=True)
    def packages(self, archive: None) -> None:
        self.perf_package("9.9.1", ["libc.so.6", "libdw.so.1"])
        self.package("busybox-static", "2:1.9", "", {"bin/busybox": program()})
        self.package("ncurses-base", "6", "", {"lib/terminfo/v/vt100": b"vt100", "etc/terminfo/README": b""})
        loader = {"lib/ld-linux-aarch64.so.1": library(), "lib/aarch64-linux-gnu/libm.so.6": library()}
        self.package("libc6", "2.3", "", {"lib/aarch64-linux-gnu/libc.so.6": library(), **loader})
        self.package("libdw1", "1", "", {f"{LIBRARIES}/libdw.so.1": library("libc.so.6", "libelf.so.1")})
        link = {f"{LIBRARIES}/libelf.so.1": "libelf-0.1.so"}
        self.package("libelf1", "1", "", {f"{LIBRARIES}/libelf-0.1.so": library()}, link)

    def perf_package(self, version: str, needed: list[str]) -> None:
        self.package(
            "linux-perf", version, "", {"usr/bin/perf": program(*needed), "usr/share/doc/linux-perf/tips.txt": b"tip\n"}
        )

    def refused(self) -> str:
        before = {path: path.read_bytes() for path in guest_folder("perf").glob("*")}
        with pytest.raises(GuestError) as error:
            fetch_root(lambda _: None, force=True)
        assert {path: path.read_bytes() for path in guest_folder("perf").glob("*")} == before
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_it_holds_the_programs_and_what_they_need(self) -> None:
        assert cached_root() is None
        steps: list[str] = []
        root = fetch_root(steps.append)
        assert (root.perf, root.busybox) == ("9.9.1", "2:1.9")
        assert cached_root() == root
        assert sorted(path.name for path in root.image.parent.iterdir()) == ["root.json", root.image.name]
        assert steps[-1] == "unpacking 6 packages, linux-perf 9.9.1"
        files = {name: (fields["mode"], data) for name, fields, data in parse(root.image.read_bytes())}
        assert files["usr/bin/busybox"] == (0o100755, program())
        assert files["usr/bin/perf"] == (0o100755, program("libc.so.6", "libdw.so.1"))
        assert files["usr/bin/sh"] == (0o120777, b"busybox")
        assert files["lib"] == (0o120777, b"usr/lib")
        assert files["usr/lib/ld-linux-aarch64.so.1"] == (0o100755, library())
        assert files[f"{LIBRARIES}/libelf.so.1"] == (0o100755, library())
        assert files["usr/share/terminfo/v/vt100"] == (0o100644, b"vt100")
        assert files["usr/share/doc/linux-perf/tips.txt"] == (0o100644, b"tip\n")
        names = [name.rpartition("/")[2] for name in files if name.startswith(LIBRARIES + "/")]
        assert names == ["libc.so.6", "libdw.so.1", "libelf.so.1"]
        folders = [name for name, (mode, _) in files.items() if mode == 0o040755]
        assert all(name.rpartition("/")[0] in ("", *folders) for name in files)

    def test_the_same_packages_make_the_same_root(self) -> None:
        first = fetch_root(lambda _: None).image.read_bytes()
        assert fetch_root(lambda _: None, force=True).image.read_bytes() == first

    def test_what_is_there_is_not_fetched_again_and_a_failure_keeps_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = fetch_root(lambda _: None)
        self.perf_package("9.9.2", ["libnone.so.3"])
        assert self.refused() == "perf needs 'libnone.so.3', which no package that it depends on holds"
        assert cached_root() == first
        monkeypatch.setenv("PATH", "")
        assert fetch_root(pytest.fail) == first

    def test_one_of_an_older_layout_or_cut_short_does_not_count(self) -> None:
        root = fetch_root(lambda _: None)
        note = root.image.parent / "root.json"
        whole = note.read_text()
        note.write_text(whole.replace('"layout": ', '"layout": 9'))
        assert cached_root() is None
        note.write_text(whole)
        assert cached_root() == root
        root.image.write_bytes(root.image.read_bytes()[:-4])
        assert cached_root() is None

    def test_an_archive_without_perf(self) -> None:
        (perf,) = self.folder.glob("linux-perf_*")
        perf.unlink()
        assert self.refused() == "apt-get fetched no linux-perf (it ended with status 0 and no reason)"

    def test_a_perf_that_is_a_script(self) -> None:
        self.package("linux-perf", "9.9.1", "", {"usr/bin/perf": b"#!/bin/sh\n"})
        assert self.refused() == "no perf in the packages that were fetched"

    def test_a_package_that_is_none(self) -> None:
        (self.folder / "libz1_1_arm64.deb").write_bytes(b"garbage")
        assert self.refused().startswith("libz1_1_arm64.deb cannot be unpacked: ")

    def test_a_package_that_is_not_known(self, tool: Tool) -> None:
        said = "E: Unable to locate package linux-perf"
        tool("apt-get", f'case "$*" in *update) ;; *) echo "{said}" >&2; exit 100;; esac\n')
        assert self.refused().startswith("no package linux-perf")
