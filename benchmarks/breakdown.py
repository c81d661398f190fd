"""One boot of Linux in this process with its callbacks timed, as JSON: the `linux` benchmark runs it.

A span's time is what was spent in it and in no span inside it, so the spans add up to the whole.
"""

from __future__ import annotations

import time

BEGIN = time.perf_counter()

import argparse  # noqa: E402  (the clock starts before the imports, which are a part of what is measured)
import functools  # noqa: E402
import json  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

from pmuvisor.arch import cores  # noqa: E402
from pmuvisor.board.engine import Engine, MmioRead, MmioWrite  # noqa: E402
from pmuvisor.board.machine import Machine  # noqa: E402
from pmuvisor.lab import run as lab  # noqa: E402

IMPORTED = time.perf_counter()


class Spans:
    """Where time goes, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.count: Counter[str] = Counter()
        self._inside = 0.0

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with its calls counted and timed as `name`."""
        self.seconds.setdefault(name, 0.0)

        @functools.wraps(function)
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            outside, self._inside = self._inside, 0.0
            begin = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                elapsed = time.perf_counter() - begin
                self.seconds[name] += elapsed - self._inside
                self.count[name] += 1
                self._inside = outside + elapsed

        return wrapper

    def patch(self, owner: object, function: str, name: str) -> None:
        """Time a function of a module, or a method of a class in instances made from now on."""
        setattr(owner, function, self.timed(name, getattr(owner, function)))


def instrument(spans: Spans) -> None:
    """Time what the machine does at each boundary between Unicorn and Python, and the set-up."""
    map_mmio = Engine.map_mmio

    def timed_map_mmio(engine: Engine, base: int, size: int, read: MmioRead, write: MmioWrite) -> None:
        name = "devices (MMIO callbacks)"
        map_mmio(engine, base, size, spans.timed(name, read), spans.timed(name, write))

    setattr(Engine, "map_mmio", timed_map_mmio)  # noqa: B010  (mypy: a method may not be assigned to)
    spans.patch(lab, "prepare", "set-up (image, devices, engine)")
    spans.patch(Machine, "run", "the machine, between turns")
    spans.patch(Engine, "run", "the engine, around its slices")
    spans.patch(Engine, "_slice", "guest code (Unicorn, native hooks)")
    spans.patch(Engine, "_sysreg", "system registers (callbacks)")


def main() -> None:
    """Boot, and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.breakdown", description=__doc__)
    parser.add_argument("--memory", type=int, default=256, help="MiB")
    parser.add_argument("--append", default="")
    arguments = parser.parse_args()
    spans = Spans()
    instrument(spans)
    request = lab.Request("linux", cores.core("max"), memory=arguments.memory << 20, append=arguments.append)
    lab.run(request)
    told = {"imports": {"seconds": IMPORTED - BEGIN, "count": 1}}
    told |= {name: {"seconds": spans.seconds[name], "count": spans.count[name]} for name in spans.seconds}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
