"""The pages leave out GPU figures of a commit whose tests failed on a GPU, and say so."""

import dataclasses

import pytest
from support.bench_rows import ladder, row

from benchmarks.gate.jobs import Outcome, write_outcomes
from benchmarks.kernels.bench import KernelRow
from benchmarks.pages import tables
from benchmarks.pages.trusted import red_commits, trusted
from stepcache.bench.rows import Rig, write

GREEN, RED = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
GPU = {"device": "cuda", "model": "sdxl"}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """`results(commit, rows, gpu)` adds rows with that rig to the folder `results.folder`."""
    here = Rig.now()

    def measured(commit, rows, gpu="NVIDIA H100", name="bench_gpu.csv"):
        rig = dataclasses.replace(here, commit=commit, gpu=gpu)
        monkeypatch.setattr(Rig, "now", classmethod(lambda cls: rig))
        write(tmp_path / name, rows, append=True)

    measured.folder = tmp_path
    return measured


def outcomes(folder, *of):
    write_outcomes(folder / "gate.csv", [Outcome(job, status, 1.0, why, commit) for job, status, why, commit in of])


def test_rows_of_a_red_commit_are_left_out_and_named(results):
    outcomes(results.folder, ("core tests", "done", "", GREEN), ("sdxl-1024-b1", "failed", "images", GREEN))
    outcomes(results.folder, ("kernel tests", "failed", "FAILED tests/kernels/a.py", RED))
    results(GREEN, [row("eager", 10.0, **GPU), row("stepcache-eager", 4.0, (3, 0), **GPU)])
    results(f"{RED}-dirty", [row("stepcache-graphs", 1.0, (3, 0), **GPU), row("deepcache", 5.0, (3, 0), **GPU)])
    for name in ("bench_headline_gpu", "bench_gpu"):
        made = tables.TABLES[name](results.folder)
        assert "10.0" in made and "4.00" in made and "2.50x" in made
        assert "CUDA graphs" not in made and "10.00x" not in made and "5.00" not in made
        assert f"Left out: 2 rows of commit {RED}, whose tests were red on a GPU** (kernel tests: FAILED" in made
        assert f"commit {GREEN}" in made and f"commit {RED}-dirty" not in made  # whose rig and command are not shown


def test_left_out_joins_are_named(results):
    outcomes(results.folder, ("kernel tests", "failed", "why", RED))
    for op in ("cat_group_norm_silu", "dual_conv1x1"):
        join = KernelRow(
            op, "sd15", 2, 2, 640, 320, 320, 64, 64, "float16", "channels_last", "triton", "ok", 1.0, 1.0, 1.0, 1.0,
            1.0, 1.0, 0.0, 0.0, "12.8", "",
        )  # fmt: skip
        results(RED, [join], name=f"bench_{op}.csv")
    first, second = tables.TABLES["kernel_measured"](results.folder).split("\n\n")
    assert first.startswith("**cat_group_norm_silu** (`bench_cat_group_norm_silu.csv`). **Left out: 1 rows")
    assert second.startswith("**dual_conv1x1** (`bench_dual_conv1x1.csv`). **Left out: 1 rows")


def test_without_a_red_test_all_rows_are_shown(results):
    outcomes(results.folder, ("core tests", "cut short", "It was ended", RED), ("sd21-512-b1", "failed", "", RED))
    results(RED, ladder(**GPU))
    assert red_commits(results.folder) == {}
    assert trusted(results.folder / "bench_gpu.csv").rows == ladder(**GPU)
    assert "Left out" not in tables.TABLES["bench_gpu"](results.folder)


@pytest.mark.parametrize("gpu", ["", "NVIDIA H100"])
def test_what_a_cpu_measured_at_that_commit_stays(results, gpu):
    outcomes(results.folder, ("core tests", "failed", "why", RED))
    results(RED, ladder(), gpu=gpu, name="bench_demo.csv")
    made = tables.TABLES["bench_demo"](results.folder)
    assert "Left out" not in made and "10.0" in made


def test_where_all_is_red_the_tables_are_a_sentence_and_there_are_no_figures(results):
    outcomes(results.folder, ("core tests", "failed", "why", RED))
    results(RED, ladder(**GPU))
    for name in ("bench_headline_gpu", "bench_gpu"):
        made = tables.TABLES[name](results.folder)
        assert made.startswith(f"**Left out: 10 rows of commit {RED}") and "|" not in made
    assert tables.FIGURES["bench_gpu_ladder"](results.folder) == []


def test_a_rung_that_was_cut_short_gives_way_to_its_whole_measurement(results):
    results(GREEN, [row("eager", 44.0, repeats=1, **GPU), row("eager", 10.0, repeats=3, **GPU)])
    made = tables.TABLES["bench_gpu"](results.folder)
    assert "10.0" in made and "44.0" not in made
