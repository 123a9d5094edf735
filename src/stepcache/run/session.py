"""Sends each U-Net call of a run to the full or the partial program.

Nothing here reads a device tensor, so the host never waits for the device. A session lives for one run (a pipeline call
or a `denoising` block), and a feature is valid only in the run that wrote it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..forwards import lora_scaled
from ..forwards.calls import bound
from ..forwards.nested import tensors_of
from ..graphs.bucket import Bucket
from ..graphs.engine import Engine
from ..graphs.kept import Kept
from ..pipes.attention_maps import keeper_of
from ..pipes.batches import whole_batches_only
from ..reuse.predict import Predictor
from ..reuse.schedule import Schedule
from .counting import CallCounting, KnownCode
from .halves import Halves
from .record import RunRecord
from .slots import Slots
from .steps import StepCounter

logger = logging.getLogger("stepcache")

# How many slots of a step get their own buffer. A loop that never calls scheduler.step looks like one endless step, and
# must not fill memory with features that no partial step will read.
MAX_SLOTS = 64


def never() -> bool:
    """The `guided` of a run whose batches are not known to be [unconditional, conditional]."""
    return False


class Session:
    """The run of one pipeline call on `unet`, stepped by `scheduler`.

    fit: returns schedule and predictor of a loop, given its number of steps from count_steps (None if unknown). Called
    at the loop's first U-Net call, when the pipeline has set its timesteps.
    record: is filled in. known_code: what earlier runs found of foreign code on the U-Net.
    guided: whether the current call's batch is [unconditional, conditional]. reuse_guidance: a partial step then runs
    one half.
    follow: called before each step, because the pipeline may have replaced its scheduler.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: object,
        engine: Engine,
        fit: Callable[[int | None], tuple[Schedule, Predictor]],
        count_steps: Callable[[], int | None],
        record: RunRecord,
        known_code: KnownCode,
        guided: Callable[[], bool] = never,
        reuse_guidance: bool = False,
        follow: Callable[[Session], None] = lambda session: None,
    ) -> None:
        self.unet, self.scheduler, self.engine = unet, scheduler, engine
        self.record, self._known_code = record, known_code
        self._fit, self._count_steps, self._guided, self._follow = fit, count_steps, guided, follow
        self._reuse_guidance = reuse_guidance
        self._counter = StepCounter()
        self.slots = Slots()
        self.halves: Halves | None = None  # guidance reuse with the halves in separate calls
        self.guider: object = None  # of a modular pipe
        self.gradients = 0  # calls that needed them
        self._steps: int | None = None
        self._full = True
        # Marks features written since the last scheduled full step. A feature with another stamp is from an earlier
        # run, or older than that step (which lacked its slot or batch size).
        self._stamp = object()
        self._id = object()  # of the current loop
        self._bucket: Bucket | None = None
        self._before = replace(engine.unet_graphs.costs)

    def advance(self, timestep: object = None) -> None:
        """End a step. The watched `scheduler.step` calls it with its timestep; a loop without a scheduler calls it by
        hand.
        """
        self._counter.advance(timestep)
        self.slots.leave()

    def begin_loop(self) -> None:
        """Called by the watched scheduler when its timesteps are set: a new denoising loop follows.

        FreeInit, Marigold and Pix2Pix Zero have several loops in one pipeline call.
        """
        self._counter.begin_loop()

    def call(self, stock: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One U-Net call with the stock forward's arguments; returns the same type as `stock`."""
        family = self.engine.unet_graphs.family
        inputs, lora_scale, return_dict = bound(family.bind, stock, args, kwargs)
        self._counter.call(args[1] if len(args) > 1 else kwargs.get("timestep"))
        if self._counter.slot == 0:
            self._begin_step()
        # A gradient through a partial step, of inputs or of weights, would miss the deep layers.
        gradients = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (*tensors_of(inputs), *self.unet.parameters())
        )
        self.gradients += gradients
        if self._keeps_maps or gradients or self._counting.counts:
            self.record.letters.append("S")
            return stock(*args, **kwargs)
        if lora_scale == 1.0:
            output = self._run(inputs)
        else:
            with lora_scaled(self.unet, lora_scale):
                output = self._run(inputs)
        return family.wrap(output, return_dict)

    @functools.cached_property
    def _keeps_maps(self) -> bool:
        """Whether the pipeline reads each call's attention maps, so that all calls of the run are stock.

        Checked at the first call, when the pipeline has set its processors.
        """
        keeper = keeper_of(self._modules)
        if keeper is not None:
            self._say_once(
                f"{keeper} is on the U-Net: the pipeline reads its attention maps in each step, and a step that reuses "
                "features makes none. This run is the original's, no faster."
            )
        return keeper is not None

    @functools.cached_property
    def _modules(self) -> list[nn.Module]:
        return list(self.unet.modules())  # collecting them takes longer than looking at each

    @functools.cached_property
    def _counting(self) -> CallCounting:
        """Whether code on the U-Net counts its calls, so that all calls of the run must be stock."""
        return CallCounting(self._modules, self._known_code)

    @functools.cached_property
    def _may_halve(self) -> bool:
        """Whether the U-Net can run half a batch."""
        reason = whole_batches_only(self.unet)
        if reason:
            self._say_once(f'{reason}: partial steps run both halves, as with guidance="both".')
        return not reason

    def _begin_step(self) -> None:
        """At the first U-Net call of a step, stock or not: decide whether the step is full."""
        self._follow(self)
        self.slots.begin_step()
        if self.halves is not None:
            self.halves.begin_step()
        if self._counter.new_loop:
            self._enter_loop()
        self._full = self._schedule.is_full(self._counter.step, self._steps)
        if self._full:
            # Pipelines and callbacks may patch blocks after the run has begun.
            self.engine.unet_graphs.family.check(self.unet)
            self._stamp = object()

    def _enter_loop(self) -> None:
        """At the first U-Net call of a loop. Nothing of an earlier loop is read, not even to predict."""
        self._counter.enter_loop()
        self._id = object()
        self._steps = self._count_steps()
        self._schedule, self._predictor = self._fit(self._steps)
        if self.halves is not None:
            self.halves.begin_loop()
        self._counter.new_loop = False  # last, because `_fit` raises if a plan does not fit the run

    def _run(self, inputs: dict[str, Any]) -> torch.Tensor:
        graphs, record, step = self.engine.unet_graphs, self.record, self._counter.step
        has_halves = inputs["sample"].shape[0] % 2 == 0 and self._guided()
        reuse_guidance = has_halves and self._reuse_guidance and self._may_halve
        bucket = graphs.bucket(inputs, reuse_guidance)
        if bucket is not self._bucket:
            self._bucket = bucket
            record.buckets.append(tuple(inputs["sample"].shape))
            graphs.begin_run(self.unet, bucket, inputs, reuse_guidance)
        # All calls from MAX_SLOTS on share the last slot. They run full, so none reads what another wrote there.
        slot = self.slots.take(MAX_SLOTS)
        self._counter.slot += 1
        kept, halves, place = bucket.kept(slot), self.halves, self.slots.place
        watched = self._counting.watches
        full = self._full or watched or slot == MAX_SLOTS or kept.stamp is not self._stamp
        if not full and halves is not None:
            output = halves.output(place, step, self._predictor)
            if output is not None:
                record.letters.append("R")
                return output
        if full:
            record.letters.append("F")
            kept.begin(self._id)
            if watched:
                output = self._watched(inputs, kept, reuse_guidance)
            else:
                output = graphs.run("full", self.unet, bucket, inputs, kept, slot)
            kept.mark(self._stamp, step)
        else:
            record.letters.append("P")
            kept.weigh(self._predictor, step, has_halves)
            output = graphs.run("partial", self.unet, bucket, inputs, kept, slot)
        if halves is not None:
            halves.ran(place, output, step, full, self._predictor.order)
        return output

    def _watched(self, inputs: dict[str, Any], kept: Kept, reuse_guidance: bool) -> torch.Tensor:
        """A full call, eager, so that every module runs once; afterwards it is known whether code on them counts."""
        counting = self._counting
        counting.begin()
        output = self.engine.unet_graphs.run_eager(self.unet, inputs, kept, reuse_guidance, counting.look)
        counting.end()
        if counting.counts:
            code = counting.code[0]
            name = getattr(code, "__qualname__", type(code).__qualname__)
            self._say_once(
                f"{name} on the U-Net changes its own state at each call: it may count them, as controllers like "
                "Prompt-to-Prompt's do, and a step that reuses features makes fewer. This run uses the original U-Net "
                "and gets no speedup. If the code only records (times, logs), take it off."
            )
        return output

    def _say_once(self, reason: str) -> None:
        self.engine.unet_graphs.fallback.say_once(reason)

    def close(self) -> None:
        """End the run and fill in the record."""
        # The callbacks hold the pipe, and the bucket a feature: neither must live as long as the session.
        del self._fit, self._count_steps, self._guided, self._follow
        self._bucket = self.halves = None
        record, engine, before = self.record, self.engine, self._before
        record.steps = self._counter.total
        costs = engine.unet_graphs.costs
        record.compile_seconds = costs.compile_seconds - before.compile_seconds
        record.captures = costs.captures - before.captures
        record.joins_measured = costs.joins_measured - before.joins_measured
        if len(record.letters) > 1 and not record.steps:
            logger.warning(
                "%d U-Net calls without one scheduler.step: every call ran full. "
                "Is the scheduler not pipe.scheduler? Then name its attribute: accelerate(..., scheduler=...). A loop "
                "that steps none must call advance() on the denoising block's session.",
                len(record.letters),
            )
