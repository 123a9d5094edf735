import pytest
import torch
from support import small

from stepcache.comparison.drift import _Drift, measure_drift
from stepcache.reuse.schedule import Schedule
from stepcache.run.attach import attachment_of

SCHEDULES = [Schedule.uniform(2), Schedule.uniform(3), Schedule.explicit("FPPPPP")]


def run(pipe, each_step):
    def on_step_end(pipe, step, timestep, tensors):
        each_step()
        return tensors

    return small.generate(pipe, steps=6, callback_on_step_end=on_step_end)


@pytest.fixture(scope="module")
def measured():
    """(drifts, latents) of six steps of the demo pipeline, at branch 0."""
    latents = []
    pipe = small.demo_pipe()
    drifts = measure_drift(pipe, 0, SCHEDULES, lambda each_step: latents.append(run(pipe, each_step)))
    assert attachment_of(pipe) is None
    return drifts, *latents


def test_it_is_that_of_the_stock_pipeline_s_own_hidden_states(measured):
    """Without stepcache: what enters the last ResNet is [hidden, skip], and the hidden state is branch 0's feature."""
    pipe, features = small.demo_pipe(), []
    channels = pipe.unet.config.block_out_channels[0]
    resnet = pipe.unet.up_blocks[-1].resnets[-1]
    hook = resnet.register_forward_pre_hook(lambda module, args: features.append(args[0][:, :channels].clone()))
    try:
        run(pipe, lambda: None)
    finally:
        hook.remove()
    assert len(features) == 6
    for schedule, drift in zip(SCHEDULES, measured[0], strict=True):
        expected, base = [], features[0]
        for feature, kind in zip(features, schedule.kinds(6), strict=True):
            base = feature if kind == "F" else base
            expected.append(float((feature - base).norm() / base.norm()))
        assert drift == pytest.approx(expected, rel=1e-4)
        assert [value == 0 for value in drift] == [kind == "F" for kind in schedule.kinds(6)]


def test_the_run_is_the_original_s(measured):
    torch.testing.assert_close(measured[1], run(small.demo_pipe(), lambda: None), rtol=0, atol=0)


def test_the_pipe_is_restored_where_the_run_fails():
    pipe = small.demo_pipe()
    before = small.state_of(pipe)

    def fail(each_step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_drift(pipe, 0, SCHEDULES, fail)
    assert small.state_of(pipe) == before


def test_by_hand_and_over_several_calls_of_a_step():
    drift = _Drift(Schedule.uniform(3))
    ones = torch.ones(1, 1, 2, 2)
    drift.see([ones, ones])
    drift.see([1.5 * ones, ones])
    drift.see([1.5 * ones, 0.5 * ones])
    drift.see([3 * ones, ones])
    assert drift.values == pytest.approx([0, 0.5 / 2**0.5, 0.5, 0])


def test_the_base_is_a_copy():
    drift, buffer = _Drift(Schedule.uniform(2)), torch.ones(1, 1, 2, 2)
    drift.see([buffer])
    drift.see([buffer.mul_(3)])
    assert drift.values == pytest.approx([0, 2])


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
