"""The gate's cells, each with its own grid and checks, and the summary of all figures."""

from dataclasses import replace

import pytest
import torch
from support.bench_tiny import tiny_model
from support.macs import macs_counted_once

from benchmarks.gate import cells as gate_cells
from benchmarks.gate import jobs as gate_jobs
from benchmarks.gate.jobs import Outcome
from benchmarks.gate.summary import summary
from benchmarks.kernels.bench import KernelRow
from stepcache.bench import grid
from stepcache.bench.rows import read, write
from stepcache.bench.schema import BenchRow
from stepcache.bench.variants import Variant


@pytest.fixture
def tiny(monkeypatch):
    """Cells measure a tiny pipeline instead of the demo."""
    monkeypatch.setattr(grid, "load", lambda *args: tiny_model())
    with macs_counted_once(grid):
        yield


@pytest.mark.parametrize("name", gate_cells.CELLS)
def test_every_cell_is_a_grid(name):
    cell = gate_cells.CELLS[name]
    spec = cell.spec()
    assert name.startswith(f"{cell.model}-{cell.size}-b{cell.batch}")
    assert spec.variants[0] == "eager" and set(cell.variants) <= set(spec.variants)
    assert (spec.steps, spec.guidance, spec.sizes) == (50, 7.5, ((cell.size, cell.size),))


def test_no_row_is_measured_by_two_cells():
    rows = [
        (cell.model, cell.size, cell.batch, variant, cell.more.get("reuse"), mode)
        for cell in gate_cells.CELLS.values()
        for variant in cell.variants
        for mode in cell.more.get("modes", ("",))
    ]
    assert len(set(rows)) == len(rows)


def test_a_cell_keeps_its_rows_and_says_what_is_missing(tiny, tmp_path, monkeypatch):
    what = gate_cells.GateCell(
        1, 1, "demo", 64, 1, ("stepcache-eager", "stepcache-graphs"), {"steps": 2, "repeats": 1, "device": "cpu"}
    )
    monkeypatch.setitem(gate_cells.CELLS, "mine", what)
    with pytest.raises(SystemExit, match="CUDA graphs: not available: needs CUDA"):
        gate_cells.run_cell("mine", tmp_path, seconds=100)
    rows = read(tmp_path / gate_cells.FILE, BenchRow)
    # What its variants are compared with is in its table, and so among its rows.
    assert [row.variant for row in rows[:3]] == ["eager", "DeepCache 0.1.1", "stepcache eager"]
    assert all(row.status == "ok" for row in rows[:3])
    assert rows[2].speedup > 0 and rows[2].speedup_over_deepcache > 0
    assert len(rows) == 4 and rows[3].pipeline_s is None
    with pytest.raises(SystemExit, match=r"not available: needs CUDA; eager: not run: out of time"):
        gate_cells.run_cell("mine", tmp_path, seconds=0)
    assert len(read(tmp_path / gate_cells.FILE, BenchRow)) == 5  # none for lack of time
    monkeypatch.setitem(gate_cells.CELLS, "mine", replace(what, variants=("stepcache-eager",)))
    with pytest.raises(SystemExit) as ended:
        gate_cells.run_cell("mine", tmp_path, seconds=0)
    assert ended.value.code == gate_jobs.OUT_OF_TIME
    assert len(read(tmp_path / gate_cells.FILE, BenchRow)) == 5


def test_a_cell_out_of_memory_and_one_with_wrong_images_name_the_variant(tiny, tmp_path, monkeypatch):
    put_on = Variant.put_on

    def failing(self, pipe, backend):
        mine = put_on(self, pipe, backend)
        if self.key == "eager":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        if self.key == "stepcache-eager":
            mine.unet.conv_out.bias = torch.nn.Parameter(mine.unet.conv_out.bias + 1)
        return mine

    monkeypatch.setattr(Variant, "put_on", failing)
    more = {"steps": 2, "repeats": 1, "device": "cpu"}
    variants = ("eager", "deepcache", "stepcache-eager")
    monkeypatch.setitem(gate_cells.CELLS, "mine", gate_cells.GateCell(1, 1, "demo", 64, 1, variants, more))
    with pytest.raises(SystemExit) as ended:
        gate_cells.run_cell("mine", tmp_path, seconds=100)
    assert "eager: out of memory" in ended.value.code
    assert "stepcache eager: images are wrong: " in ended.value.code
    eager, deepcache, ours = read(tmp_path / gate_cells.FILE, BenchRow)
    assert deepcache.status == "ok" and deepcache.pipeline_s > 0 and eager.pipeline_s is None
    assert ours.pipeline_s is ours.speedup is ours.psnr is None
    assert ours.reference == "DeepCache 0.1.1" and ours.difference > 0.1
    text = summary(tmp_path, [])
    assert "images are wrong" in text and "out of memory" in text


def test_the_summary_of_the_kernels(tmp_path):
    def row(join, variant, us, dtype="float16"):
        return KernelRow(
            "dual_conv1x1", "sd15", join, 2, 320, 320, 320, 64, 64, dtype, "channels_last", variant,
            "ok" if us else "wrong: error 1", us, us, us, 1.0, 1.0, 1.0, 0.0, 0.0, "13.0", "",
        )  # fmt: skip

    rows = [row(0, "triton", 6.0), row(0, "inductor", 12.0), row(0, "inductor split", 10.0), row(0, "eager", 3.0)]
    rows += [row(1, "triton", 11.0), row(1, "inductor", 10.0), row(2, "triton", 1.0)]
    rows += [row(3, "triton", None), row(3, "inductor", 1.0)]
    write(tmp_path / "bench_dual_conv1x1.csv", rows)
    text = summary(tmp_path, [Outcome("dual_conv1x1", "cut short", 40.0, "It was ended after 40 s.")])
    assert "dual_conv1x1, float16: 0.85 of Inductor's time (median), faster at 1 of 2 joins" in text
    assert "dual_conv1x1: RED, wrong or failed: triton at sd15 join 3" in text
    assert "cut short" in text
