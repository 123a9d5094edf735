"""Joins are chosen by measurement. Everything is real but the clock, a stand-in that knows which calls use the ops."""

import math
from contextlib import ExitStack, contextmanager
from importlib import import_module
from unittest import mock

import pytest
import torch
from support.small import NO_ATTENTION, ONE_LEVEL, demo_pipe, engine_of, generate, loop_pipe, tiny_pipe

from stepcache import accelerate, last_run, restore, warmup
from stepcache.graphs import tuning
from stepcache.graphs.settings import GraphSettings
from stepcache.graphs.standin import StandInBackend
from stepcache.graphs.tuning import Judge
from stepcache.graphs.verdict_file import COLUMNS, JOINS, Setup, from_csv
from stepcache.graphs.verdicts import Verdicts

SETUP = Setup("A card", "2.13.0", "3.9.0", "0.1.0")
NONE = ",".join(COLUMNS) + "\n"


@contextmanager
def counted_ops():
    """The names of the ops as they run, in compiled graphs too: their CPU functions are recorded."""
    names = []

    def noting(name, function):
        return lambda *args: names.append(name) or function(*args)

    with ExitStack() as stack:
        for name in ("cat_group_norm_silu", "dual_conv1x1"):
            module = import_module(f"stepcache.kernels.{name}.op")
            reference = f"{name}_reference"
            stack.enter_context(mock.patch.object(module, reference, noting(name, getattr(module, reference))))
        yield names


class StandInTimer:
    """Runs each call once, and returns `us(shape of the hidden state, whether it is on the ops)`."""

    def __init__(self, us):
        self.us, self.timed = us, []

    def sets(self, nbytes):
        return 3

    def times_us(self, call, inputs):
        pointers = {tensor.data_ptr() for _, hidden, skip, _ in inputs for tensor in (*buffers_of(hidden), skip)}
        assert all(given[1].weights.any() for given in inputs if hasattr(given[1], "weights"))
        assert len(inputs) == 3 and len(pointers) == 3 * (1 + len(buffers_of(inputs[0][1])))
        with counted_ops() as ops:
            for given in inputs:
                call(*given)
        on_ops = bool(ops)
        assert ops == ["cat_group_norm_silu", "dual_conv1x1"] * 3 * on_ops
        hidden = buffers_of(inputs[0][1])[0]
        self.timed.append((tuple(hidden.shape), len(buffers_of(inputs[0][1])), on_ops))
        us = self.us(tuple(hidden.shape), on_ops)
        return [us, us + 100, us]  # of which the median counts


def buffers_of(hidden):
    return hidden.buffers if hasattr(hidden, "buffers") else (hidden,)


def judge(folder, us=lambda shape, on_ops: 1.0 if on_ops else 2.0):
    return Judge(Verdicts(SETUP, NONE, folder), StandInTimer(us))


def large_only(shape, on_ops):
    """The ops win above 64 pixels."""
    return 10.0 if on_ops == (shape[2] * shape[3] > 64) else 20.0


EAGER = {"compile": {"backend": "eager"}}
CAPTURED = {"cuda_graphs": StandInBackend}
COMPILED = {**EAGER, **CAPTURED}


def small_pipe():
    """Four joins: two of 8 x 8 and two of 16 x 16."""
    return tiny_pipe(unet=NO_ATTENTION)


@pytest.fixture
def eager_joins(monkeypatch):
    """Run the measured joins eager, which this clock does not notice. Tests without this fixture compile them."""
    monkeypatch.setattr(tuning, "_compiled", lambda join, what, options: join)


def ops_in_a_call(pipe, *args):
    """How many joins are on the ops in a call that is not captured."""
    with counted_ops() as ops:
        generate(pipe, *args)
    return ops.count("cat_group_norm_silu")


def test_a_warm_up_measures_and_the_graphs_are_made_of_what_won(tmp_path):
    the_judge = judge(tmp_path, large_only)
    pipe = accelerate(small_pipe(), 3, kernels=the_judge, **EAGER)
    record = warmup(pipe, 64, 64, progress=False)
    assert record.joins_measured == len(the_judge.seen) == 4 and len(the_judge.timer.timed) == 2 * 4
    assert {(shape.height, shape.width) for shape in the_judge.verdicts.for_triton} == {(16, 16)}
    assert len(the_judge.verdicts.for_triton) == 2
    assert ops_in_a_call(pipe) == 2 * 2 + 4 * 1  # FPPFPP: two in a full step, one in a partial one
    assert last_run(pipe).joins_measured == 0 and last_run(pipe).compile_seconds == 0


