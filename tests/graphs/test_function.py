"""One function of a module and tensors, captured; through the stand-in backend."""

import pytest
import torch
from torch import nn

from stepcache.graphs.compiled import Programs
from stepcache.graphs.costs import Costs
from stepcache.graphs.function import FunctionGraph
from stepcache.graphs.standin import StandInBackend, StandInError

CPU = torch.device("cpu")


def scale(module, inputs):
    return module(inputs["x"]) * inputs["by"]


def make(function=scale, options=None, backend=None):
    return FunctionGraph(function, options, backend, CPU, "test graph", Costs(), Programs(), "key")


def inputs(seed=0, by=2.0):
    return {"x": torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)), "by": by}


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 5).eval().requires_grad_(False)


@torch.no_grad()
def test_replays_on_new_inputs_and_results_are_the_callers_own(linear):
    backend = StandInBackend()
    graph = make(backend=backend)
    results = [graph.captured(linear, inputs(seed)) for seed in range(3)]
    for seed, result in enumerate(results):
        assert torch.equal(result, scale(linear, inputs(seed)))
    assert len(backend.graphs) == 1 and backend.graphs[0].replays == 3
    assert graph.nbytes == 3 * 4 * 4 + 3 * 5 * 4


@torch.no_grad()
def test_whoever_changes_the_module_must_free_the_graph(linear):
    backend = StandInBackend()
    graph = make(backend=backend)
    graph.captured(linear, inputs())
    linear.weight = nn.Parameter(linear.weight * 2, requires_grad=False)
    with pytest.raises(StandInError, match="was freed"):  # a CUDA graph would have read the old weight
        graph.captured(linear, inputs())
    graph.free()
    assert graph.nbytes == 0 and backend.released == 1
    assert torch.equal(graph.captured(linear, inputs()), scale(linear, inputs()))
    # A pool of which all graphs were reset is gone.
    assert backend.pools == len(backend.graphs) == 2


@torch.no_grad()
def test_compiled_it_is_the_compiled_function_that_is_captured(linear):
    traced = []

    def backend(module, example_inputs):
        traced.append(module)
        return module.forward

    graph = make(options={"backend": backend}, backend=StandInBackend())
    for seed in range(2):
        assert torch.equal(graph.captured(linear, inputs(seed)), scale(linear, inputs(seed)))
    assert torch.equal(graph.direct(linear, inputs(5)), scale(linear, inputs(5)))
    assert len(traced) == 1


@torch.no_grad()
def test_results_of_trees_are_copied(linear, monkeypatch):
    """Torch's CUDA graph trees write a result at the same address each time."""
    from stepcache.graphs import compiled

    buffer = torch.empty(3, 5)

    class Tree:
        def __init__(self, inner, *args):
            self.inner = inner

        def __call__(self, costs, *args):
            return buffer.copy_(self.inner(*args))

    monkeypatch.setattr(compiled, "CompiledFunction", Tree)
    graph = make(options={"mode": "reduce-overhead"})
    first, second = graph.direct(linear, inputs(0)), graph.direct(linear, inputs(1))
    assert torch.equal(first, scale(linear, inputs(0))) and torch.equal(second, scale(linear, inputs(1)))
