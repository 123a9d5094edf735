"""One run: counts its steps and slots on the host, and sends each U-Net call to the full or the partial graph.

Nothing here reads a device tensor, so the host never waits for the device. A session lives for one pipeline call (or
one `denoising` block); what an earlier run wrote is never read, since a feature is valid for the run that wrote it
only.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..forwards import lora_scaled
from ..graphs import BucketGraphs, Plan, tensors_of
from ..graphs.buffers import Buckets
from ..pipes.attention_maps import keeper_of
from ..pipes.batches import whole_batches_only
from ..reuse.predict import Predictor
from ..reuse.schedule import Schedule
from .decoder import DecoderGraphs

logger = logging.getLogger("stepcache")

# The run that this thread (or task) is in. Other threads have none, or one of their own.
current: ContextVar[Session | None] = ContextVar("stepcache_session", default=None)

# Slots of one step that get a buffer. A loop that never calls scheduler.step looks like one endless step: it must not
# fill the memory with features that no partial step will read.
MAX_SLOTS = 64


@dataclass
class RunRecord:
    """What happened in one run.

    letters: one letter per U-Net call: `F` full, `P` partial, `S` stock forward (the call wanted gradients, or the
    pipeline reads attention maps of every layer).
    steps: scheduler steps taken. buckets: sizes met, in order: the shape of the U-Net's input, (batch, channels,
    height, width), of videos with their frames besides.
    buffer_bytes: bytes of features held at the end of the run, over all buckets of the pipe; static_bytes: the same of
    captured graphs' inputs and outputs. compile_seconds, captures: what this run spent on compiling, and how many
    graphs it captured; 0 once everything is warm. With vae=True the decoder's are among them. joins_measured: joins
    that a warm-up has timed both ways.
    """

    letters: list[str] = field(default_factory=list, repr=False)
    steps: int = 0
    buckets: list[tuple[int, ...]] = field(default_factory=list)
    buffer_bytes: int = 0
    static_bytes: int = 0
    compile_seconds: float = 0.0
    captures: int = 0
    joins_measured: int = 0

    @property
    def kinds(self) -> str:
        """The letters as a string, "FPPFPP" for example."""
        return "".join(self.letters)

    def __str__(self) -> str:
        sizes = ", ".join("x".join(map(str, size)) for size in self.buckets)
        return f"{self.kinds}: {self.steps} steps, sizes {sizes or 'none'}, {self.buffer_bytes} bytes of features held"


@dataclass
class Core:
    """What a run works with: the plan of a U-Net's graphs, with its family of forwards, and the buckets.

    decoder: the graphs of the VAE's decoder, where they are wanted.
    """

    plan: Plan
    buckets: Buckets[BucketGraphs]
    decoder: DecoderGraphs | None = None

    @property
    def static_nbytes(self) -> int:
        """Bytes of captured graphs' inputs and outputs."""
        return self.buckets.static_nbytes + (0 if self.decoder is None else self.decoder.nbytes)

    def clear(self) -> None:
        """Give all memory back."""
        self.buckets.clear()
        if self.decoder is not None:
            self.decoder.clear()


