#!/usr/bin/env python3
"""Break semantic functions in every place, all in one machine code, and walk with one mutant after another on.

    python tools/mutate_walks.py src/pmuvisor/kvm/partitioned.py src/pmuvisor/kvm/world.py

What mutate.py does to one module at a time is here done to its functions as they are compiled: each place where one can
be broken asks which mutant is switched on (mutant schemata: Untch, Offutt, Harrold, "Mutation analysis using mutant
schemata", 1993). So a module is compiled once, not once for each mutant, and a mutant is held to the properties of
`pmuvisor check` on random walks of millions of steps. Only functions that some walk executes are broken.

The verdicts are kept in the file `--state`, as mutate.py keeps them, which can hold the survivors to tests, one by one,
and prints the table: for the functions that this prints with `--functions`.

Exit status: 0; 2 for bad input.
"""

from __future__ import annotations

import argparse
import ast
import copy
import ctypes
import dataclasses
import importlib
import json
import os
import random
import re
import resource
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mutate
import numpy as np
from llvmlite import ir
from numba import types as numba_types
from numba.extending import intrinsic

from pmuvisor.arch import sysreg
from pmuvisor.arch.events import CPU_CYCLES, INST_RETIRED, SW_INCR
from pmuvisor.check import models, search, state
from pmuvisor.check.explore import operands
from pmuvisor.check.model import Model
from pmuvisor.check.models import CYCLES, HostEvent, Preset
from pmuvisor.check.packing import Workspace
from pmuvisor.check.spe import models as spe_models
from pmuvisor.compiled import compiled, substituted

SIGNED = 1 << 63
"""What numba takes for a signed number is less."""
LENIENCE = 5
"""How many times the time of the unbroken walks a mutant may take, and some seconds."""


# ---- the machines ---------------------------------------------------------------------------------------------


class Family(NamedTuple):
    """Machines of one layout, and so of one machine code."""

    name: str
    machines: list[Model]
    weights: dict[int, int]
    """How often an action is drawn, by its kind; 1 of those that are not here."""


WITHOUT_END = 5 * (30_000,)
EVENTS = (
    CYCLES,
    models.COUNTING,
    models.OF_GUESTS,
    HostEvent(0, CPU_CYCLES, modifiers="uH"),
    HostEvent(1, CPU_CYCLES, modifiers="u"),
    HostEvent(1, INST_RETIRED, 3, "kH"),
)
EVERY_BIT = (1 << 64) - 1
FILTERS = tuple(
    ("PMEVTYPER0_EL0", INST_RETIRED | sum(1 << bit for bit in bits))
    for bits in (
        (sysreg.FILTER_U,),
        (sysreg.FILTER_P, sysreg.FILTER_NSK),
        (sysreg.FILTER_U, sysreg.FILTER_NSU),
        (sysreg.FILTER_NSK,),
        (sysreg.FILTER_NSU,),
    )
)
MORE: tuple[tuple[str, int | None], ...] = (
    *models.EVERY,
    *FILTERS,
    ("PMCCFILTR_EL0", 1 << sysreg.FILTER_U),
    ("PMEVTYPER1_EL0", SW_INCR),
    *(("PMUSERENR_EL0", enabled) for enabled in (0, 2, 4, 8, 3, 5, 9)),
)
AT_EL0: tuple[tuple[str, int | None], ...] = (
    *models.USER,
    *((name, None) for name in ("PMXEVCNTR_EL0", "PMCR_EL0", "PMCEID0_EL0", "PMUSERENR_EL0", "PMSELR_EL0")),
    ("PMSWINC_EL0", 3),
    ("PMCCNTR_EL0", 3),
    ("PMEVCNTR0_EL0", 2),
    ("PMXEVCNTR_EL0", 1),
    ("PMOVSSET_EL0", 1),
    ("PMUSERENR_EL0", 1),
)
TWO_CPUS = Preset(
    *("mutants", (3, 3), 2, 2, 2, EVENTS, *WITHOUT_END, MORE, 1),
    fixed_registers=models.FIXED_MANY,
    at_el0=AT_EL0,
    restored=models.RESTORED,
    host_el0=1,
    host_userenr=sysreg.PMUSERENR_CR,
)
OF_EL2 = (("PMCCFILTR_EL0", EVERY_BIT), ("PMEVTYPER0_EL0", 1 << sysreg.FILTER_NSH | CPU_CYCLES))
"""What guests whose counters are perf events do not write: upstream stores NSH."""
WITH_EVENTS = tuple(
    (name, value)
    for name, value in MORE
    if (name, value) not in (("PMCR_EL0", 1 | sysreg.PMCR_LP), ("PMEVTYPER1_EL0", models.NOT_EL1 | CPU_CYCLES))
)
"""What guests whose counters are perf events access: not LP, which upstream does not follow, nor cycles twice, for
which there are not enough counters before PMUv3p5; nor PMXEVCNTR_EL0 at EL0, which can be PMCCNTR_EL0."""
NOTHING_DENIED = tuple((name, value) for name, value in WITH_EVENTS if value != models.DENIED)
UNLIKE: tuple[dict[str, Any], ...] = (
    {},
    {"fgt": 0, "programmed": 0},
    {"counters": (3, 2)},
    {"guest_counters": 1, "registers": models.FEW, "restored": (), "settings": 0},
    {"guest_counters": 3, "at_el0": (), "settings": 0},
    {"pmuver": 1, "fgt": 0},
    {"pmuver": 4},
    {"pmuver": 9, "fgt2": 1, "icntr": 1},
    {"pmuver": 9},
    {"registers": models.PRIVILEGED, "fixed_registers": models.PRIVILEGED, "settings": 0},
    {"registers": models.AGAIN, "fixed_registers": models.AGAIN_FIXED, "settings": 0},
    {
        "counters": (3, 2),
        "filters": (INST_RETIRED, CPU_CYCLES),
        "restored": (),
        "programmed": 0,
        "registers": NOTHING_DENIED,
    },
)
"""What the machines have that the first has not."""
SPE: tuple[dict[str, Any], ...] = (
    {},
    {"spe": (1, 0)},
    {"room": 2},
    {"openings": 0, "unmappings": 30_000},
    {"openings": 0, "unmappings": 30_000, "room": 2},
)


