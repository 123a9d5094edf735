"""A blend's sum: each half of the batch from its own buffers, and from the other half's."""

import pytest
import torch

from stepcache.forwards.blend import Blend, value_of

# Of the halves' mean and of their difference, for each of two buffers.
OF_MEAN, OF_DIFFERENCE = torch.tensor([1.5, -0.5]), torch.tensor([0.75, 0.25])
WEIGHTS = torch.stack([(OF_MEAN + OF_DIFFERENCE) / 2, (OF_MEAN - OF_DIFFERENCE) / 2])


def make_buffers(*shape, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=g).to(dtype) for _ in range(2))


def damped_apart(buffers):
    """The mean of the halves with its weights and their difference with its own, put together again."""
    halves = [buffer.double().chunk(2) for buffer in buffers]
    mean = sum(w * (u + c) / 2 for w, (u, c) in zip(OF_MEAN, halves, strict=True))
    difference = sum(w * (c - u) for w, (u, c) in zip(OF_DIFFERENCE, halves, strict=True))
    return torch.cat([mean - difference / 2, mean + difference / 2])


@pytest.mark.parametrize("batch", [2, 4, 12])
def test_mean_and_difference_of_the_halves_have_weights_of_their_own(batch):
    """Of several images, and of several frames of each: halves are those of the first dimension."""
    buffers = make_buffers(batch, 3, 4, 5)
    blend = Blend(buffers, WEIGHTS)
    assert blend.halves and not Blend(buffers, WEIGHTS[0]).halves
    torch.testing.assert_close(blend.value().double(), damped_apart(buffers), rtol=1e-6, atol=1e-6)
    assert torch.equal(value_of(blend), blend.value())


@pytest.mark.parametrize("shape", [(2, 6), (4, 3, 2), (4, 3, 2, 5, 5)], ids=str)
def test_other_dimensions(shape):
    buffers = make_buffers(*shape)
    torch.testing.assert_close(Blend(buffers, WEIGHTS).value().double(), damped_apart(buffers), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_is_summed_in_float32_and_rounded_once(dtype):
    buffers = make_buffers(4, 3, 4, 5, dtype=dtype)
    value = Blend(buffers, WEIGHTS).value()
    assert value.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(value, damped_apart(buffers), rtol=1e-12, atol=1e-12)
    else:
        wide = Blend(tuple(buffer.float() for buffer in buffers), WEIGHTS).value()
        assert torch.equal(value, wide.to(dtype))


def test_nothing_from_the_other_half_is_the_plain_sum():
    buffers = make_buffers(4, 3, 4, 5, dtype=torch.bfloat16)
    weights = torch.stack([OF_MEAN, torch.zeros(2)])
    assert torch.equal(Blend(buffers, weights).value(), Blend(buffers, OF_MEAN).value())


@pytest.mark.parametrize("batch", [2, 4])
def test_the_layout_stays(batch):
    buffers = tuple(b.to(memory_format=torch.channels_last) for b in make_buffers(batch, 3, 4, 5))
    value = Blend(buffers, WEIGHTS).value()
    assert value.stride() == buffers[0].stride()


def test_an_odd_batch_has_no_halves():
    with pytest.raises(ValueError, match="for two halves of a batch, but its buffers hold 3 samples"):
        Blend(make_buffers(3, 2, 4, 4), WEIGHTS).value()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_for_all_weights(backend):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(lambda blend: blend.value(), backend=counter, fullgraph=True, dynamic=False)
    for weights in (WEIGHTS, WEIGHTS * 0.5, WEIGHTS + 1):
        blend = Blend(make_buffers(4, 3, 4, 5), weights)
        torch.testing.assert_close(compiled(blend), blend.value())
    assert counter.frame_count == 1
