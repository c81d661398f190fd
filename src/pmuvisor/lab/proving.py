"""`pmuvisor prove`: proofs at a terminal."""

from __future__ import annotations

import argparse
import importlib.util
import textwrap
import time
from typing import TYPE_CHECKING, Any

from pmuvisor.check import defects
from pmuvisor.check.defects import Defect
from pmuvisor.lab import tables
from pmuvisor.lab.progress import Clock, say
from pmuvisor.lab.run import RequestError
from pmuvisor.lab.tables import WIDTH
from pmuvisor.lab.terminal import where_to, write_result

if TYPE_CHECKING:
    from pmuvisor.check.prove import Counterexample, Result


def require_z3() -> None:
    """Raise RequestError where Z3 is not there."""
    if importlib.util.find_spec("z3") is None:
        raise RequestError("prove: z3 is not installed: expected after `pip install pmuvisor[prove]`")


def prove(arguments: argparse.Namespace) -> int:
    """Prove, and print what is and what is not; return the exit status. Raises RequestError."""
    require_z3()
    from pmuvisor.check import prove as proofs

    defect = next((each for each in defects.ALL if each.name == arguments.defect), None)
    own = arguments.own
    design = arguments.design or (defect.design if defect else "partitioned" if own is None else own.name)
    base = design if own is None or design != own.name else own.base
    if base not in proofs.DESIGNS:
        raise RequestError(f"design: {design} begins with {base}: expected one of {', '.join(proofs.DESIGNS)}")
    if defect and defect.sound in {sound for sound, _ in proofs.ASSUMED.values()}:
        what = f"it is in {defect.sound.__name__}(), which proofs assume to be right"
        raise RequestError(f"defect: {defect.name}: {what}: expected one that pmuvisor prove can see")
    replaced = {} if own is None or design != own.name else dict(own.replaced)
    if defect:
        replaced[defect.sound] = defect.defective
    path, people = where_to(arguments.json)
    begin = time.perf_counter()
    results = proofs.prove(base, arguments.property, proofs.SETUPS, replaced, _Progress())
    say("")
    seconds = time.perf_counter() - begin
    assumed = [*proofs.ASSUMED, *proofs.ALSO_ASSUMED]

    def show() -> None:
        print(_title(design, defect), file=people)
        tables.show(_table(results), people)
        for result in results:
            for line in _told(result):
                print(line, file=people)
        print(*_ended(results, seconds, assumed), sep="\n", file=people)

    whole = {"design": design, "results": [_as_json(result) for result in results]}
    write_result({**whole, "seconds": seconds, "assumed": assumed}, arguments.json, path, show)
    return int(not all(result.proved for result in results))


class _Progress:
    """Says on a terminal what is being proved."""

    def __init__(self) -> None:
        self._clock = Clock()

    def __call__(self, words: str) -> None:
        if self._clock.is_due():
            say(words)


def _title(design: str, defect: Defect | None) -> str:
    words = f"{design}: counters and registers of 64 bits, every value"
    return words if defect is None else textwrap.fill(f"{words}; with the defect {defect.name}", WIDTH)


def _table(results: list[Result]) -> Any:
    rows = [
        (result.name, "yes" if result.proved else "no", f"{result.claims:,}", f"{result.seconds:.1f}")
        for result in results
    ]
    return tables.table(("property", "proved", "asked of Z3", "seconds"), rows)


def _sizes(counters: list[tuple[int, int]]) -> str:
    return ", ".join(f"{n} of {all_of}" for all_of, n in counters)


def _told(result: Result) -> list[str]:
    """Return the lines of what a property breaks by."""
    found = result.counterexample
    if found is None:
        return []
    lines = [f"{result.name} does not hold: {found.says}", *_state(found), f"and then: {found.action}"]
    return [line for words in lines for line in textwrap.wrap(words, WIDTH, subsequent_indent="     ")] + [""]


def _state(found: Counterexample) -> list[str]:
    size, guest = found.counters
    values = [f"     {name} = {value:#x}" for name, value in found.state.items()]
    return [f"the vCPU is {found.place}, with {guest} of {size} event counters", *values]


def _ended(results: list[Result], seconds: float, assumed: list[str]) -> list[str]:
    sizes = f"The guest's event counters: {_sizes(results[0].counters)}. {seconds:.0f} s in all."
    lines = textwrap.wrap(sizes, WIDTH)
    if not all(result.proved for result in results):
        lines += textwrap.wrap(
            "What is proved beside what is not holds for one step, from where all of it holds.", WIDTH
        )
    return [*lines, "Assumed:", *(line for each in assumed for line in _item(each))]


def _item(words: str) -> list[str]:
    return textwrap.wrap(words, WIDTH, initial_indent="  - ", subsequent_indent="    ")


def _as_json(result: Result) -> dict[str, object]:
    found = result.counterexample
    shown = None
    if found is not None:
        shown = {
            "counters": list(found.counters),
            "place": found.place,
            "action": found.action,
            "says": found.says,
            "state": found.state,
        }
    return {
        "property": result.name,
        "proved": result.proved,
        "counters": [list(pair) for pair in result.counters],
        "seconds": result.seconds,
        "claims": result.claims,
        "counterexample": shown,
    }
