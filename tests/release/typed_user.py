"""A user's strictly typed program. mypy checks it (test_types.py); it never runs."""

from contextlib import AbstractContextManager

from typing_extensions import assert_type

import stepcache
from stepcache import (
    DeepCacheSDHelper,
    RunRecord,
    Schedule,
    StepCacheError,
    accelerate,
    denoising,
    last_run,
    restore,
    save_compiled,
    warmup,
)
from stepcache.errors import InvalidSetting, NotCompiled
from stepcache.plans.plan import Plan
from stepcache.run.session import Session


class Pipeline:
    """Stands for one of diffusers, which has no types of its own."""

    def __call__(self, prompt: str) -> list[bytes]:
        return [prompt.encode()]


def serve(pipe: Pipeline, plan: Plan) -> bytes:
    # The pipe keeps its own type.
    assert_type(accelerate(pipe), Pipeline)
    assert_type(accelerate(pipe, 3, 0, predict=(1, -0.25), guidance="reuse", vae=True), Pipeline)
    assert_type(accelerate(pipe, schedule=Schedule.uniform(3, first=2), compile={"mode": "default"}), Pipeline)
    assert_type(accelerate(pipe, plan=plan, adapt=True, compiled="graphs", compiled_only=True), Pipeline)
    image = accelerate(pipe, preset="fast")("a red apple")[0]
    assert_type(image, bytes)

    assert_type(warmup(pipe, 512, 768, batch_size=2, negative_prompt=""), RunRecord)
    assert_type(save_compiled(pipe, "graphs"), int)
    record = last_run(pipe)
    assert_type(record, RunRecord | None)
    if record is not None:
        assert_type(record.kinds, str)
        assert_type(record.buckets, list[tuple[int, ...]])
        assert_type(record.compile_seconds, float)

    block: AbstractContextManager[Session] = denoising(pipe, steps=20)
    with block as session:
        assert_type(session, Session)
        assert_type(session.advance(), None)

    assert_type(restore(pipe), Pipeline)
    return image


def schedules() -> tuple[bool, ...]:
    assert_type(Schedule.uniform(3), Schedule)
    assert_type(Schedule.nonuniform(50, 5, center=15, power=1.4), Schedule)
    assert_type(Schedule.explicit([True, False, False]), Schedule)
    assert_type(Schedule.explicit("FPP", last=2).kinds(6), str)
    return Schedule(interval=2).mask(10)


def as_deepcache(pipe: Pipeline) -> None:
    helper = DeepCacheSDHelper(pipe=pipe)
    assert_type(helper.pipe, object)
    assert_type(helper.set_params(cache_interval=3, cache_branch_id=0), None)
    assert_type(helper.enable(), None)
    assert_type(helper.disable(), None)


def version() -> str:
    try:
        return stepcache.__version__
    except (InvalidSetting, NotCompiled) as error:
        reason: StepCacheError = error
        return str(reason)
