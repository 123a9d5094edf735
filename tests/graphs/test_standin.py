"""The stand-in must refuse what CUDA graphs refuse, and fail where they fail."""

import threading

import pytest
import torch

from stepcache.graphs.hosttensor import HostTensor, on_host
from stepcache.graphs.standin import StandInBackend, StandInError, StandInGraph

CPU = torch.device("cpu")


def graph_of(function):
    backend = StandInBackend()
    with backend.on_capture_stream(CPU):
        return backend.record(function, backend.pool(), CPU)


def test_capture_does_not_compute():
    x, out = torch.ones(3), torch.zeros(3)
    graph = graph_of(lambda: out.copy_(x * 2))
    assert out.isnan().all()
    graph.replay()
    assert out.tolist() == [2, 2, 2]
    x.fill_(4)
    graph.replay()
    assert out.tolist() == [8, 8, 8]


def test_views_slices_lists_and_numbers_are_replayed_as_they_were():
    x, out = torch.arange(12.0).reshape(3, 4), torch.zeros(2, 4)

    def work():
        parts = x.transpose(0, 1).chunk(2)
        rows = torch._foreach_mul([part.t()[1:] for part in parts], 2.0)
        out[:, :2].copy_(rows[0]).add_(torch.tensor(1.0))
        out[:, 2:].copy_(rows[1] + 1)

    graph = graph_of(work)
    for factor in (1, 3):
        x.copy_(torch.arange(12.0).reshape(3, 4) * factor)
        graph.replay()
        assert torch.equal(out, x[1:] * 2 + 1)


def test_what_the_function_does_in_python_is_baked_in():
    factor, more, out = {"by": 2.0}, [], torch.zeros(3)

    def work():
        out.fill_(factor["by"])
        for x in more:
            out.add_(x)

    graph = graph_of(work)
    factor["by"] = 5.0
    more.append(torch.ones(3))
    graph.replay()
    assert out.tolist() == [2, 2, 2]


def test_a_replaced_tensor_is_not_seen():
    held = {"x": torch.ones(3)}
    old, out = held["x"], torch.zeros(3)
    graph = graph_of(lambda: out.copy_(held["x"] * 2))
    held["x"] = torch.zeros(3)
    graph.replay()
    assert out.tolist() == [2, 2, 2]
    del old
    with pytest.raises(StandInError, match="was freed"):
        graph.replay()


def test_data_moved_under_the_same_object_is_not_seen():
    parameter, out = torch.nn.Parameter(torch.ones(3), requires_grad=False), torch.zeros(3)
    old = parameter.data
    graph = graph_of(lambda: out.copy_(parameter))
    parameter.data = torch.zeros(3)
    graph.replay()
    assert out.tolist() == [1, 1, 1]
    assert old is not None


def test_a_replay_writes_without_a_new_version():
    x, out = torch.ones(3), torch.zeros(3)
    graph = graph_of(lambda: out.copy_(x))
    version = out._version
    graph.replay()
    assert out._version == version and out.tolist() == [1, 1, 1]


def test_a_replay_is_not_cast_by_the_callers_autocast():
    x, out = torch.eye(3) / 3, torch.zeros(3, 3)
    graph = graph_of(lambda: out.copy_(x @ x))
    with torch.autocast("cpu", torch.bfloat16):
        graph.replay()
    assert torch.equal(out, x @ x)


def test_it_refuses_a_sync():
    x, out = torch.ones(1), torch.zeros(1)
    with pytest.raises(StandInError, match="waits for a value"):
        graph_of(lambda: out.fill_(x.item()))
    StandInBackend().abandon(None, CPU)


def test_it_refuses_pool_memory_that_escapes():
    kept = []
    with pytest.raises(StandInError, match="outlives"):
        StandInGraph(lambda: kept.append(torch.ones(3) * 2))


