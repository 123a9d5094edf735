"""`stepcache bench`: its options, its output, and what it says where it cannot run. The grid: tests/bench."""

import csv
import json
from dataclasses import fields

import pytest
import torch
from support.commands import run_command
from support.macs import macs_counted_once

from stepcache import cli
from stepcache.bench import grid
from stepcache.bench.rows import Rig, read, write
from stepcache.bench.schema import BenchRow
from stepcache.bench.spec import LADDER, GridSpec
from stepcache.images.models import ARCHITECTURES


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A run on the demo: (status, stdout, stderr, CSV)."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch, macs_counted_once(grid):
        patch.chdir(folder)
        arguments = ["--variants", "eager,stepcache-eager,stepcache-graphs", "--reuse", "2:1", "--batch", "1,2"]
        result = run_command("bench", "demo", "--device", "cpu", "--steps", 2, "--repeats", 1, *arguments)
    return *result, folder / "stepcache-bench.csv"


def test_rows_and_table(small_run):
    status, output, _, path = small_run
    assert status == 0
    rows = read(path, BenchRow)
    assert [(row.batch, row.variant) for row in rows] == [
        (batch, LADDER[key]) for batch in (1, 2) for key in ("eager", "stepcache-eager", "stepcache-graphs")
    ]
    assert all(row.model == "demo" and row.weights == "trained" and row.height == 64 for row in rows)
    assert [row.kinds for row in rows[:2]] == ["", "FP"]
    assert "demo, 64x64, batch 2, 2 steps of DDIMScheduler, guidance 7.5, float32 on cpu" in output
    assert output.endswith("\n\nRows: stepcache-bench.csv\n")


def test_progress_is_shown_and_libraries_are_not_heard(small_run):
    _, output, errors, _ = small_run
    assert " 0% 0/18 runs [" in errors and "100% 18/18 runs [" in errors and "\r" not in errors
    assert "; 64x64, batch 2\n" in errors and 5 < errors.count("\n") < 14
    for noise in ("torchvision", "Loading", "Warning", "deprecated"):
        assert noise not in errors + output


def documented(*arguments):
    """(status, document, errors) of a small run with --json."""
    options = ["--device", "cpu", "--steps", "2", "--repeats", "1", "--reuse", "2:1", "--json"]
    status, output, errors = run_command("bench", "demo", *options, *arguments)
    return status, json.loads(output, parse_constant=pytest.fail), errors


def test_the_document_has_the_rows_of_the_csv(tmp_path):
    path = tmp_path / "rows.csv"
    keys = "eager,stepcache-eager,stepcache-graphs"
    status, document, errors = documented("--variants", keys, "--out", path)
    assert status == 0 and "100% 9/9 runs" in errors and "\r" not in errors
    assert list(document) == ["rows", "csv", "rig"] and document["csv"] == str(path)
    assert set(document["rig"]) == {field.name for field in fields(Rig)}
    assert document["rig"]["command"].startswith("stepcache bench demo --device cpu")
    assert {rig.command for rig in read(path, Rig)} == {document["rig"]["command"]}
    columns = [field.name for field in fields(BenchRow)]
    assert set(document["rows"][0]) == {*columns, "psnr_db", "identical", "height_px", "width_px"} - {
        "psnr", "height", "width"
    }  # fmt: skip
    rows = read(path, BenchRow)
    assert [row["variant"] for row in document["rows"]] == [row.variant for row in rows] == [*names(keys)]
    for found, row in zip(document["rows"], rows, strict=True):
        assert (found["height_px"], found["width_px"]) == (row.height, row.width)
        same = set(found) & set(columns)
        assert {name: found[name] for name in same} == {name: getattr(row, name) for name in same}
    eager, reused, missing = document["rows"]
    assert (eager["psnr_db"], eager["identical"]) == (None, True)
    assert reused["psnr_db"] == rows[1].psnr > 0 and reused["identical"] is False
    assert missing["status"] == "not available: needs CUDA"
    assert {missing[name] for name in ("pipeline_s", "speedup", "psnr_db", "identical")} == {None}


def names(keys):
    return [LADDER[key] for key in keys.split(",")]


def test_a_bench_that_measured_nothing_fails(tmp_path):
    """After its rows, with the reasons, are written and printed."""
    options = ("--variants", "stepcache-graphs", "--out", tmp_path / "rows.csv")
    status, document, errors = documented(*options)
    assert status == 2 and [row["status"] for row in document["rows"]] == ["not available: needs CUDA"]
    assert errors.endswith("\nstepcache: No variant was measured. The status of each says why.\n")
    status, output, _ = run_command("bench", "demo", "--device", "cpu", *options)
    assert status == 2 and "needs CUDA" in output and output.endswith(f"Rows: {options[-1]}\n")
    assert len(read(options[-1], BenchRow)) == 4


