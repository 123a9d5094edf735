"""Triton's interpreter in its own process, because TRITON_INTERPRET=1 must be set before a kernel is decorated.

`Interpreter` starts `python kernel_worker.py` with it set and calls functions there by name. The environment of the
test process does not change. Requests and replies are pickles over the worker's stdin and stdout.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent


class Interpreter:
    """The worker, from the test's side."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TRITON_INTERPRET": "1"},
        )

    def __call__(self, module: str, function: str, *args: Any, **kwargs: Any) -> Any:
        """Call `module.function(*args, **kwargs)` in the worker. An exception there is a RuntimeError here.

        A kernel with a wrong address may kill the worker. The next call then gets a new one.
        """
        pickle.dump((module, function, args, kwargs), self._process.stdin)
        self._process.stdin.flush()
        try:
            ok, result = pickle.load(self._process.stdout)
        except EOFError:
            status = self._process.wait()
            self._start()
            raise RuntimeError(f"the interpreter died with exit status {status}") from None
        if not ok:
            raise RuntimeError(result)
        return result

    def close(self) -> None:
        """End the worker."""
        self._process.stdin.close()
        self._process.wait()


def run(op: str, **arguments: Any) -> Any:
    """The bare launcher of `op` on CPU tensors."""
    return getattr(importlib.import_module(f"stepcache.kernels.{op}"), f"{op}_triton")(**arguments)


def run_backwards(op: str, **arguments: Any) -> Any:
    """As `run`, with the programs of each launch in the opposite order."""
    from triton.runtime.interpreter import interpreter_builder as builder

    idx = builder.set_grid_idx
    builder.set_grid_idx = lambda *at: idx(*(n - 1 - i for n, i in zip(builder.grid_dim, at, strict=True)))
    try:
        return run(op, **arguments)
    finally:
        builder.set_grid_idx = idx


def run_two_launches(multiprocessors: int, **arguments: Any) -> Any:
    """`run` cat_group_norm_silu, but in two launches for every size, as on a GPU with that many multiprocessors."""
    with _two_launches(multiprocessors):
        return run("cat_group_norm_silu", **arguments)


def _two_launches(multiprocessors: int) -> Any:
    from unittest import mock

    from stepcache.kernels.cat_group_norm_silu import op

    return mock.patch.multiple(op, one_launch=lambda *_: False, multiprocessors=lambda _: multiprocessors)


class Access(NamedTuple):
    """A load or a store of one program."""

    argument: str
    kind: str
    bytes: int
    """A masked lane counts nothing."""
    address: int
    """The lowest one."""
    shape: tuple[int, ...]
    """Of the tile, with masked lanes."""


def accesses(op: str, **arguments: Any) -> list[tuple[str, list[Access]]]:
    """What the kernels of one call load and store, in order: (kernel, accesses)."""
    import triton.runtime.interpreter as ti

    launches: list[tuple[str, list[Access]]] = []
    spans: list[tuple[int, int, str]] = []

    def note(kind: str, pointers: Any, mask: Any) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        addresses = pointers.data[mask.data]
        if addresses.size:
            name = next(n for low, high, n in spans if low <= int(addresses.flat[0]) < high)
            access = Access(name, kind, addresses.size * size, int(addresses.min()), pointers.data.shape)
            launches[-1][1].append(access)

    builder = ti.InterpreterBuilder
    masked_load, masked_store, executor = (
        builder.create_masked_load,
        builder.create_masked_store,
        ti.GridExecutor.__call__,
    )

    def load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        note("load", pointers, mask)
        return masked_load(self, pointers, mask, *rest)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("store", pointers, mask)
        return masked_store(self, pointers, value, mask, *rest)

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.append((self.fn.__name__, []))
        spans[:] = [
            (t.data_ptr(), t.data_ptr() + t.nbytes, name) for name, t in kwargs.items() if hasattr(t, "data_ptr")
        ]
        return executor(self, *args, **kwargs)

    builder.create_masked_load, builder.create_masked_store, ti.GridExecutor.__call__ = load, store, launch
    try:
        run(op, **arguments)
    finally:
        builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
        ti.GridExecutor.__call__ = executor
    return launches


def traffic(op: str, **arguments: Any) -> list[tuple[str, Counter]]:
    """The bytes that each kernel of one call loads and stores: (kernel, {(argument, "load" or "store"): bytes}).

    Counts lane by lane, so what two programs load counts twice.
    """
    totals = []
    for kernel, made in accesses(op, **arguments):
        total: Counter = Counter()
        for access in made:
            total[access.argument, access.kind] += access.bytes
        totals.append((kernel, total))
    return totals


