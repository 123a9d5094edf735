"""Calls that cannot be captured still run, and warn once."""

import logging

import pytest
import torch
from support.small import ATTENDED, LoopPipe, captured, graphs_of, loop_pipe, make_unet

from stepcache import accelerate, last_run
from stepcache.graphs.standin import StandInBackend


class Failing(StandInBackend):
    """`works` captures succeed and the next one fails: before, in or after the call of the function."""

    def record(self, function, pool, device):
        if len(self.graphs) < self.works:
            return super().record(function, pool, device)

        def fails():
            if self.calls:
                function()
            raise self.error

        if self.calls == 2:
            function()
            raise self.error
        return super().record(fails, pool, device)


@pytest.mark.parametrize("works", [0, 1], ids=["full", "partial"])
@pytest.mark.parametrize(
    "calls, error", enumerate([RuntimeError("not permitted"), torch.OutOfMemoryError("17 GiB"), ValueError("x")])
)
def test_a_failed_capture_runs_on_uncaptured(works, calls, error, caplog):
    backend = type("B", (Failing,), {"error": error, "works": works, "calls": calls})
    pipe = loop_pipe("least", **ATTENDED)
    want = accelerate(pipe, 3)(7)
    accelerate(pipe, 3, cuda_graphs=backend)
    for _ in range(2):
        assert torch.equal(pipe(7), want)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and str(error) in warnings[0] and "2x4x16x16" in warnings[0]
    (graphs,) = graphs_of(pipe)
    assert graphs.failed and graphs.backend.released == 1 and not graphs._graphs
    assert last_run(pipe).static_bytes == 0


def check_fallback(pipe, want, caplog, message):
    for _ in range(2):
        assert torch.equal(pipe(6), want)
        assert last_run(pipe).captures == 0
    assert [message in r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [True]


def test_offloading_hooks_on_the_unet_are_not_captured(caplog):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    pipe = loop_pipe("least", **ATTENDED)
    want = accelerate(pipe, 3)(6)
    captured(pipe, 3)
    add_hook_to_module(pipe.unet, ModelHook())
    check_fallback(pipe, want, caplog, "Offloading hooks move the U-Net")
    remove_hook_from_module(pipe.unet)
    pipe(6)
    assert last_run(pipe).captures == 2


def test_offloading_hooks_on_layers_are_not_captured(caplog):
    from accelerate.hooks import ModelHook, add_hook_to_module

    pipe = loop_pipe("least", **ATTENDED)
    want = accelerate(pipe, 3)(6)
    captured(pipe, 3)
    add_hook_to_module(pipe.unet.conv_in, ModelHook())
    check_fallback(pipe, want, caplog, "on the layers of the U-Net")


def test_training_mode_is_not_captured(caplog):
    pipe = loop_pipe("least", **ATTENDED)
    want = accelerate(pipe, 3)(6)
    captured(pipe, 3)
    pipe.unet.train()
    check_fallback(pipe, want, caplog, "training mode")


def test_gradients_on_is_not_captured(caplog):
    class WithGrad(LoopPipe):
        __call__ = LoopPipe.__call__.__wrapped__

    pipe = WithGrad(make_unet("least", **ATTENDED), loop_pipe("least", **ATTENDED).scheduler)
    want = accelerate(pipe, 3)(6)
    captured(pipe, 3)
    check_fallback(pipe, want, caplog, "Gradients are enabled")
