"""Counts over the calls of one compiled graph (`gpu_code_trace.py`): launches, copies, bytes, FLOPs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gpu_code_trace import Code, Extern, Launch, storage_of
from torch import Tensor
from torch.utils.flop_counter import flop_registry

BANDWIDTH = 3.05e12  # bytes a second
PEAK = 800e12  # FLOPs a second


class Copies(NamedTuple):
    """How many copies, and the bytes that they write."""

    count: int
    bytes: int


def extent(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; of an expanded one, each is counted once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride != 0) * tensor.element_size()


def total(tensors: Sequence[Tensor]) -> int:
    """Bytes of tensors; one that is there twice is counted once."""
    distinct = {(storage_of(t), t.storage_offset(), t.shape, t.stride()): t for t in tensors}
    return sum(extent(tensor) for tensor in distinct.values())


def externs_by_kind(code: Code) -> str:
    """Like "addmm 120; convolution 66"."""
    counts = Counter(call.name for call in code.externs)
    return "; ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def relaid_weights(code: Code) -> Copies:
    """Launches that do nothing but write a weight in another layout."""
    return _copies(call for call in code.launches if _only_copies(call) and _reads_weights(call, code))


def copies(code: Code) -> Copies:
    """Launches that do nothing but write something that is no weight in another layout, or once more."""
    return _copies(call for call in code.launches if _only_copies(call) and not _reads_weights(call, code))


def fills(code: Code) -> int:
    """Launches that read no tensor: they write constants, ranges, "copies" of memory that nothing has written yet."""
    launches = sum(not call.read for call in code.launches)
    return launches + sum(call.name in ("fill_", "zero_", "full", "zeros", "ones") for call in code.externs)


def join_copies(code: Code) -> Copies:
    """Buffers, beyond one of the hidden state and one of the skip, that a join on our kernels is handed.

    A join's kernels have pointers that they do not read. If the compiler takes each for an input of its own, it writes
    the hidden state once for each of them.
    """
    found = []
    for held in _joins(code):
        for tensors in held:
            first, *others = {storage_of(t): t for t in tensors}.values()
            # Only what is as large: a dummy of one element is no copy.
            found += [t for t in others if t.numel() == first.numel()]
    return Copies(len(found), sum(extent(t) for t in found))


def _joins(code: Code) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """For each join on our kernels, what they get as hidden state and as skip."""
    current: tuple[list[Tensor], list[Tensor]] | None = None
    for call in code.calls:
        if isinstance(call, Launch):
            if call.kernel.generated or "skip" not in call.tensors:
                continue
            first = "m2s" in call.tensors and call.kernel.writes("m2s")
            hidden = [call.tensors[name] for name in ("h", "h2", "h3", "mix") if name in call.tensors]
            skip = call.tensors["skip"]
        elif call.name.startswith("stepcache."):  # the ops as a whole, opaque to the compiler
            first = call.name == "stepcache.cat_group_norm_silu"
            hidden, skip = [call.args[0]], call.args[1]
        else:
            continue
        if first:
            if current is not None:
                yield current
            current = ([], [])
        assert current is not None
        current[0].extend(hidden)
        current[1].append(skip)
    if current is not None:
        yield current


def traffic(code: Code) -> tuple[int, int, int]:
    """Bytes: read by Triton launches, written by them, and both of all other calls."""
    read = sum(total(call.read) for call in code.launches)
    written = sum(total(call.written) for call in code.launches)
    return read, written, sum(total(call.read) + total(call.written) for call in code.externs)


def flops(code: Code) -> int:
    """Of convolutions, matrix products and attention, two for each multiply-accumulate."""
    return sum(_flops(call) for call in code.calls)


def bound_ms(code: Code) -> float:
    """The sum over all calls of the longer of two times: its bytes at BANDWIDTH, its FLOPs at PEAK."""
    seconds = (max((total(call.read) + total(call.written)) / BANDWIDTH, _flops(call) / PEAK) for call in code.calls)
    return 1e3 * sum(seconds)


def _flops(call: Launch | Extern) -> int:
    if isinstance(call, Launch):
        if not call.kernel.name.startswith("dual_conv1x1"):
            return 0
        return 2 * call.tensors["out"].numel() * call.tensors["weight"].shape[1]
    if call.name == "stepcache.dual_conv1x1":
        return int(2 * call.output.numel() * call.args[2].shape[1])
    count = flop_registry.get(call.op.overloadpacket)
    return int(count(*call.args, **call.kwargs, out_val=call.output)) if count is not None else 0


def _only_copies(call: Launch) -> bool:
    return call.kernel.copies and len(call.read) == 1


def _reads_weights(call: Launch, code: Code) -> bool:
    return all(storage_of(tensor) in code.weights for tensor in call.read)


def _copies(calls: Iterator[Launch]) -> Copies:
    found = list(calls)
    return Copies(len(found), sum(total(call.written) for call in found))
