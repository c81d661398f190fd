"""The symbolic reading: plain functions run on Z3 bit vectors.

A semantic function is called with records whose integers are `Int`s. Arithmetic builds terms; where the function asks
whether something holds (`if`, `while`, a subscript), the run forks: `paths` replays the function once for every
feasible sequence of answers. All integers are 64 bits wide and wrap, as numba's are; a field's width is a constraint on
its variable. Nothing here knows what the functions are about.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import z3

from pmuvisor import records

R = TypeVar("R")
WORD = 64
"""Width in bits of every symbolic integer."""
ONES = (1 << WORD) - 1
MAX_SUBSCRIPT = 64
"""A symbolic subscript forks over 0 to this, exclusive; beyond it IndexError, as for a list."""


class _Run:
    """One run of a function: the decisions replayed, those newly taken, and the branches left to explore."""

    def __init__(self, solver: Any, prefix: list[bool]) -> None:
        self.solver = solver
        self.prefix = prefix
        self.taken: list[bool] = []
        self.todo: list[list[bool]] = []

    def decide(self, condition: Any) -> bool:
        condition = z3.simplify(condition)
        if z3.is_true(condition) or z3.is_false(condition):
            return bool(z3.is_true(condition))
        depth = len(self.taken)
        if depth < len(self.prefix):
            choice = self.prefix[depth]
        else:
            choice = self.solver.check(condition) == z3.sat
            if choice and self.solver.check(z3.Not(condition)) == z3.sat:
                self.todo.append([*self.taken, False])
        self.taken.append(choice)
        self.solver.add(condition if choice else z3.Not(condition))
        return choice


class _Merging:
    """One run of a function of which every branch is followed, feasible or not, for all of them to become one term."""

    def __init__(self, prefix: list[bool]) -> None:
        self.prefix = prefix
        self.taken: list[bool] = []
        self.conditions: list[Any] = []
        self.todo: list[list[bool]] = []

    def decide(self, condition: Any) -> bool:
        condition = z3.simplify(condition)
        if z3.is_true(condition) or z3.is_false(condition):
            return bool(z3.is_true(condition))
        depth = len(self.taken)
        choice = self.prefix[depth] if depth < len(self.prefix) else True
        if depth >= len(self.prefix):
            self.todo.append([*self.taken, False])
        self.taken.append(choice)
        self.conditions.append(condition if choice else z3.Not(condition))
        return choice


_current: list[_Run | _Merging] = []


def _decide(condition: Any) -> bool:
    if condition is _TRUTH[True] or condition is _TRUTH[False]:
        return condition is _TRUTH[True]
    if not _current:
        raise RuntimeError("a symbolic value was asked for its truth outside of paths()")
    return _current[-1].decide(condition)


class Bool:
    """A symbolic truth value: asking for it forks the run."""

    __slots__ = ("term",)

    def __init__(self, term: Any) -> None:
        self.term = term

    def __bool__(self) -> bool:
        return _decide(self.term)

    def __int__(self) -> int:
        return int(bool(self))

    def __eq__(self, other: object) -> bool:
        raise TypeError("truth values are compared as integers: int(a) == int(b)")

    __hash__ = None  # type: ignore[assignment]


class Int:
    """A symbolic integer of 64 bits. Comparison is unsigned, as CPython's is on the values the semantics keeps."""

    __slots__ = ("term",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, term: Any) -> None:
        self.term = term

    def __bool__(self) -> bool:
        return _decide(_term("ne", operator.ne, self.term, _number(0)))

    def __invert__(self) -> Int:
        return Int(_term("invert", operator.invert, self.term))

    def __neg__(self) -> Int:
        return Int(_term("neg", operator.neg, self.term))

    def __index__(self) -> int:
        for value in range(MAX_SUBSCRIPT):
            if _decide(_term("eq", operator.eq, self.term, _number(value))):
                return value
        raise IndexError(f"a symbolic subscript of {MAX_SUBSCRIPT} or more")


def word(value: Any) -> Any:
    """Return the 64-bit term of an `Int`, a Python integer or a bool."""
    return value.term if isinstance(value, Int) else _number(int(value) & ONES)


@functools.cache
def _number(value: int) -> Any:
    """Return the one term of a value: equal values are the same object."""
    term = z3.BitVecVal(value, WORD)
    _values.add(id(term))
    return term


