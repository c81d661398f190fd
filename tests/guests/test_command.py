"""What a guest is given to run a command: its words byte for byte, the user's files in their places."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from a64 import elf
from board.test_initramfs import parse
from guests.elves import program
from pmuvisor.lab.guests import Added, GuestError, Terminal, added, command_initrd, read_control
from pmuvisor.lab.guests.command import COMMAND_LIMIT, command_script

WORDS = [
    "two words",
    "it's",
    '"$HOME" \\',
    "`id` $(id)",
    "new\nline\r\n",
    "",
    "*",
    "-n",
    "~",
    "\udcff\udcfe",
    "\u00e9",
    ";#",
]


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    return {name: (fields["mode"], data) for name, fields, data in parse(archive)}


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("sh"), reason="no sh here")
def test_a_shell_passes_on_every_word_as_it_was(tmp_path: Path) -> None:
    script = tmp_path / "command"
    script.write_bytes(command_script(["printf", "%s\\0", *WORDS]))
    done = subprocess.run(["sh", script], capture_output=True, check=True)
    assert done.stdout == b"".join(os.fsencode(word) + b"\0" for word in WORDS)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([], "command: expected the name of a program to run"),
        ([""], "command: expected the name of a program to run"),
        (["a", "b\0c"], "command: expected words without a NUL in them"),
        (["a", "b" * COMMAND_LIMIT], "command: has more than the 131072 bytes that a guest is given"),
    ],
)
def test_a_command_that_cannot_be_passed_on(command: list[str], said: str) -> None:
    with pytest.raises(GuestError) as error:
        command_initrd(command, ())
    assert str(error.value) == said


def test_the_archive_has_init_and_the_command_and_whether_a_person_is_there() -> None:
    alone = unpacked(command_initrd(["true"], ()))
    assert alone["init"] == (0o100755, files("pmuvisor.guests").joinpath("command", "init").read_bytes())
    assert alone["run/command"] == (0o100755, b"#!/bin/sh\nexec true\n")
    assert alone["run/session"] == (0o100755, files("pmuvisor.guests").joinpath("command", "session").read_bytes())
    assert alone["run/settings"][1] == b"interactive=\nexport TERM=dumb\n"
    used = unpacked(command_initrd(["true"], (), Terminal(40, 100, "it's")))
    assert used["run/settings"][1] == b"interactive=1 rows=40 columns=100\nexport TERM='it'\"'\"'s'\n"


def test_modules_are_where_init_loads_them_from() -> None:
    out = unpacked(command_initrd(["true"], (), modules=[("b.ko", b"\x7fELF\0"), ("a.ko", b"")]))
    assert stat.S_ISDIR(out["run/modules"][0])
    assert (out["run/modules/b.ko"], out["run/modules/a.ko"]) == ((0o100644, b"\x7fELF\0"), (0o100644, b""))
    assert not [name for name in unpacked(command_initrd(["true"], ())) if name.startswith("run/modules")]


@pytest.mark.skipif(not shutil.which("sh"), reason="no sh here")
def test_init_is_a_shell_script() -> None:
    init = files("pmuvisor.guests").joinpath("command", "init").read_text()
    subprocess.run(["sh", "-n"], input=init, text=True, check=True)
    assert init.startswith("#!/bin/sh\n")


# ---- the user's files -----------------------------------------------------------------------------------------------

PLACES = [
    ("prog", "prog", "root/prog"),
    ("a/b/prog", "a/b/prog", "root/prog"),
    ("a/", "a", "root/a"),
    ("prog:/usr/bin/prog", "prog", "usr/bin/prog"),
    ("prog:/bin/other", "prog", "usr/bin/other"),
    ("prog:/lib/x/y", "prog", "usr/lib/x/y"),
    ("prog:/opt/", "prog", "opt/prog"),
    ("prog://opt/./x", "prog", "opt/x"),
    ("..:/opt/up", "..", "opt/up"),
]


@pytest.mark.parametrize(("text", "source", "target"), PLACES)
def test_where_a_file_goes(text: str, source: str, target: str) -> None:
    assert added(text) == Added(Path(source), target)


BAD_PLACES = [
    ("", "expected FILE or FILE:PATH"),
    (":/x", "expected FILE or FILE:PATH"),
    ("x:", "expected FILE or FILE:PATH"),
    ("..", "expected FILE:PATH, since FILE has no name of its own"),
    ("x:opt/x", "expected PATH to start with / and to have no .. in it"),
    ("x:/opt/../../x", "expected PATH to start with / and to have no .. in it"),
    ("x:/dev/x", "PATH is the guest's own; expected a place such as /root/NAME"),
    ("x:/proc/sys/x", "PATH is the guest's own; expected a place such as /root/NAME"),
    ("x:/init", "PATH is the guest's own; expected a place such as /root/NAME"),
    ("x:/bin", "PATH is the guest's own; expected a place such as /root/NAME"),
    ("x:/usr/lib", "PATH is the guest's own; expected a place such as /root/NAME"),
    ("x:/run/modules", "PATH is the guest's own; expected a place such as /root/NAME"),
    ("x:/run/modules/x.ko", "PATH is the guest's own; expected a place such as /root/NAME"),
    ("x:/run/command", "PATH is the guest's own; expected a place such as /root/NAME"),
]


@pytest.mark.parametrize(("text", "said"), BAD_PLACES)
def test_a_place_where_no_file_can_go(text: str, said: str) -> None:
    with pytest.raises(GuestError) as error:
        added(text)
    assert str(error.value) == f"add {text!r}: {said}"


@given(st.text(alphabet="/.:ab-\n\u00e9", max_size=12))
@example("x:/./init")
@example("x:/bin/../init")
def test_no_file_leaves_the_root_or_takes_the_place_of_init(text: str) -> None:
    try:
        target = added(text).target
    except GuestError as refused:
        said = str(refused)
    else:
        said = ""
        assert target.split("/")[0] not in ("", "init", "dev", "proc", "sys", "bin", "lib", "sbin")
        assert not {"", ".", ".."} & set(target.split("/"))
    assert "\n" not in said


def test_a_file_keeps_its_bytes_and_its_execute_bits(tmp_path: Path) -> None:
    (tmp_path / "prog").write_bytes(program())
    (tmp_path / "prog").chmod(0o4751)
    (tmp_path / "data").write_bytes(b"\0\xff")
    (tmp_path / "data").chmod(0o640)
    both = (Added(tmp_path / "prog", "root/prog"), Added(tmp_path / "data", "opt/deep/data"))
    out = unpacked(command_initrd(["prog"], both))
    assert out["root/prog"] == (0o100751, program())
    assert out["opt/deep/data"] == (0o100640, b"\0\xff")
    assert list(out)[-3:] == ["opt", "opt/deep", "opt/deep/data"]


def test_a_folder_is_added_with_all_that_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "b").write_bytes(b"b")
    (folder / "\udcff").write_bytes(b"a")
    (folder / "loop").symlink_to(".")
    out = unpacked(command_initrd(["true"], (Added(folder, "root/folder"),)))
    assert stat.S_ISDIR(out["root/folder"][0])
    assert out["root/folder/sub/b"][1] == b"b"
    assert out["root/folder/loop"] == (0o120777, b".")
    assert [data for _, data in out.values()].count(b"a") == 1


def test_files_that_cannot_be_added(tmp_path: Path) -> None:
    (tmp_path / "x86").write_bytes(elf(b"", machine=62))
    (tmp_path / "x86").chmod(0o755)
    (tmp_path / "plain").write_bytes(bytes(3 << 20))
    os.mkfifo(tmp_path / "pipe")

    def refused(*those: tuple[str, str]) -> str:
        with pytest.raises(GuestError) as error:
            command_initrd(["true"], [Added(tmp_path / name, target) for name, target in those], room=2 << 20)
        return str(error.value).replace(str(tmp_path), "")

    assert refused(("none", "root/x")) == "add /none: No such file or directory"
    assert refused(("pipe", "root/x")) == "add /pipe: expected a file or a folder"
    assert refused(("plain", "root/x")) == "add /plain: no room for it; expected at most 2 MiB in all"
    machine = "Advanced Micro Devices X86-64"
    assert refused(("x86", "root/x")) == f"add /x86: is a program for {machine}, expected one for AArch64"
    (tmp_path / "plain").write_bytes(b"")
    assert refused(("plain", "root/x"), ("plain", "root/x")) == "add /plain: /root/x was added before"
    assert refused(("plain", "x"), ("plain", "x/y")) == "add /plain: /x is a file that was added before"


def test_the_same_command_makes_the_same_archive_which_others_may_follow() -> None:
    archive = command_initrd(["a", "b"], ())
    assert archive == command_initrd(["a", "b"], ())
    assert len(archive) % 4 == 0


# ---- how it ended ---------------------------------------------------------------------------------------------------

SAID = [
    (b"", False, None),
    (b"sta", False, None),
    (b"start\r\n", True, None),
    (b"start\nexit 0\n", True, 0),
    (b"start\r\nexit 139\r\n", True, 139),
    (b"start\nexit 7", True, None),
    (b"start\nexit 7\nexit 0\n", True, 7),
    (b"start\nexit 256\nexit -1\nexit  1\nexit 1 \nexit\n", True, None),
    (b"start\n\xff\xfe\nexit \xd9\xa1\n", True, None),
]


@pytest.mark.parametrize(("control", "started", "status"), SAID)
def test_what_init_said_by_the_second_uart(control: bytes, started: bool, status: int | None) -> None:
    assert read_control(control) == (started, status)
