"""Compile and capture before the first request."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..errors import InvalidSetting
from ..graphs.progress import listener
from ..graphs.tuning import tuning_wanted
from ..pipes.modular import inputs_of, is_modular
from ..pipes.vae import pixels_per_latent
from ..reuse.schedule import Schedule
from ..values import positive_int, true_or_false
from .attach import Attachment, warm_up_schedule
from .bars import hidden_bars
from .guiders import kept_guider
from .later import dismiss
from .record import RunRecord

if TYPE_CHECKING:
    from tqdm import tqdm

_IMAGES = ("image", "mask_image")

MOST = 2**16
"""Pixels of a side, and prompts: a U-Net's hidden state for more has 40 GB and over."""


def warm_up(
    pipe: Any,
    attachment: Attachment,
    height: int,
    width: int,
    batch_size: int,
    guidance: bool,
    bar: bool,
    tune: bool,
    call: dict[str, Any],
) -> RunRecord:
    """Call the pipe for one full and one partial step, which makes the graphs of its bucket.

    tune: first measure joins that have no verdict.
    """
    true_or_false("tune", tune)
    true_or_false("progress", bar)
    arguments = _arguments(pipe, height, width, batch_size, guidance, attachment.settings.vae, call)
    from ..progress import advance, progress

    shapes = f"{height}x{width}, batch {batch_size}"
    with ExitStack() as shown:
        stages: tqdm | None = None

        def tell(text: str) -> None:
            nonlocal stages
            if stages is None:  # nothing to show where nothing is compiled, captured or measured
                stages = shown.enter_context(progress(f"warm-up at {shapes}", unit="stages", shown=bar))
            advance(stages, text)

        tokens = listener.set(tell), warm_up_schedule.set(Schedule.uniform(2)), tuning_wanted.set(tune)
        try:
            with hidden_bars(pipe), kept_guider(pipe):  # the pipeline's own bar would show the two steps
                _finish(pipe(**arguments), type(pipe).__name__)
        finally:
            listener.reset(tokens[0])
            warm_up_schedule.reset(tokens[1])
            tuning_wanted.reset(tokens[2])
        if stages is not None:
            stages.set_description_str(f"warm at {shapes}", refresh=False)  # the last line, which closing writes
    assert attachment.last is not None
    return attachment.last


def _finish(result: Any, name: str) -> None:
    """Run the loop of a call that is a generator. InvalidSetting for one that somebody must await."""
    if isinstance(result, Generator):
        for _ in result:
            pass
    elif isinstance(result, (Coroutine, AsyncGenerator)):
        if isinstance(result, Coroutine):
            dismiss(result)
        raise InvalidSetting(f"warmup() cannot await the call of a {name}: await two steps of that size yourself.")


def _arguments(
    pipe: Any, height: int, width: int, batch_size: int, guidance: bool, decode: bool, call: dict
) -> dict[str, Any]:
    """Arguments of a two-step call of that size, with blank images for arguments that take images."""
    factor = pixels_per_latent(pipe)
    height, width = (positive_int(*each, at_most=MOST) for each in (("height", height), ("width", width)))
    for name, size in (("height", height), ("width", width)):
        if size % factor:
            raise InvalidSetting(f"{name}={size}: this pipeline only makes multiples of {factor} pixels.")
    batch_size = positive_int("batch_size", batch_size, at_most=MOST)
    true_or_false("guidance", guidance, "Another scale goes with guidance_scale=...")
    modular = is_modular(pipe)
    takes: Mapping[str, Any] = inputs_of(pipe) if modular else inspect.signature(pipe.__call__).parameters
    unknown = sorted(set(call) - set(takes))
    if unknown:
        raise InvalidSetting(f"{type(pipe).__name__} takes no {', '.join(unknown)}; it takes {', '.join(takes)}.")
    import torch

    arguments: dict[str, Any] = {
        "prompt": [""] * batch_size,
        "height": height,
        "width": width,
        "num_inference_steps": 2,
        "guidance_scale": 7.5 if guidance else 1.0,
        "strength": 1.0,
        "output_type": "pt" if decode else "latent",
        # A separate generator: a warm-up must not change the user's random numbers.
        "generator": torch.Generator().manual_seed(0),
        **{name: _blank(width, height, batch_size) for name in _IMAGES if name in takes},
    }
    if "prompt_embeds" in call:
        del arguments["prompt"]
    if modular:
        # Its blocks take the images for a wish to start from them, unless they always do.
        arguments = {name: value for name, value in arguments.items() if name not in _IMAGES or takes.get(name)}
    given = {name: value for name, value in {**arguments, **call}.items() if name in takes}
    missing = [name for name, needed in takes.items() if modular and needed and name not in given]
    if missing:
        raise InvalidSetting(
            f"The blocks of this {type(pipe).__name__} need {', '.join(missing)}: give the warm-up what a request "
            f"gives, as in warmup(pipe, {height}, {width}, {missing[0]}=...)."
        )
    return given


def _blank(width: int, height: int, count: int) -> Any:
    from PIL import Image

    return [Image.new("RGB", (width, height), "gray")] * count
