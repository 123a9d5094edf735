"""Layouts of a model's weights, for the tests of channels_last."""

import torch
from support.small import generate

from stepcache.graphs.standin import StandInBackend

ENGINES = {"eager": {}, "captured": {"cuda_graphs": StandInBackend}, "compiled": {"compile": {"backend": "aot_eager"}}}


class Weights:
    """All parameters of a model as they are now, to compare with later."""

    def __init__(self, model):
        self.model = model
        self.then = {n: (p, p.detach().clone(), p.stride()) for n, p in model.named_parameters()}

    def assert_same_values(self):
        now = dict(self.model.named_parameters())
        assert now.keys() == self.then.keys()
        for name, (parameter, value, _) in self.then.items():
            assert now[name] is parameter and torch.equal(parameter.detach(), value), name

    def assert_restored(self):
        self.assert_same_values()
        for name, (parameter, _, stride) in self.then.items():
            assert parameter.stride() == stride, name


def kernels(model):
    """The weights that are not in both layouts at once."""
    return [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2:] != (1, 1)]


def laid_out(model):
    return [p.is_contiguous(memory_format=torch.channels_last) for p in kernels(model)]


def in_place(model):
    """All kernels of the model in channels_last: True; none of them: False."""
    (value,) = set(laid_out(model))
    return value


def addresses(model):
    return [p.data_ptr() for p in model.parameters()]


def images(pipe, **kwargs):
    return torch.from_numpy(generate(pipe, output_type="np", **kwargs))


def close(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