@pytest.mark.usefixtures("eager_joins")
def test_the_next_process_measures_nothing(tmp_path):
    first = judge(tmp_path, large_only)
    warmup(accelerate(small_pipe(), 3, kernels=first, **CAPTURED), 64, 64, progress=False)
    second = judge(tmp_path)
    want = generate(accelerate(small_pipe(), 3))
    pipe = accelerate(small_pipe(), 3, kernels=second, **EAGER)
    torch.testing.assert_close(generate(pipe), want, rtol=1e-4, atol=1e-4)  # not warmed up: uses known verdicts
    assert ops_in_a_call(pipe) > 0
    assert warmup(pipe, 64, 64, progress=False).joins_measured == 0
    assert second.timer.timed == [] and second.verdicts.for_triton == first.verdicts.for_triton


def test_without_a_warm_up_nothing_is_measured(tmp_path):
    the_judge = judge(tmp_path)
    pipe = accelerate(small_pipe(), 3, kernels=the_judge, **EAGER)
    assert ops_in_a_call(pipe) == 0
    assert warmup(pipe, 64, 64, tune=False, progress=False).joins_measured == 0
    assert the_judge.timer.timed == [] and not the_judge.verdicts.path.exists()


@pytest.mark.usefixtures("eager_joins")
def test_a_warm_up_after_the_first_call_changes_its_graphs(tmp_path):
    pipe = accelerate(small_pipe(), 3, kernels=judge(tmp_path), **CAPTURED)
    want = generate(pipe)
    before = engine_of(pipe).unet_graphs.buckets.held
    assert last_run(pipe).captures == 2 and len(before) == 1
    record = warmup(pipe, 64, 64, progress=False)
    assert record.joins_measured > 0 and record.captures == 2  # again, on the ops
    torch.testing.assert_close(generate(pipe), want, rtol=1e-4, atol=1e-4)
    assert last_run(pipe).captures == 0
    # Nothing is measured twice, and unchanged graphs are not made again.
    assert warmup(pipe, 64, 64, progress=False).captures == 0


@pytest.mark.usefixtures("eager_joins")
def test_where_torch_wins_the_graphs_stay(tmp_path):
    pipe = accelerate(small_pipe(), 3, kernels=judge(tmp_path, lambda shape, on_ops: 2.0 - (not on_ops)), **COMPILED)
    want = generate(pipe)
    record = warmup(pipe, 64, 64, progress=False)
    assert record.joins_measured > 0 and record.captures == 0 and record.compile_seconds == 0
    assert torch.equal(generate(pipe), want)


@pytest.mark.usefixtures("eager_joins")
def test_what_is_known_of_other_sizes_changes_no_graph(tmp_path):
    the_judge = judge(tmp_path, lambda shape, on_ops: 1.0 if on_ops == (shape[2] in (6, 12)) else 2.0)
    pipe = accelerate(small_pipe(), 3, kernels=the_judge, **CAPTURED)
    warmup(pipe, 48, 64, progress=False)
    assert the_judge.verdicts.for_triton
    generate(pipe)
    record = warmup(pipe, 64, 64, progress=False)
    assert record.joins_measured > 0 and record.captures == 0


@pytest.mark.usefixtures("eager_joins")
def test_an_evicted_bucket_comes_back_as_it_was_compiled(tmp_path):
    """Measuring for one size must not drop what was compiled for another."""
    the_judge = judge(tmp_path)
    pipe = accelerate(small_pipe(), 3, max_buckets=1, kernels=the_judge, **COMPILED)
    warmup(pipe, 64, 64, progress=False)
    known = the_judge.verdicts.for_triton
    warmup(pipe, 48, 64, progress=False)
    assert the_judge.verdicts.for_triton > known
    generate(pipe)
    assert last_run(pipe).captures == 2 and last_run(pipe).compile_seconds == 0