def test_it_refuses_a_graph_that_was_reset():
    out = torch.zeros(3)
    graph = graph_of(lambda: out.fill_(1))
    graph.reset()
    with pytest.raises(StandInError, match="reset"):
        graph.replay()


def test_it_refuses_a_pool_whose_graphs_are_all_gone():
    backend, out = StandInBackend(), torch.zeros(3)
    pool = backend.pool()
    graphs = [backend.record(lambda: out.fill_(1), pool, CPU) for _ in range(2)]
    graphs[0].reset()
    graphs.append(backend.record(lambda: out.fill_(1), pool, CPU))
    for graph in graphs:
        graph.reset()
    with pytest.raises(StandInError, match="allocator's again"):
        backend.record(lambda: out.fill_(1), pool, CPU)


@pytest.mark.parametrize("by_trees", [True, False])
def test_a_workspace_of_the_warm_ups_is_freed_by_any_reset(by_trees):
    x, out, backend = torch.eye(3), torch.zeros(3, 3), StandInBackend()
    other = graph_of(lambda: out.fill_(1))
    backend.clear_workspaces()
    with backend.on_capture_stream(CPU):
        torch.mm(x, x)
        baked = backend.record(lambda: torch.mm(x, x, out=out), backend.pool(), CPU)
        backend.clear_workspaces() if by_trees else other.reset()
        owner = backend.record(lambda: torch.mm(x, x, out=out), backend.pool(), CPU)
        backend.clear_workspaces()
    owner.replay()
    assert torch.equal(out, x)
    with pytest.raises(StandInError, match="workspace"):
        baked.replay()


def test_there_is_one_capture_and_no_synchronisation_beside_it():
    out, began, ended, errors = torch.zeros(3), threading.Event(), threading.Event(), []

    def work():
        out.fill_(1)
        began.set()
        ended.wait(60)

    def other():
        try:
            graph_of(work)
        except StandInError as error:
            errors.append(str(error))

    for beside in (lambda: StandInBackend().synchronize(CPU), lambda: graph_of(lambda: out.fill_(2))):
        began.clear(), ended.clear(), errors.clear()
        thread = threading.Thread(target=other)
        thread.start()
        began.wait(60)
        with pytest.raises(StandInError, match="not permitted while a stream is capturing"):
            beside()
        ended.set()
        thread.join()
        assert "the capture is invalid" in errors[0]
        StandInBackend().abandon(None, CPU)


def test_a_failed_capture_must_be_abandoned():
    backend, out = StandInBackend(), torch.zeros(3)

    def fails():
        raise ValueError

    with pytest.raises(ValueError):
        graph_of(fails)
    with pytest.raises(StandInError, match="assumes that the last capture, which failed, goes on"):
        graph_of(lambda: out.fill_(1))
    with pytest.raises(StandInError, match="cannot empty its cache"):
        backend.release(CPU)
    backend.abandon(None, CPU)
    backend.release(CPU)
    graph_of(lambda: out.fill_(1)).replay()


def test_it_refuses_a_tensor_of_the_host():
    host, out = on_host(torch.ones(3)), torch.zeros(3)
    with pytest.raises(StandInError, match="tensor on the host"):
        graph_of(lambda: out.copy_(host))
    StandInBackend().abandon(None, CPU)


def test_tensors_of_the_host():
    host, device = on_host(torch.arange(4)), torch.zeros(4, dtype=torch.long)
    assert host.device != device.device and host[1:].reshape(-1).device == host.device
    assert isinstance(host[2], HostTensor) and host[2].item() == 2 and host.tolist() == [0, 1, 2, 3]
    assert type(torch.empty_like(host, device=device.device)) is torch.Tensor
    HostTensor.waits = 0
    assert type(host.to(device.device)) is torch.Tensor and HostTensor.waits == 1
    device.copy_(host)
    torch._foreach_copy_([device], [host])
    assert HostTensor.waits == 3 and device.tolist() == [0, 1, 2, 3] and type(device) is torch.Tensor
