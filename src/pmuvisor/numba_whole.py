"""A program as one piece of machine code: numba's passes for functions that only other compiled functions call.

numba makes machine code of every function as soon as it has compiled it, with all that it calls linked in, and so
optimizes the innermost ones a hundred times. Functions compiled by `Part` are left as LLVM's intermediate code; the one
that is called from outside, compiled by `Whole`, is linked with all of them, and optimized, once: a third of the time.
It depends on the insides of numba, whose version is pinned for this.
"""

from __future__ import annotations

from typing import Any

from numba.core.compiler import CompilerBase, DefaultPassBuilder, _LowerResult
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering


def _left_alone() -> None:
    """Stand in for the machine code that a part has not got: nobody calls it."""


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerPart(NativeLowering):  # type: ignore[misc]
    """Lower a function to intermediate code, and let others call it, without making machine code of it.

    What a part refers to of CPython's (`environment`) is given to the machine code once there is some.
    """

    _name = "lower_part"

    def run_pass(self, state: Any) -> bool:
        state.flags = state.flags.copy()
        state.flags.no_compile = True
        super().run_pass(state)
        library, lowered = state.library, state["cr"]
        library._ensure_finalized = _left_alone
        library._get_module_for_linking = lambda: library._final_module
        library.environment = state.targetctx.get_env_name(lowered.fndesc), lowered.env
        key = object().__sizeof__  # numba asks for a built-in function; this one is unlike any other
        state.targetctx.insert_user_function(key, lowered.fndesc, [library])
        state["cr"] = _LowerResult(lowered.fndesc, lowered.call_helper, cfunc=key, env=lowered.env)
        state.reload_init.extend(library._reload_init)
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerWhole(NativeLowering):  # type: ignore[misc]
    """Lower the outermost function, and link it with all that it calls, directly or not."""

    _name = "lower_whole"

    def run_pass(self, state: Any) -> bool:
        codegen = state.targetctx.codegen()
        library = state.library = codegen.create_library(state.func_id.func_qualname)
        library.enable_object_caching()
        finalize, optimize = library.finalize, library._optimize_final_module
        parts: list[Any] = []

        def link_all() -> None:
            library._linking_libraries = _closure(library)
            parts.extend(part for part in library._linking_libraries if hasattr(part, "environment"))
            finalize()

        def optimize_all() -> None:
            for part in parts:
                for function in part._final_module.functions:
                    if not function.is_declaration:
                        library._final_module.get_function(function.name).linkage = "internal"
            optimize()

        library.finalize, library._optimize_final_module = link_all, optimize_all
        super().run_pass(state)
        for part in parts:
            codegen.set_env(*part.environment)
        return True


def _closure(library: Any) -> list[Any]:
    """Return all that a library calls, directly or not."""
    found: dict[Any, None] = {}
    todo = [library]
    while todo:
        for called in todo.pop()._linking_libraries:
            if called not in found:
                found[called] = None
                todo.append(called)
    return list(found)


def _pipelines(state: Any, lowering: type[Any]) -> list[Any]:
    manager = DefaultPassBuilder.define_nopython_pipeline(state)
    manager.passes = [(lowering if of is NativeLowering else of, words) for of, words in manager.passes]
    manager._finalized = False
    manager.finalize()
    return [manager]


class Part(CompilerBase):  # type: ignore[misc]
    """numba's compiler for what only other compiled functions call."""

    def define_pipelines(self) -> list[Any]:
        """Return the passes."""
        return _pipelines(self.state, _LowerPart)


class Whole(CompilerBase):  # type: ignore[misc]
    """numba's compiler for what CPython calls."""

    def define_pipelines(self) -> list[Any]:
        """Return the passes."""
        return _pipelines(self.state, _LowerWhole)
