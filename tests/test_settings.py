"""Settings that no pipeline takes: each error names the value and the way out, and leaves the pipe untouched."""

import pytest
import torch
from support.small import loop_pipe, state_of

from stepcache import Schedule, StepCacheError, accelerate, last_run
from stepcache.errors import BranchOutOfRange, InvalidSetting

BAD_SETTINGS = [
    ({"interval": 0}, InvalidSetting, "interval.* got 0"),
    ({"interval": -1}, InvalidSetting, "got -1"),
    ({"interval": 2.5}, InvalidSetting, "got 2.5"),
    ({"interval": True}, InvalidSetting, "got True"),
    ({"interval": torch.tensor(2.5)}, InvalidSetting, "got a Tensor"),
    ({"interval": torch.tensor(True)}, InvalidSetting, "got a Tensor"),
    ({"branch": 4}, BranchOutOfRange, r"branch=4 is out of range.* 0 to 3"),
    ({"branch": -1}, BranchOutOfRange, r"branch=-1.*"),
    ({"branch": 1.0}, InvalidSetting, "got 1.0"),
    ({"branch": "0"}, InvalidSetting, "got '0'"),
    ({"schedule": "FPP"}, InvalidSetting, "schedule must be a stepcache.Schedule, got 'FPP'"),
    ({"schedule": Schedule.uniform(2), "interval": 3}, InvalidSetting, "schedule= and interval=3.* one or the other"),
    ({"plan": "plan.json", "interval": 3}, InvalidSetting, "plan= and interval=3.* one or the other"),
    ({"plan": "plan.json", "preset": "fast"}, InvalidSetting, "plan= and preset='fast'.* one or the other"),
    ({"max_buckets": 0}, InvalidSetting, "max_buckets .*got 0"),
]


@pytest.mark.parametrize("settings, error, message", BAD_SETTINGS, ids=lambda v: str(v) if isinstance(v, dict) else "")
@pytest.mark.parametrize("accelerated", [False, True])
def test_bad_settings_leave_the_pipe_untouched(settings, error, message, accelerated):
    pipe = loop_pipe("least")
    if accelerated:
        accelerate(pipe, interval=2)
    before = state_of(pipe)
    with pytest.raises(error, match=message) as caught:
        accelerate(pipe, **settings)
    assert isinstance(caught.value, StepCacheError)
    assert state_of(pipe) == before
    if accelerated:
        pipe(4)
        assert last_run(pipe).kinds == "FPFP"
