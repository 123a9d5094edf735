"""`stepcache tune`: all of it on a CPU but the clock and the compiler, which are stand-ins."""

import argparse

import pytest
import torch

from stepcache.cli import main
from stepcache.commands import tune
from stepcache.commands.options import tune as options
from stepcache.graphs import tuning
from stepcache.graphs.tuning import Judge
from stepcache.graphs.verdict_file import COLUMNS, Setup
from stepcache.graphs.verdicts import Verdicts

SETUP = Setup("A card", "2.13.0", "3.9.0", "0.1.0")


class StandInTimer:
    """The ops, which come first, win where there are more than 64 pixels."""

    def __init__(self):
        self.timed = 0

    def sets(self, nbytes):
        return 2

    def times_us(self, call, inputs):
        self.timed += 1
        large = inputs[0][2].shape[2:].numel() > 64
        return [10.0 if large == (self.timed % 2 == 1) else 20.0]


@pytest.fixture
def judge(monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "_compiled", lambda join, what, options: join)
    return Judge(Verdicts(SETUP, ",".join(COLUMNS) + "\n", tmp_path), StandInTimer())


def arguments(*argv):
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    return parser.parse_args(argv)


def test_every_join_of_every_size_is_measured_once(judge, capsys):
    tune.measure(arguments("demo", "--size", "64,64x48", "--batch", "1,2", "--dtype", "float32"), "cpu", judge)
    assert {(shape.batch, shape.width) for shape in judge.seen if shape.height == 16} == {
        (2, 16), (2, 12), (4, 16), (4, 12)
    }  # fmt: skip
    assert judge.timer.timed == 2 * len(judge.seen)
    assert "join 1 of" in capsys.readouterr().err
    tune.measure(arguments("demo", "--size", "64", "--dtype", "float32"), "cpu", judge)
    assert judge.timer.timed == 2 * len(judge.seen)


def test_weight_files_of_a_variant(judge, monkeypatch):
    asked = []
    monkeypatch.setattr("stepcache.images.models.load", lambda *args: asked.append(args) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tune.measure(arguments("mine", "--variant", "fp16", "--dtype", "float32"), "cpu", judge)
    assert asked == [("mine", "cpu", torch.float32, "fp16")]


def test_settings_that_change_joins(judge):
    options = ("--predict", "linear", "--reuse-guidance", "--branch", "1", "--dtype", "float32")
    tune.measure(arguments("demo", "--size", "64", *options), "cpu", judge)
    assert any(shape.buffers == 2 and shape.batch == 1 for shape in judge.seen)
    assert sum(shape.batch == 1 for shape in judge.seen) == 2  # branch 1
    before = len(judge.seen)
    tune.measure(arguments("demo", "--size", "64", "--no-guidance", "--dtype", "float32"), "cpu", judge)
    assert len(judge.seen) > before


def test_the_table_says_who_is_faster(judge, monkeypatch):
    tune.measure(arguments("demo", "--size", "64", "--dtype", "float32"), "cpu", judge)
    head, *lines = tune.table([*judge.seen], judge.verdicts).splitlines()
    assert head.split() == ["join", "Triton", "us", "Inductor", "us", "runs", "on"]
    large, small = ([line for line in lines if f"at {n} x {n}" in line] for n in (16, 8))
    assert large and all(line.endswith(" 10.0        20.0  Triton") for line in large)
    assert small and all(line.endswith(" 20.0        10.0  Inductor") for line in small)
    unknown = next(iter(judge.seen))._replace(batch=9)
    assert tune.table([unknown], judge.verdicts).endswith("Inductor (could not be measured)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--size", "64,60"), "--size must be a multiple of 8 pixels and at least 16, got 60"),
        (("--batch", "1,0"), "--batch must be an integer of at least 1, got 0"),
    ],
)
def test_shapes_that_cannot_be_are_said_before_any_is_measured(options, words, monkeypatch, capsys):
    monkeypatch.setattr(tune, "usable_device", lambda name: pytest.fail("began"))
    assert main(["tune", "demo", *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys):
    assert main(["tune", "demo"]) == 2
    assert "--device 'cuda' cannot be used here" in capsys.readouterr().err
    assert main(["tune", "demo", "--device", "cpu"]) == 2
    assert "there is nothing to measure" in capsys.readouterr().err
