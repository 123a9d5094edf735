"""Packages of the graphs that a pipe has run: what `save_compiled` and `stepcache compile` make."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..errors import InvalidSetting, NothingCompiled
from ..graphs.jobs import Jobs
from ..packages.build import Told, build
from ..packages.folder import Writer
from ..packages.maker import maker_of
from ..packages.manifest import Entry
from ..pipes.unet import checked_unet
from ..pipes.vae import vae_of
from ..progress import advance, progress
from .attach import Attachment

logger = logging.getLogger("stepcache")


def save(pipe: Any, attachment: Attachment, path: Path, tell: Told) -> list[Entry]:
    """Make packages of all graphs that the pipe has run, in the folder `path`; returns their entries.

    tell: as in `build`. Raises NothingCompiled, with reasons, if there are no graphs to be made.
    """
    jobs = jobs_of(pipe, attachment)
    if not jobs.made:
        reasons = "".join(f"\n{reason}" for reason in dict.fromkeys(jobs.reasons))
        raise NothingCompiled(
            "There is nothing to save: " + (f"no package can be made.{reasons}" if reasons else "the pipe has not run.")
            + " Run warmup(pipe, height, width), or the pipe, for each size first, in eval mode and without autocast."
        )  # fmt: skip
    for reason in dict.fromkeys(jobs.reasons):
        logger.warning("There is no package for the %s.", reason)
    made = list(jobs.made.values())
    devices = {job.device for job in made}
    if len(devices) > 1:
        raise InvalidSetting(f"The pipe has run on several devices ({', '.join(sorted(devices))}): save one at a time.")
    return build(made, Writer(path, maker_of(torch.device(made[0].device))), tell)


def jobs_of(pipe: Any, attachment: Attachment) -> Jobs:
    """The packages to be made for this pipe."""
    unet, jobs = checked_unet(pipe, attachment.settings.scheduler), Jobs()
    for engine in attachment.pool.engines() if attachment.pool.is_of(unet) else ():
        engine.unet_graphs.add_jobs(unet, jobs)
        if engine.decoder is not None:
            _, decoder = vae_of(pipe)
            if engine.decoder.belongs_to(decoder):
                engine.decoder.add_jobs(decoder, jobs)
    return jobs


@contextmanager
def shown(bar: bool) -> Iterator[Told]:
    """A progress bar of packages, as what `save` tells, from its first word on."""
    with ExitStack() as open_bars:
        graphs: tqdm | None = None

        def tell(text: str, done: int, total: int) -> None:
            nonlocal graphs
            if graphs is None:
                graphs = open_bars.enter_context(progress(text, total, "packages", shown=bar))
            advance(graphs, text, done - graphs.n)

        yield tell
