"""What a run should make, and what should be held after it, modelled without stepcache.

`Reference` makes a stock pipeline reuse features in another way than stepcache: the whole stock U-Net runs in every
step, and a hook puts the old feature in place of the hidden state that enters the join. Schedule, prediction and memory
are modelled here once more, in the fewest words. Nothing here reads stepcache's own state to say what should be.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from stepcache import Schedule, accelerate
from stepcache.graphs.standin import StandInBackend


@dataclass(frozen=True)
class Wanted:
    """Arguments of `accelerate`, in words of our own. mask: "" for a schedule by interval. damping: 0 holds."""

    interval: int = 2
    mask: str = ""
    first: int = 0
    last: int = 0
    branch: int = 0
    damping: float = 0.0
    reuse: bool = False
    limit: int = 4
    captured: bool = False
    laid: bool = False  # channels_last

    def is_full(self, step: int, steps: int) -> bool:
        if step < self.first or step >= steps - self.last:
            return True
        if self.mask:
            return self.mask[step : step + 1] != "P"
        return step % self.interval == 0

    def accelerate(self, pipe: Any) -> None:
        ends = {"first": self.first, "last": self.last}
        if self.mask:
            schedule = Schedule.explicit(self.mask, **ends)
        else:
            schedule = Schedule.uniform(self.interval, **ends) if any(ends.values()) else None
        steps = {"interval": self.interval} if schedule is None else {"schedule": schedule}
        accelerate(
            pipe,
            **steps,
            branch=self.branch,
            predict=self.damping,
            guidance="reuse" if self.reuse else "both",
            max_buckets=self.limit,
            cuda_graphs=StandInBackend if self.captured else "auto",
            channels_last=self.laid or "auto",
        )


@dataclass
class Bucket:
    """What a pipe must hold for one set of shapes. programs: the pairs (letter, slot) that are captured."""

    features: dict[int, int] = field(default_factory=dict)  # bytes by slot
    statics: int = 0
    programs: set[tuple[str, int]] = field(default_factory=set)


@dataclass
class Run:
    """What the record of a run must say. captures: at most, and no fewer if nothing changed since `accelerate`."""

    letters: str = ""
    steps: int = 0
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    captures: int = 0


class Reference:
    """During a `with` block, the U-Net of `twin` runs as `wanted`, and what should be held is noted in `held`.

    guided: whether the current call's batch is [unconditional, conditional]. steps: how many steps the loop has.
    """

    def __init__(
        self,
        twin: Any,
        wanted: Wanted,
        held: OrderedDict[Any, Bucket],
        steps: Callable[[], int],
        guided: Callable[[], bool] = lambda: False,
    ) -> None:
        self.unet, self._scheduler, self.wanted, self.held = twin.unet, twin.scheduler, wanted, held
        self._steps, self._guided = steps, guided
        self.run = Run()
        self._step, self._slot, self._epoch, self._full = 0, 0, 0, True
        # By bucket and slot: the epoch (scheduled full steps so far) of the newest, and (step, feature, difference).
        self._kept: dict[tuple[Any, int], tuple[int, list[tuple[int, Any, Any]]]] = {}
        self._key: Any = None
        self._seen: Any = None  # the hidden state that entered the join
        self._put: Any = None  # what is to enter it

    def __enter__(self) -> Reference:
        # Joins are counted from the output.
        joins = [(block, i) for block in self.unet.up_blocks for i in range(len(block.resnets))]
        block, i = joins[-1 - self.wanted.branch]
        width = _hidden_width(self.unet, block, i)

        def at_join(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            joined, *rest = args
            self._seen = joined[:, :width]
            return args if self._put is None else (torch.cat([self._put, joined[:, width:]], 1), *rest)

        self._hook = block.resnets[i].register_forward_pre_hook(at_join)
        self._stock = self.unet.forward
        self.unet.forward = self._forward
        set_timesteps, step = self._scheduler.set_timesteps, self._scheduler.step

        @functools.wraps(set_timesteps)
        def begin_loop(*args: Any, **kwargs: Any) -> None:
            set_timesteps(*args, **kwargs)
            self._step, self._slot = 0, 0
            self._kept.clear()

        @functools.wraps(step)
        def end_step(*args: Any, **kwargs: Any) -> Any:
            self._step, self._slot = self._step + 1, 0
            self.run.steps += 1
            return step(*args, **kwargs)

        self._scheduler.set_timesteps, self._scheduler.step = begin_loop, end_step
        return self

    def __exit__(self, *_: object) -> None:
        del self.unet.forward, self._scheduler.set_timesteps, self._scheduler.step
        self._hook.remove()

    def _forward(self, sample: Any, timestep: Any, **inputs: Any) -> Any:
        wanted, run = self.wanted, self.run
        weights = self.unet.parameters()
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (sample, *weights)):
            run.letters += "S"
            return self._stock(sample, timestep, **inputs)
        step, slot = self._step, self._slot
        self._slot += 1
        if slot == 0:
            self._full = wanted.is_full(step, self._steps())
            self._epoch += self._full
        halved = wanted.reuse and self._guided()
        key, bucket = self._bucket(sample, timestep, halved, inputs)
        epoch, history = self._kept.get((key, slot), (-1, []))
        full = self._full or epoch != self._epoch
        run.letters += "F" if full else "P"
        if full:
            output = self._stock(sample, timestep, **inputs)
            feature, difference = self._seen.detach(), None
            if halved:
                without, given = output[0].detach().chunk(2)
                feature, difference = feature.chunk(2)[1], given - without
            depth = 2 if wanted.damping else 1
            bucket.features[slot] = depth * (bytes_of(feature) + (bytes_of(difference) if halved else 0))
            self._kept[key, slot] = self._epoch, [(step, feature.clone(), difference), *history[:1]]
        else:
            output = self._partial(step, history, halved, sample, timestep, inputs)
        if wanted.captured and not self.unet.training and not torch.is_grad_enabled():
            program = (run.letters[-1], slot)
            run.captures += program not in bucket.programs
            bucket.programs.add(program)
            out = bytes_of(sample) // sample.shape[1] * self.unet.config.out_channels
            bucket.statics = bytes_of(sample) + 4 + bytes_of(inputs["encoder_hidden_states"]) + out  # 4: a timestep
        return output

    def _partial(self, step: int, history: list[Any], halved: bool, sample: Any, timestep: Any, inputs: Any) -> Any:
        (newest, feature, difference), *before = history
        if before and self.wanted.damping:
            older, other, other_difference = before[0]
            slope = self.wanted.damping * (step - newest) / (newest - older)
            feature = feature + slope * (feature - other)
            if halved:
                difference = difference + slope * (difference - other_difference)
        if halved:
            half = sample.shape[0] // 2
            sample, inputs = sample[half:], {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"][half:]}
        self._put = feature
        try:
            output = self._stock(sample, timestep, **inputs)
        finally:
            self._put = None
        return (torch.cat([output[0] - difference, output[0]]),) if halved else output

    def _bucket(self, sample: Any, timestep: Any, halved: bool, inputs: Any) -> tuple[Any, Bucket]:
        key: Any = (sample.shape, sample.dtype, halved)
        if self.wanted.captured:
            text = inputs["encoder_hidden_states"]
            key = (*key, text.shape, text.dtype, torch.is_inference_mode_enabled())
        if key not in self.held:
            sizes = list(dict.fromkeys(other[0] for other in reversed(self.held) if other[0] != sample.shape))
            for dropped in [other for other in self.held if other[0] in sizes[self.wanted.limit - 1 :]]:
                del self.held[dropped]
                self._kept = {place: kept for place, kept in self._kept.items() if place[0] != dropped}
            self.held[key] = Bucket()
        self.held.move_to_end(key)
        if key != self._key:
            self._key = key
            self.run.shapes.append(tuple(sample.shape))
        return key, self.held[key]


def _hidden_width(unet: Any, block: Any, i: int) -> int:
    """Channels of the hidden state that enters ResNet `i` of an up block; the rest of its input is the skip."""
    widths, at = unet.config.block_out_channels[::-1], list(unet.up_blocks).index(block)
    return widths[at] if i else widths[max(at - 1, 0)]


def bytes_of(tensor: Any) -> int:
    return math.prod(tensor.shape) * tensor.element_size()
