"""The command line. What a command needs is imported when it runs, so that help is there at once."""

from __future__ import annotations

import argparse
import functools
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pmuvisor import __version__

if TYPE_CHECKING:
    from pmuvisor.own import OwnDesign

EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_NO_READER = 2, 130, 141
_UNITS = {"K": 10, "M": 20, "G": 30}
MIN_MEMORY = 1 << 20
MAX_MEMORY = 64 << 30
MAX_VCPUS = 8
DESIGNS = ("emulated", "partitioned", "lazy", "fixed-counters-only")
"""As `board.machine.DESIGNS`, which takes long to import."""


def _memory(text: str) -> int:
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in _UNITS else (text, "M")
    if not digits.isdecimal() or not digits.isascii() or len(digits) > 12:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 256M or 1G")
    size = int(digits) << _UNITS[unit]
    if not MIN_MEMORY <= size <= MAX_MEMORY or size % MIN_MEMORY:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of MiB from 1M to 64G")
    return size


def _number(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not text.isascii() or len(text) > 9 or not lowest <= int(text) <= highest:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number from {lowest} to {highest}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds above 0, such as 0.5 or 60")
    return value


def _file(text: str) -> str:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r}: expected the name of a file")
    return text


def _parser(own: OwnDesign | None = None) -> argparse.ArgumentParser:
    """Return the parser; `own` is one more design, and the one that is meant where none is named."""
    parser = argparse.ArgumentParser(
        prog="pmuvisor", description="Run arm64 guests on a virtualized PMU, and see what virtualizing it cost."
    )
    parser.add_argument("--version", action="version", version=f"pmuvisor {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run a guest, or a scenario", description=_RUN, epilog=_RUN_MORE), own)
    compare = "run a guest or a scenario under each design, and compare"
    _add_compare(commands.add_parser("compare", help=compare, description=_COMPARE, epilog=_COMPARE_MORE), own)
    conform = commands.add_parser("conform", help="compare with QEMU's or KVM's answers", description=_CONFORM)
    _add_conform(conform)
    guest = commands.add_parser("guest", help="get guests", description="Get guests that do not come with pmuvisor.")
    actions = guest.add_subparsers(dest="action", required=True, metavar="ACTION")
    fetch = actions.add_parser("fetch", help="fetch a guest", description=_FETCH)
    fetch.add_argument("name", choices=["linux", "perf"], help="which guest")
    fetch.add_argument("--force", action="store_true", help="fetch it again though it is there")
    fetch.set_defaults(handler=_fetch)
    designs = commands.add_parser("designs", help="show the designs of the virtual PMU", description=_DESIGNS)
    designs.add_argument("--json", action="store_true", help="print JSON")
    designs.set_defaults(handler=_show_designs)
    explore = "explore every interleaving of a small machine"
    _add_check(commands.add_parser("check", help=explore, description=_CHECK), own)
    _add_prove(commands.add_parser("prove", help="prove a design for all values", description=_PROVE), own)
    known = commands.add_parser("defects", help="show the catalogue of known defects", description=_DEFECTS)
    known.add_argument("--check", action="store_true", help="find each, and print how long its shortest trace is")
    known.add_argument("--json", action="store_true", help="print JSON")
    known.set_defaults(handler=_defects)
    _add_cores(commands.add_parser("cores", help="show the cores that can be modelled", description=_CORES))
    _add_costs(commands.add_parser("costs", help="show what virtualization costs on a core", description=_COSTS))
    return parser


_FETCH = """Fetch what a guest needs into the user's cache folder, from Debian's arm64 archive by this machine's
apt-get: linux, the kernel; perf, the programs of a Linux guest that runs a command: busybox, perf, their libraries."""


_RUN = """Run a guest on a machine with the addresses of QEMU's virt board. The guest's console is shown as it comes,
then a table of what virtualizing its PMU cost. With -- COMMAND, run that in the guest linux, as root in /root, with
busybox and perf there (`pmuvisor guest fetch perf` gets them): its output is on stdout, the table on stderr. Or run a
scenario, FILE.toml: a host with VMs, tasks and perf sessions (docs/scenarios.md)."""
SCENARIO_SUFFIX = ".toml"
_RUN_MORE = """Exit status: 0 the guest powered off or asked for a reset, 1 it hung, its kernel panicked or the time was
over, 2 bad input, 130 interrupted by Ctrl-C (with the table and the JSON file all the same); of a command that ended,
the command's own, 128 + n where signal n ended it. At a terminal a command has all keys but Ctrl-], which ends the run.
A scenario takes no option but
--json, --compile and --costs, and ends with 0 when its time is over."""


