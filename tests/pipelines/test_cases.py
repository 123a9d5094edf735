"""Every pipeline of the table: stock against interval=1 (bit-identical), interval=3 (as planned), and restored."""

import inspect

import diffusers
import pytest
import torch
from support.cases import CASES
from support.small import captured

from stepcache import accelerate, last_run, restore


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case):
    pipe = case.build()
    assert type(pipe).__name__ == case.pipeline
    assert not hasattr(pipe, "unet") or type(pipe.unet).__name__ == case.family
    if case.error is not None:
        with pytest.raises(case.error, match=case.pattern):
            accelerate(pipe)
        return
    before = attributes(pipe)
    same = case.output(accelerate(pipe, interval=1))
    assert last_run(pipe).kinds == case.kinds.replace("P", "F")
    cached = case.output(accelerate(pipe, interval=3, branch=1))
    assert last_run(pipe).kinds == case.kinds
    # As CUDA graphs would run it.
    replayed = case.output(captured(pipe, interval=3, branch=1))
    assert last_run(pipe).kinds == (case.captured_kinds or case.kinds)
    assert torch.equal(replayed, cached) or case.captured_kinds
    # The original comes last, so that it also shows what a restore leaves behind.
    assert attributes(restore(pipe)) == before
    want = case.output(pipe)
    assert torch.equal(same, want)
    assert cached.shape == want.shape and cached.isfinite().all()
    assert torch.equal(cached, want) != case.reuses


def attributes(pipe):
    """Class of the pipe; class and names of the attributes of its scheduler and of each module of its U-Net."""
    items = {"scheduler": pipe.scheduler, **dict(pipe.unet.named_modules())}
    own = {"sigma_data"}  # set by LCM's scheduler in its first step
    return type(pipe), {name: (type(item), set(vars(item)) - own) for name, item in items.items()}


def test_the_table_has_every_pipeline_with_a_unet():
    """A new one in diffusers is to be tried, or refused."""
    table = {case.pipeline for case in CASES}
    for name in dir(diffusers):
        if "Pipeline" in name and not name.startswith("Onnx") and name not in table:
            takes = inspect.signature(getattr(diffusers, name).__init__).parameters
            assert not {"unet", "image_unet"} & set(takes), name


def test_rows_are_told_apart():
    assert len({(case.pipeline, case.feature) for case in CASES}) == len(CASES)
    assert {case.status for case in CASES} == {"works", "refused"}
