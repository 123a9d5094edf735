"""Every pipeline of the table: stock against interval=1 (bit-identical), interval=3 (as planned), and restored."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from cases import CASES
from support.small import captured
from support.video_pipes import SHOWN

from stepcache import accelerate, last_run, restore


def run(pipe, case):
    """The first of the pipeline's outputs, as a tensor."""
    torch.manual_seed(0)  # some draw without the generator
    call = dict(case.call)
    if "generator" in inspect.signature(pipe.__call__).parameters:
        call["generator"] = torch.Generator().manual_seed(0)
    result = case.run(pipe, call) if case.run is not None else pipe(**call)
    result = result if isinstance(result, torch.Tensor) else result[0]
    return result if isinstance(result, torch.Tensor) else torch.from_numpy(np.stack([np.asarray(r) for r in result]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case):
    pipe = case.build()
    assert type(pipe).__name__ == case.pipeline
    assert not hasattr(pipe, "unet") or type(pipe.unet).__name__ == case.family
    if case.error is not None:
        with pytest.raises(case.error, match=case.pattern):
            accelerate(pipe)
        return
    want = run(pipe, case)
    before = set(vars(pipe.scheduler)), set(vars(pipe.unet))
    assert torch.equal(run(accelerate(pipe, interval=1), case), want)
    assert last_run(pipe).kinds == case.kinds.replace("P", "F")
    cached = run(accelerate(pipe, interval=3, branch=1), case)
    assert last_run(pipe).kinds == case.kinds
    assert cached.isfinite().all()
    assert torch.equal(cached, want) != case.reuses
    # As CUDA graphs would run it.
    replayed = run(captured(pipe, interval=3, branch=1), case)
    assert last_run(pipe).kinds == (case.captured_kinds or case.kinds)
    assert torch.equal(replayed, cached) or case.captured_kinds
    restore(pipe)
    assert torch.equal(run(pipe, case), want)
    assert (set(vars(pipe.scheduler)), set(vars(pipe.unet))) == before


def test_the_table_has_every_pipeline_with_a_unet():
    """A new one in diffusers is to be tried, or refused."""
    table = {case.pipeline for case in CASES} | {pipeline for pipeline, *_ in SHOWN.values()}
    for name in dir(diffusers):
        if "Pipeline" in name and name not in table:
            takes = inspect.signature(getattr(diffusers, name).__init__).parameters
            assert not {"unet", "image_unet"} & set(takes), name


def test_rows_are_told_apart():
    assert len({(case.pipeline, case.feature) for case in CASES}) == len(CASES)
    assert {case.status for case in CASES} == {"works", "refused"}
