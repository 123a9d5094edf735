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


@pytest.mark.parametrize("name", ["dpm++", "euler"])
def test_karras_sigmas_of_the_scheduler_before_are_gone(name):
    """Also if one that knows none of them came between: its config keeps what it does not know."""
    from diffusers import DDIMScheduler

    pipe = argparse.Namespace(scheduler=DDIMScheduler())
    swap_scheduler(pipe, name, 10)
    wanted = pipe.scheduler.timesteps.tolist()
    for before in (["dpm++-karras"], ["dpm++-karras", "ddim"]):
        for each in (*before, name):
            swap_scheduler(pipe, each, 10)
        assert pipe.scheduler.timesteps.tolist() == wanted
