"""Measure pmuvisor's speed and print one table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import access, compute, exploration, host, linux, overflow, profile, report, spin
from benchmarks.figures import Benchmark, Options, Section

BENCHMARKS: dict[str, Benchmark] = {
    "compute": compute.measure,
    "linux": linux.measure,
    "access": access.measure,
    "overflow": overflow.measure,
    "profile": profile.measure,
    "host": host.measure,
    "spin": spin.measure,
    "exploration": exploration.measure,
}


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def _rounds(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or not 1 <= int(text[:6]) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1 to 1000")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", metavar="NAME", action="append", choices=BENCHMARKS, help="one of: %(choices)s")
    parser.add_argument("--rounds", metavar="N", type=_rounds, default=3, help="repeat each N times (default: 3)")
    parser.add_argument("--scale", metavar="F", type=_positive, default=1.0, help="do F times the work (default: 1)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to FILE too")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw what an event of `host` costs, as SVG")
    return parser


def main() -> None:
    """Measure what was asked for."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.plot is not None and "host" not in (arguments.only or BENCHMARKS):
        parser.error("argument --plot: expected host to be measured")
    options = Options(arguments.rounds, arguments.scale)
    about = report.machine()
    sections: list[Section] = []
    for name, measure in BENCHMARKS.items():
        if arguments.only is None or name in arguments.only:
            print(f"measuring: {name}", file=sys.stderr)
            sections.append(measure(options))
    report.show(sections, about, options, sys.stdout)
    for section in sections:
        if arguments.plot is not None and section.plot is not None:
            section.plot(arguments.plot)
    if arguments.json is not None:
        told = {"machine": about, "rounds": options.rounds, "scale": options.scale}
        told |= {"benchmarks": {section.name: section.as_json() for section in sections}}
        arguments.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
