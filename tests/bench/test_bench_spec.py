"""What a spec refuses, and the devices that it can name."""

import pytest
import torch
from support.bench_tiny import spec

from stepcache.bench import grid
from stepcache.bench import spec as bench_spec
from stepcache.errors import InvalidSetting


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": [(64, 60)]}, "multiple of 8 pixels, got 64x60"),
        ({"sizes": [(8, 64)]}, "size must be an integer of at least 16, got 8"),
        ({"batches": []}, "no batch"),
        ({"batches": [0]}, "batch must be an integer of at least 1, got 0"),
        ({"reuse": [(0, 0)]}, "interval must be an integer of at least 1, got 0"),
        ({"variants": ["eager", "magic"]}, "got eager, magic"),
        ({"modes": []}, "got none"),
        ({"steps": 0}, "steps must be"),
        ({"repeats": 0}, "repeats must be"),
        ({"scheduler": "lms"}, "got lms"),
        ({"dtype": "int8"}, "got int8"),
        ({"device": "tpu"}, "--device must be cpu, cuda, or one such as cuda:1; got tpu"),
        ({"predict": "magic"}, "magic"),
    ],
)
def test_a_spec_is_checked(changes, words):
    with pytest.raises(InvalidSetting, match=words):
        spec(**changes)


def test_one_of_several_gpus_is_made_the_current_one(monkeypatch, tmp_path):
    """Memory and time are those of the current one."""
    monkeypatch.setattr(bench_spec, "default_device", lambda: "cpu")
    with pytest.raises(InvalidSetting, match="--device is cuda:1, but torch sees no CUDA device here"):
        spec(device="cuda:1")
    monkeypatch.setattr(bench_spec, "default_device", lambda: "cuda")
    assert (spec(device="cuda:1").where, spec(device=None).where, spec().where) == ("cuda", "cuda", "cpu")
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(grid, "load", lambda *args: 1 / 0)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ZeroDivisionError):
            grid.run_grid(spec(device=device), tmp_path / "rows.csv")
    assert chosen == ["cuda:1"]
