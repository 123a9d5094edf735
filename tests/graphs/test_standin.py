"""The stand-in must refuse what CUDA graphs refuse or get wrong."""

import pytest
import torch

from stepcache.graphs.standin import StandInBackend, StandInError, StandInGraph


def graph_of(function):
    backend = StandInBackend()
    return backend.capture(function, backend.pool(), torch.device("cpu"))


def test_standin_does_not_compute_at_capture():
    x, out = torch.ones(3), torch.zeros(3)
    graph = graph_of(lambda: out.copy_(x * 2))
    assert out.isnan().all()
    graph.replay()
    assert out.tolist() == [2, 2, 2]
    x.fill_(4)
    graph.replay()
    assert out.tolist() == [8, 8, 8]


def test_standin_refuses_a_moved_input():
    held = {"x": torch.ones(3)}
    out = torch.zeros(3)
    graph = graph_of(lambda: out.copy_(held["x"] * 2))
    held["x"] = torch.ones(3)
    with pytest.raises(StandInError, match="Captured"):
        graph.replay()


def test_standin_refuses_other_work_at_replay():
    more, out = [], torch.zeros(3)

    def work():
        out.fill_(1)
        for x in more:
            out.add_(x)

    graph = graph_of(work)
    more.append(torch.ones(3))
    with pytest.raises(StandInError, match="Captured 1 operations, replayed 2"):
        graph.replay()


def test_standin_refuses_a_sync():
    x, out = torch.ones(1), torch.zeros(1)
    with pytest.raises(StandInError, match="waits for a value"):
        StandInGraph(lambda: out.fill_(x.item()))


def test_standin_refuses_pool_memory_that_escapes():
    kept = []
    with pytest.raises(StandInError, match="outlives"):
        StandInGraph(lambda: kept.append(torch.ones(3) * 2))


def test_standin_refuses_a_graph_that_was_reset():
    out = torch.zeros(3)
    graph = graph_of(lambda: out.fill_(1))
    graph.reset()
    with pytest.raises(StandInError, match="reset"):
        graph.replay()


def test_standin_refuses_a_pool_whose_graphs_are_all_gone():
    backend, out = StandInBackend(), torch.zeros(3)
    pool = backend.pool()
    graphs = [backend.capture(lambda: out.fill_(1), pool, torch.device("cpu")) for _ in range(2)]
    graphs[0].reset()
    graphs.append(backend.capture(lambda: out.fill_(1), pool, torch.device("cpu")))
    for graph in graphs:
        graph.reset()
    with pytest.raises(StandInError, match="allocator's again"):
        backend.capture(lambda: out.fill_(1), pool, torch.device("cpu"))