def _add_run(run: argparse.ArgumentParser, own: OwnDesign | None) -> None:
    run.add_argument(
        "guest",
        metavar="GUEST",
        help="demo, elapsed, spe, linux, a file (arm64 Image, ELF or flat, plain or gzip), or a scenario, FILE.toml",
    )
    run.add_argument(
        "--design",
        default="partitioned" if own is None else own.name,
        choices=_with_own(DESIGNS, own),
        help="design of the virtual PMU (default: %(default)s)",
    )
    _add_machine(run)
    run.add_argument(
        "--json",
        metavar="FILE",
        type=_file,
        help="write the result as JSON; FILE -: to stdout, and the rest to stderr",
    )
    run.add_argument(
        "--spe-out",
        metavar="FILE",
        type=_file,
        help="write the guest's profiling records as perf.data, for perf report -D and perf script; implies --spe",
    )
    run.add_argument(
        "--compile",
        action="store_true",
        help="a scenario without guests' code: run it as machine code, worth it for a long one; making that takes a "
        "minute, once for scenarios of a size",
    )
    run.usage = _with_command(run)
    run.set_defaults(handler=functools.partial(_run, run))


def _with_command(command: argparse.ArgumentParser) -> str:
    usage = command.format_usage().removeprefix("usage: ").rstrip()
    return f"{usage} [-- COMMAND [ARG ...]]".replace("%", "%%")


def _add_machine(run: argparse.ArgumentParser) -> None:
    """Add the options that say what machine a guest gets."""
    run.add_argument("--no-fgt", action="store_true", help="the host does without fine-grained traps")
    run.add_argument(
        "--counters", metavar="K", type=_number(0, 31), help="event counters of the guest (default: all but two)"
    )
    run.add_argument("--core", metavar="NAME", default="max", help="the core whose PMU is modelled (default: max)")
    run.add_argument(
        "--host-counters",
        metavar="N",
        type=_number(1, 31),
        help="event counters of the core itself, a variant of it (default: the core's own number)",
    )
    run.add_argument("--mhz", metavar="N", type=_number(1, 10_000), help="clock of the core (default: the core's own)")
    run.add_argument("--kernel", metavar="FILE", type=_file, help="boot linux with this kernel, not the fetched one")
    run.add_argument("--initrd", metavar="FILE", type=_file, help="initial RAM disk instead of GUEST's own")
    run.add_argument("--append", metavar="WORDS", default="", help="more words for the kernel command line")
    run.add_argument("--memory", metavar="SIZE", type=_memory, help="RAM (default: 256M; of a command 512M)")
    run.add_argument("--smp", metavar="N", type=_number(1, MAX_VCPUS), default=1, help="vCPUs, 1 to 8 (default: 1)")
    run.add_argument("--timeout", metavar="S", type=_seconds, help="end the run after S seconds (default: never)")
    run.add_argument(
        "--add",
        metavar="FILE[:PATH]",
        action="append",
        default=[],
        type=_file,
        help="with -- COMMAND: put a file, or a folder with all that is in it, into the guest at PATH; without PATH "
        "into /root, where the command starts and looks for programs first; may be given more than once",
    )
    run.add_argument("--spe", action="store_true", help="the guest has the Statistical Profiling Extension")
    run.add_argument(
        "--spe-unpinned",
        action="store_true",
        help="the same, but its buffer is not pinned: what is sampled while KVM maps a page of it is lost",
    )
    run.add_argument(
        "--costs",
        metavar="FILE",
        type=_file,
        help="what exits and the like take of the guest's time, instead of the built-in table (docs/costs.md)",
    )


_COMPARE = """Run the same guest, or scenario, under one design of the virtual PMU after the other, and print one table:
what the guest measured, and what each design cost (docs/comparison.md)."""
_COMPARE_MORE = """A guest has as many event counters under every design that has some, so that it can count the same.
Exit status: 0 all guests ended well, 1 one did not, 2 bad input, 130 interrupted by Ctrl-C, with the designs done so
far. A scenario takes no option but --designs, --json, --plot and --costs."""


def _with_own(designs: tuple[str, ...], own: OwnDesign | None) -> tuple[str, ...]:
    return designs if own is None else (*designs, own.name)


