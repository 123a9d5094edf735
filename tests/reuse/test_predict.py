"""Extrapolated features: the weights, and runs against a loop that keeps plain lists and does the arithmetic itself."""

import math

import pytest
import torch
from diffusers import HeunDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from support.small import ONE_LEVEL, captured, demo_pipe, engine_of, generate, loop_pipe

from stepcache import Schedule, StepCacheError, accelerate, last_run
from stepcache.errors import InvalidSetting
from stepcache.forwards import family_of
from stepcache.forwards.blend import Blend
from stepcache.reuse.predict import HOLD, Fitted, Line, predictor_of


# Integers: with denormals flushed hypothesis makes no floats.
@given(
    st.integers(0, 40), st.integers(1, 9), st.integers(1, 9), st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 4)
)
def test_a_line_meets_what_lies_on_one(first, gap, ahead, start, slope, quarters):
    damping = quarters / 4
    full = (first + gap, first)
    step = full[0] + ahead
    values = [start + slope * at for at in full]
    guess = sum(w * v for w, v in zip(Line(damping).weights(0, step, full), values, strict=False))
    on_line, held = start + slope * step, values[0]
    assert math.isclose(guess, held + damping * (on_line - held), rel_tol=1e-9, abs_tol=1e-9)


def test_one_full_step_is_held():
    assert Line(1.0).weights(0, 5, (4,)) == (1.0,) and HOLD.weights(0, 5, (4,)) == (1.0,)
    assert (Line(1.0).order, HOLD.order, HOLD.holds, Line(0.5).holds) == (2, 1, True, False)


def test_fitted_weights_are_for_the_steps_that_they_were_fitted_for():
    fitted = Fitted({(0, 2, (1, 0)): (1.5, -0.4), (1, 2, (1, 0)): (1.1, -0.2)}, order=2)
    assert fitted.weights(0, 2, (1, 0)) == (1.5, -0.4) and fitted.weights(1, 2, (1, 0)) == (1.1, -0.2)
    assert fitted.weights(0, 3, (1, 0)) == (1.0, 0.0)  # what stands in else: hold


@pytest.mark.parametrize(
    "predict", ["cubic", -1.01, 1.01, math.nan, None, True, [1], (0.5, 1.5), (0.5, "hold"), (1, 0, 0)]
)
def test_what_is_no_predictor_is_refused(predict):
    with pytest.raises(InvalidSetting, match="predict must be"):
        predictor_of(predict)
    pipe = loop_pipe("least")
    with pytest.raises(StepCacheError):
        accelerate(pipe, predict=predict)
    assert type(pipe).__name__ == "LoopPipe" and not hasattr(type(pipe), "_stepcache_attachment")


def test_a_blend_is_summed_in_float32():
    buffers = tuple(torch.tensor([value], dtype=torch.float16) for value in (2048.0, 2047.0))
    assert Blend(buffers, torch.tensor([3.0, -2.0])).value().item() == 2050
    assert Blend(buffers, torch.tensor([3.0, -2.0])).value().dtype == torch.float16


@torch.no_grad()
def by_hand(pipe, mask, damping, branch=0, steps=None, slots=1):
    """LoopPipe's loop with lists of features in the place of stepcache."""
    unet = pipe.unet
    family = family_of(unet)
    cut = family.layout(unet).cut(branch)
    history = [[] for _ in range(slots)]
    counter = {"step": 0, "slot": 0}

    def forward(*args, **kwargs):
        i, h = counter["step"], history[counter["slot"]]
        counter["slot"] = (counter["slot"] + 1) % slots
        call = family.bind(*args, **kwargs)
        if mask[i]:
            output, feature = family.full(unet, cut, **call.inputs)
            h.append((i, feature))
        else:
            (b, newest), (a, before) = h[-1], h[-2] if len(h) > 1 else (None, None)
            feature = newest if before is None else newest + damping * (i - b) / (b - a) * (newest - before)
            output = family.partial(unet, cut, feature, **call.inputs)
        return family.wrap(output, call.return_dict)

    stock, step = unet.forward, pipe.scheduler.step

    def counted(*args, **kwargs):
        counter["step"], counter["slot"] = counter["step"] + 1, 0
        return step(*args, **kwargs)

    unet.forward, pipe.scheduler.step = forward, counted
    try:
        return pipe(steps or len(mask))
    finally:
        del unet.forward, pipe.scheduler.step
        assert unet.forward == stock


