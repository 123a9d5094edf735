"""Counts over the calls of one compiled graph (`gpu_code_trace.py`): launches, copies, bytes, FLOPs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.utils.flop_counter import flop_registry

from benchmarks.engine.gpu_code_trace import Code, Extern, Launch, OwnKernel, storage_of

BANDWIDTH = 3.05e12  # bytes a second
PEAK = 800e12  # FLOPs a second


class Copies(NamedTuple):
    """Number of copies, and the bytes they write."""

    count: int
    bytes: int


def extent(tensor: Tensor) -> int:
    """Bytes of a tensor's elements; an expanded dimension counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride != 0) * tensor.element_size()


def total(tensors: Sequence[Tensor]) -> int:
    """Bytes of the tensors; duplicates count once."""
    distinct = {(storage_of(t), t.storage_offset(), t.shape, t.stride()): t for t in tensors}
    return sum(extent(tensor) for tensor in distinct.values())


def externs_by_kind(code: Code) -> str:
    """The library calls by kind: "addmm 120; convolution 66"."""
    counts = Counter(call.name for call in code.externs)
    return "; ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def relaid_weights(code: Code) -> Copies:
    """Launches that only write a weight in another layout."""
    return _copies(call for call in code.launches if _only_copies(call) and _reads_weights(call, code))


def copies(code: Code) -> Copies:
    """Calls that only copy a tensor other than a weight, in the same or another layout."""
    launched = _copies(call for call in code.launches if _only_copies(call) and not _reads_weights(call, code))
    called = _copies(call for call in code.externs if call.name in ("clone", "copy_", "_to_copy"))
    return Copies(launched.count + called.count, launched.bytes + called.bytes)


def fills(code: Code) -> int:
    """Launches that read no tensor: they write constants, ranges, or "copies" of uninitialised memory."""
    launches = sum(not call.read for call in code.launches)
    return launches + sum(call.name in ("fill_", "zero_", "full", "zeros", "ones") for call in code.externs)


def join_copies(code: Code) -> Copies:
    """Buffers that a join's kernels get in addition to one of the hidden state and one of the skip.

    If an input of a join is not in memory yet, the compiler may write it once for each kernel that takes it.
    """
    found = []
    for held in _joins(code):
        for name in ("h", "skip"):
            _, *others = {storage_of(launch.tensors[name]): launch.tensors[name] for launch in held}.values()
            found += others
    return Copies(len(found), sum(extent(t) for t in found))


def join_launches(code: Code) -> list[int]:
    """The number of launches of stepcache's kernels at each join that uses them."""
    return [len(held) for held in _joins(code)]


def _joins(code: Code) -> Iterator[list[Launch]]:
    """The launches of stepcache's kernels, join by join."""
    current: list[Launch] = []
    for call in code.launches:
        if not isinstance(call.kernel, OwnKernel):
            continue
        # A join ends with its shortcut; one without a shortcut ends where the next one begins.
        begins = not call.kernel.name.startswith(("normalize", "dual_conv1x1"))
        if begins and current:
            yield current
            current = []
        current.append(call)
    if current:
        yield current


def traffic(code: Code) -> tuple[int, int, int]:
    """Bytes that Triton launches read, bytes that they write, and bytes that all other calls read and write."""
    read = sum(total(call.read) for call in code.launches)
    written = sum(total(call.written) for call in code.launches)
    return read, written, sum(total(call.read) + total(call.written) for call in code.externs)


def flops(code: Code) -> int:
    """FLOPs of convolutions, matrix products and attention: two for each multiply-accumulate."""
    return sum(_flops(call) for call in code.calls)


def bound_ms(code: Code) -> float:
    """The sum over all calls of the longer of two times: bytes at BANDWIDTH, FLOPs at PEAK."""
    seconds = (max((total(call.read) + total(call.written)) / BANDWIDTH, _flops(call) / PEAK) for call in code.calls)
    return 1e3 * sum(seconds)


def _flops(call: Launch | Extern) -> int:
    if isinstance(call, Launch):
        if not call.kernel.name.startswith("dual_conv1x1"):
            return 0
        return 2 * call.tensors["out"].numel() * call.tensors["weight"].shape[1]
    count = flop_registry.get(call.op.overloadpacket)
    return int(count(*call.args, **call.kwargs, out_val=call.output)) if count is not None else 0


def _only_copies(call: Launch) -> bool:
    return call.kernel.copies and len(call.read) == 1


def _reads_weights(call: Launch, code: Code) -> bool:
    return all(storage_of(tensor) in code.weights for tensor in call.read)


def _copies(calls: Iterable[Launch | Extern]) -> Copies:
    found = list(calls)
    return Copies(len(found), sum(total(call.written) for call in found))
