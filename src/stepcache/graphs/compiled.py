"""Functions under torch.compile: one full graph, static shapes.

Dynamo stores compilations per code object and gives up after a handful (`recompile_limit`). So each bucket's functions
get their own code objects, and a pipeline that runs at twenty sizes compiles each once. Compilations outlive their
bucket, because compiling takes minutes and the result holds little memory.
"""

from __future__ import annotations

import threading
import time
import types
from collections.abc import Callable, Hashable
from typing import Any

import torch

from ..errors import GraphCompileError
from ..forwards.join_shape import JoinShape
from .options import FIXED, captures_itself, own_copy
from .progress import Costs, stage
from .turns import exclusive


class CompiledFunction:
    """One function under torch.compile, with its own code object.

    At Dynamo's recompile limit (each LoRA scale is one compilation) it starts over with a new code object and forgets
    the earlier compilations. `what` names it in messages.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any], what: str) -> None:
        from torch._dynamo.utils import counters

        self._function, self._options, self._what = function, options, what
        self._trees = captures_itself(options)
        self._counters = counters["stats"]  # unique_graphs: compilations of this process
        self._compiled = self._compile()
        self._began = self._warm = False

    def _compile(self) -> Callable[..., Any]:
        return torch.compile(_with_own_code(self._function), **FIXED, **own_copy(self._options))

    def __call__(self, costs: Costs, *args: Any) -> Any:
        """Call it with `args`. A call that compiles adds its seconds to `costs`.

        Raises GraphCompileError, with torch's own error, if compiling fails.
        """
        if self._warm and not self._trees:
            return self._attempt(costs, args)
        # The first call compiles, and may time candidates on the device. A second thread waits for it instead of
        # compiling the same. CUDA graph trees may capture at any call.
        with exclusive():
            result = self._attempt(costs, args)
            self._warm = True
            return result

    def _attempt(self, costs: Costs, args: tuple[Any, ...]) -> Any:
        if not self._began:
            stage(f"{self._what}: compiling")
            self._began = True
        before, start = self._counters["unique_graphs"], time.perf_counter()
        try:
            return self._call(args)
        except _dynamo_errors() as error:
            raise GraphCompileError(
                f"torch.compile failed on the {self._what}. Try accelerate(..., compile=False): it runs without "
                f"compiling, and shows whether the call itself is at fault.\n{error}"
            ) from error
        except AssertionError as error:
            if not self._trees or threading.current_thread() is threading.main_thread():
                raise
            # torch 2.11 keeps the state of trees per thread, and only the thread that imported them has it.
            raise GraphCompileError(
                f"The {self._what} was called in the thread {threading.current_thread().name!r}, where CUDA graphs of "
                f"this torch ({torch.__version__}) do not work: {error!r}. Leave capturing to stepcache: "
                'accelerate(..., compile="auto") instead of mode="reduce-overhead" or backend="cudagraphs".'
            ) from error
        finally:
            if self._counters["unique_graphs"] != before:
                costs.compile_seconds += time.perf_counter() - start

    def _call(self, args: tuple[Any, ...]) -> Any:
        from torch._dynamo.exc import FailOnRecompileLimitHit

        try:
            return self._compiled(*args)
        except FailOnRecompileLimitHit:
            self._compiled = self._compile()
            return self._compiled(*args)


def _dynamo_errors() -> type[Exception]:
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


class Compilations:
    """The compiled functions of one pipe, shared by all its runs and threads."""

    def __init__(self) -> None:
        self._held: dict[Hashable, CompiledFunction] = {}
        # By bucket key: the joins that run on the Triton ops in what was compiled. A bucket that is dropped and made
        # again asks for the same ones, and so finds its compilations, even if there are new verdicts.
        self.joins: dict[Hashable, frozenset[JoinShape]] = {}

    def get(self, key: Hashable, function: Callable[..., Any], options: dict[str, Any], what: str) -> CompiledFunction:
        """The compiled function of `key`; if there is none, `function`, which compiles at its first call."""
        held = self._held.get(key)
        return held if held is not None else self._held.setdefault(key, CompiledFunction(function, options, what))


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of the function with its own code object, where Dynamo stores compilations."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
