"""Measures which of a bucket's joins are faster on the Triton ops, on the device and in the way they will run.

Each join is measured with the ResNet behind it, because what Inductor fuses into the neighbours of an op, or of the
concat, is part of the price. Both ways are compiled like the bucket's graphs, compared, and timed in replayed CUDA
graphs, each call on other inputs than the one before (replays.py).
"""

from __future__ import annotations

import copy
import functools
import logging
import statistics
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..forwards.blend import Blend
from ..forwards.guidance import Compute
from ..forwards.join import JoinFunction, fusable, fused_join, reference_join
from ..forwards.join_shape import JoinShape, shape_of
from ..reuse.predict import Predictor
from .compiled import CompiledFunction
from .kept import Kept
from .progress import Costs, stage
from .replays import ReplayTimer
from .verdict_file import JOINS, OK, Setup, Verdict, cache_folder
from .verdicts import Verdicts

logger = logging.getLogger("stepcache")

# Whether to measure joins that have no verdict; set by `warmup` and `stepcache tune`.
tuning_wanted: ContextVar[bool] = ContextVar("stepcache_tuning_wanted", default=False)


class Judge:
    """Knows, or measures, which joins run on the ops on one kind of device."""

    def __init__(self, verdicts: Verdicts, timer: ReplayTimer) -> None:
        self.verdicts, self.timer = verdicts, timer
        self.seen: dict[JoinShape, None] = {}  # in order of appearance

    def judge(self, calls: Sequence[JoinCall], options: dict[str, Any], costs: Costs) -> None:
        """Measure those joins that have no verdict. options: of torch.compile."""
        self.seen |= dict.fromkeys(call.shape for call in calls)
        unknown = [call for call in calls if self.verdicts.get(call.shape) is None]
        for i, call in enumerate(unknown, 1):
            stage(f"join {i} of {len(unknown)}, {call.shape}: measuring")
            try:
                verdict = measure(call, options, self.verdicts.setup, self.timer)
            except Exception as error:  # no memory, a kernel that does not compile: the next process tries again
                logger.warning(
                    "The join %s could not be measured (%s: %s); it runs without the Triton ops.",
                    call.shape, type(error).__name__, " ".join(str(error).split())[:200],
                )  # fmt: skip
                continue
            costs.joins_measured += 1
            self.verdicts.add(verdict)
            if verdict.status != OK:
                logger.warning("The join %s runs without the Triton ops: %s.", call.shape, verdict.status)


# The verdicts that this process holds, by setup and cache folder.
_verdicts: dict[tuple[Setup, Path], Verdicts] = {}


def judge_of(device: torch.device) -> Judge:
    """The judge of a CUDA device. Imports Triton."""
    import triton

    setup = Setup(torch.cuda.get_device_name(device), torch.__version__, triton.__version__, JOINS)
    key = setup, cache_folder()
    if key not in _verdicts:
        _verdicts[key] = Verdicts(setup)
    return Judge(_verdicts[key], ReplayTimer(device))


@dataclass(frozen=True)
class JoinCall:
    """A join of a U-Net with its inputs in one step. resnet: the U-Net's own module."""

    shape: JoinShape
    resnet: nn.Module
    hidden: Tensor | Blend
    skip: Tensor
    temb: Tensor | None


def calls_of_joins(
    steps_of: Callable[[JoinFunction], tuple[Compute, Compute]],
    kept: Kept,
    predictor: Predictor,
    unet: nn.Module,
    inputs: dict[str, Any],
) -> list[JoinCall]:
    """The joins of a full and a partial step that could run on the ops, one of each shape. Runs both steps eager.

    steps_of: makes both steps from a join function. kept: an empty one, to be filled.
    """
    found: dict[JoinShape, JoinCall] = {}

    def join(resnet: nn.Module, hidden: Tensor | Blend, skip: Tensor, temb: Tensor) -> Tensor:
        if fusable(resnet, hidden.buffers[0] if isinstance(hidden, Blend) else hidden, skip):
            shape = shape_of(resnet, hidden, skip)
            if shape not in found:
                given = _all_different(hidden) if isinstance(hidden, Blend) else hidden
                found[shape] = JoinCall(shape, resnet, given, skip, temb)
        return reference_join(resnet, hidden, skip, temb)

    full, partial = steps_of(join)
    _, values = full(unet, (), inputs)
    kept.begin(run=None)
    kept.write(values)
    kept.mark(stamp=None, step=0)
    kept.weigh(predictor, step=1)
    partial(unet, kept.current, inputs)
    return list(found.values())


