"""`run_grid` on a tiny pipeline: rows, file, failures, interrupt, deadline."""

import gc
import math
import time
import weakref
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionSAGPipeline
from support.bench_tiny import spec, tiny_model
from support.macs import macs_counted_once
from support.small import ONE_LEVEL, D, U, tiny_pipe
from tqdm import tqdm

from stepcache.bench import cell as cell_module
from stepcache.bench import grid
from stepcache.bench.rows import Rig, read
from stepcache.bench.schema import BenchRow
from stepcache.bench.table import COLUMNS, table
from stepcache.bench.variants import LADDER, Variant
from stepcache.errors import BranchOutOfRange, InvalidSetting, UnsupportedPipeline
from stepcache.images.make import Request
from stepcache.images.models import Model

EAGER, DEEPCACHE, STEPCACHE = (LADDER[key] for key in ("eager", "deepcache", "stepcache-eager"))
# As ONE_LEVEL, with the mid block that DeepCache needs.
WITH_MID = {"block_out_channels": (8,), "down_block_types": (D,), "up_block_types": (U,)}


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    with pytest.MonkeyPatch.context() as patch, macs_counted_once(grid):
        patch.setattr(grid, "load", lambda *args: tiny_model(**WITH_MID))
        yield


@pytest.fixture
def _soon_compiled(monkeypatch):
    monkeypatch.setattr(grid, "load", lambda *args: tiny_model(**ONE_LEVEL))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "rows.csv"
    variants = ["eager", "deepcache", "stepcache-eager", "stepcache-triton"]
    return grid.run_grid(spec(variants=variants, batches=[1, 2]), out), out


def of(rows, name, batch=1):
    return [row for row in rows if row.variant == name and row.batch == batch]


def test_the_file_has_the_rows_with_the_rig(measured):
    rows, out = measured
    assert read(out, BenchRow) == rows
    assert all(rig.torch == torch.__version__ for rig in read(out, Rig))


def test_each_variant_has_a_row_at_each_setting_and_eager_one(measured):
    rows, _ = measured
    assert [(row.batch, row.variant, row.interval, row.branch) for row in rows] == [
        (batch, name, *pair)
        for batch in (1, 2)
        for name, pair in [
            (EAGER, (None, None)),
            *((name, (3, 0)) for name in (DEEPCACHE, STEPCACHE, LADDER["stepcache-triton"])),
            *((name, (2, 1)) for name in (DEEPCACHE, STEPCACHE, LADDER["stepcache-triton"])),
        ]
    ]
    for row in rows:
        assert row.weights == "random" and row.dtype == "float32" and row.scheduler == "DDIMScheduler"
        assert (row.height, row.width, row.steps) == (64, 64, 4)


def test_what_was_measured_hangs_together(measured):
    rows, _ = measured
    for row in rows:
        if row.variant == LADDER["stepcache-triton"]:
            assert row.status == "not available: needs CUDA"
            assert row.repeats == 0 and row.pipeline_s is row.psnr is row.first_call_s is None
            continue
        assert row.status == "ok" and row.repeats == 2
        assert 0 < row.unet_s < row.pipeline_s
        assert row.pipeline_s_p20 <= row.pipeline_s <= row.pipeline_s_p80
        assert row.unet_s_p20 <= row.unet_s <= row.unet_s_p80
        assert row.share == pytest.approx(row.unet_speedup / row.flop_bound)
        assert row.peak_memory_mib is row.compile_s is row.graphs is None
    (eager,) = of(rows, EAGER)
    assert eager.speedup == eager.unet_speedup == eager.flop_bound == 1
    assert math.isinf(eager.psnr) and eager.ssim == 1 and eager.speedup_over_deepcache is None
    for ours, theirs in zip(of(rows, STEPCACHE), of(rows, DEEPCACHE), strict=True):
        assert ours.kinds == {3: "FPPF", 2: "FPFP"}[ours.interval] and theirs.kinds == ""
        assert ours.flop_bound == theirs.flop_bound > 1
        assert theirs.speedup_over_deepcache == 1 != ours.speedup_over_deepcache
        assert 5 < ours.psnr == pytest.approx(theirs.psnr, abs=0.01)
        assert ours.ssim == pytest.approx(theirs.ssim, abs=1e-3) and ours.ssim < 1


@pytest.mark.usefixtures("_soon_compiled")
def test_compiled_variants_say_what_compiling_took(tmp_path):
    rows = grid.run_grid(
        spec(variants=["stepcache-compiled", "stepcache-eager"], reuse=[(2, 0)], repeats=1), tmp_path / "rows.csv"
    )
    compiled, eager = rows
    assert compiled.mode == "default" and compiled.graphs == 2 and compiled.graphs_cached == 0
    assert compiled.compile_s == pytest.approx(compiled.first_call_s - compiled.pipeline_s)
    assert compiled.compile_s > eager.first_call_s
    assert compiled.speedup is compiled.psnr is compiled.share is None  # eager was not asked for
    assert compiled.flop_bound > 1
    assert compiled.reference == "stepcache eager" and 0 <= compiled.difference < 1e-3