def families() -> list[Family]:
    """Return all machines that are walked on."""
    made = []
    weights = {state.ACCESS: 5, state.EXECUTE: 4, state.ENTER: 2}
    for name, designs, registers, at_el0 in (
        ("counters", ("partitioned", "lazy"), (*MORE, *OF_EL2), AT_EL0),
        (
            "events",
            ("emulated", "fixed-counters-only"),
            WITH_EVENTS,
            tuple(a for a in AT_EL0 if a[0] != "PMXEVCNTR_EL0"),
        ),
    ):
        like = dataclasses.replace(TWO_CPUS, registers=registers, at_el0=at_el0)
        presets = [dataclasses.replace(like, **unlike) for unlike in UNLIKE]
        made.append(Family(name, [models.model(preset, design) for preset in presets for design in designs], weights))
    wide = spe_models.PRESETS["spe-wide"]
    endless = dict.fromkeys(("accesses", "executions", "switches", "openings"), 30_000)
    profiled = [dataclasses.replace(wide, **{**endless, **unlike}) for unlike in SPE]
    made.append(Family("spe", [spe_models.model(preset) for preset in profiled], weights))
    return made


def drawn(family: Family, model: Model) -> Any:
    """Return the operands of a model's actions, each kind as often as it is to be drawn, whatever its actions are."""
    rows = operands(model)
    kinds: dict[int, list[int]] = {}
    for number, action in enumerate(model.actions):
        kinds.setdefault(action.operands[0], []).append(number)
    share = max(map(len, kinds.values()))
    often = []
    for kind, numbers in kinds.items():
        often += numbers * max(1, share * family.weights.get(kind, 1) // len(numbers))
    return rows[often]


# ---- what is broken -------------------------------------------------------------------------------------------

_switch = ctypes.c_int64(-1)
"""The number of the mutant that is switched on."""


@intrinsic  # type: ignore[untyped-decorator]
def _switched_on(context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        return builder.load(builder.inttoptr(ir.Constant(word, ctypes.addressof(_switch)), word.as_pointer()))

    return numba_types.int64(), generate


class _Schema(ast.NodeTransformer):
    """Makes of a function one that has all its mutants in it."""

    def __init__(self, broken: Sequence[mutate.Broken]) -> None:
        self.broken: dict[int, list[mutate.Broken]] = {}
        for one in broken:
            self.broken.setdefault(id(one.place.node), []).append(one)

    def visit(self, node: ast.AST) -> Any:
        """Return the node, or what chooses between it and what takes its place."""
        mine: list[tuple[mutate.Broken, Any]] = [
            (one, copy.deepcopy(one.node)) for one in self.broken.get(id(node), ())
        ]
        made: Any = self.generic_visit(node)
        for one, instead in mine:
            number = one.mutant.number
            test = ast.Compare(ast.Name("mutant_", ast.Load()), [ast.Eq()], [ast.Constant(number)])
            if one.mutant.operator == "condition":
                made.test = ast.IfExp(test, instead.test, made.test)
            elif isinstance(node, ast.stmt):
                made = ast.If(test, [instead], [made])
            else:
                made = ast.IfExp(test, instead, made)
        return made

    def function(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Return a function with all its mutants, which raises where a mutant forgets to return something."""
        returns = any(isinstance(part, ast.Return) and part.value is not None for part in ast.walk(node))
        made: ast.FunctionDef = self.visit(node)
        made.body.insert(0, ast.parse("mutant_ = switched_on_()").body[0])
        if returns:
            made.body.append(ast.parse(f"raise AssertionError('{node.name} returns nothing')").body[0])
        made.returns = None
        for argument in made.args.args:
            argument.annotation = None
        return made


def is_for_all(broken: mutate.Broken, module: types.ModuleType) -> bool:
    """Tell whether a mutant has the types that the function has, so that it can be compiled with the others.

    A number in the place of a table has not, nor has what numba takes for unsigned in the place of a signed number.
    """
    node, constants = broken.place.node, vars(module)
    if isinstance(broken.place.owner, ast.arguments):
        return False
    if broken.mutant.operator == "named constant" and isinstance(node, ast.Name):
        return isinstance(constants.get(node.id), int) and constants[node.id] < SIGNED
    alone = broken.node.operand if isinstance(broken.node, ast.UnaryOp) else broken.node
    value = constants.get(alone.id) if isinstance(alone, ast.Name) else getattr(alone, "value", None)
    return not (isinstance(value, int) and value >= SIGNED)


def schemata(path: str, functions: set[str], left_out: str) -> tuple[dict[Any, Any], list[mutate.Mutant]]:
    """Return of a module each function with what takes its place, and the mutants that are in there."""
    module, tree = importlib.import_module(mutate.module_name(path)), mutate.parsed(path)
    meant = [
        one
        for one in mutate.mutants(path, tree)
        if one.mutant.function in functions
        and is_for_all(one, module)
        and not (left_out and re.search(left_out, one.mutant.before))
    ]
    schema = _Schema(meant)
    names = {one.mutant.function for one in meant}
    body = [schema.function(node) for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    space = {**vars(module), "switched_on_": _switched_on}
    exec(compile(ast.fix_missing_locations(ast.Module([*body], [])), path, "exec"), space)
    return {vars(module)[name]: space[name] for name in names}, [one.mutant for one in meant]


# ---- walks ----------------------------------------------------------------------------------------------------

Walk = Callable[[], str]
"""Walks on all machines of a family; returns what went wrong, or nothing."""


def walks(family: Family, broken: dict[Any, Any], number: int, length: int) -> Walk:
    """Return the walks on a family's machines, `number` on each, compiled with the functions that are broken."""
    first = family.machines[0]
    never = dict.fromkeys(first.never, search.never)
    instead = {**never, **first.replaced, **broken, search.step: first.step}
    walk = compiled(search.walk, boundscheck=True, also=first.also, replaced=instead)
    space = Workspace(first.record, first.sizes)
    trail, at = np.zeros(length + 1, np.int16), np.zeros(search.TOLD, np.int64)
    begins = []
    for machine in family.machines:
        space.store(machine.begin(machine.every))
        begins.append((space.words.copy(), drawn(family, machine), machine.properties))

    def once(seed: int) -> str:
        for words, actions, properties in begins:
            if walk(space.row, space.words, words, actions, seed, length, trail, at) == search.VIOLATED:
                return str(properties[at[search.PROPERTY]].name)
        return ""

    def all_of_them() -> str:
        try:
            return next(filter(None, map(once, range(1, number + 1))), "")
        except Exception as error:
            return type(error).__name__

    return all_of_them


def start(walk: Walk, number: int, seconds: float) -> mutate.Running:
    """Fork a child that walks with a mutant switched on. One that hangs comes to a limit of CPU time."""

    def work(writing: int) -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        _switch.value = number
        wrong = walk()
        os.write(writing, json.dumps({"verdict": "killed" if wrong else "survived", "test": wrong}).encode())

    return mutate.forked(work)


def outcomes(walk: Walk, todo: Sequence[mutate.Mutant], seconds: float, jobs: int) -> Iterator[tuple[Any, Any]]:
    """Yield each mutant and what came of it, as they end."""
    running: list[tuple[mutate.Running, mutate.Mutant]] = []
    waiting = list(reversed(todo))
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running.append((start(walk, mutant.number, seconds), mutant))
        child, mutant = mutate.first_to_end(running)
        yield mutant, child.wait()


# ---- all of it ------------------------------------------------------------------------------------------------


def executed(family: Family, steps: int) -> set[tuple[str, str]]:
    """Return the modules and names of functions that random actions on a family's machines call."""
    found: set[tuple[str, str]] = set()

    def called(frame: types.FrameType, event: str, argument: object) -> None:
        if event == "call":
            found.add((frame.f_globals.get("__name__", ""), frame.f_code.co_name))

    for machine in family.machines:
        draws, rng = drawn(family, machine), random.Random(1)
        actions = [tuple(map(int, row)) for row in draws.view(np.uint64)]
        step = substituted(machine.step, machine.replaced, also=machine.also)
        m = machine.begin(machine.every)
        sys.setprofile(called)
        for _ in range(steps):
            step(m, *rng.choice(actions))
        sys.setprofile(None)
    return found


def held(path: str, family: Family, functions: set[str], options: argparse.Namespace, keep: mutate.State) -> None:
    """Hold the mutants of a module that are alive to the walks of a family, and keep which of them are killed."""
    broken, mutants = schemata(path, functions, options.leave_out)
    digest = mutate.digest([path])
    alive = [
        mutant
        for mutant in mutants
        if keep.records.get((path, digest, mutant.number), {"verdict": "none"})["verdict"] in ("none", "survived")
    ]
    if not alive:
        return
    began = time.monotonic()
    walk = walks(family, broken, options.walks, options.steps)
    wrong = walk()
    if wrong:
        raise mutate.Failure(f"{path}: {family.name}: {wrong} without a mutant")
    ready, begins = time.monotonic() - began, time.process_time()
    walk()
    seconds = time.process_time() - begins
    killed = 0
    for mutant, outcome in outcomes(walk, alive, LENIENCE * seconds + 2, options.jobs):
        lives = outcome["verdict"] == "survived"
        killed += not lives
        keep.add({**mutant._asdict(), "module": digest, **outcome, "stage": "" if lives else "walks", "tests": []})
    took = time.monotonic() - began - ready
    print(
        f"{path}: {family.name}: {killed} of {len(alive)} killed; {ready:.0f} s to compile, {seconds:.1f} s"
        f" for the walks, {took:.0f} s for the mutants",
        flush=True,
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="See docs/mutation.md.")
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="a Python file below src/")
    parser.add_argument("--leave-out", default="", metavar="REGEX", help="statements that are left as they are")
    parser.add_argument("--walks", type=int, default=20, metavar="N", help="on each machine (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5000, metavar="N", help="of each walk (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time (default: %(default)s)")
    parser.add_argument("--state", type=Path, default=Path("build/mutation.jsonl"), help="default: %(default)s")
    parser.add_argument("--functions", action="store_true", help="print the functions that are broken, and end")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    options = _options(arguments)
    try:
        names = {path: mutate.module_name(path) for path in options.modules}
        keep = mutate.State(options.state, fresh=False)
        every = [(family, executed(family, 4000)) for family in families()]
        if options.functions:
            print(*sorted({name for _, called in every for of, name in called if of in names.values()}))
            return 0
        for path in options.modules:
            for family, called in every:
                held(path, family, {name for of, name in called if of == names[path]}, options, keep)
    except mutate.Failure as failure:
        print(f"mutate_walks: {failure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mutate_walks: interrupted; the same command goes on, from {options.state}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
