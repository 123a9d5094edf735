"""Inner products of features: against features that are taken by hand."""

import pytest
import torch
from support.features import features_by_hand
from support.small import demo_pipe

from stepcache.calibration.grams import Collector, Grams, fitted_weights
from stepcache.errors import InvalidSetting

STEPS = 4
CALL = {"num_inference_steps": STEPS, "height": 64, "width": 64, "output_type": "latent"}


def run(pipe, guidance=3.0, **extra):
    return pipe(
        ["tiger face", "rose"], guidance_scale=guidance, generator=torch.Generator().manual_seed(0), **CALL, **extra
    ).images


def by_hand(pipe, branch, guidance):
    """Features [T, B, ...] and outputs [T, B, ...] of a run."""
    with features_by_hand(pipe.unet, branch) as (features, outputs):
        run(pipe, guidance)
    return torch.stack(features).double(), torch.stack(outputs).double()


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_grams_are_those_of_features_by_hand(guidance):
    pipe, guided = demo_pipe(), guidance > 1
    collector = Collector(pipe, (0, 1, 2))
    images = collector.run(lambda: run(pipe, guidance), lambda: guided)
    assert torch.equal(images, run(pipe, guidance))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())
    assert collector.sample == (4 if guided else 2, 4, 16, 16)
    for branch in (0, 1, 2):
        f, out = by_hand(pipe, branch, guidance)
        grams = collector.grams[branch]
        torch.testing.assert_close(grams.whole, f.flatten(1) @ f.flatten(1).T, rtol=1e-9, atol=0)
        if not guided:
            assert grams.half is None and grams.difference is None
            continue
        half, difference = f[:, 2:].flatten(1), (out[:, 2:] - out[:, :2]).flatten(1)
        torch.testing.assert_close(grams.half, half @ half.T, rtol=1e-9, atol=0)
        torch.testing.assert_close(grams.difference, difference @ difference.T, rtol=1e-6, atol=1e-9)
        assert grams.of(0, True) is grams.half and grams.of(1, True) is grams.difference
        assert grams.of(0, False) is grams.whole


def test_runs_add_up_and_hooks_go_where_one_fails():
    pipe = demo_pipe()
    collector = Collector(pipe, (0,))
    collector.run(lambda: run(pipe), lambda: True)
    once = collector.grams[0]
    collector.run(lambda: run(pipe), lambda: True)
    for name in ("whole", "half", "difference"):
        assert torch.equal(getattr(collector.grams[0], name), 2 * getattr(once, name))
    with pytest.raises(ZeroDivisionError):
        collector.run(lambda: 1 / 0, lambda: True)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())


def test_a_batch_that_changes_is_refused():
    def drop(pipe, step, timestep, tensors):
        if step == 2:
            pipe._guidance_scale = 1.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    pipe = demo_pipe()
    dropping = {"callback_on_step_end": drop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with pytest.raises(InvalidSetting, match="batch changed"):
        Collector(pipe, (0,)).run(lambda: run(pipe, **dropping), lambda: True)


@pytest.mark.parametrize("full", [(0,), (4, 2), (4, 2, 0)])
def test_fitted_weights_are_least_squares(full):
    f = torch.randn(8, 100, generator=torch.Generator().manual_seed(0)).double().cumsum(0)
    want = torch.linalg.lstsq(f[list(full)].T, f[5]).solution
    weights = torch.tensor(fitted_weights(f @ f.T, 5, full), dtype=torch.float64)
    torch.testing.assert_close(weights, want, rtol=1e-4, atol=1e-4)


def test_features_that_stand_still_give_finite_weights():
    gram = torch.ones(4, 4, dtype=torch.float64)
    assert sum(fitted_weights(gram, 3, (2, 1, 0))) == pytest.approx(1.0, abs=1e-4)
    assert Grams(gram).of(0, False) is gram
