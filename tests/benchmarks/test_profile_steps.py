from types import SimpleNamespace

import pytest
from support.small import make_unet
from torch.autograd import DeviceType

from benchmarks.engine import profile_steps
from benchmarks.engine.profile_steps import Span, longest, spans_of, union
from stepcache.bench.rows import read
from stepcache.run.attach import attachment_of
from stepcache.settings import Settings


def event(name, start, end, device=DeviceType.CPU, parent=None, annotation=False):
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(
        name=name, time_range=span, device_type=device, cpu_parent=parent, is_user_annotation=annotation
    )


EVENTS = [
    event("aten::conv2d", 0, 9),
    event("aten::cudnn_convolution", 1, 8, parent=object()),
    event("cudaLaunchKernel", 2, 3, parent=object()),
    event("cudaGraphLaunch", 20, 25),
    event("cuLaunchKernelEx", 26, 27),
    event("cudaMemcpyAsync", 27, 28),
    event("cudaStreamSynchronize", 28, 90),
    event("Torch-Compiled Region: 0/0", 0, 90, DeviceType.CUDA, annotation=True),
    event("gemm", 4, 14, DeviceType.CUDA),
    event("norm", 30, 50, DeviceType.CUDA),
    event("Memcpy DtoD (Device -> Device)", 40, 60, DeviceType.CUDA),
]


def test_kernels_and_launches_of_a_gpus_profile():
    spans, launches = spans_of(EVENTS, cuda=True)
    assert [span.name for span in spans] == ["gemm", "norm", "Memcpy DtoD (Device -> Device)"]
    assert launches == 4
    assert union(spans) == 10 + 30


def test_without_a_gpu_outermost_operators_take_the_place_of_kernels():
    spans, _ = spans_of(EVENTS, cuda=False)
    assert [span.name for span in spans] == ["aten::conv2d"]


def test_overlapping_spans_count_once():
    assert union([]) == 0
    assert union([Span("b", 5, 6), Span("a", 0, 10), Span("c", 9, 12), Span("d", 20, 21)]) == 13


def test_the_longest_are_summed_by_name():
    spans = [Span("short", 0, 1000), Span("long", 0, 1500), Span("short", 0, 1000), Span("rest", 0, 10)]
    assert longest(spans, 2, limit=2) == "1.000 ms in 1 of short; 0.750 ms in 0.5 of long"


def test_a_small_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(profile_steps.torch.cuda, "is_available", lambda: False)
    make_unet("sdxl").save_config(tmp_path)
    model, path = str(tmp_path / "config.json"), tmp_path / "rows.csv"
    options = ["--model", model, "--latent", "8", "--steps", "2", "--out", str(path)]
    profile_steps.main([*options, "--variants", "eager", "captured"])
    rows = read(path, profile_steps.Row)
    assert [(row.variant, row.kind) for row in rows] == [("eager", "full"), ("eager", "partial")]
    for row in rows:
        assert (row.model, row.weights, row.latent, row.batch, row.unit) == (model, "random", 8, 1, "operators")
        assert row.busy_ms > 0 and 0 < row.wall_ms_p20 <= row.wall_ms <= row.wall_ms_p80
        assert row.launches is None and row.gap_ms is None
        assert " of aten::" in row.top
    full, partial = rows
    assert 0 < partial.count < full.count
    printed = capsys.readouterr().out
    assert "captured: not run, since CUDA graphs need a CUDA GPU" in printed
    assert "No CUDA GPU here" in printed
    monkeypatch.setattr(profile_steps, "measure", lambda *args: rows)
    profile_steps.main([*options, "--variants", "eager", "--append"])
    assert len(read(path, profile_steps.Row)) == 4


def test_the_loop_is_left_as_it_was(tmp_path):
    make_unet("least").save_config(tmp_path)
    loop = profile_steps.Loop(str(tmp_path / "config.json"), 8, 2, "cpu", profile_steps.torch.float32)
    rows = profile_steps.measure(loop, "least", "eager", branch=1, steps=1)
    assert [(row.batch, row.branch) for row in rows] == [(2, 1), (2, 1)]
    assert attachment_of(loop) is None and "forward" not in vars(loop.unet)


def test_the_variants_are_settings_that_accelerate_takes():
    for settings in profile_steps.VARIANTS.values():
        Settings.check(3, 0, **settings)


def test_on_a_gpu_a_step_is_timed_between_events_with_the_host_ahead(monkeypatch):
    """On a stand-in: full steps take 4 ms on the device, partial ones 1; the host does not wait before them."""
    log, clock = [], [0.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock[0]
            log.append("event")

        def elapsed_time(self, other):
            return other.at - self.at

    class Loop:
        latents = SimpleNamespace(is_cuda=True)

        def __call__(self, steps):
            for step in range(steps):
                kind = "F" if step < steps // 2 else "P"
                clock[0] += {"F": 4.0, "P": 1.0}[kind]
                log.append(kind)
                yield

    monkeypatch.setattr(profile_steps.torch.cuda, "Event", Event)
    monkeypatch.setattr(profile_steps.torch.cuda, "synchronize", lambda: log.append("wait"))
    assert profile_steps._walls(Loop(), 3) == pytest.approx([0.012, 0.003])
    half = ["event", *["x"] * 3, "event", "wait"]
    assert log == [step.replace("x", kind) for kind in "FP" for step in [kind, kind, *half]]
