import argparse

import pytest

from stepcache.images.schedulers import SCHEDULERS, swap_scheduler


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_is_there_with_the_pipeline_s_noise(name):
    from diffusers import DDIMScheduler

    pipe = argparse.Namespace(
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    )
    swap_scheduler(pipe, name, 10)
    assert type(pipe.scheduler).__name__ == SCHEDULERS[name][0]
    assert pipe.scheduler.config.beta_end == 0.012
    assert bool(pipe.scheduler.config.get("use_karras_sigmas")) == (name == "dpm++-karras")