def traffic_of_two_launches(multiprocessors: int, **arguments: Any) -> list[tuple[str, Counter]]:
    """`traffic` of `run_two_launches`."""
    with _two_launches(multiprocessors):
        return traffic("cat_group_norm_silu", **arguments)


def tiles_of_two_launches(multiprocessors: int, **arguments: Any) -> list[list[tuple[str, int]]]:
    """For each kernel of `run_two_launches`, the tiles of h and skip that it loads, in order: (argument, address)."""
    with _two_launches(multiprocessors):
        return [
            [(a.argument, a.address) for a in made if a.argument in ("h", "skip") and min(a.shape) > 1]
            for _, made in accesses("cat_group_norm_silu", **arguments)
        ]


@contextlib.contextmanager
def one_program(index: int | tuple[int, int, int], programs: int | tuple[int, int, int]) -> Any:
    """Run kernels that are launched with grid (1,) as program `index` of `programs`, without copying arguments back.

    The executor ends by copying every argument onto itself, which would write every page of a sparse tensor.
    """
    import triton.runtime.interpreter as ti

    at = (index, 0, 0) if isinstance(index, int) else index
    size = (programs, 1, 1) if isinstance(programs, int) else programs
    builder = ti.interpreter_builder
    dim, idx, restore = builder.set_grid_dim, builder.set_grid_idx, ti.GridExecutor._restore_args_dev
    builder.set_grid_dim = lambda x, y, z: dim(*size)
    builder.set_grid_idx = lambda x, y, z: idx(*at)
    ti.GridExecutor._restore_args_dev = lambda *args: None
    try:
        yield
    finally:
        builder.set_grid_dim, builder.set_grid_idx, ti.GridExecutor._restore_args_dev = dim, idx, restore


def _poison_empty() -> None:
    """Fill torch.empty with NaN in this process, so that reads of unwritten memory show."""
    import torch

    empty, empty_like = torch.empty, torch.empty_like

    def poisoned(make: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() and tensor.device.type == "cpu" else tensor

        return call

    torch.empty, torch.empty_like = poisoned(empty), poisoned(empty_like)


def _patch_the_language_once() -> None:
    """Make a launch patch Triton's language once for each module, not at every call of a function."""
    import triton.runtime.interpreter as ti

    done: set[str] = set()
    patch, launch = ti._patch_lang, ti.GridExecutor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn.__module__ not in done:
            done.add(self.fn.__module__)
            patch(self.fn)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise ti.InterpreterError(repr(error)) from error

    def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        done.clear()
        return launch(self, *args, **kwargs)

    ti.InterpretedFunction.__call__, ti.GridExecutor.__call__ = call, start


def _compute_no_overflow() -> None:
    """Leave out what the interpreter computes at every sum and product of integers to assert it in debug mode only."""
    import dataclasses

    from triton.runtime.interpreter import interpreter_builder as builder

    assert not builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _poison_masked() -> None:
    """Make elements outside the mask of a load without `other` NaN, as they may be on a GPU."""
    import numpy as np
    import triton.language as tl
    import triton.runtime.interpreter as ti

    load = ti.InterpreterBuilder.create_masked_load
    nan = {tl.float32: np.float32("nan"), tl.float16: np.float16("nan"), tl.bfloat16: np.uint16(0x7FC0)}

    def create_masked_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        dtype = pointers.get_element_ty()
        # A scalar 0 given as `other` comes as None too.
        if other is None and dtype in nan and pointers.data.size > 1:
            other = ti.TensorHandle(np.full(pointers.data.shape, nan[dtype]), dtype)
        return load(self, pointers, mask, other, *rest)

    ti.InterpreterBuilder.create_masked_load = create_masked_load


def _round_bfloat16() -> None:
    """Make the interpreter round float32 to the nearest bfloat16, as a GPU does. By itself it truncates."""
    import numpy as np
    import torch
    import triton.language as tl
    import triton.runtime.interpreter as ti

    cast = ti.InterpreterBuilder.cast_impl

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(src.data)).to(torch.bfloat16).view(torch.int16).numpy()
            return ti.TensorHandle(rounded.view(np.uint16), tl.bfloat16)
        return cast(self, src, dst_type)

    ti.InterpreterBuilder.cast_impl = cast_impl


def main() -> None:
    """Serve requests until stdin ends. Prints go to stderr, because stdout carries the replies."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]
    import torch

    torch.set_num_threads(1)
    _poison_empty()
    _poison_masked()
    _patch_the_language_once()
    _compute_no_overflow()
    _round_bfloat16()
    while True:
        try:
            module, function, args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply = (True, getattr(importlib.import_module(module), function)(*args, **kwargs))
        except Exception:
            reply = (False, traceback.format_exc())
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    main()
