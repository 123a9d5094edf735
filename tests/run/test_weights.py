"""Which weights are re-laid, and how the device is waited for."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from stepcache.run import weights
from stepcache.run.channels_last import ChannelsLast, Part


class Quantised(torch.Tensor):
    """A tensor subclass that stands for quantised weights."""


def test_what_is_left_alone():
    model = nn.Module()
    shape = (4, 3, 3, 3)
    with torch.inference_mode():
        inference = nn.Parameter(torch.randn(shape), requires_grad=False)
    given = {
        "weight": nn.Parameter(torch.randn(shape)),
        "point": nn.Parameter(torch.randn(4, 3, 1, 1)),
        "matrix": nn.Parameter(torch.randn(4, 3)),
        "video": nn.Parameter(torch.randn(4, 3, 3, 3, 3)),
        "integers": nn.Parameter(torch.zeros(shape, dtype=torch.int8), requires_grad=False),
        "meta": nn.Parameter(torch.empty(shape, device="meta")),
        "empty": nn.Parameter(torch.empty(0, 3, 3, 3)),
        "inference": inference,
        "subclass": nn.Parameter(torch.randn(shape).as_subclass(Quantised), requires_grad=False),
        "expanded": nn.Parameter(torch.randn(1, 3, 3, 3).expand(shape), requires_grad=False),
        "shared": nn.Parameter(torch.randn(shape).share_memory_(), requires_grad=False),
        "sliced": nn.Parameter(torch.randn(4, 3, 3, 6)[..., ::2], requires_grad=False),
    }
    for name, value in given.items():
        model.register_parameter(name, value)
    model.register_parameter("tied", model.weight)
    strides = {name: p.stride() for name, p in given.items()}
    layout = ChannelsLast(True)
    layout.hold([Part("model", model, model)])
    assert [name for name, p in given.items() if p.stride() != strides[name]] == ["weight"]
    assert model.tied is model.weight is given["weight"]
    layout.close()
    assert {name: p.stride() for name, p in given.items()} == strides


def test_a_view_into_a_larger_buffer_is_somebody_elses_on_a_gpu():
    file = torch.randn(2, 4, 3, 3, 3)
    assert weights.is_eligible(nn.Parameter(file[1]))
    on_gpu = SimpleNamespace(device=torch.device("cuda"))

    class Pretends(nn.Parameter):
        device = on_gpu.device

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(weights.nn, "Parameter", Pretends)
        assert not weights.is_eligible(Pretends(file[1]))
        assert weights.is_eligible(Pretends(file[1].clone()))


def test_on_cuda_the_device_is_waited_for_before_and_after(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append(device))
    tensors = [SimpleNamespace(is_cuda=True, device="cuda:1"), SimpleNamespace(is_cuda=False, device="cpu")]
    with pytest.raises(ZeroDivisionError), weights.settled(iter(tensors)):
        done.append("re-laid")
        raise ZeroDivisionError
    assert done == ["cuda:1", "re-laid", "cuda:1"]
