#!/usr/bin/env python3
"""Break a module in one place after another, and see whether the tests notice: mutation testing, on the modules named.

    python tools/mutate.py src/pmuvisor/arch/pmu.py src/pmuvisor/arch/traps.py

Run it from the top of the repository, with the `dev` extra installed. Nothing on disk is changed: each mutant is a
process of its own, forked before the project is imported, in which the import system gives the broken module. So
functions, tables and constants are mutated alike, and whoever imports them gets the broken ones. Tests run in it until
one fails: first those that name their values, then the properties. With `--slow`, what survived is held to further
files. An endless loop ends at a limit of CPU time.

What is done is kept, one line of JSON each, in the file `--state`: a run that was interrupted goes on where it was.
A verdict holds as long as its module is the same; that a mutant survives, as long as the tests are, too.
docs/mutation.md tells what came out and why each survivor may live.

Exit status: 0, also where mutants survive; 1 where `--least` is not reached; 2 for bad input.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib.util
import json
import os
import re
import resource
import select
import signal
import sys
import time
import types
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import hypothesis
import numpy  # noqa: F401  imported before the forks, since it takes longer than a mutant
import pytest

SOURCES, TESTS = "src", "tests"
LEFT_OUT = {
    "test_readings.py": "compiles for most of a minute: --slow",
    "test_proofs.py": "takes minutes: --slow",
    "test_proofs_break.py": "breaks the source itself, and wants it as it is",
}
"""Files of a package's tests that run only where they are named, and why."""
MEMORY = 8 << 30
"""Bytes of address space that a mutant may take."""
LENIENCE = 8
"""How many times the CPU time of the unbroken run a mutant may take."""


T = TypeVar("T")


class Failure(Exception):
    """Bad input: one line."""


# ---- what is broken -------------------------------------------------------------------------------------------

_OPERATORS: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.BitAnd: (ast.BitOr, ast.BitXor),
    ast.BitOr: (ast.BitAnd, ast.BitXor),
    ast.BitXor: (ast.BitAnd, ast.BitOr),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
}
_ONE_SIDED = (ast.Sub, ast.LShift, ast.RShift)
"""Operators of which the right operand alone is no mistake that anybody makes."""
_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
Change = tuple[str, ast.AST]
"""The operator's name, and what takes the node's place."""


