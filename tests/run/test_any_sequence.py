"""Random sequences of whatever users do to a pipe, each against a twin without stepcache (support/twins.py).

`make test` runs 200 sequences, the same ones each time; `make fuzz` runs thousands of others. A fault that they find
gets a test of its own beside the code that it was in.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.cases.adapters import lora
from support.twins import CONFIGS, SCHEDULERS, Pair, Stop, Wanted, differences, embeds, new_unet

from stepcache import accelerate, denoising, last_run
from stepcache.errors import BranchOutOfRange, InvalidSetting, NotAccelerated
from stepcache.run.attach import attachment_of
from stepcache.run.current import runs

SIZES = ((8, 8), (8, 6), (5, 7))
MODES = {"no grad": torch.no_grad, "inference": torch.inference_mode, "grad": torch.enable_grad}


def has_lora(pipe: Any) -> bool:
    return bool(getattr(pipe.unet, "peft_config", None))


def reload(pipe: Any, n: int) -> None:
    state = pipe.unet.state_dict()
    pipe.unet.load_state_dict({name: value * (1 + n / 100) for name, value in state.items()}, assign=True)
    pipe.unet.requires_grad_(False)


def move(pipe: Any, n: int) -> None:
    """The same parameters at other addresses, as after `to` and back."""
    for weight in pipe.unet.parameters():
        weight.data = weight.data * (1 + n / 100)


@torch.no_grad()
def update(pipe: Any, n: int) -> None:
    for weight in pipe.unet.conv_out.parameters():
        weight.mul_(1 + n / 100)


# Each is done to the pipe and to its twin, with a number from 1 to 3.
CHANGES = {
    "reload": reload,
    "move": move,
    "update": update,
    "FreeU": lambda pipe, n: pipe.enable_freeu(0.9, 0.2, 1 + n / 10, 1.4),
    "no FreeU": lambda pipe, n: pipe.disable_freeu(),
    "train": lambda pipe, n: pipe.unet.train(),
    "eval": lambda pipe, n: pipe.unet.eval(),
    "to a device": lambda pipe, n: pipe.to("cpu"),
    "to a dtype": lambda pipe, n: pipe.to((torch.float32, torch.float64, torch.bfloat16)[n - 1]),
}
WITHOUT_LORA = {"load it": lambda pipe, n: pipe.load_lora_weights(lora(pipe.unet, n), adapter_name="style")}
WITH_LORA = {
    "scale it": lambda pipe, n: pipe.set_adapters(["style"], [n / 2]),
    "disable it": lambda pipe, n: pipe.disable_lora(),
    "enable it": lambda pipe, n: pipe.enable_lora(),
    "fuse it": lambda pipe, n: pipe.fuse_lora(lora_scale=n / 2),
    "unfuse it": lambda pipe, n: pipe.unfuse_lora(),
    "unload it": lambda pipe, n: pipe.unload_lora_weights(),
}


@st.composite
def wanted(draw, joins: int) -> Wanted:
    rest = draw(st.lists(st.sampled_from("FP"), max_size=4)) if draw(st.booleans()) else None
    return Wanted(
        interval=draw(st.sampled_from((1, 2, 3))),
        mask="" if rest is None else "F" + "".join(rest),
        first=draw(st.sampled_from((0, 0, 2))),
        last=draw(st.sampled_from((0, 0, 1))),
        branch=draw(st.integers(0, joins - 1)),
        damping=draw(st.sampled_from((0.0, 0.0, 1.0, 0.5))),
        reuse=draw(st.sampled_from((False, False, True))),
        limit=draw(st.sampled_from((4, 1, 2))),
        captured=draw(st.booleans()),
        laid=draw(st.sampled_from((False, False, False, True))),
    )


CALLS = st.fixed_dictionaries(
    {
        "size": st.sampled_from(SIZES),
        "steps": st.sampled_from((2, 3, 3, 2, 5)),
        "batch": st.sampled_from((1, 1, 2)),
        "guidance": st.sampled_from((3.0, 1.0)),
        "inference": st.sampled_from((False, False, True)),
        "seed": st.integers(0, 3),
    }
)
LOOPS = st.fixed_dictionaries(
    {
        "sizes": st.sampled_from(([SIZES[0]], [SIZES[2]] * 2, list(SIZES[1:]))),  # a loop for each
        "steps": st.integers(2, 3),
        "slots": st.sampled_from((1, 1, 2)),
        "extra": st.sampled_from((None, *((step, size) for step in (0, 1) for size in SIZES[:2]))),
        "mode": st.sampled_from(sorted(MODES)),
        "scale": st.sampled_from((None, None, 0.5)),
        "before": st.booleans(),
        "gradients": st.sampled_from((False, False, False, True)),
        "seed": st.integers(0, 3),
    }
)
# The smallest most often: the others have attention, or two levels.
UNETS = st.sampled_from((*["one level"] * 4, *CONFIGS))
WHICH = st.integers(0, 3)  # of the pipes that there are


def called(pipe: Any, callback: Any = None, **call: Any) -> torch.Tensor:
    """The latents of a call."""
    height, width = call["size"]
    with torch.inference_mode() if call["inference"] else contextlib.nullcontext():
        images = pipe(
            prompt_embeds=embeds(call["batch"]),
            negative_prompt_embeds=embeds(call["batch"], seed=6),
            height=height * 8,
            width=width * 8,
            num_inference_steps=call["steps"],
            guidance_scale=call["guidance"],
            generator=torch.Generator().manual_seed(call["seed"]),
            output_type="latent",
            callback_on_step_end=callback,
        ).images
    return images.clone()


def looped(pipe: Any, block: Any, **loop: Any) -> torch.Tensor:
    """The latents of hand-written loops in one `block`: one for each size, with `slots` U-Net calls in a step.

    extra: (step, size) of one more call that all steps have from this one on, at a size of its own.
    """
    dtype, results = pipe.unet.dtype, []
    options = {} if loop["scale"] is None else {"cross_attention_kwargs": {"scale": loop["scale"]}}
    if loop["before"]:
        pipe.scheduler.set_timesteps(loop["steps"])
    with MODES[loop["mode"]](), block:
        for i, size in enumerate(loop["sizes"]):
            if i or not loop["before"]:
                pipe.scheduler.set_timesteps(loop["steps"])
            generator = torch.Generator().manual_seed(loop["seed"])
            takes = inspect.signature(pipe.scheduler.step).parameters
            draws = {"generator": generator} if "generator" in takes else {}
            latents = torch.randn(1, 4, *size, generator=generator).to(dtype) * pipe.scheduler.init_noise_sigma
            for step, t in enumerate(pipe.scheduler.timesteps):
                scaled = pipe.scheduler.scale_model_input(latents, t)
                if loop["gradients"] and loop["mode"] == "grad":
                    scaled = scaled.detach().requires_grad_()
                noises = [
                    pipe.unet(scaled, t, encoder_hidden_states=embeds(1, seed=7 + n).to(dtype), **options).sample
                    for n in range(loop["slots"])
                ]
                noise = (sum(noises) / len(noises)).detach()
                if loop["extra"] is not None and step >= loop["extra"][0]:
                    other = torch.full((1, 4, *loop["extra"][1]), 0.1 * step, dtype=dtype)
                    results.append(pipe.unet(other, t, encoder_hidden_states=embeds(1).to(dtype)).sample.flatten())
                latents = pipe.scheduler.step(noise, t, latents, **draws).prev_sample
            results.append(latents.flatten())
    return torch.cat(results).clone()


class AnySequence(RuleBasedStateMachine):
    """Pipes with twins. Each rule is one operation, with what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[Pair] = []
        self.orphans: list[Any] = []  # U-Nets of twins that have been left in channels_last
        self.runs: Any = None  # what `again` runs, and its options

    def pair(self, which: int) -> Pair:
        return self.pairs[which % len(self.pairs)]

    def is_laid(self, unet: Any) -> bool:
        return any(one is unet for one in (*self.orphans, *(each for pair in self.pairs for each in pair.laid)))

    def joins(self, pair: Pair) -> int:
        return sum(len(block.resnets) for block in pair.twin.unet.up_blocks)

    def run(self, pair: Pair, action: Any, in_call: bool = True, exact: bool = True, **options: Any) -> None:
        wanted = pair.wanted
        if wanted is not None and wanted.branch >= self.joins(pair):
            # The U-Net that is in the pipe now does not have that branch.
            with pytest.raises(BranchOutOfRange), contextlib.ExitStack() as block:
                action(pair.pipe) if in_call else block.enter_context(denoising(pair.pipe))
            return
        laid = self.is_laid(pair.twin.unet) or (wanted is not None and wanted.laid)
        pair.run(action, in_call=in_call, exact=exact and not laid, **options)
        self.check(pair)

    @initialize(unet=UNETS, scheduler=st.sampled_from(sorted(SCHEDULERS)), data=st.data())
    def begin(self, unet: str, scheduler: str, data: Any) -> None:
        self.pairs.append(Pair.new(unet))
        for pipe in self.pairs[0].both:
            pipe.scheduler = SCHEDULERS[scheduler]()
        self.accelerate(0, data)
        self.next_call(data.draw(CALLS, label="call"))

    @rule(which=WHICH, data=st.data())
    def accelerate(self, which: int, data: Any) -> None:
        pair = self.pair(which)
        pair.accelerate(data.draw(wanted(self.joins(pair)), label="settings"))
        assert last_run(pair.pipe) is None

    @rule(which=WHICH, bad=st.sampled_from(({"interval": 0}, {"branch": 9}, {"predict": 2}, {"guidance": "none"})))
    def refuse(self, which: int, bad: dict[str, Any]) -> None:
        pair = self.pair(which)
        with pytest.raises((InvalidSetting, BranchOutOfRange)):
            accelerate(pair.pipe, **bad)

    @rule(which=WHICH, call=CALLS)
    def call(self, which: int, call: dict[str, Any]) -> None:
        self.next_call(call)
        self.again(which)

    def next_call(self, call: dict[str, Any]) -> None:
        self.runs = lambda pipe: called(pipe, **call), {}

    @rule(which=WHICH, loop=LOOPS)
    def denoise(self, which: int, loop: dict[str, Any]) -> None:
        def run(pipe: Any) -> torch.Tensor:
            return looped(pipe, denoising(pipe) if attachment_of(pipe) else contextlib.nullcontext(), **loop)

        self.runs = run, {"in_call": False}
        self.again(which)

    @rule(which=WHICH)
    def again(self, which: int) -> None:
        self.repeat_on(self.pair(which), self.runs)

    def repeat_on(self, pair: Pair, runs: Any) -> None:
        action, options = pair.latest = runs
        self.run(pair, action, **options)

    @rule(which=WHICH, call=CALLS, at=st.integers(0, 2))
    def stop(self, which: int, call: dict[str, Any], at: int) -> None:
        def stop(pipe: Any, i: int, t: Any, values: Any) -> Any:
            if i == at:
                raise Stop
            return values

        self.run(self.pair(which), lambda pipe: called(pipe, stop, **call))

    @rule(which=WHICH, call=CALLS, at=st.integers(0, 2), data=st.data())
    def restore_or_accelerate_midway(self, which: int, call: dict[str, Any], at: int, data: Any) -> None:
        """The run goes on with the settings it began with. What it held is freed when it ends."""
        pair = self.pair(which)
        if pair.wanted is None or pair.wanted.branch >= self.joins(pair):
            return
        new = data.draw(st.one_of(st.none(), wanted(self.joins(pair))), label="settings")
        if new is not None and pair.wanted.damping:
            # In another layout a feature gets other buffers, and the line begins anew: that is not modelled.
            new = replace(new, laid=False)
        done = []

        def change(pipe: Any, i: int, t: Any, values: Any) -> Any:
            if i == at and pipe is pair.pipe:
                done.append(True)
                pair.restore() if new is None else pair.accelerate(new)
            return values

        def midway() -> None:
            if done:
                pair.restored() if new is None else pair.accelerated(new)
                assert not pair.kept()

        # Accelerated anew in channels_last, the rest of the run sums in another order.
        exact = new is None or not new.laid
        self.run(pair, lambda pipe: called(pipe, change, **call), exact=exact, midway=midway)

    @rule(which=WHICH)
    def restore(self, which: int) -> None:
        pair = self.pair(which)
        pair.restore()
        with pytest.raises(NotAccelerated):
            last_run(pair.pipe)
        self.check(pair)

    @rule(which=WHICH, how=st.sampled_from(("deepcopy", "pickle")))
    def copy(self, which: int, how: str) -> None:
        pair = self.pair(which)
        made = pair.copied(copy.deepcopy if how == "deepcopy" else lambda pipe: pickle.loads(pickle.dumps(pipe)))
        if self.is_laid(pair.twin.unet):
            if made.wanted is not None and made.wanted.laid:
                made.laid = [made.twin.unet]
            else:
                self.orphans.append(made.twin.unet)
        self.add(made)

    @rule(which=WHICH)
    def share(self, which: int) -> None:
        self.add(self.pair(which).shared())

    def add(self, pair: Pair) -> None:
        if len(self.pairs) == 3:
            gone = self.pairs.pop(0)
            self.orphans += gone.laid
        self.pairs.append(pair)

    @rule(which=WHICH, lora=st.booleans(), n=st.integers(1, 3), data=st.data())
    def change(self, which: int, lora: bool, n: int, data: Any) -> None:
        """Change the U-Net between two runs that are otherwise the same, the second of which must not be stale."""
        pair = self.pair(which)
        changes = (WITH_LORA if has_lora(pair.twin) else WITHOUT_LORA) if lora else CHANGES
        # More often those that each replay would miss.
        often = [name for name in ("move", "reload", "FreeU") if name in changes]
        name = data.draw(st.sampled_from([*sorted(changes), *often]), label="change")
        if pair.latest is None:
            self.again(which)
        for pipe in pair.both:
            changes[name](pipe, n)
        for other in self.pairs:
            if other.twin.unet is pair.twin.unet:
                other.changed()
        self.repeat_on(pair, pair.latest)

    @rule(which=WHICH, scheduler=st.sampled_from(sorted(SCHEDULERS)))
    def swap_scheduler(self, which: int, scheduler: str) -> None:
        for pipe in self.pair(which).both:
            pipe.scheduler = SCHEDULERS[scheduler]()

    @rule(which=WHICH, unet=UNETS)
    def swap_unet(self, which: int, unet: str) -> None:
        pair = self.pair(which)
        for pipe in pair.both:
            pipe.unet = new_unet(unet)

    @invariant()
    def nothing_shows(self) -> None:
        """What was done to one pipe shows on no other. The attributes of all are compared at the end."""
        assert not [*runs()]
        for pair in self.pairs:
            accelerated = pair.wanted is not None
            assert (attachment_of(pair.pipe) is not None) == accelerated
            assert isinstance(pair.pipe, StableDiffusionPipeline)
            assert type(pair.pipe).__name__ == "StableDiffusionPipeline"
            if not accelerated and pair.named:
                assert type(pair.pipe) is StableDiffusionPipeline

    def check(self, pair: Pair) -> None:
        """The attributes of a pipe and of all in it are those of its twin; strides only where nobody laid it out."""
        found = differences(pair.pipe, pair.twin, strides=not self.is_laid(pair.twin.unet))
        assert not found, found

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:  # else a rule has failed, and that is what is to be read
            for pair in self.pairs:
                self.check(pair)


COMMON = {
    "deadline": None,
    "database": None,
    "stateful_step_count": 7,  # and the first settings; some rules are several operations
    "phases": (Phase.generate, Phase.shrink),
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
}


@pytest.mark.parametrize("sequences", [80, pytest.param(200, marks=pytest.mark.slow)])
def test_any_sequence(sequences):
    run_state_machine_as_test(AnySequence, settings=settings(max_examples=sequences, derandomize=True, **COMMON))


@pytest.mark.fuzz
def test_any_other_sequence():
    run_state_machine_as_test(AnySequence, settings=settings(max_examples=3000, **COMMON))
