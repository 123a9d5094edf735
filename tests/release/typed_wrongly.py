"""A program with mistakes: mypy finds each of these lines and no other (test_types.py); it never runs."""

from stepcache.acelerate import accelerate as misspelt  # wrong

from stepcache import Schedule, accelerate, denoising, last_run, restore, warmup


class Pipeline:
    """Stands for one of diffusers."""


def wrong(pipe: Pipeline) -> None:
    accelerate(pipe, interval="3")  # wrong
    accelerate(pipe, schedule="FPP")  # wrong
    accelerate(pipe, predict=[1, 0])  # wrong
    accelerate(pipe, max_buckets=None)  # wrong
    accelerate(pipe, cache_interval=3)  # wrong
    print(accelerate(pipe).images)  # wrong
    print(restore(pipe).images)  # wrong
    print(last_run(pipe).kinds)  # wrong
    warmup(pipe, "512x512")  # wrong
    Schedule.uniform("3")  # wrong
    Schedule.explicit(5)  # wrong
    with denoising(pipe) as session:
        session.advnace()  # wrong
    misspelt(pipe)