def _all_different(blend: Blend) -> Blend:
    """Early in a run buffers are alike and weights 0, which would hide that a kernel takes one for another."""
    first, count = blend.buffers[0], blend.weights.numel()
    buffers = tuple(first.roll(i, dims=-1) for i in range(len(blend.buffers)))
    return Blend(buffers, torch.linspace(0.2, 0.6, count, device=first.device).view_as(blend.weights))


def measure(call: JoinCall, options: dict[str, Any], setup: Setup, timer: ReplayTimer) -> Verdict:
    """Compile a join both ways, with `options` of torch.compile; compare the results and time them."""
    layout = torch.channels_last if call.shape.layout == "channels_last" else torch.contiguous_format

    def in_layout(tensor: Tensor) -> Tensor:
        return tensor.clone(memory_format=layout)

    def inputs() -> tuple[Any, ...]:
        hidden = call.hidden
        if isinstance(hidden, Blend):
            hidden = Blend(tuple(in_layout(buffer) for buffer in hidden.buffers), hidden.weights)
        else:
            hidden = in_layout(hidden)
        return call.resnet, hidden, in_layout(call.skip), call.temb

    first = inputs()
    ours = _compiled(fused_join(lambda shape: True), f"join {call.shape} on the ops", options)
    stock = _compiled(reference_join, f"join {call.shape}", options)
    wrong = _wrong(ours(*first), stock(*first), _exact(*first))
    if wrong:
        return Verdict(setup, call.shape, None, None, wrong)
    sets = [first] + [inputs() for _ in range(timer.sets(_nbytes(first)) - 1)]
    triton_us, inductor_us = (statistics.median(timer.times_us(call, sets)) for call in (ours, stock))
    return Verdict(setup, call.shape, triton_us, inductor_us)


def _compiled(join: JoinFunction, what: str, options: dict[str, Any]) -> Callable[..., Tensor]:
    def run(resnet: nn.Module, hidden: Tensor | Blend, skip: Tensor, temb: Tensor) -> Tensor:
        return join(resnet, hidden, skip, temb)

    return functools.partial(CompiledFunction(run, options, what), Costs())


def _exact(resnet: nn.Module, hidden: Tensor | Blend, skip: Tensor, temb: Tensor | None) -> Tensor:
    if isinstance(hidden, Blend):
        hidden = hidden._replace(buffers=tuple(buffer.double() for buffer in hidden.buffers))
    else:
        hidden = hidden.double()
    return reference_join(
        copy.deepcopy(resnet).double(), hidden, skip.double(), None if temb is None else temb.double()
    )


def _wrong(ours: Tensor, stock: Tensor, exact: Tensor) -> str:
    """What is wrong with a result, judged by the error of the stock operations in the same dtype; "" if nothing."""
    error, allowed = ((result.double() - exact).abs().max().item() for result in (ours, stock))
    if error <= 2 * allowed + 1e-6 * exact.abs().max().item():  # false for NaN
        return ""
    return f"wrong: error {error:.3g} against {allowed:.3g} of the stock operations"


def _nbytes(inputs: tuple[Any, ...]) -> int:
    _, hidden, skip, _ = inputs
    buffers = hidden.buffers if isinstance(hidden, Blend) else (hidden,)
    return sum(tensor.nbytes for tensor in (*buffers, skip))
