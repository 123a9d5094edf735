"""A pipe and its twin: the same pipeline without stepcache, which every operation is done to as well.

`Reference` makes the twin reuse features in another way than stepcache: the whole stock U-Net runs in every step, and
a hook puts the old feature in place of the hidden state that enters the join. Schedule, prediction and memory are
modelled here once more, in the fewest words. Nothing here reads stepcache's own state to say what should be.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from support.builders import BETAS, TINY, ddim, quiet, random, sd, unet_of
from support.small import ATTENDED, NO_ATTENTION, ONE_LEVEL, engine_of

from stepcache import Schedule, accelerate, last_run, restore
from stepcache.graphs.standin import StandInBackend
from stepcache.run.attach import attachment_of

CONFIGS = {"one level": ONE_LEVEL, "attended": ATTENDED, "two sizes": NO_ATTENTION}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": ddim,
    "pndm": functools.partial(PNDMScheduler, **BETAS, skip_prk_steps=True),
    "euler": functools.partial(EulerDiscreteScheduler, **BETAS),
    "ancestral": functools.partial(EulerAncestralDiscreteScheduler, **BETAS),
    "heun": functools.partial(HeunDiscreteScheduler, **BETAS),
    "dpm": functools.partial(DPMSolverMultistepScheduler, **BETAS),
    "unipc": functools.partial(UniPCMultistepScheduler, **BETAS),
}


@functools.cache
def _template(name: str) -> Any:
    return unet_of({**TINY, **CONFIGS[name]})


def new_unet(name: str) -> Any:
    return copy.deepcopy(_template(name))


def new_pipe(unet: str) -> Any:
    # Text comes as embeddings and images stay latents, so that a call is the loop and little else.
    return sd(StableDiffusionPipeline, unet=new_unet(unet), vae=None, text_encoder=None, tokenizer=None)


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
        accelerate(
            pipe,
            self.interval,
            self.branch,
            schedule=schedule,
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
        if torch.is_grad_enabled() and sample.requires_grad:
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
            bucket.features[slot] = depth * (_bytes(feature) + (_bytes(difference) if halved else 0))
            self._kept[key, slot] = self._epoch, [(step, feature.clone(), difference), *history[:1]]
        else:
            output = self._partial(step, history, halved, sample, timestep, inputs)
        if wanted.captured and not self.unet.training and not torch.is_grad_enabled():
            program = (run.letters[-1], slot)
            run.captures += program not in bucket.programs
            bucket.programs.add(program)
            out = _bytes(sample) // sample.shape[1] * self.unet.config.out_channels
            bucket.statics = _bytes(sample) + 4 + _bytes(inputs["encoder_hidden_states"]) + out  # 4: a timestep
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


def _bytes(tensor: Any) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


class Pair:
    """A pipe, its twin, and what stepcache should hold for the pipe. wanted: None while it is not accelerated."""

    def __init__(self, pipe: Any, twin: Any, wanted: Wanted | None = None, named: bool = True) -> None:
        self.pipe, self.twin, self.wanted = pipe, twin, wanted
        self.held: OrderedDict[Any, Bucket] = OrderedDict()
        self.engine_for: Any = None  # the twin's U-Net when graphs and buffers were made
        self.settled = False  # whether nothing that graphs depend on has changed since `accelerate`
        self.last: Run | None = None
        self.latest: Any = None  # what was run, for those who would run it again
        self.named = named  # whether the pipe's class is the stock one while it is not accelerated
        self.laid: list[Any] = []  # the twin's U-Nets whose counterparts it holds in channels_last

    @classmethod
    def new(cls, unet: str) -> Pair:
        return cls(new_pipe(unet), new_pipe(unet))

    @property
    def both(self) -> tuple[Any, Any]:
        return self.twin, self.pipe

    def copied(self, how: Callable[[Any], Any]) -> Pair:
        """A copy is accelerated with the same settings, with nothing in its buffers."""
        return Pair(how(self.pipe), how(self.twin), self.wanted)

    def shared(self) -> Pair:
        """Another pipe of the same components. It is an instance of the accelerated class, and not accelerated."""
        made = [quiet(type(one)(**one.components, requires_safety_checker=False)) for one in self.both]
        return Pair(made[1], made[0], named=type(self.pipe) is StableDiffusionPipeline)

    def _forget(self) -> None:
        self.held.clear()
        self.last, self.latest, self.engine_for = None, None, None

    def changed(self) -> None:
        """The U-Net changed: captured graphs may be stale."""
        self.settled = False
        for bucket in self.held.values():
            bucket.programs.clear()

    def accelerate(self, wanted: Wanted) -> None:
        wanted.accelerate(self.pipe)
        self.accelerated(wanted)

    def accelerated(self, wanted: Wanted) -> None:
        self._forget()
        self.wanted, self.engine_for, self.settled, self.named = wanted, self.twin.unet, True, True
        self.laid = [self.twin.unet] if wanted.laid else []

    def restore(self) -> None:
        features = [tensor for kept in self.kept() for tensor in kept]
        alive = [_alive(tensor) for tensor in features]
        del features
        assert restore(self.pipe) is self.pipe
        assert not any(is_alive() for is_alive in alive), "restore left a buffer"
        self.restored()

    def restored(self) -> None:
        self._forget()
        self.wanted, self.laid = None, []

    def kept(self) -> list[list[Any]]:
        """The buffers of each slot that the pipe's engine holds, if it has one."""
        attachment = attachment_of(self.pipe)
        if attachment is None or not attachment.pool._idle:
            return []
        buckets = engine_of(self.pipe).unet_graphs.buckets.held.values()
        return [
            [tensor for value in kept.values for tensor in value.tensors if tensor is not None]
            for bucket in buckets
            for kept in bucket.slots
        ]

    def run(
        self,
        action: Callable[[Any], torch.Tensor],
        *,
        in_call: bool = True,
        exact: bool = True,
        midway: Callable[[], None] | None = None,
    ) -> None:
        """`action` on both must end alike: in the same latents, or in the same exception.

        exact: bit for bit, unless the settings change the order of sums. midway: what becomes of the model if the
        action restores or accelerates the pipe in its course.
        """
        if self.wanted is None:
            want = _outcome(lambda: action(self.twin))
            _same(_outcome(lambda: action(self.pipe)), want, exact)
            return
        wanted, twin = self.wanted, self.twin
        if self.engine_for is not twin.unet:
            self.held.clear()
            self.engine_for = twin.unet
        if wanted.laid:
            self.laid = [twin.unet]
        reference = Reference(
            twin,
            wanted,
            self.held,
            steps=(lambda: twin._num_timesteps) if in_call else lambda: len(twin.scheduler.timesteps),
            guided=(lambda: twin.do_classifier_free_guidance) if in_call else lambda: False,
        )
        with reference:
            want = _outcome(lambda: action(twin))
        got = _outcome(lambda: action(self.pipe))
        _same(got, want, exact and not wanted.damping and not wanted.reuse)
        self.last = reference.run
        if midway is not None:
            midway()
        else:
            self.check_record()

    def check_record(self) -> None:
        """What `last_run` says, and what the engine holds, against the model."""
        record, run = last_run(self.pipe), self.last
        if run is None:
            assert record is None
            return
        assert record is not None
        said, want = (record.kinds, record.steps, record.buckets), (run.letters, run.steps, run.shapes)
        assert said == want, (said, want)
        held = sum(sum(bucket.features.values()) for bucket in self.held.values())
        assert record.buffer_bytes == held, (record.buffer_bytes, held)
        assert sum(_bytes(tensor) for kept in self.kept() for tensor in kept) == held
        assert record.compile_seconds == 0 and record.joins_measured == 0
        if self.settled:
            assert record.captures == run.captures
            statics = sum(bucket.statics for bucket in self.held.values())
            assert record.static_bytes == statics, (record.static_bytes, statics)
        assert record.captures <= run.captures