@pytest.mark.usefixtures("_soon_compiled")
def test_every_size_is_compiled_for_itself(tmp_path):
    # As a user's first size. Otherwise Dynamo would make the second one's shapes dynamic.
    inputs = []

    def backend(graph, _):
        inputs.extend(node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder"))
        return graph

    two = spec(variants=["compile"], sizes=[(64, 64), (64, 72)], steps=2, repeats=1, backend=backend)
    rows = grid.run_grid(two, tmp_path / "rows.csv")
    assert [(row.height, row.width, row.graphs, row.status) for row in rows] == [(64, 64, 1, "ok"), (64, 72, 1, "ok")]
    assert inputs and not any(isinstance(each, torch.SymInt) for each in inputs)


def test_rows_are_added_to_a_file_that_is_there(tmp_path):
    out = tmp_path / "rows.csv"
    one = spec(variants=["eager"], repeats=1)
    # Without a size it is the model's own.
    rows = [*grid.run_grid(one, out), *grid.run_grid(replace(one, steps=2, sizes=()), out)]
    assert [row.steps for row in rows] == [4, 2] and read(out, BenchRow) == rows
    assert {(row.height, row.width) for row in rows} == {(64, 64)}


def test_a_variant_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    put_on = Variant.put_on

    def failing(self, pipe, backend):
        mine = put_on(self, pipe, backend)
        if self.key == "deepcache":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")
        if self.key == "stepcache-eager" and self.interval == 2:
            mine.scheduler = None
        return mine

    monkeypatch.setattr(Variant, "put_on", failing)
    rows = grid.run_grid(spec(repeats=1), tmp_path / "rows.csv")
    assert [row.status.split(":")[0] for row in rows] == [
        "ok", "out of memory, with 1 other variants held", "ok", "out of memory, with 1 other variants held", "failed",
    ]  # fmt: skip
    assert "CUDA out of memory. Tried to allocate 20 GiB" in rows[1].status
    assert rows[4].status.startswith("failed: UnsupportedPipeline: ") and "\n" not in rows[4].status
    assert rows[2].speedup is not None and rows[2].speedup_over_deepcache is None
    assert read(tmp_path / "rows.csv", BenchRow) == rows


FEWER, COMPILED_FEWER = LADDER["fewer-steps"], LADDER["compile+fewer-steps"]


def test_fewer_steps_are_the_most_that_cost_no_more(_soon_compiled, tmp_path, monkeypatch):
    timed, steps_of = cell_module.timed, {}

    def seen(call, pipe, clock, steps):
        run = timed(call, pipe, clock, steps)
        steps_of.setdefault(steps, set()).add((type(pipe.unet).__name__, run.unet_calls))
        return run

    put_on, made = Variant.put_on, []
    monkeypatch.setattr(Variant, "put_on", lambda self, *args: made.append(self.key) or put_on(self, *args))
    monkeypatch.setattr(cell_module, "timed", seen)
    keys = ["eager", "compile", "fewer-steps", "compile+fewer-steps", "stepcache-eager"]
    # One level has a partial step that costs nearly a full one.
    rows = grid.run_grid(spec(variants=keys, reuse=[(4, 0)], steps=9, scheduler="heun"), tmp_path / "rows.csv")
    assert [row.status for row in rows] == ["ok"] * 5
    fewer, compiled = of(rows, FEWER)[0], of(rows, COMPILED_FEWER)[0]
    ours = of(rows, STEPCACHE)[0]
    assert 1 < fewer.fewer == compiled.fewer < 9 and ours.fewer is None
    # Heun calls the U-Net 2n - 1 times in n steps: the next number of steps would cost more than reuse.
    assert 17 / (2 * fewer.fewer + 1) < ours.flop_bound <= 17 / (2 * fewer.fewer - 1) == fewer.flop_bound
    assert steps_of[fewer.fewer] == {("UNet2DConditionModel", calls := 2 * fewer.fewer - 1), ("OptimizedModule", calls)}
    assert (fewer.interval, fewer.branch, fewer.kinds) == (4, 0, "")
    assert compiled.reference == FEWER and fewer.reference == "" and 0 < fewer.psnr < math.inf
    # They run the pipelines of eager and torch.compile, so nothing is known of compiling for fewer steps.
    assert made == ["eager", "compile", "stepcache-eager"]
    assert of(rows, LADDER["compile"])[0].graphs == 1 and compiled.graphs is compiled.compile_s is None


def test_fewer_steps_compile_for_themselves_where_nothing_else_does(_soon_compiled, tmp_path):
    rows = grid.run_grid(spec(variants=["eager", "compile+fewer-steps"], reuse=[(3, 0)]), tmp_path / "rows.csv")
    assert [row.status for row in rows] == ["ok", "ok"] and rows[1].graphs == 1


def test_without_counts_there_are_no_fewer_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_counts", lambda *args: {})
    rows = grid.run_grid(spec(variants=["eager", "fewer-steps"], reuse=[(3, 0)]), tmp_path / "rows.csv")
    assert rows[1].status.startswith("not available: no smaller number of steps") and rows[1].fewer is None


def test_fewer_steps_of_two_pairs_and_the_eager_beside_each(tmp_path):
    keys = ["eager", "fewer-steps", "stepcache-eager"]
    rows = grid.run_grid(spec(variants=keys, reuse=[(4, 0), (2, 0)], steps=9, repeats=1), tmp_path / "rows.csv")
    assert [(row.variant, row.interval) for row in rows if row.fewer] == [(FEWER, 4), (FEWER, 2)]
    assert rows[1].fewer < rows[3].fewer < 9
    # With one repeat, a speed-up is the ratio of the seconds shown: over the eager of the row's own cell.
    assert all(row.speedup == pytest.approx(row.eager_s / row.pipeline_s) for row in rows)
    assert rows[0].eager_s == rows[1].eager_s != rows[3].eager_s == rows[4].eager_s


def test_predict_is_for_stepcache_alone(tmp_path):
    keys = ["eager", "deepcache", "stepcache-eager"]
    held, line = (
        grid.run_grid(spec(variants=keys, reuse=[(3, 0)], steps=8, predict=predict), tmp_path / f"{predict}.csv")
        for predict in ("hold", "linear")
    )
    assert [row.predict for row in line] == ["hold", "hold", "linear"]
    assert line[1].psnr == held[1].psnr and line[2].psnr != held[2].psnr
    # DeepCache predicts nothing, so it says nothing about these images.
    assert (held[2].reference, line[2].reference) == (DEEPCACHE, "")
    assert "stepcache eager, predict=linear" in table(line)


def test_a_variant_that_fails_in_a_repeat_is_no_longer_run(tmp_path, monkeypatch):
    run, calls = cell_module.timed, []

    def failing(call, pipe, clock, steps):
        calls.append(type(pipe).__name__)
        if len(calls) == 6:  # two variants are started with two calls each
            raise MemoryError("no more")
        return run(call, pipe, clock, steps)

    monkeypatch.setattr(cell_module, "timed", failing)
    rows = grid.run_grid(spec(variants=["eager", "stepcache-eager"], reuse=[(3, 0)], repeats=3), tmp_path / "rows.csv")
    assert [row.status for row in rows] == ["ok", "out of memory, with 1 other variants held: no more"]
    assert [row.repeats for row in rows] == [3, 0] and len(calls) == 4 + 2 + 2


def test_a_cell_is_closed_though_its_rows_cannot_be_made(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(cell_module.Cell, "close", lambda self: closed.append(self))
    monkeypatch.setattr(grid, "rows_of", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        grid.run_grid(spec(variants=["eager"], repeats=1), tmp_path / "rows.csv")
    assert len(closed) == 1


def test_a_failed_variant_is_freed(monkeypatch):
    model, units = tiny_model(**WITH_MID), []
    put_on = Variant.put_on

    def remembered(self, pipe, backend):
        mine = put_on(self, pipe, backend)
        units.append(weakref.ref(mine.unet))
        mine.vae = None
        return mine

    monkeypatch.setattr(Variant, "put_on", remembered)
    request = Request(["fox face"], [0], 2, {"height": 64, "width": 64})
    one = cell_module.Cell(
        model.pipe, request, [Variant("eager")], device="cpu", backend="eager", fewer=None, deadline=None,
        progress=tqdm(disable=True),
    )  # fmt: skip
    gc.disable()
    try:
        one.measure(1)
        assert one.entries[0].status.startswith("failed") and units[0]() is None
    finally:
        gc.enable()


def test_an_interrupt_keeps_the_repeats_done(tmp_path, monkeypatch):
    run, calls = cell_module.timed, []

    def interrupted(call, pipe, clock, steps):
        calls.append(None)
        if len(calls) == 12:  # in the second repeat: three variants, two calls each and three in the first repeat
            raise KeyboardInterrupt
        return run(call, pipe, clock, steps)

    monkeypatch.setattr(cell_module, "timed", interrupted)
    rows = []
    with pytest.raises(KeyboardInterrupt):
        grid.run_grid(spec(repeats=5), tmp_path / "rows.csv", rows=rows)
    assert read(tmp_path / "rows.csv", BenchRow) == rows
    assert [row.variant for row in rows] == [EAGER, DEEPCACHE, STEPCACHE]
    assert all(row.repeats == 1 and row.status == "ok" and row.speedup for row in rows)


def test_nothing_begins_after_the_deadline(tmp_path, monkeypatch):
    rows = grid.run_grid(spec(), tmp_path / "none.csv", deadline=time.monotonic() - 1)
    assert len(rows) == 5 and {row.status for row in rows} == {"not run: out of time"}

    # The deadline passes while the second variant of the first cell starts.
    clock = iter([0.0, 0.0])
    monkeypatch.setattr(cell_module.time, "monotonic", lambda: next(clock, 2.0))
    rows = grid.run_grid(spec(repeats=3), tmp_path / "some.csv", deadline=1.0)
    assert [row.status for row in rows] == ["ok", "ok", *["not run: out of time"] * 3]
    assert [row.repeats for row in rows] == [1, 1, 0, 0, 0]


def test_images_that_are_not_finite_are_said_to_be(tmp_path, monkeypatch):
    model = tiny_model(**WITH_MID)
    decode = model.pipe.vae.decode

    def broken(*args, **kwargs):
        return tuple(torch.full_like(images, torch.nan) for images in decode(*args, **kwargs))

    monkeypatch.setattr(model.pipe.vae, "decode", broken)
    monkeypatch.setattr(grid, "load", lambda *args: model)
    rows = grid.run_grid(spec(repeats=1, reuse=[(3, 0)]), tmp_path / "rows.csv")
    for row in rows:
        assert row.status == "ok, but its images are not finite" and row.psnr is row.ssim is None
        assert row.speedup > 0


def test_what_is_named_twice_is_measured_once():
    named = spec(batches=[1, 1], reuse=[(3, 0), (3, 0)], variants=["eager", "deepcache", "eager"])
    assert list(grid._cells(named, [(64, 64)])) == [
        ((64, 64), 1, (3, 0), [Variant("eager"), Variant("deepcache", "", 3, 0)])
    ]


def test_what_the_pipeline_cannot_do_is_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(Request, "make", lambda *args, **kwargs: pytest.fail("ran"))
    with pytest.raises(BranchOutOfRange, match="branch=4"):
        grid.run_grid(spec(reuse=[(3, 4)]), tmp_path / "rows.csv")
    with pytest.raises(InvalidSetting, match="cannot do --steps 2000"):
        grid.run_grid(spec(steps=2000), tmp_path / "rows.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InvalidSetting, match="other columns"):
        grid.run_grid(spec(), tmp_path / "other.csv")
    with pytest.raises(OSError, match="directory"):
        grid.run_grid(spec(), tmp_path)
    with pytest.raises(UnsupportedPipeline, match="takes image: bench is for text-to-image pipelines"):
        monkeypatch.setattr(grid, "load", lambda *args: Model("x", tiny_pipe(StableDiffusionImg2ImgPipeline), "", ()))
        grid.run_grid(spec(), tmp_path / "rows.csv")
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n" and not (tmp_path / "rows.csv").exists()


def test_the_table_has_a_line_a_row_and_a_block_a_batch(measured):
    rows, _ = measured
    first, second, legend = table(rows).split("\n\n")
    assert first.startswith("tiny, 64x64, batch 1, 4 steps of DDIMScheduler") and "images mean nothing" in first
    assert second.startswith("tiny, 64x64, batch 2") and legend.startswith("I:B")
    lines = first.splitlines()[2:]
    assert len(lines) == len(rows) / 2
    assert " same " in lines[0] and " 1.00x " in lines[0]
    assert lines[1].startswith("DeepCache 0.1.1 ") and f"{of(rows, DEEPCACHE)[0].speedup:.2f}x" in lines[1]
    assert lines[3].split()[-4:] == ["not", "available:", "needs", "CUDA"]
    assert max(map(len, lines)) < 160


def test_headings_of_the_table_are_told_apart(measured):
    names = [name.strip() for name in COLUMNS]
    assert len(set(names)) == len(names)
    one = [replace(row, steps=1) for row in measured[0]]
    assert "batch 1, 1 step of DDIMScheduler" in table(one)


def test_a_pipeline_that_reads_attention_maps_is_the_original(tmp_path, monkeypatch):
    """Its steps are all stock, which cost what full ones do."""
    pipe = tiny_pipe(StableDiffusionSAGPipeline, unet=WITH_MID)
    monkeypatch.setattr(grid, "load", lambda *args: Model("sag", pipe, "random", ("tiger face",)))
    out = tmp_path / "rows.csv"
    rows = grid.run_grid(spec(variants=["eager", "stepcache-eager"], reuse=[(3, 0)], steps=2, repeats=1), out)
    assert [(row.status, row.flop_bound) for row in rows] == [("ok", 1.0)] * 2
    assert rows[1].psnr == math.inf and read(out, BenchRow) == rows
