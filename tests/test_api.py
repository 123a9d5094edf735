import inspect

import pytest
from support.small import loop_pipe

import stepcache
from stepcache import accelerate, denoising, last_run
from stepcache.errors import InvalidSetting, NotAccelerated


def test_accelerate_has_the_documented_defaults():
    parameters = inspect.signature(stepcache.accelerate).parameters
    assert list(parameters)[:3] == ["pipe", "interval", "branch"]
    assert (parameters["interval"].default, parameters["branch"].default) == (3, 0)


def test_calls_that_need_an_accelerated_pipe():
    pipe = loop_pipe("least")
    with pytest.raises(NotAccelerated, match=r"last_run.*LoopPipe"):
        last_run(pipe)
    with pytest.raises(NotAccelerated, match="denoising"), denoising(pipe):
        pass
    accelerate(pipe)
    assert last_run(pipe) is None
    with pytest.raises(InvalidSetting, match="got 0"), denoising(pipe, steps=0):
        pass
