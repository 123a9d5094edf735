"""One program of a module and tensors: eager, compiled, and captured by the stand-in backend."""

import pytest
import torch
from torch import nn

from stepcache.graphs import compiled as compiling
from stepcache.graphs.bucket import Bucket
from stepcache.graphs.capture import Capture
from stepcache.graphs.compiled import Compilations
from stepcache.graphs.fallback import Fallback
from stepcache.graphs.freshness import Freshness
from stepcache.graphs.kept import Kept
from stepcache.graphs.program import Program, compiled
from stepcache.graphs.progress import Costs
from stepcache.graphs.standin import StandInBackend

CPU = torch.device("cpu")


def scale(module, inputs):
    return module(inputs["x"]) * inputs["by"]


def compute(module, kept, inputs):
    return scale(module, inputs), ()


class Runs:
    """A bucket of one program that keeps nothing, and calls of it."""

    def __init__(self, options=None, backend=None):
        function = compute
        if options is not None:
            function = compiled(compute, "test graph", options, Costs(), Compilations(), "key")
        capture = (
            None if backend is None else Capture(backend, CPU, Costs(), Freshness(Fallback("the module", "module")))
        )
        self.bucket = Bucket({"test": Program("test graph", function)}, capture, make_kept=lambda: Kept(values=0))
        self.direct = lambda module, inputs: self.bucket.programs["test"](module, inputs, self.bucket.kept(0))

    def __call__(self, module, inputs):
        return self.bucket.run("test", module, inputs, self.bucket.kept(0), 0)


def inputs(seed=0, by=2.0):
    return {"x": torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)), "by": by}


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 5).eval().requires_grad_(False)


@torch.no_grad()
def test_replays_on_new_inputs_and_results_are_the_callers_own(linear):
    backend = StandInBackend()
    runs = Runs(backend=backend)
    results = [runs(linear, inputs(seed)) for seed in range(3)]
    for seed, result in enumerate(results):
        assert torch.equal(result, scale(linear, inputs(seed)))
    assert len(backend.graphs) == 1 and backend.graphs[0].replays == 3
    assert runs.bucket.static_nbytes == 3 * 4 * 4 + 3 * 5 * 4 and runs.bucket.nbytes == 0


@torch.no_grad()
def test_a_replaced_weight_is_captured_again(linear):
    """A CUDA graph would read the old weight, which was freed; the stand-in raises."""
    backend = StandInBackend()
    runs = Runs(backend=backend)
    runs(linear, inputs())
    linear.weight = nn.Parameter(linear.weight * 2, requires_grad=False)
    assert torch.equal(runs(linear, inputs()), scale(linear, inputs()))
    # The allocator takes a pool back once all its graphs are reset.
    assert backend.pools == len(backend.graphs) == 2
    runs.bucket.free()
    assert runs.bucket.static_nbytes == 0 and backend.released == 1
    assert torch.equal(runs(linear, inputs()), scale(linear, inputs()))


@torch.no_grad()
@pytest.mark.parametrize("other", [False, True], ids=["alone", "beside another program"])
def test_an_output_of_another_shape_is_captured_again(linear, other):
    runs = Runs(backend=StandInBackend())
    twice = Program("other graph", lambda module, kept, inputs: (2 * scale(module, inputs), ()))
    runs.bucket.programs["other"] = twice
    call = inputs()
    runs(linear, call)
    if other:
        runs.bucket.run("other", linear, call, runs.bucket.kept(0), 0)
    linear.weight = nn.Parameter(torch.randn(7, 4), requires_grad=False)
    linear.bias = nn.Parameter(torch.randn(7), requires_grad=False)
    for _ in range(2):
        assert torch.equal(runs(linear, call), scale(linear, call))
        if other:
            want = 2 * scale(linear, call)
            assert torch.equal(runs.bucket.run("other", linear, call, runs.bucket.kept(0), 0), want)


@torch.no_grad()
def test_compiled_it_is_the_compiled_function_that_is_captured(linear):
    traced = []

    def backend(module, example_inputs):
        traced.append(module)
        return module.forward

    runs = Runs(options={"backend": backend}, backend=StandInBackend())
    for seed in range(2):
        assert torch.equal(runs(linear, inputs(seed)), scale(linear, inputs(seed)))
    assert torch.equal(runs.direct(linear, inputs(5)), scale(linear, inputs(5)))
    assert len(traced) == 1


@torch.no_grad()
def test_results_of_trees_are_copied(linear, monkeypatch):
    """torch's CUDA graph trees write their result to the same address each time."""
    buffer = torch.empty(3, 5)

    class Tree:
        def __init__(self, inner, *args):
            self.inner = inner

        def __call__(self, costs, *args):
            output, values = self.inner(*args)
            return buffer.copy_(output), values

    monkeypatch.setattr(compiling, "CompiledFunction", Tree)
    runs = Runs(options={"mode": "reduce-overhead"})
    first, second = runs(linear, inputs(0)), runs(linear, inputs(1))
    assert torch.equal(first, scale(linear, inputs(0))) and torch.equal(second, scale(linear, inputs(1)))
