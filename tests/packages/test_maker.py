"""What must be the same where a package is made and where it runs."""

import json

import pytest
import torch

from stepcache.packages import maker
from stepcache.packages.maker import maker_of, unusable

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_here_fits_here():
    made = json.loads(json.dumps(maker_of(CPU)))
    assert unusable(made, CPU) == ""
    assert unusable({**made, "python": "3.0", "triton": "1.0"}, CPU) == ""  # not in a CPU's package


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"torch": "1.0"}, "made with torch 1.0, this is"),
        ({"stepcache": "0.0"}, "stepcache 0.0"),
        ({"diffusers": None}, "diffusers None"),
        ({"code": "other"}, "other code of stepcache"),
        ({"device": {"type": "cuda", "name": "A card", "capability": [9, 0]}}, "made for cuda A card"),
        ({"device": {"type": "cpu", "machine": "riscv", "features": []}}, "cpu riscv"),
        ({"device": {"type": "cpu", "machine": maker_of(CPU)["device"]["machine"], "features": ["amx9"]}}, "amx9"),
        ({"device": "a CPU"}, "made for a CPU"),
        ({"device": None}, "made for None"),
    ],
)
def test_elsewhere_does_not(changes, word):
    assert word in unusable({**maker_of(CPU), **changes}, CPU)


def test_a_cpu_with_more_features_will_do():
    made = maker_of(CPU)
    made["device"] = {**made["device"], "features": made["device"]["features"][:3]}
    assert unusable(made, CPU) == ""


def test_another_gpu_and_another_triton_do_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    made = maker_of(CUDA)
    assert made["device"] == {"type": "cuda", "name": "A card", "capability": [9, 0]}
    assert unusable(json.loads(json.dumps(made)), CUDA) == ""
    assert "triton 1.0" in unusable({**made, "triton": "1.0"}, CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another")
    assert "made for cuda A card [9, 0], this is cuda Another [9, 0]" in unusable(made, CUDA)
    assert "the model is on cpu" in unusable(made, CPU)


def test_the_code_is_that_of_the_graphs(monkeypatch, tmp_path):
    here = maker._code()
    real = maker.find_spec
    monkeypatch.setattr(maker, "find_spec", lambda name: None if name == "stepcache.kernels" else real(name))
    maker._code.cache_clear()
    try:
        assert maker._code() != here
    finally:
        monkeypatch.undo()
        maker._code.cache_clear()
    assert maker._code() == here
