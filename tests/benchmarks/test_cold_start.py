"""The measurement of calls and of their host cost, on packages."""

import pytest
import torch
from support.packages import HOW, pipe
from support.small import generate

from benchmarks.engine.cold_start import calls_of, host_us, native_code_at_once
from stepcache import accelerate
from stepcache.graphs.unet import UNetGraphs
from stepcache.packages.loaded import Package


@pytest.mark.slow
def test_calls_and_their_host_cost(packages, monkeypatch):
    made = pipe()
    accelerate(made, **HOW, compiled=packages, compiled_only=True)
    before, run = UNetGraphs.run, Package.run
    calls = calls_of(made, lambda: generate(made))
    assert set(calls) == {"full", "partial"} and UNetGraphs.run is before
    want = calls["partial"]()
    runs = []
    monkeypatch.setattr(Package, "run", lambda self, tensors: runs.append(self) or run(self, tensors))
    with native_code_at_once():
        assert all(torch.equal(calls["partial"](), want) for _ in range(3))
    assert len(runs) == 1
    calls["partial"]()
    assert len(runs) == 2
    host = host_us(made, lambda: generate(made))
    assert set(host) == {"full", "partial"} and all(value > 0 for value in host.values())
