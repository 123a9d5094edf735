"""The kernel benchmarks on a stand-in for torch.cuda: which results are right, what is timed and how."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from benchmarks import OUT_OF_TIME
from benchmarks.kernels import bench as kernel_bench
from benchmarks.kernels.bench import KernelRow, OpCase, Wrong, errors_of, joins
from stepcache.bench.repeats import Spread
from stepcache.bench.rows import read
from stepcache.graphs import backends, replays
from stepcache.graphs.replays import CALLS, REPLAYS, calls_in_graph, copies_beyond_l2, times_us


class Cuda:
    """Stands in for torch.cuda: records the order of operations, on its own clock in milliseconds.

    A replay takes as long as the calls that were captured, and a call `call_ms` on the device; outside of a capture a
    call costs the host 50 times as much.
    """

    def __init__(self):
        self.now, self.log, self.capturing, self.captured = 0.0, [], False, []
        self.on = self._stream("user")
        self.Stream, self.current_stream = lambda device: self._stream("side"), lambda: self.on
        self.device = lambda device: nullcontext()
        self.graph_pool_handle = lambda: "pool"
        self.is_current_stream_capturing = lambda: self.capturing
        self.empty_cache = lambda: self.log.append("empty cache")
        self.synchronize = lambda: self.log.append("synchronize")
        self.current_device = lambda: 0

    def _stream(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"))

    def set_stream(self, stream):
        self.on = stream
        self.log.append(f"back on {stream.name}")

    @contextmanager
    def stream(self, stream):
        self.on = stream
        yield

    def call(self, *inputs, call_ms=0.004):
        if self.capturing:
            self.captured.append((inputs, call_ms))
        else:
            self.now += 50 * call_ms
            self.log.append("call")

    def CUDAGraph(self):
        def replay():
            self.now += sum(call_ms for _, call_ms in self.captured)
            self.log.append("replay")

        return SimpleNamespace(replay=replay, reset=lambda: self.log.append("reset"))

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        self.capturing = True
        self.log.append(f"capture on {stream.name}")
        try:
            yield
        finally:
            self.capturing = False

    def Event(self, enable_timing):
        assert enable_timing
        event = SimpleNamespace(at=None)

        def record():
            event.at = self.now
            self.log.append("event")

        event.record, event.elapsed_time = record, lambda other: other.at - event.at
        return event


@pytest.fixture
def cuda(monkeypatch):
    fake = Cuda()
    own = SimpleNamespace(
        _cuda_clearCublasWorkspaces=lambda: fake.log.append("clear workspaces"),
        _cuda_endAllocateToPool=lambda device, pool: None,
        _cuda_releasePool=lambda device, pool: fake.log.append("release pool"),
    )
    for module in (replays, backends):
        monkeypatch.setattr(module, "torch", SimpleNamespace(cuda=fake, device=torch.device, _C=own))
    monkeypatch.setattr(backends, "_capture_streams", {})
    return fake


def test_a_calls_time_is_a_replays_over_its_calls(cuda):
    assert times_us(cuda.call, [(1,), (2,), (3,)]) == pytest.approx([4.0] * REPLAYS)  # and not the host's 200
    inputs = [given for given, _ in cuda.captured]
    assert inputs[:4] == [(1,), (2,), (3,), (1,)] and len(inputs) == 51  # all sets equally often
    first = cuda.log.index("capture on side")
    assert cuda.log[:first] == ["side waits for user", *["call"] * 3 * 51, "clear workspaces"]
    assert cuda.log[first + 1 :] == [
        "clear workspaces", "back on user", "user waits for side", "event", *["replay", "event"] * (REPLAYS + 1),
        "synchronize", "reset", "empty cache",
    ]  # fmt: skip


def test_the_first_replay_does_not_count(cuda):
    graph = cuda.CUDAGraph

    def slow_at_first():
        made = graph()
        again, made.replay = made.replay, lambda: setattr(cuda, "now", cuda.now + 1000) or first_over()

        def first_over():
            made.replay = again
            again()

        return made

    cuda.CUDAGraph = slow_at_first
    assert times_us(cuda.call, [(1,)]) == pytest.approx([4.0] * REPLAYS)


def test_where_a_capture_fails_the_stream_is_the_users_again(cuda):
    def fails(*inputs):
        if cuda.capturing:
            raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        times_us(fails, [(1,)])
    assert cuda.log[-3:] == ["release pool", "clear workspaces", "back on user"]


def test_inputs_go_beyond_twice_the_l2_cache(monkeypatch):
    properties = SimpleNamespace(L2_cache_size=50 << 20)
    fake = SimpleNamespace(get_device_properties=lambda device: properties, current_device=lambda: 0)
    monkeypatch.setattr(replays, "torch", SimpleNamespace(cuda=fake, device=torch.device))
    assert copies_beyond_l2(1 << 20) == 101 and copies_beyond_l2(1 << 30) == 2
    for sets in (1, 2, 7, 50, 101):
        calls = calls_in_graph(sets)
        assert calls >= CALLS and calls % sets == 0 and calls < CALLS + sets + 1


# What is right.


def test_a_result_is_held_to_the_stock_operations_error():
    exact = (torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0]).double())
    stock = (torch.tensor([1.0, 2.01]), torch.tensor([3.1]))
    assert errors_of((torch.tensor([1.015, 2.0]),), stock, exact) == pytest.approx((0.015, 0.01), abs=1e-6)
    assert errors_of((torch.tensor([1.0, 2.0]), torch.tensor([3.15])), stock, exact) == pytest.approx(
        (0.15, 0.1), abs=1e-6
    )
    for wrong in ((torch.tensor([1.03, 2.0]),), (torch.tensor([1.0, float("nan")]),), (torch.tensor([1.0]),)):
        with pytest.raises(Wrong):
            errors_of(wrong, stock, exact)
    with pytest.raises(Wrong, match=r"error 0\.5 against"):
        errors_of((torch.tensor([1.0, 2.0]), torch.tensor([3.5])), stock, exact)  # the second tensor counts too


RED_JOIN = "sdxl join 2: 640+320->320 at 128x128"


def case(join, dtype, off=0.0, rival=lambda x: (x * 2, x + 1)):
    return OpCase(
        join=join,
        dtype=dtype,
        inputs=lambda: (torch.ones(4, dtype=dtype),),
        variants={"triton + shortcut": lambda x: (x * 2, x + 1 + off), "inductor": rival},
        stock=lambda x: (x * 2, x + 1),
        bytes_needed=dict.fromkeys(("triton + shortcut", "inductor"), 16),
    )


def fine(join, dtype, device):
    return case(join, dtype)


def with_faults(join, dtype, device):
    """stepcache is wrong at one join, the rival cannot run at another, and a third has no inputs."""

    def cannot(x):
        raise RuntimeError("does\nnot compile")

    if (join.model, join.index) == ("sdxl", 5):
        raise torch.OutOfMemoryError("20 GiB")
    if (join.model, join.index) == ("sd15", 0):
        return case(join, dtype, rival=cannot)
    return case(join, dtype, off=0.5 if str(join) == RED_JOIN else 0.0)


@pytest.fixture
def timed(monkeypatch):
    monkeypatch.setattr(kernel_bench, "time_us", lambda call, inputs: Spread(2.0, 1.0, 3.0))
    monkeypatch.setattr(kernel_bench, "copy_us", lambda nbytes: 1.5)
    monkeypatch.setattr(kernel_bench, "copies_beyond_l2", lambda size: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100")


def test_a_red_join_is_named_and_left_out_and_the_others_go_on(timed, tmp_path, capsys):
    out = tmp_path / "bench_cat_group_norm_silu.csv"
    with pytest.raises(SystemExit, match=r"^op: 6 wrong or failed: "):  # three in each of two dtypes
        kernel_bench.main("op", with_faults, ["--out", str(out)])
    rows = read(out, KernelRow)
    assert len(rows) == 2 * 2 * 20  # variants, dtypes, all joins but the one without inputs
    red = [row for row in rows if row.status != "ok"]
    assert {(row.model, row.join, row.variant, row.status) for row in red} == {
        ("sdxl", 2, "triton + shortcut", "wrong: error 0.5 against 0 of the stock operations"),
        ("sd15", 0, "inductor", "failed: RuntimeError: does not compile"),
    }
    assert all(row.us is row.share is row.gb_per_s is None for row in red)
    assert all(row.us == 2.0 and row.error == 0 for row in rows if row.status == "ok")
    assert [row.dtype for row in rows] == ["float16"] * 40 + ["bfloat16"] * 40
    largest = max((j for model in kernel_bench.MODELS for j in joins(model)), key=lambda j: j.concat_elements)
    assert (rows[0].model, rows[0].join) == (largest.model, largest.index)
    printed = capsys.readouterr().out
    assert f"RED {RED_JOIN}, float16, triton + shortcut: wrong: error 0.5" in printed
    assert "RED sdxl join 5: 1280+640->640 at 64x64, float16: failed: OutOfMemoryError: 20 GiB" in printed
    assert all(row.share == 0.75 for row in rows if row.status == "ok")


def test_it_ends_when_its_seconds_are_over_and_is_continued(timed, tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.csv"
    now = iter(range(100))
    monkeypatch.setattr(kernel_bench.time, "monotonic", lambda: next(now))
    with pytest.raises(SystemExit) as ended:
        kernel_bench.main("op", fine, ["--out", str(out), "--seconds", "4"])
    assert ended.value.code == OUT_OF_TIME
    assert "no time was left for 39 more joins and dtypes" in capsys.readouterr().out
    assert len(read(out, KernelRow)) == 2 * 3
    kernel_bench.main("op", fine, ["--out", str(out), "--continue"])
    rows = read(out, KernelRow)
    assert len(rows) == len({(row.model, row.join, row.dtype, row.variant) for row in rows}) == 2 * 42

    made = []
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    kernel_bench.main("op", lambda *args: made.append(args) or fine(*args), ["--out", str(out), "--continue"])
    assert len(made) == 42  # what another GPU measured is not kept


def test_a_dry_run_ends_red_where_a_variant_is_wrong(tmp_path, capsys):
    kernel_bench.main("op", fine, ["--dry-run", "--out", str(tmp_path / "rows.csv")])
    assert "op: 21 joins agree in all variants" in capsys.readouterr().out
    assert not (tmp_path / "rows.csv").exists()
    with pytest.raises(SystemExit, match="21 wrong or failed"):
        kernel_bench.main("op", lambda join, dtype, device: case(join, dtype, off=0.5), ["--dry-run"])
    assert "joins agree" not in capsys.readouterr().out