@pytest.mark.usefixtures("eager_joins")
def test_the_blends_of_a_prediction_are_joins_of_their_own(tmp_path):
    the_judge = judge(tmp_path)
    want = generate(accelerate(small_pipe(), 3, predict="linear"))
    pipe = accelerate(small_pipe(), 3, predict="linear", kernels=the_judge, **CAPTURED)
    warmup(pipe, 64, 64, progress=False)
    assert [shape.buffers for shape in the_judge.seen].count(2) == 1
    torch.testing.assert_close(generate(pipe), want, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("eager_joins")
def test_with_guidance_reused_partial_steps_have_half_the_batch(tmp_path):
    the_judge = judge(tmp_path)
    warmup(accelerate(small_pipe(), 3, guidance="reuse", kernels=the_judge, **CAPTURED), 64, 64, progress=False)
    assert {shape.batch for shape in the_judge.seen} == {1, 2}


def test_a_wrong_result_is_never_chosen(tmp_path, monkeypatch, caplog):
    def broken(wanted):
        def join(resnet, hidden, skip, temb):
            result = tuning.reference_join(resnet, hidden, skip, temb)
            return result * (math.nan if skip.shape[-1] == 8 else 2)

        return join

    monkeypatch.setattr(tuning, "fused_join", broken)
    the_judge = judge(tmp_path)
    pipe = accelerate(small_pipe(), 3, kernels=the_judge, **EAGER)
    assert warmup(pipe, 64, 64, progress=False).joins_measured > 0
    assert the_judge.timer.timed == [] and ops_in_a_call(pipe) == 0
    assert "runs without the Triton ops: wrong: error" in caplog.text
    again = judge(tmp_path)  # the next process knows it too
    assert again.verdicts.for_triton == frozenset()
    assert all(again.verdicts.get(shape).status.startswith("wrong") for shape in the_judge.seen)


@pytest.mark.usefixtures("eager_joins")
@pytest.mark.parametrize("mixed_up", ["buffers", "weights", "halves"])
def test_a_join_that_mixes_up_a_blend_is_never_chosen(mixed_up, tmp_path, monkeypatch):
    def broken(wanted):
        def join(resnet, hidden, skip, temb):
            if hasattr(hidden, "buffers"):
                buffers = hidden.buffers[:1] * len(hidden.buffers) if mixed_up == "buffers" else hidden.buffers
                weights = {"weights": hidden.weights.flip(1), "halves": hidden.weights * torch.tensor([[1.0], [0.0]])}
                hidden = hidden._replace(buffers=buffers, weights=weights.get(mixed_up, hidden.weights))
            return tuning.reference_join(resnet, hidden, skip, temb)

        return join

    monkeypatch.setattr(tuning, "fused_join", broken)
    the_judge = judge(tmp_path)
    monkeypatch.setattr(the_judge.timer, "times_us", lambda call, inputs: [1.0])
    warmup(accelerate(small_pipe(), 3, predict=(1, -0.25), kernels=the_judge, **CAPTURED), 64, 64, progress=False)
    found = [(shape.buffers, the_judge.verdicts.get(shape).status) for shape in the_judge.seen]
    assert all(status.startswith("wrong: error") if buffers == 4 else status == "ok" for buffers, status in found)
    assert {buffers for buffers, _ in found} == {0, 4}  # two buffers, each for its own half and for the other


def test_what_cannot_be_measured_runs_without_and_is_tried_again(tmp_path, caplog):
    def fails(shape, on_ops):
        raise torch.OutOfMemoryError("no memory for it")

    the_judge = judge(tmp_path, fails)
    pipe = accelerate(tiny_pipe(unet=ONE_LEVEL), 3, kernels=the_judge, **EAGER)
    assert warmup(pipe, 64, 64, progress=False).joins_measured == 0
    assert "could not be measured (OutOfMemoryError: no memory for it)" in caplog.text
    assert ops_in_a_call(pipe) == 0
    the_judge.timer.us = large_only
    assert warmup(pipe, 64, 64, progress=False).joins_measured > 0


def test_without_memory_to_look_for_joins_the_warm_up_goes_on(tmp_path, monkeypatch, caplog):
    def no_memory(*args):
        raise torch.OutOfMemoryError("20 GiB")

    monkeypatch.setattr("stepcache.graphs.unet.calls_of_joins", no_memory)
    record = warmup(accelerate(small_pipe(), 3, kernels=judge(tmp_path), **CAPTURED), 64, 64, progress=False)
    assert record.joins_measured == 0 and record.captures == 2
    assert "Not enough memory to find the joins" in caplog.text


@pytest.mark.usefixtures("eager_joins")
def test_the_pipe_is_as_it_was(tmp_path):
    pipe = accelerate(small_pipe(), 3, kernels=judge(tmp_path), **CAPTURED)
    before = {name: (p.data_ptr(), p._version, p.requires_grad) for name, p in pipe.unet.named_parameters()}
    numbers = torch.get_rng_state()
    warmup(pipe, 64, 64, progress=False)
    assert {name: (p.data_ptr(), p._version, p.requires_grad) for name, p in pipe.unet.named_parameters()} == before
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.usefixtures("eager_joins")
def test_hooks_and_training_measure_nothing(tmp_path):
    the_judge = judge(tmp_path)
    pipe = accelerate(small_pipe(), 3, kernels=the_judge, **CAPTURED)
    handle = pipe.unet.up_blocks[0].resnets[0].register_forward_hook(lambda *args: None)
    assert warmup(pipe, 64, 64, progress=False).joins_measured == 0
    handle.remove()
    pipe.unet.train()
    assert warmup(pipe, 64, 64, progress=False).joins_measured == 0


@pytest.mark.usefixtures("eager_joins")
def test_the_bar_says_which_join_of_how_many(tmp_path, capsys):
    warmup(accelerate(small_pipe(), kernels=judge(tmp_path), **CAPTURED), 64, 64)
    shown = capsys.readouterr().err
    assert "join 1 of " in shown and ": measuring" in shown


def test_every_join_is_found_by_the_shape_that_its_graphs_ask_for(tmp_path):
    """In the weights' layout, not the activations', which differs between eager and compiled graphs."""
    the_judge = judge(tmp_path)
    for channels_last in (False, True):
        options = {"kernels": the_judge, "channels_last": channels_last, "predict": "linear"}
        pipe = accelerate(loop_pipe("least", **ONE_LEVEL), 2, **EAGER, **options)
        token = tuning.tuning_wanted.set(True)
        try:
            want = pipe(3)
        finally:
            tuning.tuning_wanted.reset(token)
        asked = len(the_judge.timer.timed)
        layouts = {shape.layout for shape in the_judge.seen}
        assert layouts == ({"contiguous", "channels_last"} if channels_last else {"contiguous"})
        with counted_ops() as ops:
            got = pipe(3)
        torch.testing.assert_close(got, want)
        # The ops always win here, so every join of both graphs uses them.
        full = sum(len(block.resnets) for block in pipe.unet.up_blocks)
        assert ops.count("cat_group_norm_silu") == 2 * full + 1
        assert len(the_judge.timer.timed) == asked


# Which judge decides, on which device.


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "A card")


