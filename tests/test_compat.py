"""The helper's differences from the original, as the table in its module says. Parity: test_parity_deepcache.py."""

import inspect

import DeepCache
import pytest
import torch
from support.small import generate, loop_pipe, state_of, tiny_pipe

from stepcache import DeepCacheSDHelper, StepCacheError, last_run


@pytest.mark.parametrize("method", ["__init__", "set_params", "enable", "disable"])
def test_same_arguments_and_defaults(method):
    ours, theirs = (inspect.signature(getattr(c, method)) for c in (DeepCacheSDHelper, DeepCache.DeepCacheSDHelper))
    plain = lambda signature: [(p.name, p.default) for p in signature.parameters.values()]  # noqa: E731
    assert plain(ours) == plain(theirs)


def test_enable_and_disable():
    pipe = tiny_pipe()
    want = generate(pipe)
    before = state_of(pipe)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.disable()
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    helper.enable()
    assert not torch.equal(generate(pipe), want)
    assert last_run(pipe).kinds == "FPPFPP"
    helper.disable()
    helper.disable()
    assert state_of(pipe) == before
    assert torch.equal(generate(pipe), want)


def test_without_set_params_nothing_is_reused():
    pipe = loop_pipe("least")
    DeepCacheSDHelper(pipe).enable()
    pipe(4)
    assert last_run(pipe).kinds == "FFFF"


def test_enable_takes_the_pipe():
    helper, pipe = DeepCacheSDHelper(), loop_pipe("least")
    with pytest.raises(StepCacheError, match="There is no pipe"):
        helper.enable()
    helper.set_params(cache_interval=2)
    helper.enable(pipe)
    pipe(4)
    assert last_run(pipe).kinds == "FPFP"


@pytest.mark.parametrize(
    "params, message",
    [
        ({"skip_mode": "quad"}, "skip_mode='quad'"),
        ({"cache_interval": 0}, "got 0"),
        ({"cache_interval": 2.0}, "got 2.0"),
    ],
)
def test_bad_params(params, message):
    with pytest.raises(StepCacheError, match=message):
        DeepCacheSDHelper(loop_pipe("least")).set_params(**params)


@pytest.mark.parametrize("branch", [-1, 12])
def test_a_branch_that_is_not_there(branch):
    helper = DeepCacheSDHelper(loop_pipe("least"))
    helper.set_params(cache_interval=3, cache_branch_id=branch)
    with pytest.raises(StepCacheError, match=f"branch={branch}"):
        helper.enable()


def test_set_params_takes_effect_at_once_where_enabled():
    pipe = loop_pipe("least")
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=3)
    helper.enable()
    helper.set_params(cache_interval=2)
    pipe(4)
    assert last_run(pipe).kinds == "FPFP"


def test_a_helper_has_one_pipe():
    first, second = loop_pipe("least"), loop_pipe("least")
    helper = DeepCacheSDHelper(first)
    helper.enable()
    helper.enable(second)
    with pytest.raises(StepCacheError):
        last_run(first)
    helper.disable()
    with pytest.raises(StepCacheError):
        last_run(second)
