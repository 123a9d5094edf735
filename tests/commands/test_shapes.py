import argparse

import pytest
from support.small import tiny_pipe

from stepcache import accelerate, last_run
from stepcache.commands.shapes import shapes_of, warm_up
from stepcache.errors import InvalidSetting, StepCacheError
from stepcache.images.models import Model


def model():
    return Model("mine", accelerate(tiny_pipe()), "trained", ())


def test_every_size_with_every_batch():
    args = argparse.Namespace(size=[(64, 32), (48, 48)], batch=[1, 2])
    assert shapes_of(args, model()) == [(64, 32, 1), (64, 32, 2), (48, 48, 1), (48, 48, 2)]
    args = argparse.Namespace(size=None, batch=[3])
    assert shapes_of(args, model()) == [(*model().size(), 3)]


def test_a_shape_that_the_pipeline_refuses_is_named_with_its_reason():
    """Of its own: its VAE's factor is 4, so that nobody else knows that it makes multiples of 8 only."""
    mine = model()
    with pytest.raises(StepCacheError, match=r"mine cannot make images of 60x64 px, batch 2: .* divisible by 8"):
        warm_up(mine, [(64, 64, 1), (60, 64, 2)], guidance=False)
    assert last_run(mine.pipe).kinds == ""
    with pytest.raises(InvalidSetting, match="height=63: this pipeline only makes multiples of 4"):
        warm_up(mine, [(63, 64, 1)], guidance=False)