MASKS = {"even": "FPPFPPFPP", "uneven": "FPFPPPFFPPPP", "one full": "FPPP", "all full": "FFFF"}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("predict", "damping"), [("linear", 1.0), (0.5, 0.5), ("hold", 0.0)])
def test_runs_equal_a_loop_by_hand(name, predict, damping):
    mask = [letter == "F" for letter in MASKS[name]]
    pipe = loop_pipe("least")
    want = by_hand(pipe, mask, damping, branch=1)
    accelerate(pipe, branch=1, schedule=Schedule.explicit(MASKS[name]), predict=predict)
    for _ in range(2):  # the second run must not extrapolate through the first one's features
        torch.testing.assert_close(pipe(len(mask)), want, rtol=1e-5, atol=1e-5)
    assert last_run(pipe).kinds == MASKS[name]


def test_heun_extrapolates_along_the_loops_iterations():
    pipe = loop_pipe("least")
    pipe.scheduler = HeunDiscreteScheduler()
    pipe.scheduler.set_timesteps(6)
    steps = len(pipe.scheduler.timesteps)
    mask = [i % 3 == 0 for i in range(steps)]
    want = by_hand(pipe, mask, 1.0, steps=6)
    accelerate(pipe, 3, predict="linear")
    torch.testing.assert_close(pipe(6), want, rtol=1e-5, atol=1e-5)
    assert len(last_run(pipe).kinds) == steps


def test_linear_holds_two_features_and_no_more():
    pipe = accelerate(loop_pipe("least"), 3)
    pipe(6)
    one = last_run(pipe).buffer_bytes
    accelerate(pipe, 3, predict="linear")
    pipe(6)
    assert last_run(pipe).buffer_bytes == 2 * one


def test_several_slots_extrapolate_each_their_own():
    """Two U-Net calls a step with different inputs: each slot's line is through its own features."""

    class Twice:
        def __init__(self, pipe):
            self.unet, self.scheduler = pipe.unet, pipe.scheduler

        @torch.no_grad()
        def __call__(self, steps=8):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(1, 4, 16, 16, generator=generator)
            texts = [torch.randn(1, 5, 8, generator=generator) for _ in range(2)]
            self.scheduler.set_timesteps(steps)
            for t in self.scheduler.timesteps:
                a, b = (self.unet(x, t, encoder_hidden_states=text).sample for text in texts)
                x = self.scheduler.step(a + 2 * (b - a), t, x).prev_sample
            return x

    pipe = Twice(loop_pipe("least"))
    want = by_hand(pipe, [i % 3 == 0 for i in range(8)], 1.0, slots=2)
    accelerate(pipe, 3, predict="linear")
    torch.testing.assert_close(pipe(8), want, rtol=1e-5, atol=1e-5)
    assert last_run(pipe).kinds == "FFPPPPFFPPPPFFPP"


