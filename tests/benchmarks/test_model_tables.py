"""What a GPU measured of one model, and the ranges in which fitted numbers hold."""

import csv
from dataclasses import replace

from support.bench_rows import ladder

from benchmarks import RESULTS
from benchmarks.frontier.dampings import Row
from benchmarks.gate.jobs import Outcome, write_outcomes
from benchmarks.kernels.add_verdicts import DEFAULTS
from benchmarks.pages import model_tables, tables
from stepcache.bench.rows import Rig, read, write
from stepcache.graphs.verdict_file import add_to_file, from_csv


def lines_of(text):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return rows[2:]


def test_each_variant_of_the_model_with_its_time_and_speed_up(tmp_path):
    path = tmp_path / "bench_gpu.csv"
    write(path, [*ladder(model="sd21", device="cuda"), *ladder(model="sdxl", device="cuda", height=1024)])
    text = model_tables.gpu_table(path, "sdxl")
    assert "SDXL, 1024 x 64" in text and "SD 2.1" not in text
    lines = lines_of(text)
    assert lines[0] == ["", "eager", "10.0", "1.00x"]
    assert ["3, 0", "DeepCache 0.1.1", "4.00", "2.50x"] in lines
    assert ["3, 0", "stepcache compiled + CUDA graphs", "not available: needs CUDA", ""] in lines


def test_the_caption_names_the_models_own_runs(tmp_path):
    path = tmp_path / "bench_gpu.csv"
    write(path, [*ladder(model="sd21", device="cuda"), *ladder(model="sdxl", device="cuda")])
    header, *lines = csv.reader(path.read_text().splitlines())
    model, command = header.index("model"), header.index("command")
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [header, *([*line[:command], f"run {line[model]}", *line[command + 1 :]] for line in lines)]
        )
    text = model_tables.gpu_table(path, "sdxl")
    assert "`run sdxl`" in text and "`run sd21`" not in text


def test_rows_of_a_commit_whose_tests_failed_are_named(tmp_path, monkeypatch):
    rig = replace(Rig.now(), gpu="NVIDIA H100", commit="aaaaaaaaaaaa")
    monkeypatch.setattr(Rig, "now", classmethod(lambda cls: rig))
    write(tmp_path / "bench_gpu.csv", ladder(model="sd21", device="cuda"))
    write_outcomes(tmp_path / "gate.csv", [Outcome("core tests", "failed", 1.0, "images", rig.commit)])
    text = model_tables.gpu_table(tmp_path / "bench_gpu.csv", "sd21")
    assert text.startswith("**Left out: 10 rows of commit aaaaaaaaaaaa") and "|" not in text


def test_a_model_that_was_not_measured_has_no_table(tmp_path):
    write(tmp_path / "bench_gpu.csv", ladder(model="sd21", device="cuda"))
    assert tables.fill("<!-- table: gpu_sdxl -->\nold\n<!-- end -->", tmp_path) == (
        "<!-- table: gpu_sdxl -->\n<!-- end -->"
    )


def test_the_range_of_the_rule_is_that_of_the_rows(tmp_path):
    def row(scheduler, steps, guidance, interval):
        return Row(scheduler, steps, guidance, interval, 1.0, 1.0, 30.0, 12, 1)

    path = tmp_path / "dampings.csv"
    write(path, [row("euler", 50, 7.5, 5), row("dpm++-karras", 20, 3.0, 2), row("euler", 50, 3.0, 3)])
    assert lines_of(model_tables.auto_range_table(path)) == [
        ["Euler", "50", "3, 7.5", "3, 5"],
        ["DPM++ 2M Karras", "20", "3", "2"],
    ]


def test_every_measured_setting_is_in_the_range():
    shown = {
        (line[0], line[1], guidance, interval)
        for line in lines_of(model_tables.auto_range_table(RESULTS / "dampings.csv"))
        for guidance in line[2].split(", ")
        for interval in line[3].split(", ")
    }
    for row in read(RESULTS / "dampings.csv", Row):
        solver = model_tables.SCHEDULERS[row.scheduler]
        assert (solver, f"{row.steps}", f"{row.guidance_scale:g}", f"{row.interval}") in shown


def test_verdicts_by_what_they_were_measured_on(tmp_path, monkeypatch):
    first, *rest = from_csv(DEFAULTS.read_text())
    slower = first.__class__(first.setup._replace(gpu="Another"), first.shape, 2.0, 1.0)
    monkeypatch.setattr(model_tables, "DEFAULTS", tmp_path / "defaults.csv")
    add_to_file(tmp_path / "defaults.csv", [first, rest[0], slower])
    lines = lines_of(model_tables.verdicts_table(RESULTS))
    assert [(line[0], *line[-2:]) for line in lines] == [("Another", "1", "0"), (first.setup.gpu, "2", "2")]
