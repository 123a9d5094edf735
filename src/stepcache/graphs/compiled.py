"""Functions under torch.compile: one whole graph, static shapes.

Dynamo keeps its compilations by code object and gives up after a handful (`recompile_limit`), so each bucket's
functions get code objects of their own: a pipeline that runs at twenty sizes compiles each once. Compilations outlive
their bucket: compiling takes minutes, and what it makes holds little memory.
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
    """One function under torch.compile, with a code object of its own.

    Where Dynamo's recompile limit is reached (each scale of a LoRA is a compilation of its own), it starts anew with
    another code object and forgets the earlier ones. `what` names it in messages.
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
        """Call it with `args`; seconds of calls in which something was compiled are added to `costs`.

        GraphCompileError, with torch's own error, where it cannot be compiled.
        """
        if self._warm and not self._trees:
            return self._attempt(costs, args)
        # The first call compiles, and times candidates on the device where it was asked to. A second thread waits for
        # it instead of compiling the same. Trees may capture at any call.
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
                f"torch.compile failed on the {self._what}; accelerate(..., compile=False) runs without it, and tells "
                f"whether the call itself is at fault.\n{error}"
            ) from error
        except AssertionError as error:
            if not self._trees or threading.current_thread() is threading.main_thread():
                raise
            # torch 2.11: trees look for their state in the thread, and find it only in the one that imported them.
            raise GraphCompileError(
                f"The {self._what} was called in the thread {threading.current_thread().name!r}, in which the CUDA "
                f"graphs of this torch ({torch.__version__}) do not work: {error!r}. Leave capturing to stepcache: "
                'accelerate(..., compile="auto") in the place of mode="reduce-overhead" or backend="cudagraphs".'
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
    """What has been compiled for one pipe, for all of its runs, in any thread."""

    def __init__(self) -> None:
        self._held: dict[Hashable, CompiledFunction] = {}
        # By a bucket's key: its joins on the Triton ops. A bucket that was dropped and made again finds what was
        # compiled for it, even where more is known about joins by then.
        self.joins: dict[Hashable, frozenset[JoinShape]] = {}

    def get(self, key: Hashable, function: Callable[..., Any], options: dict[str, Any], what: str) -> CompiledFunction:
        """What was compiled under `key`; else `function`, which compiles at its first call."""
        held = self._held.get(key)
        return held if held is not None else self._held.setdefault(key, CompiledFunction(function, options, what))


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with a code object of its own, on which Dynamo keeps its compilations."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