def test_a_refresh_forced_mid_run_is_the_newest_point_of_the_line():
    """The batch shrinks at step 4: its slot has no feature, runs full there, and the line goes on from step 4."""

    class Shrinks:
        def __init__(self, pipe):
            self.unet, self.scheduler = pipe.unet, pipe.scheduler

        @torch.no_grad()
        def __call__(self, steps=9):
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(2, 4, 16, 16, generator=generator)
            text = torch.randn(2, 5, 8, generator=generator)
            self.scheduler.set_timesteps(steps)
            for i, t in enumerate(self.scheduler.timesteps):
                if i == 4:
                    x, text = x[:1].clone(), text[:1].clone()
                x = self.scheduler.step(self.unet(x, t, encoder_hidden_states=text).sample, t, x).prev_sample
            return x

    pipe = Shrinks(loop_pipe("least"))
    family, unet = family_of(pipe.unet), pipe.unet
    cut = family.layout(unet).cut(0)
    history, step = [], iter(range(9))

    def forward(*args, **kwargs):
        i, call = next(step), family.bind(*args, **kwargs)
        if i == 4:
            history.clear()
        if i in (0, 3, 4, 6):
            output, feature = family.full(unet, cut, **call.inputs)
            history.append((i, feature))
        else:
            (b, newest), (a, before) = history[-1], history[-2] if len(history) > 1 else (history[-1][0] - 1, None)
            feature = newest if before is None else newest + (i - b) / (b - a) * (newest - before)
            output = family.partial(unet, cut, feature, **call.inputs)
        return family.wrap(output, call.return_dict)

    unet.forward = forward
    want = pipe()
    del unet.forward
    accelerate(pipe, 3, predict="linear")
    torch.testing.assert_close(pipe(), want, rtol=1e-5, atol=1e-5)
    assert last_run(pipe).kinds == "FPPFFPFPP"


def test_captured_graphs_extrapolate_too():
    pipe = loop_pipe("least")
    want = by_hand(pipe, [i % 3 == 0 for i in range(9)], 1.0)
    accelerate(pipe, 3, predict="linear")
    eager = pipe(9)
    captured(pipe, 3, predict="linear")
    for captures in (2, 0):
        got = pipe(9)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert torch.equal(got, eager)
        assert last_run(pipe).captures == captures


def test_one_compilation_a_graph_with_changing_weights():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    pipe = loop_pipe("least", **ONE_LEVEL)
    accelerate(pipe, 3, predict="linear")
    want = pipe(9)
    accelerate(pipe, 3, predict="linear", compile={"backend": counter})
    for _ in range(2):
        torch.testing.assert_close(pipe(9), want, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 2


def test_the_triton_join_takes_the_blend(monkeypatch):
    """kernels=True: the ops get both buffers and the weights, and nobody sums them before."""
    from stepcache.forwards import join

    pipe = loop_pipe("least")
    accelerate(pipe, 3, predict="linear")
    want = pipe(7)
    accelerate(pipe, 3, predict="linear", kernels=True)
    summed = []
    monkeypatch.setattr(join.Blend, "value", lambda self: summed.append(self) or None)
    got = pipe(7)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not summed


def test_freeu_on_a_blend():
    pipe = loop_pipe("least")
    for block in pipe.unet.up_blocks:
        block.s1, block.s2, block.b1, block.b2 = 0.9, 0.2, 1.3, 1.4
    branch = len(family_of(pipe.unet).layout(pipe.unet).joins) - 1
    want = by_hand(pipe, [i % 3 == 0 for i in range(9)], 1.0, branch=branch)
    accelerate(pipe, 3, branch, predict="linear")
    torch.testing.assert_close(pipe(9), want, rtol=1e-5, atol=1e-5)


def test_the_demo_is_closer_to_the_original_with_lines():
    """A claim of the README, there with guidance and 50 steps. The dB are in benchmarks/results/frontier.csv."""
    from stepcache.images.fidelity import mean_psnr

    pipe = demo_pipe()

    def image():
        return generate(pipe, steps=30, guidance_scale=1.0, output_type="np")

    want = image()
    got = {}
    for predict in ("hold", "linear"):
        accelerate(pipe, 3, predict=predict)
        got[predict] = mean_psnr(image(), want)
    assert got["linear"] > got["hold"] + 5


def test_bytes_are_stated_for_each_slot():
    pipe = accelerate(loop_pipe("least"), 3, predict=0.5)
    pipe(6)
    (bucket,) = engine_of(pipe).unet_graphs.buckets.held.values()
    assert bucket.nbytes == last_run(pipe).buffer_bytes == sum(t.nbytes for t in bucket.slots[0].values[0].tensors)
