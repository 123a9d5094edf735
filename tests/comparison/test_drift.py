import pytest
import torch
from diffusers import HeunDiscreteScheduler
from support import small
from support.features import features_by_hand

from stepcache.comparison.drift import _Drift, measure_drift
from stepcache.comparison.results import Variant
from stepcache.reuse.schedule import Schedule

VARIANTS = [Variant(2, 0), Variant(3, 2)]


def run(pipe, each_step, **call):
    def on_step_end(pipe, step, timestep, tensors):
        each_step()
        return tensors

    return small.generate(pipe, **{"steps": 4, **call}, callback_on_step_end=on_step_end)


@pytest.mark.parametrize("scheduler", [None, HeunDiscreteScheduler])
def test_it_is_that_of_the_original_s_features(scheduler):
    pipe = small.tiny_pipe()
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    before, latents = small.state_of(pipe).modules, []
    drifts = measure_drift(pipe.unet, VARIANTS, lambda each_step: latents.append(run(pipe, each_step)))
    assert torch.equal(latents[0], run(pipe, lambda: None)) and small.state_of(pipe).modules == before
    for variant, drift in drifts.items():
        with features_by_hand(pipe.unet, variant.branch) as (features, _):
            run(pipe, lambda: None)
        kinds = variant.schedule.kinds(len(features))
        expected, base = [], features[0]
        for feature, kind in zip(features, kinds, strict=True):
            base = feature if kind == "F" else base
            expected.append(float((feature - base).norm() / base.norm()))
        assert drift == pytest.approx(expected, rel=1e-4)
        assert [value == 0 for value in drift] == [kind == "F" for kind in kinds]


def test_several_calls_of_a_step_count_together():
    unet, variant = small.make_unet(), Variant(2, 0)
    inputs = small.make_inputs(unet)

    @torch.no_grad()
    def generate(each_step):
        for step in range(4):
            for view in (1, 3):
                unet(**{**inputs, "sample": (1 + step) / view * inputs["sample"]})
            each_step()

    drift = measure_drift(unet, [variant], generate)[variant]
    with features_by_hand(unet, 0) as (features, _):
        generate(lambda: None)
    steps = [torch.stack(pair) for pair in zip(features[::2], features[1::2], strict=True)]
    change = [float((steps[i] - steps[i - 1]).norm() / steps[i - 1].norm()) for i in (1, 3)]
    assert drift == pytest.approx([0, change[0], 0, change[1]], rel=1e-4)


def test_where_guidance_ends_a_step_begins_anew():
    pipe, variant = small.tiny_pipe(), Variant(9, 0)

    def generate(each_step):
        def drop(pipe, step, timestep, tensors):
            each_step()
            if step == 1:
                pipe._guidance_scale, tensors["prompt_embeds"] = 1.0, tensors["prompt_embeds"].chunk(2)[-1]
            return tensors

        return small.generate(
            pipe, steps=4, callback_on_step_end=drop, callback_on_step_end_tensor_inputs=["prompt_embeds"]
        )

    drift = measure_drift(pipe.unet, [variant], generate)[variant]
    assert drift[0] == drift[2] == 0 and drift[1] > 0 and drift[3] > 0


def test_the_unet_is_restored_where_the_run_fails():
    pipe = small.tiny_pipe()
    before = small.state_of(pipe)

    def fail(each_step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_drift(pipe.unet, VARIANTS, fail)
    assert small.state_of(pipe) == before


def test_by_hand_and_over_several_calls_of_a_step():
    drift = _Drift(Schedule.uniform(3))
    ones = torch.ones(1, 1, 2, 2)
    drift.see([ones, ones])
    drift.see([1.5 * ones, ones])
    drift.see([1.5 * ones, 0.5 * ones])
    drift.see([3 * ones, ones])
    assert drift.values == pytest.approx([0, 0.5 / 2**0.5, 0.5, 0])


def test_features_of_another_size_begin_anew():
    drift = _Drift(Schedule.uniform(9))
    drift.see([torch.ones(2, 1, 2, 2)])
    drift.see([torch.ones(1, 1, 2, 2)])  # guidance has ended: such a step runs full
    drift.see([2 * torch.ones(1, 1, 2, 2)])
    assert drift.values == pytest.approx([0, 0, 1])


def test_half_precision_does_not_overflow():
    drift = _Drift(Schedule.uniform(2))
    drift.see([torch.full((1, 64, 64, 64), 100.0, dtype=torch.float16)])
    drift.see([torch.full((1, 64, 64, 64), 110.0, dtype=torch.float16)])
    assert drift.values == pytest.approx([0, 0.1], rel=1e-3)