_values: set[int] = set()
"""The identities of the terms that are values, all of which are kept."""
_TRUTH = {True: z3.BoolVal(True), False: z3.BoolVal(False)}
_terms: dict[tuple[Any, ...], tuple[Any, Any]] = {}
"""What was made of terms, which are kept so that no other has their identity: runs are mostly alike."""
MOST_TERMS = 1 << 18


def _term(name: str, build: Callable[..., Any], *of: Any) -> Any:
    """Return what `build`, of that name, makes of terms: made once. Of values Z3 makes a value."""
    place = name, *map(id, of)
    if place not in _terms:
        if len(_terms) >= MOST_TERMS:
            _terms.clear()
        made = build(*of)
        _terms[place] = of, _known(made) if _values.issuperset(place[1:]) else made
    return _terms[place][1]


def _known(term: Any) -> Any:
    """Return the value of a term that has one."""
    value = z3.simplify(term)
    return _TRUTH[z3.is_true(value)] if z3.is_bool(value) else _number(value.as_long())


def _binary(name: str, build: Callable[[Any, Any], Any], result: type[Any], *, reverse: bool = False) -> None:
    def method(a: Any, b: Any) -> Any:
        if not isinstance(b, Int | int):
            return NotImplemented
        return result(_term(name, build, word(a), word(b)))

    setattr(Int, f"__{name}__", method)
    if reverse:
        setattr(Int, f"__r{name}__", lambda a, b: result(_term(name, build, word(b), word(a))))


def _and(a: Any, b: Any) -> Any:
    """Say what is known without a solver: most of a state is the same before and after."""
    if a is b or b is _number(0) or a is _number(ONES):
        return b
    return a if a is _number(0) or b is _number(ONES) else a & b


def _or(a: Any, b: Any) -> Any:
    return a if a is b or b is _number(0) else b if a is _number(0) else a | b


def _xor(a: Any, b: Any) -> Any:
    return _number(0) if a is b else a if b is _number(0) else b if a is _number(0) else a ^ b


for _name, _build in {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "and": _and,
    "or": _or,
    "xor": _xor,
    "lshift": lambda a, b: a << b,
    "rshift": z3.LShR,
}.items():
    _binary(_name, _build, Int, reverse=True)
for _name, _build in {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": z3.ULT,
    "le": z3.ULE,
    "gt": z3.UGT,
    "ge": z3.UGE,
}.items():
    _binary(_name, _build, Bool)


def symbolic(cls: type[R], prefix: str, sizes: records.Sizes | None = None) -> R:
    """Return a record of `cls` in which every integer is a fresh variable of its declared width.

    The variables are named `prefix.path`, so two calls with one prefix give the same variables.
    """
    made = records.new(cls, sizes)
    for leaf in records.leaves(cls, sizes):
        name = ".".join([prefix, *map(str, leaf.path)])
        term = z3.BitVec(name, leaf.width)
        records.put(made, leaf.path, Int(term if leaf.width == WORD else z3.ZeroExt(WORD - leaf.width, term)))
    return made


def paths(run: Callable[[], R], assume: Sequence[Any] = (), logic: str = "QF_BV") -> Iterator[tuple[Any, R]]:
    """Run a function along every feasible path; yield (solver holding the path's condition, what it returned).

    `run` must build its own arguments, since it is called once for each path. The solver yielded is valid only until
    the next step of the iteration. `assume` are Boolean terms that hold at the start, of Z3's `logic`.
    """
    solver = z3.SolverFor(logic)
    solver.add(*assume)
    work: list[list[bool]] = [[]]
    while work:
        solver.push()
        this = _Run(solver, work.pop())
        _current.append(this)
        try:
            result = run()
        finally:
            _current.pop()
        work += this.todo
        yield solver, result
        solver.pop()


def merged(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that only computes an integer, and return one term for all its paths: nothing forks."""
    outcomes: list[tuple[Any, Any]] = []
    work: list[list[bool]] = [[]]
    while work:
        this = _Merging(work.pop())
        _current.append(this)
        try:
            result = function(*arguments)
        finally:
            _current.pop()
        work += this.todo
        outcomes.append((z3.And(this.conditions), result))
    *others, (_, last) = outcomes
    if not others:
        return last
    term = word(last)
    for condition, result in others:
        term = z3.If(condition, word(result), term)
    return Int(term)
