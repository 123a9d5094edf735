"""A pipe and its twin: the same pipeline without stepcache, which every operation is done to as well.

What the twin makes of a call, and what stepcache should hold after it, is in twin_reference.py.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
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
from support.twin_reference import Bucket, Reference, Run, Wanted, bytes_of

from stepcache import last_run, restore
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
        assert sum(bytes_of(tensor) for kept in self.kept() for tensor in kept) == held
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