def _designs(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known or names.count(name) > 1:
                problem = "twice" if name in known else "no design"
                expected = f"some of {', '.join(known)}, each once, with commas between"
                raise argparse.ArgumentTypeError(f"{name!r}: {problem}: expected {expected}")
        return names

    return parse


def _chart(text: str) -> str:
    if not text.endswith((".png", ".svg")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected the name of a .png or .svg file")
    return _file(text)


def _add_compare(compare: argparse.ArgumentParser, own: OwnDesign | None) -> None:
    known = _with_own(DESIGNS, own)
    compare.add_argument(
        "guest",
        metavar="GUEST",
        help="demo, elapsed, spe, linux, a file (arm64 Image, ELF or flat, plain or gzip), or a scenario, FILE.toml",
    )
    compare.add_argument(
        "--designs",
        metavar="A,B,...",
        type=_designs(known),
        default=known,
        help=f"the first is what others are compared with (default: {','.join(known)})",
    )
    _add_machine(compare)
    compare.add_argument("--json", action="store_true", help="print the result as JSON")
    compare.add_argument("--plot", metavar="FILE", type=_chart, help="draw the overheads: a .png or .svg file")
    compare.usage = _with_command(compare)
    compare.set_defaults(handler=functools.partial(_compare, compare))


def _compare(compare: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    scenario = arguments.guest.endswith(SCENARIO_SUFFIX)
    _check_words(compare, arguments)
    if scenario:
        _check_scenario_options(compare, arguments)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from pmuvisor.lab import comparing

    return comparing.run_scenario(arguments) if scenario else comparing.run(arguments)


_DESIGNS = """Show the designs of the virtual PMU side by side (docs/designs.md)."""
_CHECK = """Explore a small machine: every order in which guests' accesses, instructions, interrupts, entries and exits,
preemptions and migrations, and the host's perf events can happen, within the preset's budgets. It ends with the first
property that breaks, told as the shortest trace, or when it has been everywhere (docs/check.md). Exit status: 0 nothing
breaks, 1 a property breaks, 2 bad input, 130 interrupted by Ctrl-C."""
EXPLORED = ("partitioned", "lazy", "emulated", "fixed-counters-only", "spe")
EXPLORATIONS = (
    *("tiny", "small", "wide", "fresh", "trapped", "hetero", "unlike", "icntr", "short", "newest", "first"),
    *("overflows", "el0", "restored", "attributes", "modifiers", "large"),
)
EXPLORATIONS_OF_SPE = ("spe", "spe-unpinned", "spe-beside", "spe-wide")
"""The presets of check.models and check.spe.models, which take long to import."""


def _add_check(check: argparse.ArgumentParser, own: OwnDesign | None) -> None:
    designs, presets = _with_own(EXPLORED, own), EXPLORATIONS + EXPLORATIONS_OF_SPE
    check.add_argument(
        "--design",
        metavar="NAME",
        choices=designs,
        help=f"what is explored: {', '.join(designs)} (default: {'partitioned' if own is None else own.name}; of a "
        "preset spe..., spe)",
    )
    check.add_argument(
        "--preset", metavar="NAME", choices=presets, help=f"which machine: {', '.join(presets)} (default: tiny)"
    )
    check.add_argument(
        "--defect",
        metavar="NAME",
        help="with this defect of the catalogue (pmuvisor defects), in its design and preset unless they are given",
    )
    check.add_argument("--property", metavar="NAME", help="ask for this property only (default: all)")
    check.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="another size or budget than the preset's: counters=2,2 (of each CPU), vcpus, guest_counters, half_bits, "
        "events=0:cycles:2,1:instructions, accesses, executions, switches, openings, settings, ...; may be repeated",
    )
    check.add_argument("--threads", metavar="N", type=_number(1, 256), help="processors to use (default: all)")
    check.add_argument(
        "--walks",
        metavar="N",
        type=_number(1, 999_999_999),
        help="make N random walks instead of exploring all: for a machine that is too large, such as --preset large; "
        "one that breaks a property is shortened to what is needed",
    )
    check.add_argument(
        "--steps", metavar="N", type=_number(1, 1_000_000), default=1000, help="of a walk (default: 1000)"
    )
    check.add_argument(
        "--seed", metavar="N", type=_number(0, 999_999_999), default=1, help="of the first walk (default: 1)"
    )
    check.add_argument(
        "--checkpoint",
        metavar="FILE",
        type=_file,
        help="keep in FILE what has been found, every 10 s and at the end, and go on from there if it exists",
    )
    check.add_argument("--json", metavar="FILE", type=_file, help="write the result as JSON; FILE -: to stdout")
    check.set_defaults(handler=functools.partial(_check, check))


def _check(check: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from pmuvisor.check import catalogue
    from pmuvisor.lab import checking

    names = [each.name for each in catalogue.ALL]
    if arguments.defect is not None and arguments.defect not in names:
        check.error(f"argument --defect: {arguments.defect!r}: expected one of {', '.join(names)}")
    if arguments.walks is not None and arguments.checkpoint is not None:
        check.error("argument --checkpoint: of a whole exploration: expected it without --walks")
    return checking.check(arguments)


_PROVE = """Prove by Z3 that a design keeps its properties: of one CPU and one vCPU, for every value of every register
and counter, whatever the guest, its host and KVM do next (docs/prove.md). What does not hold is shown with a state and
the action that breaks it. Exit status: 0 all is proved, 1 something does not hold, 2 bad input, 130 interrupted by
Ctrl-C."""


PROVED = ("partitioned", "lazy")
"""As `check.prove.DESIGNS`, which takes long to import."""


def _add_prove(prove: argparse.ArgumentParser, own: OwnDesign | None) -> None:
    prove.add_argument(
        "--design", choices=_with_own(PROVED, own), help="design of the virtual PMU (default: partitioned)"
    )
    prove.add_argument("--property", metavar="NAME", help="prove this property only (default: all)")
    prove.add_argument(
        "--defect",
        metavar="NAME",
        help="with this defect of the catalogue (pmuvisor defects), in its design unless one is given",
    )
    prove.add_argument("--json", metavar="FILE", type=_file, help="write the result as JSON; FILE -: to stdout")
    prove.set_defaults(handler=functools.partial(_prove, prove))


def _prove(prove: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from pmuvisor.lab import proving

    proving.require_z3()
    from pmuvisor.check import defects
    from pmuvisor.check.prove import NAMES

    for name, names in (("defect", [each.name for each in defects.ALL]), ("property", list(NAMES))):
        value = getattr(arguments, name)
        if value is not None and value not in names:
            prove.error(f"argument --{name}: {value!r}: expected one of {', '.join(names)}")
    return proving.prove(arguments)


_DEFECTS = """Show the defects that were made, or caught in review, in the designs that can be explored; each is one
function in the place of a sound one (docs/check.md). Exit status with --check: 0 all found, 1 some not."""


def _defects(arguments: argparse.Namespace) -> int:
    from pmuvisor.lab import checking

    return checking.show_defects(arguments)


_CORES = """List the cores of the data file; or show each figure of one core with its source."""


def _add_cores(cores: argparse.ArgumentParser) -> None:
    cores.add_argument("name", metavar="NAME", nargs="?", help="show this core (default: list all)")
    cores.add_argument("--json", action="store_true", help="print JSON, with the sources")
    cores.set_defaults(handler=_cores)


_COSTS = """Show what each item of a run's ledger takes of the guest's time on a core, with its source
(docs/costs.md)."""


def _add_costs(costs: argparse.ArgumentParser) -> None:
    costs.add_argument("name", metavar="NAME", nargs="?", default="max", help="the core (default: max)")
    costs.add_argument("--costs", metavar="FILE", type=_file, help="show this table instead of the built-in one")
    costs.add_argument("--json", action="store_true", help="print JSON, with the sources")
    costs.set_defaults(handler=_costs)


def _costs(arguments: argparse.Namespace) -> int:
    from pmuvisor.lab import costs

    return costs.show(arguments)


_CONFORM = """Replay operations on the PMU's registers on the model, and compare its answers with those of an
implementation (docs/conformance.md). Exit status: 0 no mismatch, 1 some, 2 bad input."""


def _add_conform(conform: argparse.ArgumentParser) -> None:
    conform.add_argument("operations", metavar="OPS", type=_file, help="file of operations, plain or gzip")
    conform.add_argument("answers", metavar="RES", type=_file, help="file of the answers to them, plain or gzip")
    conform.add_argument(
        "--reference", required=True, choices=["bare", "part", "el1"], help="which implementation answered"
    )
    conform.add_argument("--json", action="store_true", help="print the result as JSON")
    conform.set_defaults(handler=_conform)


def _conform(arguments: argparse.Namespace) -> int:
    from pmuvisor.lab import conform

    return conform.run(arguments)


def _check_words(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with status 2 where there is a -- but no command behind it."""
    if arguments.words is not None and not (arguments.words and arguments.words[0]):
        parser.error("argument COMMAND: expected the name of a program after --")


_OF_SCENARIO = ("command", "words", "own", "handler", "guest", "json", "compile", "costs", "designs", "plot")
"""What a scenario's command line may have, and what the parser adds to it."""


def _check_scenario_options(run: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with status 2 for a scenario with an option that its file decides, or under somebody's own design."""
    if arguments.own is not None:
        run.error(f"argument GUEST: {arguments.guest!r}: a scenario has our designs only: expected a guest")
    for name, value in vars(arguments).items():
        if name == "words" and value is not None:
            run.error(f"argument COMMAND: not of a scenario: expected only {arguments.guest}")
        if name not in _OF_SCENARIO and value != run.get_default(name):
            run.error(f"argument --{name.replace('_', '-')}: not of a scenario: expected in {arguments.guest}")


def _run(run: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    scenario = arguments.guest.endswith(SCENARIO_SUFFIX)
    _check_words(run, arguments)
    if scenario:
        _check_scenario_options(run, arguments)
    elif arguments.compile:
        run.error(f"argument --compile: {arguments.guest!r} is no scenario: expected FILE{SCENARIO_SUFFIX}")
    # What the imports make is there to stay: looking through it for garbage is a third of the start-up.
    gc.disable()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy would start threads for algebra that nobody does
    from pmuvisor.lab import terminal

    gc.freeze()
    gc.enable()
    return terminal.run_scenario(arguments) if scenario else terminal.run(arguments)


def _show_designs(arguments: argparse.Namespace) -> int:
    from pmuvisor.lab import designs

    return designs.show(arguments)


def _cores(arguments: argparse.Namespace) -> int:
    from pmuvisor.lab import cores

    return cores.show(arguments)


def _fetch(arguments: argparse.Namespace) -> int:
    from pmuvisor.lab import guests

    def progress(line: str) -> None:
        print(line, file=sys.stderr)

    if arguments.name == "perf":
        root = guests.fetch_root(progress, force=arguments.force)
        print(f"{root.image} (linux-perf {root.perf}, busybox-static {root.busybox})")
    else:
        kernel = guests.fetch_linux(progress, force=arguments.force)
        print(f"{kernel.image} ({kernel.package} {kernel.version})")
    return 0


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str] | None]:
    """Take the command for a guest, all that is behind the first --, off the words of `pmuvisor run` and `compare`."""
    if not argv or argv[0] not in ("run", "compare") or "--" not in argv:
        return argv, None
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def main(argv: Sequence[str] | None = None, own: OwnDesign | None = None) -> int:
    """Run the command line, to which `own` adds a design; return the exit status."""
    if sys.stdout is None:  # started with none open
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)
    try:
        words, command = _split(list(sys.argv[1:] if argv is None else argv))
        arguments = _parser(own).parse_args(words, argparse.Namespace(words=command, own=own))
        status: int = arguments.handler(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # What is still buffered has no reader either: the interpreter's own flush at its end must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_NO_READER
    except Exception as error:
        line = _one_line(error)
        if line is None:
            raise
        print(f"pmuvisor: {line}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return status


def _one_line(error: Exception) -> str | None:
    """Return what to tell the user of an error that is not ours, but the input's or the environment's."""
    if isinstance(error, OSError):
        return f"{error.filename or 'output'}: {error.strerror or error}"
    from pmuvisor.arch.cores import CoreError
    from pmuvisor.lab.costs import CostError
    from pmuvisor.lab.vectors import VectorError

    if isinstance(error, CoreError | CostError | VectorError):
        return str(error)  # without what takes long to import
    from pmuvisor.board.cpustate import UnsupportedUnicorn
    from pmuvisor.board.images import ImageError
    from pmuvisor.board.machine import CountError
    from pmuvisor.lab.guests import GuestError
    from pmuvisor.lab.run import RequestError
    from pmuvisor.lab.scenario import ScenarioError

    known = (CountError, GuestError, ImageError, RequestError, ScenarioError, UnsupportedUnicorn)
    return str(error) if isinstance(error, known) else None


if __name__ == "__main__":
    sys.exit(main())