def changes(node: ast.AST, in_function: bool) -> Iterator[Change]:
    """Yield every way to break this one node; its parts are nodes of their own."""
    match node:
        case ast.BinOp(left, operator, right):
            for other in _OPERATORS.get(type(operator), ()):
                yield "operator", ast.BinOp(left, other(), right)
            yield "left operand alone", left
            if not isinstance(operator, _ONE_SIDED):
                yield "right operand alone", right
        case ast.BoolOp(operator, values):
            yield "and/or", ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
            for i in range(len(values)):
                rest = values[:i] + values[i + 1 :]
                yield "operand left out", rest[0] if len(rest) == 1 else ast.BoolOp(operator, rest)
        case ast.Compare(left, comparisons, comparators):
            for i, comparison in enumerate(comparisons):
                for swapped in _COMPARISONS[type(comparison)]:
                    yield (
                        "comparison",
                        ast.Compare(left, [*comparisons[:i], swapped(), *comparisons[i + 1 :]], comparators),
                    )
        case ast.UnaryOp(_, operand):
            yield "unary operator left out", operand
        case ast.Constant(bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(int(value)):
            yield "constant", ast.Constant(value + 1)
            if value > 0:
                yield "constant", ast.Constant(value - 1)
        case ast.Name(name, ast.Load()) if name.isupper():
            yield "named constant", ast.BinOp(copy.copy(node), ast.Add(), ast.Constant(1))
            yield "named constant", ast.Constant(0)
        case ast.If() | ast.While() | ast.IfExp():
            for value in (True, False):
                broken = copy.copy(node)
                broken.test = ast.Constant(value)
                yield "condition", broken
        case ast.stmt() if in_function:
            yield from _changed_statement(node)


def _changed_statement(node: ast.stmt) -> Iterator[Change]:
    if isinstance(node, ast.Expr | ast.Assign | ast.AugAssign | ast.Return | ast.Raise | ast.For):
        yield "statement left out", ast.Pass()
    match node:
        case ast.AugAssign(target, operator, value):
            for other in _OPERATORS.get(type(operator), ()):
                yield "operator", ast.AugAssign(target, other(), value)
            yield "assigned alone", ast.Assign([target], value)
        case ast.Continue():
            yield "continue/break", ast.Break()
        case ast.Break():
            yield "continue/break", ast.Continue()


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


class Place(NamedTuple):
    """A node and where it hangs in the tree."""

    node: ast.AST
    owner: Any
    """The list or the node that holds it."""
    key: Any
    """Its index there, or its field."""
    statement: ast.stmt | None
    scope: tuple[str, ...]
    in_function: bool

    def put(self, node: ast.AST) -> None:
        """Hang another node there."""
        if isinstance(self.owner, list):
            self.owner[self.key] = node
        else:
            setattr(self.owner, self.key, node)


_NOT_CODE = {"annotation", "returns", "decorator_list", "bases", "type_params"}
_PASSED_OVER = (ast.Import, ast.ImportFrom, ast.JoinedStr)


def places(node: ast.AST, of: Place) -> Iterator[Place]:
    """Yield every place below `node` where code is, in the order of the source; `of` is the place of `node` itself."""
    scope, in_function = of.scope, of.in_function
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope = (*scope, node.name)
        in_function = isinstance(node, ast.FunctionDef)
    for field, value in ast.iter_fields(node):
        if field in _NOT_CODE:
            continue
        held = [(value, i, one) for i, one in enumerate(value)] if isinstance(value, list) else [(node, field, value)]
        for owner, key, child in held:
            if not isinstance(child, ast.AST) or isinstance(child, _PASSED_OVER) or _is_docstring(child):
                continue
            statement = child if isinstance(child, ast.stmt) else of.statement
            place = Place(child, owner, key, statement, scope, in_function)
            yield place
            yield from places(child, place)


class Mutant(NamedTuple):
    """One broken module."""

    path: str
    number: int
    line: int
    function: str
    """Its name with that of its class, or "(module)" outside of functions."""
    operator: str
    before: str
    """The statement as it is, its first line."""
    after: str


def _shown(statement: ast.stmt | None) -> str:
    return ast.unparse(ast.fix_missing_locations(statement)).splitlines()[0] if statement is not None else ""


class Broken(NamedTuple):
    """A mutant, and what takes the place of what in the tree."""

    mutant: Mutant
    place: Place
    node: ast.AST


def mutants(path: str, tree: ast.Module) -> Iterator[Broken]:
    """Yield each mutant of a module, while `tree` is that mutant; none that compiles to the same code."""
    number = 0
    for i, top in enumerate(tree.body):
        whole = _meaning(_compiled(path, top))
        for place in list(places(ast.Module([top], []), Place(tree, None, None, None, (), False))):
            if place.node is top:
                place = place._replace(owner=tree.body, key=i)
            for operator, broken in list(changes(place.node, place.in_function)):
                before = _shown(place.statement)
                place.put(ast.copy_location(copy.copy(broken), place.node))
                if _meaning(_compiled(path, tree.body[i])) != whole:
                    after = _shown(broken if isinstance(broken, ast.stmt) else place.statement)
                    line = getattr(place.node, "lineno", 0)
                    function = ".".join(place.scope) or "(module)"
                    yield Broken(Mutant(path, number, line, function, operator, before, after), place, broken)
                    number += 1
                place.put(place.node)


def _compiled(path: str, *statements: ast.stmt) -> types.CodeType:
    module = ast.fix_missing_locations(ast.Module([*statements], []))
    with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
        code: types.CodeType = compile(module, path, "exec")
    return code


def _meaning(code: types.CodeType) -> tuple[object, ...]:
    """Return what of compiled code is not about lines."""
    constants = (_meaning(c) if isinstance(c, types.CodeType) else (type(c), c) for c in code.co_consts)
    return (code.co_code, code.co_names, code.co_varnames, *constants)


# ---- one mutant -----------------------------------------------------------------------------------------------


class _Broken(SourceFileLoader):
    """Loads a module from code that is given."""

    def __init__(self, name: str, path: str, code: Any) -> None:
        super().__init__(name, path)
        self.code = code

    def get_code(self, fullname: str) -> Any:
        """Return the code that was given, whatever the file says."""
        return self.code


class _Finder:
    """Finds one module, and gives it broken."""

    def __init__(self, name: str, path: str, code: Any) -> None:
        self.name = name
        self.path = path
        self.loader = _Broken(name, path, code)

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """Return the specification of the broken module, None for any other."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self.loader)


class _Watch:
    """The pytest plugin of one run: properties last, and what failed first."""

    def __init__(self, first: Sequence[str]) -> None:
        self.first = first
        self.stage = "import"
        self.failed = ""
        self.ran = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Have Hypothesis not look for the smallest example: that there is one is enough."""
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        found = hypothesis.settings(phases=phases, report_multiple_bugs=False)
        hypothesis.settings.register_profile("mutation", found)
        hypothesis.settings.load_profile("mutation")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Order the tests: `first`, then those that name their values, then those of Hypothesis, which take longer."""
        items.sort(key=lambda item: (item.nodeid not in self.first, _is_property(item)))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Note which stage runs."""
        self.stage = "properties" if _is_property(item) else "examples"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that cannot be imported."""
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the failure; -x ends the run."""
        self.ran += report.when == "call"
        if report.failed and not self.failed:
            self.failed = report.nodeid


def _is_property(item: pytest.Item) -> bool:
    return bool(getattr(getattr(item, "obj", None), "is_hypothesis_test", False))


QUIET = ("-q", "-x", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:warnings", "--tb=no")


def _in_child(
    path: str | None, code: Any, tests: Sequence[str], first: Sequence[str], seconds: float, out: int
) -> None:
    """Run the tests on a broken module, or with `path` None on none, and write what came of it as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    if path is not None:
        sys.meta_path.insert(0, _Finder(module_name(path), str(Path(path).resolve()), code))
    watch = _Watch(first)
    status = pytest.main([*QUIET, *tests], plugins=[watch])
    used = resource.getrusage(resource.RUSAGE_SELF)
    outcome = {
        "verdict": "survived" if status == 0 else "killed",
        "stage": watch.stage if status != 0 else "",
        "test": watch.failed,
        "ran": watch.ran,
        "seconds": used.ru_utime + used.ru_stime,
    }
    os.write(out, json.dumps(outcome).encode())


def module_name(path: str) -> str:
    """Return the name under which the module of a file is imported. Raises Failure for one outside of src/."""
    parts = Path(path).with_suffix("").parts
    if Path(path).suffix != ".py" or SOURCES not in parts or not Path(path).is_file():
        raise Failure(f"{path}: expected a Python file below {SOURCES}/")
    return ".".join(parts[parts.index(SOURCES) + 1 :])


class Running(NamedTuple):
    """A child that runs."""

    pid: int
    reading: int

    def wait(self) -> dict[str, Any]:
        """Return what came of it: a child that ended by a signal ran into a limit."""
        with os.fdopen(self.reading, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if said:
            outcome: dict[str, Any] = json.loads(said)
            return outcome
        limit = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
        return {"verdict": "timeout" if limit else "crash", "stage": "", "test": ""}


def forked(work: Callable[[int], None]) -> Running:
    """Fork a child that does its work, and writes what came of it, as JSON, to the file that it is given."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            work(writing)
        finally:
            os._exit(0)
    os.close(writing)
    return Running(pid, reading)


def start(path: str | None, code: Any, tests: Sequence[str], first: Sequence[str], seconds: float) -> Running:
    """Start a child that runs the tests, `first` before the others."""
    return forked(lambda writing: _in_child(path, code, tests, first, seconds, writing))


def first_to_end(running: list[tuple[Running, T]]) -> tuple[Running, T]:
    """Wait for one of those that run, and take it out of them."""
    ready, _, _ = select.select([child.reading for child, _ in running], [], [])
    return running.pop(next(i for i, (child, _) in enumerate(running) if child.reading in ready))


# ---- all of them ------------------------------------------------------------------------------------------------


def digest(paths: Iterable[str | Path]) -> str:
    """Return a short hash of the files' names and contents."""
    whole = hashlib.sha256()
    for path in sorted(map(str, paths)):
        whole.update(f"{path}:".encode())
        whole.update(Path(path).read_bytes())
    return whole.hexdigest()[:16]


class State:
    """The file of what is done."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        self.records: dict[tuple[str, str, int], dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        if path.exists():
            for line in path.read_text().splitlines():
                record = json.loads(line)
                self.records[record["path"], record["module"], record["number"]] = record

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record, at once."""
        self.records[record["path"], record["module"], record["number"]] = record
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


class Chosen(NamedTuple):
    """What is mutated."""

    modules: tuple[str, ...]
    functions: frozenset[str]
    """Only these; all where there are none."""
    one_in: int = 1
    """Of their mutants one in so many, by a hash of its number."""

    left_out: str = ""
    """A regular expression of statements that are left as they are."""

    def has(self, path: str, number: int, function: str, before: str) -> bool:
        """Tell whether a mutant is among them."""
        drawn = zlib.crc32(f"{path}:{number}".encode()) % self.one_in == 0
        meant = not self.left_out or re.search(self.left_out, before) is None
        return drawn and meant and (not self.functions or function in self.functions)


class Campaign:
    """One run: the modules, the tests, and where the records go."""

    def __init__(self, chosen: Chosen, tests: Sequence[str], state: State, jobs: int, *, slow: bool = False) -> None:
        self.chosen = chosen
        self.tests = tests
        self.tests_digest = digest([*tests, *_files(tests)])
        self.state = state
        self.jobs = jobs
        self.slow = slow
        """Whether it is for what has survived."""
        self.running: list[tuple[Running, dict[str, Any]]] = []
        self.killers: dict[str, list[str]] = {}
        """By function, the tests that killed a mutant of it: the next one is likely to be killed by one of them."""
        self.seconds = 0.0

    def _baseline(self) -> int:
        """Run the tests on the unbroken modules and return how many there are. Raises Failure where they fail."""
        outcome = start(None, None, self.tests, (), 0).wait()
        if outcome["verdict"] != "survived":
            raise Failure(f"the tests fail without a mutant: {outcome['test'] or 'there are none'}")
        self.seconds = LENIENCE * float(outcome["seconds"])
        return int(outcome["ran"])

    def run(self) -> None:
        """Run every mutant that has no verdict yet."""
        found = self._baseline()
        print(f"{found} tests, {self.seconds:.0f} s of CPU time for a mutant", file=sys.stderr)
        progress = Progress(sum(1 for _ in self._due()))
        try:
            for mutant, module, tree in self._due():
                while len(self.running) >= self.jobs:
                    self._finish_one()
                code = _compiled(mutant.path, *tree.body)
                child = start(mutant.path, code, self.tests, self.killers.get(mutant.function, ()), self.seconds)
                self.running.append((child, {**mutant._asdict(), "module": module}))
                progress.step()
            while self.running:
                self._finish_one()
        finally:
            for child, _ in self.running:
                os.kill(child.pid, signal.SIGKILL)
            progress.end()

    def _due(self) -> Iterator[tuple[Mutant, str, ast.Module]]:
        """Yield each mutant that has no verdict, its module's digest, and the tree while it is that mutant."""
        for path in self.chosen.modules:
            module, tree = digest([path]), parsed(path)
            for mutant, _, _ in mutants(path, tree):
                record = self.state.records.get((path, module, mutant.number), {"verdict": "none", "tests": []})
                undecided = record["verdict"] == "survived" or (record["verdict"] == "none" and not self.slow)
                if (
                    undecided
                    and self.tests_digest not in record["tests"]
                    and self.chosen.has(path, mutant.number, mutant.function, mutant.before)
                ):
                    yield mutant, module, tree

    def _finish_one(self) -> None:
        child, record = first_to_end(self.running)
        outcome = child.wait()
        killers = self.killers.setdefault(record["function"], [])
        if outcome["test"] and outcome["test"] not in killers:
            killers.append(outcome["test"])
        before = self.state.records.get((record["path"], record["module"], record["number"]), {})
        tests = [*before.get("tests", []), self.tests_digest]
        stage = "slow" if self.slow and outcome["stage"] else outcome["stage"]
        self.state.add(
            {**record, "verdict": outcome["verdict"], "stage": stage, "test": outcome["test"], "tests": tests}
        )


class Progress:
    """How far it is: a line that moves on a terminal, else one for every hundredth mutant."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.began = time.monotonic()

    def step(self) -> None:
        """One more."""
        self.done += 1
        if sys.stderr.isatty():
            print(f"\r{self}", end="", file=sys.stderr, flush=True)
        elif self.done % 100 == 0:
            print(self, file=sys.stderr, flush=True)

    def end(self) -> None:
        """No more."""
        print(f"{chr(13) if sys.stderr.isatty() else ''}{self}", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        return f"{self.done} of {self.total} mutants, {time.monotonic() - self.began:.0f} s"


def parsed(path: str) -> ast.Module:
    """Return the tree of a source file."""
    return ast.parse(Path(path).read_text(), path)


def _files(tests: Sequence[str]) -> list[Path]:
    """Return the test files, and what lies beside them: helpers change what a test says."""
    folders = {Path(test).parent if Path(test).is_file() else Path(test) for test in tests}
    return sorted({file for folder in folders for file in folder.glob("*.py")})


def tests_of(modules: Sequence[str]) -> list[str]:
    """Return the test files for modules: those of tests/ in the folders named as the modules' packages."""
    found: list[str] = []
    for package in dict.fromkeys(Path(path).parent.name for path in modules):
        files = sorted(Path(TESTS, package).glob("test_*.py"))
        if not files:
            raise Failure(f"no tests in {TESTS}/{package}: expected some, or --tests")
        found += [str(file) for file in files if file.name not in LEFT_OUT]
    return found


# ---- what came of it ----------------------------------------------------------------------------------------------

COLUMNS = ("mutants", "walks", "import", "examples", "properties", "slow", "timeout", "crash", "survived")


def report(state: State, chosen: Chosen) -> float:
    """Print the table and the survivors, and return the share that was killed, in per cent."""
    rows: dict[str, dict[str, int]] = {}
    survivors: list[dict[str, Any]] = []
    for path in chosen.modules:
        module = digest([path])
        mine = [
            record
            for (of, version, number), record in sorted(state.records.items())
            if (of, version) == (path, module) and chosen.has(path, number, record["function"], record["before"])
        ]
        rows[path] = dict.fromkeys(COLUMNS, 0) | {"mutants": len(mine)}
        for record in mine:
            rows[path][record["stage"] or record["verdict"]] += 1
        survivors += [record for record in mine if record["verdict"] == "survived"]
    rows["all"] = {column: sum(row[column] for row in rows.values()) for column in COLUMNS}
    print(f"{'':36}" + "".join(f"{column:>12}" for column in COLUMNS))
    for path, row in rows.items():
        print(f"{path:36}" + "".join(f"{row[column]:12}" for column in COLUMNS))
    for record in survivors:
        print(f"\n{record['path']}:{record['line']}: {record['function']}: {record['operator']} (#{record['number']})")
        print(f"  - {record['before']}\n  + {record['after']}")
    share = 100 * (1 - len(survivors) / max(rows["all"]["mutants"], 1))
    print(f"\n{share:.1f} % killed")
    return share


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="See docs/mutation.md.")
    parser.add_argument("modules", nargs="+", metavar="MODULE", help="a Python file below src/")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="instead of those in tests/ of the same folder name")
    parser.add_argument("--slow", nargs="+", metavar="FILE", help="further tests, for what survives those")
    parser.add_argument("--functions", nargs="+", default=[], metavar="NAME", help="only these, of all the modules")
    parser.add_argument(
        "--one-in", type=int, default=1, metavar="N", help="a sample: one mutant in N, always the same (default: all)"
    )
    parser.add_argument("--leave-out", default="", metavar="REGEX", help="statements that are left as they are")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time (default: %(default)s)")
    parser.add_argument("--state", type=Path, default=Path("build/mutation.jsonl"), help="default: %(default)s")
    parser.add_argument("--fresh", action="store_true", help="forget what the state file says")
    parser.add_argument("--least", type=float, default=0.0, metavar="PER CENT", help="exit 1 if fewer are killed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for path in (SOURCES, TESTS):
        sys.path.insert(0, str(Path(path).resolve()))
    try:
        for path in options.modules:
            module_name(path)
        state = State(options.state, options.fresh)
        for path in [*(options.tests or []), *(options.slow or [])]:
            if not Path(path).exists():
                raise Failure(f"{path}: expected a file of tests, or a folder of such")
        chosen = Chosen(tuple(options.modules), frozenset(options.functions), max(1, options.one_in), options.leave_out)
        tests = options.tests or tests_of(options.modules)
        Campaign(chosen, tests, state, options.jobs).run()
        if options.slow:
            Campaign(chosen, options.slow, state, options.jobs, slow=True).run()
    except Failure as failure:
        print(f"mutate: {failure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mutate: interrupted; the same command goes on, from {options.state}", file=sys.stderr)
        return 130
    return int(report(state, chosen) < options.least)


if __name__ == "__main__":
    sys.exit(main())
