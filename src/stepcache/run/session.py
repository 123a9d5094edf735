"""One run: sends each U-Net call to the full or the partial program.

Nothing here reads a device tensor, so the host never waits for the device. A session lives for one pipeline call (or
one `denoising` block); a feature is valid only for the run that wrote it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..forwards import lora_scaled
from ..forwards.nested import tensors_of
from ..graphs.bucket import Bucket
from ..graphs.engine import Engine
from ..pipes.attention_maps import keeper_of
from ..pipes.batches import whole_batches_only
from ..reuse.predict import Predictor
from ..reuse.schedule import Schedule
from .record import RunRecord
from .steps import StepCounter

logger = logging.getLogger("stepcache")

# The run that this thread (or task) is in. Other threads have none, or one of their own.
current: ContextVar[Session | None] = ContextVar("stepcache_session", default=None)

# Slots of one step that get a buffer. A loop that never calls scheduler.step looks like one endless step: it must not
# fill the memory with features that no partial step will read.
MAX_SLOTS = 64


def never() -> bool:
    """Of a run of which nobody knows that a batch is [unconditional, conditional]."""
    return False


class Session:
    """The run of one pipeline call on `unet`, stepped by `scheduler`.

    fit: schedule and predictor for a loop; called at its first U-Net call, when the pipeline has set its timesteps,
    with the number of its steps, which count_steps gives (None where nobody knows it).
    guided: whether the batch of the present call is [unconditional, conditional]; a partial step then runs one half.
    follow: called before each step; the pipeline may have put another scheduler in the place of its own.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: object,
        engine: Engine,
        fit: Callable[[int | None], tuple[Schedule, Predictor]],
        count_steps: Callable[[], int | None],
        guided: Callable[[], bool] = never,
        follow: Callable[[Session], None] = lambda session: None,
    ) -> None:
        self.unet, self.scheduler, self.engine = unet, scheduler, engine
        self.record = RunRecord()
        self._fit, self._count_steps, self._guided, self._follow = fit, count_steps, guided, follow
        self._counter = StepCounter()
        self._steps: int | None = None
        self._full = True
        # Goes into the features that are written from one scheduled full step to the next; those with another one are
        # an earlier run's, or older than the last full step (a slot or a batch size that it did not have).
        self._stamp = object()
        self._id = object()  # of the present loop
        self._bucket: Bucket | None = None
        self._before = replace(engine.unet.costs)

    def advance(self, timestep: object = None) -> None:
        """The end of a step. The watched `scheduler.step` calls it, with the timestep that it was given; a loop without
        a scheduler calls it by hand.
        """
        self._counter.advance(timestep)

    def begin_loop(self) -> None:
        """The scheduler's timesteps were set: a denoising loop of its own follows. The watched scheduler calls it.

        FreeInit, Marigold and Pix2Pix Zero have several loops in one call of the pipeline.
        """
        self._counter.begin_loop()

    def call(self, stock: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One U-Net call with the stock forward's arguments; returns what `stock` would, from one of the programs."""
        family = self.engine.unet.family
        inputs, lora_scale, return_dict = family.bind(*args, **kwargs)
        self._counter.call(args[1] if len(args) > 1 else kwargs.get("timestep"))
        if self._counter.slot == 0:
            self._begin_step()
        # A gradient through a partial step would miss the deep layers.
        gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_of(inputs))
        if self._keeps_maps or gradients:
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
        """Whether the pipeline reads attention maps of each call, so that all calls of the run are stock.

        Looked for at the first call, when the pipeline has set its processors.
        """
        keeper = keeper_of(self.unet)
        if keeper is not None:
            self._say_once(
                f"{keeper} is on the U-Net: the pipeline reads its attention maps in each step, and a step that reuses "
                "features makes none. This run is that of the original, no faster."
            )
        return keeper is not None

    @functools.cached_property
    def _may_halve(self) -> bool:
        """Whether the U-Net can be given half a batch."""
        reason = whole_batches_only(self.unet)
        if reason:
            self._say_once(f'{reason}: partial steps run both halves, as with guidance="both".')
        return not reason

    def _begin_step(self) -> None:
        """At the first U-Net call of a step, of a stock one too: whether the step is full."""
        self._follow(self)
        if self._counter.new_loop:
            self._enter_loop()
        self._full = self._schedule.is_full(self._counter.step, self._steps)
        if self._full:
            self._stamp = object()

    def _enter_loop(self) -> None:
        """At the first U-Net call of a loop: nothing of an earlier one is read, not even for a prediction."""
        self._counter.enter_loop()
        self._id = object()
        self._steps = self._count_steps()
        self._schedule, self._predictor = self._fit(self._steps)
        self._counter.new_loop = False  # last: a plan may refuse the run

    def _run(self, inputs: dict[str, Any]) -> torch.Tensor:
        graphs, record, step = self.engine.unet, self.record, self._counter.step
        reuse_guidance = inputs["sample"].shape[0] % 2 == 0 and self._guided() and self._may_halve
        bucket = graphs.bucket(inputs, reuse_guidance)
        if bucket is not self._bucket:
            self._bucket = bucket
            record.buckets.append(tuple(inputs["sample"].shape))
            graphs.begin_run(self.unet, bucket, inputs, reuse_guidance)
        # The last slot is shared by all calls beyond it; they run full, so nobody reads what another wrote there.
        slot = min(self._counter.slot, MAX_SLOTS)
        self._counter.slot = slot + 1
        kept = bucket.kept(slot)
        if self._full or slot == MAX_SLOTS or kept.stamp is not self._stamp:
            record.letters.append("F")
            kept.begin(self._id)
            output = graphs.run("full", self.unet, bucket, inputs, kept, slot)
            kept.mark(self._stamp, step)
            return output
        record.letters.append("P")
        kept.weigh(self._predictor, step)
        return graphs.run("partial", self.unet, bucket, inputs, kept, slot)

    def _say_once(self, reason: str) -> None:
        self.engine.unet.fallback.say_once(reason)

    def close(self) -> None:
        """The end of the run: fill in the record."""
        # What holds the pipe, or a feature, must not live as long as the session.
        self._follow, self._bucket = lambda session: None, None
        record, engine, before = self.record, self.engine, self._before
        record.steps = self._counter.total
        record.buffer_bytes, record.static_bytes = engine.unet.buckets.nbytes, engine.static_nbytes
        costs = engine.unet.costs
        record.compile_seconds = costs.compile_seconds - before.compile_seconds
        record.captures = costs.captures - before.captures
        record.joins_measured = costs.joins_measured - before.joins_measured
        if len(record.letters) > 1 and not record.steps:
            logger.warning(
                "%d U-Net calls without one scheduler.step: every call ran full. "
                "A loop that steps without pipe.scheduler must call advance() of the denoising block.",
                len(record.letters),
            )
