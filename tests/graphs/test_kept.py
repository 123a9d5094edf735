import pytest
import torch

from stepcache.graphs.kept import Kept
from stepcache.reuse.predict import HOLD, Line


def full_step(kept, run, step, *values):
    kept.begin(run)
    kept.write(values)
    kept.mark(f"stamp {step}", step)


def test_a_value_keeps_its_address_and_strides():
    kept, value = Kept(), torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    full_step(kept, "first run", 0, value)
    (tensor,) = kept.values[0].tensors
    assert tensor.stride() == value.stride()
    for step, run in enumerate(("first run", "second run")):
        value = value + 1
        full_step(kept, run, step, value)
        assert kept.tensors[0] is tensor and kept.current == (tensor,)
        assert torch.equal(tensor, value)
        assert (kept.run, kept.stamp, kept.steps) == (run, f"stamp {step}", (step,))
    assert kept.nbytes == 2 * 8 * 4 * 4 * 4


def test_what_is_kept_is_a_copy():
    kept, value = Kept(), torch.zeros(1, 2, 2, 2)
    full_step(kept, "run", 0, value)
    value.add_(1)
    assert not kept.values[0].tensors[0].any()


def test_another_shape_or_dtype_allocates_anew_and_forgets_earlier_steps():
    kept = Kept(1, 2, blends=True)
    full_step(kept, "run", 0, torch.zeros(1, 2, 2, 2))
    full_step(kept, "run", 1, torch.zeros(1, 2, 2, 2))
    assert kept.steps == (1, 0)
    full_step(kept, "run", 2, torch.ones(1, 2, 2, 2, dtype=torch.float64))
    assert kept.steps == (2,) and all(t.dtype == torch.float64 and t.all() for t in kept.values[0].tensors)


def test_a_full_step_that_failed_leaves_nothing_that_is_valid():
    kept = Kept(1, 2, blends=True)
    full_step(kept, "run", 0, torch.zeros(1, 4))
    kept.begin("run")
    assert kept.stamp is None and kept.steps == ()


def test_the_last_full_steps_newest_first_at_fixed_addresses():
    kept = Kept(1, 3, blends=True)
    full_step(kept, "run", 0, torch.tensor([0.0]))
    tensors = kept.values[0].tensors
    assert [t.item() for t in tensors] == [0, 0, 0]
    for step in (2, 5, 6):
        full_step(kept, "run", step, torch.tensor([float(step)]))
    assert kept.steps == (6, 5, 2) and [t.item() for t in tensors] == [6, 5, 2]
    assert kept.values[0].tensors is tensors
    assert kept.nbytes == 12


def test_a_new_run_never_reads_what_an_earlier_one_left():
    kept = Kept(1, 2, blends=True)
    full_step(kept, "first", 0, torch.tensor([float("nan")]))
    full_step(kept, "first", 3, torch.tensor([float("nan")]))
    full_step(kept, "second", 0, torch.tensor([2.0]))
    kept.weigh(Line(1.0), 1)
    (blend,) = kept.current
    assert kept.steps == (0,) and blend.value().item() == 2.0


def test_weights_reach_the_device_in_place():
    kept = Kept(2, 2, blends=True)
    for step, value in ((0, 1.0), (2, 2.0)):
        full_step(kept, "run", step, torch.full((3,), value), torch.full((1,), -value))
    weights = kept.values[0].weights
    for step, factor in ((3, 0.5), (4, 1.0)):
        kept.weigh(Line(1.0), step)
        feature, difference = kept.current
        assert feature.weights is weights and weights.tolist() == [1 + factor, -factor]
        assert feature.value().tolist() == [2 + factor] * 3 and difference.value().item() == -2 - factor


def test_holding_needs_no_weights():
    kept = Kept()
    full_step(kept, "run", 0, torch.zeros(1))
    kept.weigh(HOLD, 1)
    assert kept.tensors[1] is None and kept.current[0] is kept.tensors[0]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_buffer_allocated_in_inference_mode_can_be_written_outside(depth):
    kept = Kept(1, depth, blends=depth > 1)
    with torch.inference_mode():
        full_step(kept, "run", 0, torch.zeros(1, 2, 2, 2))
    with torch.no_grad():
        full_step(kept, "run", 1, torch.ones(1, 2, 2, 2))
        kept.weigh(Line(1.0) if depth > 1 else HOLD, 2)
    assert kept.values[0].tensors[0].all()