def _alive(tensor: torch.Tensor) -> Callable[[], bool]:
    from torch.multiprocessing.reductions import StorageWeakRef

    storage = StorageWeakRef(tensor.untyped_storage())
    return lambda: not storage.expired()


class Stop(Exception):
    """Raised in the middle of a run by a callback."""


def _outcome(action: Callable[[], Any]) -> Any:
    try:
        return action().detach()
    except Exception as error:
        return error


def _same(got: Any, want: Any, exact: bool) -> None:
    if isinstance(want, Exception):
        if not isinstance(want, Stop):
            raise want  # a fault of the test's own
        assert type(got) is type(want) and str(got) == str(want), f"{got!r} instead of {want!r}"
        return
    if isinstance(got, Exception):
        raise got
    assert want.isfinite().all(), "the reference itself is of no use"
    if exact:
        assert torch.equal(got, want), f"off by {(got - want).abs().max()}"
        return
    # Half a batch, weights in another layout, or a blend: sums in another order. bfloat16 keeps 8 bits of each.
    tolerance = (0.1 if want.dtype == torch.bfloat16 else 1e-4) * max(1.0, want.abs().max().item())
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


def differences(pipe: Any, twin: Any, strides: bool = True) -> list[str]:
    """Where the attributes of the pipe, its scheduler and each module of its U-Net are not those of the twin."""
    found: list[str] = []
    _compare("pipe", vars(pipe), vars(twin), strides, found)
    # Timesteps and the like; what multistep schedulers remember of a run that reused features may differ in last bits.
    _compare("scheduler", vars(pipe.scheduler), vars(twin.scheduler), False, found, values=False)
    for (name, ours), (other, theirs) in zip(pipe.unet.named_modules(), twin.unet.named_modules(), strict=True):
        if (name, type(ours)) != (other, type(theirs)):
            return [*found, f"{name}: a {type(ours)}, not {other}: a {type(theirs)}"]
        _compare(name, vars(ours), vars(theirs), strides, found)
    return found


def _compare(where: str, one: Any, other: Any, strides: bool, found: list[str], values: bool = True) -> None:
    if type(one) is not type(other):
        found.append(f"{where}: {type(one)}, not {type(other)}")
    elif isinstance(one, torch.Tensor):
        ours, theirs = ((t.shape, t.dtype, t.stride() if strides else ()) for t in (one, other))
        if ours != theirs or (values and not torch.equal(one, other)):
            found.append(f"{where}: {ours}, not {theirs}, or other values")
    elif isinstance(one, dict):
        if one.keys() != other.keys():
            found.append(f"{where}: {list(one)}, not {list(other)}")
            return
        for key, value in one.items():
            theirs = other[key]
            # Most attributes of most modules are small numbers, None or empty dicts: this is for speed alone.
            if value is not theirs and not (type(value) is type(theirs) is dict and not value and not theirs):
                _compare(f"{where}.{key}", value, theirs, strides, found, values)
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            found.append(f"{where}: {len(one)} entries, not {len(other)}")
        for i, (ours, theirs) in enumerate(zip(one, other, strict=False)):
            _compare(f"{where}.{i}", ours, theirs, strides, found, values)
    elif isinstance(one, (int, float, str, type(None), torch.dtype, torch.device, set)) and one != other:
        found.append(f"{where}: {one!r}, not {other!r}")
    # Modules are compared by name. All else (functions, processors) is made anew for each pipe.


def embeds(batch: int, seed: int = 5) -> torch.Tensor:
    return random(batch, 3, 4, seed=seed)