def test_who_decides_on_cuda(a_gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("STEPCACHE_CACHE", str(tmp_path))
    cuda = torch.device("cuda", 1)
    decides = GraphSettings().judge(cuda)
    assert decides.verdicts.setup.gpu == "A card" and decides.verdicts.setup.torch == torch.__version__
    assert decides.verdicts.setup.stepcache == JOINS
    assert decides.timer.device == cuda
    assert GraphSettings().judge(torch.device("cuda", 0)).verdicts is decides.verdicts  # one file, read once
    assert GraphSettings(compile={"mode": "reduce-overhead"}).judge(cuda) is not None
    # Verdicts hold for graphs that Inductor compiles and that are captured.
    for settings in (
        GraphSettings(kernels=True), GraphSettings(kernels=False), GraphSettings(compile=False),
        GraphSettings(cuda_graphs=False), GraphSettings(compile="regional"),
        GraphSettings(compile={"backend": "aot_eager"}),
    ):  # fmt: skip
        assert settings.judge(cuda) is None
    assert GraphSettings().judge(torch.device("cpu")) is None


@pytest.mark.gpu
def test_a_warm_up_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("STEPCACHE_CACHE", str(tmp_path))
    pipe = demo_pipe().to("cuda")
    try:
        want = generate(accelerate(pipe, 3, compile=False, cuda_graphs=False))
        accelerate(pipe, 3)
        record = warmup(pipe, 64, 64, progress=False)
        verdicts = from_csv((tmp_path / "joins.csv").read_text())
        assert record.joins_measured == len(verdicts) > 3
        for verdict in verdicts:
            assert verdict.status == "ok" and verdict.shape.layout == "channels_last", verdict
            assert 1 < verdict.triton_us < 1e4 and 1 < verdict.inductor_us < 1e4, verdict
        got = generate(pipe)
        assert (got - want).abs().max() <= 1e-2 * want.abs().max()
        assert last_run(pipe).captures == 0
        assert warmup(pipe, 64, 64, progress=False).joins_measured == 0
    finally:
        restore(pipe)
        pipe.to("cpu")