class Session:
    """The run of one pipeline call on `unet`, stepped by `scheduler`.

    count_steps gives the number of steps of the run, or None where nobody knows it; it is asked at the first U-Net
    call, when the pipeline has set its timesteps. What the run's owner may set before that:
    guided: tells, at each call, whether its batch is [unconditional, conditional]; a partial step then runs one half.
    fit: gives schedule and predictor of a run of that number of steps, where they depend on it.
    follow: called before each step; looks whether the pipeline has put another scheduler in the place of its own.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: object,
        schedule: Schedule,
        core: Core,
        count_steps: Callable[[], int | None],
    ) -> None:
        self.unet, self.scheduler, self.schedule = unet, scheduler, schedule
        self.record = RunRecord()
        self.guided: Callable[[], bool] = lambda: False
        self.fit: Callable[[int | None], tuple[Schedule, Predictor]] | None = None
        self.follow: Callable[[Session], None] = lambda session: None
        self._core, self._count_steps = core, count_steps
        self._predictor = core.plan.predictor
        # Goes into the features that are written from one scheduled full step to the next; those with another one are
        # an earlier run's, or older than the last full step (a slot or a batch size that it did not have).
        self._stamp = object()
        self._id = object()  # in the place of the session itself, which what is kept must not hold
        self._before = replace(core.plan.costs)
        self._earlier, self._step, self._slot = 0, 0, 0  # steps of earlier loops, and of this one
        self._new_loop = True  # the next U-Net call is the first one of a denoising loop
        # scheduler.step was called, with that timestep, and no U-Net call has followed yet.
        self._stepped = False
        self._timestep: object = None
        self._steps: int | None = None
        self._full = True
        self._last_key: object = None
        self._halves: bool | None = None
        self._keeps_maps: bool | None = None  # looked for at the first call, when the pipeline has set its processors

    @property
    def core(self) -> Core:
        """What this run works with."""
        return self._core

    def advance(self, timestep: object = None) -> None:
        """The end of a step. The watched `scheduler.step` calls it; a loop without a scheduler calls it by hand.

        timestep: what `scheduler.step` was given. Panorama pipelines step each view on its own: where the next U-Net
        call gets the very same tensor, the loop is still in the same iteration.
        """
        if self._stepped:
            self._next_step()
        self._stepped, self._timestep = True, timestep

    def begin_loop(self) -> None:
        """The scheduler's timesteps were set: a denoising loop of its own follows. The watched scheduler calls it.

        FreeInit, Marigold and Pix2Pix Zero have several loops in one call of the pipeline.
        """
        if self._stepped:
            self._next_step()
        self._slot, self._stepped, self._timestep, self._new_loop = 0, False, None, True

    def _next_step(self) -> None:
        self._step += 1
        self._slot = 0

    def call(self, stock: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One U-Net call with the stock forward's arguments; returns what `stock` would, from one of the two graphs."""
        core = self._core
        inputs, lora_scale, return_dict = core.plan.family.bind(*args, **kwargs)
        if self._stepped:
            timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
            if timestep is not self._timestep or not isinstance(timestep, torch.Tensor):
                self._next_step()
            self._stepped, self._timestep = False, None
        if self._slot == 0:
            self._begin_step()
        if self._keeps_maps is None:
            self._keeps_maps = self._looks_for_maps()
        # A gradient through a partial step would miss the deep layers.
        gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_of(inputs))
        if gradients or self._keeps_maps:
            self.record.letters.append("S")
            return stock(*args, **kwargs)
        if lora_scale == 1.0:
            output = self._run(inputs)
        else:
            with lora_scaled(self.unet, lora_scale):
                output = self._run(inputs)
        return core.plan.family.wrap(output, return_dict)

    def _looks_for_maps(self) -> bool:
        """Whether the pipeline reads attention maps of each call, so that all calls of the run are stock."""
        keeper = keeper_of(self.unet)
        if keeper is not None:
            self._core.plan.say_once(
                f"{keeper} is on the U-Net: the pipeline reads its attention maps in each step, and a step that reuses "
                "features makes none. This run is that of the original, no faster."
            )
        return keeper is not None

    def _may_halve(self) -> bool:
        """Whether the U-Net can be given half a batch; looked for once a run."""
        if self._halves is None:
            reason = whole_batches_only(self.unet)
            self._halves = not reason
            if reason:
                self._core.plan.say_once(f'{reason}: partial steps run both halves, as with guidance="both".')
        return self._halves

    def _begin_step(self) -> None:
        """At the first U-Net call of a step, of a stock one too: whether the step is full."""
        self.follow(self)
        if self._new_loop:
            self._enter_loop()
        self._full = self.schedule.is_full(self._step, self._steps)
        if self._full:
            self._stamp = object()

    def _run(self, inputs: dict[str, Any]) -> torch.Tensor:
        core, record = self._core, self.record
        reuse_guidance = inputs["sample"].shape[0] % 2 == 0 and self.guided() and self._may_halve()
        key = core.plan.key(inputs), reuse_guidance
        bucket = core.buckets.get(key, functools.partial(core.plan.bucket, key, inputs, reuse_guidance))
        if key != self._last_key:
            self._last_key = key
            record.buckets.append(tuple(inputs["sample"].shape))
            bucket.graphs.begin_run(self.unet, inputs)
        # The last slot is shared by all calls beyond it; they run full, so nobody reads what another wrote there.
        slot, self._slot = min(self._slot, MAX_SLOTS), self._slot + 1
        kept = bucket.kept(slot)
        if self._full or slot == MAX_SLOTS or kept.stamp is not self._stamp:
            record.letters.append("F")
            kept.begin(self._id)
            output = bucket.graphs.full(self.unet, inputs, kept, slot)
            kept.mark(self._stamp, self._step)
            return output
        record.letters.append("P")
        kept.weigh(self._predictor, self._step)
        return bucket.graphs.partial(self.unet, inputs, kept, slot)

    def _enter_loop(self) -> None:
        """At the first U-Net call of a loop: nothing of an earlier one is read, not even for a prediction."""
        self._earlier, self._step = self._earlier + self._step, 0
        self._id = object()
        self._steps = self._count_steps()
        if self.fit is not None:
            self.schedule, self._predictor = self.fit(self._steps)
        self._new_loop = False  # last: a plan may refuse the run

    def close(self) -> None:
        """The end of the run: fill in the record."""
        self.follow = lambda session: None  # it holds the pipe
        record = self.record
        record.steps = self._earlier + self._step + self._stepped
        record.buffer_bytes, record.static_bytes = self._core.buckets.nbytes, self._core.static_nbytes
        record.compile_seconds = self._core.plan.costs.compile_seconds - self._before.compile_seconds
        record.captures = self._core.plan.costs.captures - self._before.captures
        record.joins_measured = self._core.plan.costs.joins_measured - self._before.joins_measured
        if len(record.letters) > 1 and not record.steps:
            logger.warning(
                "%d U-Net calls without one scheduler.step: every call ran full. "
                "A loop that steps without pipe.scheduler must call advance() of the denoising block.",
                len(record.letters),
            )