def parsed(*arguments):
    asked = cli._parser("bench").parse_args(["bench", "demo", *arguments])
    return {name: value for name, value in vars(asked).items() if name not in ("command", "pipeline", "json")}


def test_options_are_the_specs_fields():
    defaults = parsed()
    spec = GridSpec(**{NAMES.get(name, name): value for name, value in defaults.items() if name != "out"})
    assert spec == GridSpec()
    assert parsed("--size", "512,768x1024")["size"] == [(512, 512), (768, 1024)]
    assert parsed("--reuse", "3:0,5:1")["reuse"] == [(3, 0), (5, 1)]
    assert parsed("--modes", "default,max-autotune")["modes"] == ["default", "max-autotune"]


NAMES = {"size": "sizes", "batch": "batches"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "12y"], "must be sizes such as 512 or 768x512 (height x width); got '12y'"),
        (["--size", "1x2x3"], "got '1x2x3'"),
        (["--reuse", "3"], "must be interval:branch such as 3:0; got '3'"),
        (["--reuse", "3:-1"], "got '3:-1'"),
        (["--batch", "1,"], "must be integers with commas between, such as 2,3,5; got '1,'"),
        (["--scheduler", "nonsense"], "nonsense"),
    ],
)
def test_arguments_that_do_not_parse(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["bench", "demo", *arguments])
    assert exit.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "60"], "--size must be a multiple of 8 pixels, got 60x60"),
        (["--reuse", "0:0"], "interval must be an integer of at least 1, got 0"),
        (["--reuse", "3:12"], "branch=12 is out of range"),
        (["--variants", "eager,magic"], "--variants must be among eager, fewer-steps"),
        (["--modes", "fast"], "--modes must be among default"),
        (["--steps", "2000"], "DDIMScheduler cannot do --steps 2000"),
        (["--repeats", "0"], "--repeats must be an integer of at least 1, got 0"),
        (["--device", "cuda:99"], "--device 'cuda:99' cannot be used here"),
        (["--device", "meta"], "--device must be cpu, cuda, or one such as cuda:1; got meta"),
        (["--guidance", "nan"], "--guidance must be a finite number, got nan"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--out", "."], "Is a directory"),
        (["--out", "new/sub/rows.csv", "--reuse", "3:99"], "new/sub/rows.csv: No such file or directory"),
    ],
)
def test_bad_arguments_are_said_before_anything_is_generated(arguments, words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grid.Request, "make", lambda *args, **kwargs: pytest.fail("generated an image"))
    assert cli.main(["bench", "demo", *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("stepcache: ") and words in errors
    assert not list(tmp_path.iterdir())


def test_no_model_of_that_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "no/such/model"]) == 2
    errors = capsys.readouterr().err
    assert "nothing is downloaded" in errors and all(name in errors for name in ARCHITECTURES)


def test_weight_files_of_a_variant(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(grid, "load", lambda *args: asked.append(args) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["bench", "mine", "--variant", "fp16", "--device", "cpu", "--out", str(tmp_path / "x.csv")])
    assert asked == [("mine", "cpu", torch.float32, "fp16")]


@pytest.fixture
def done(small_run, monkeypatch):
    """The rows that are done when the grid is interrupted."""
    done = read(small_run[-1], BenchRow)[:1]

    def run_grid(spec, out, rows):
        write(out, done, append=True)
        rows += done
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "run_grid", run_grid)
    return done


def test_an_interrupt_prints_the_rows_done_and_says_where_they_are(done, tmp_path, capsys):
    out = str(tmp_path / "rows.csv")
    assert cli.main(["bench", "demo", "--out", out]) == 130
    output, errors = capsys.readouterr()
    assert errors == f"stepcache: interrupted; the rows done are in {out}\n" and output.endswith(f"Rows: {out}\n")
    done.clear()
    assert cli.main(["bench", "demo", "--out", out]) == 130
    assert capsys.readouterr() == ("", "stepcache: interrupted; no row was done\n")
    with open(out, newline="") as file:
        assert len(list(csv.DictReader(file))) == 1


def test_an_interrupt_leaves_one_document(done, tmp_path, capsys):
    for count in (1, 0):
        assert cli.main(["bench", "demo", "--json", "--out", str(tmp_path / "rows.csv")]) == 130
        document = json.loads(capsys.readouterr().out)
        assert len(document["rows"]) == count and document["csv"] == str(tmp_path / "rows.csv")
        done.clear()
