"""The public calls: checks and wiring, no tensor work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .graphs import artifacts
from .plans.plan import Plan
from .reuse.schedule import Schedule, positive_int
from .run.attach import attach, detach, require, scheduled_steps
from .run.record import RunRecord
from .run.session import Session
from .settings import Settings

Pipe = TypeVar("Pipe")


def accelerate(
    pipe: Pipe,
    interval: int = 3,
    branch: int = 0,
    *,
    schedule: Schedule | None = None,
    predict: str | float = "hold",
    guidance: str = "both",
    compile: bool | str | dict[str, Any] = "auto",
    cuda_graphs: bool | str | Callable[[], Any] = "auto",
    kernels: bool | str = "auto",
    max_buckets: int = 4,
    vae: bool = False,
    channels_last: bool | str = "auto",
    preset: str | None = None,
    plan: str | os.PathLike[str] | Plan | None = None,
    adapt: bool = False,
    compiled: str | os.PathLike[str] | None = None,
) -> Pipe:
    """Make a U-Net diffusion pipeline reuse its deep features between steps, in place; returns the same pipe.

    Important arguments:
        interval: the whole U-Net runs at steps 0, interval, 2 * interval, ...; the steps between run only its shallow
            part. Default 3; 1 gives the original's images bit for bit (fp32; on CUDA with compile=False and
            channels_last=False). More is faster and less faithful: 2 to 5 at 50 steps, 2 at 20. Few-step models (LCM,
            Turbo at 1 to 8 steps) gain little.
        branch: how much of the U-Net a partial step runs, 0 (default, least) to the number of up-path ResNets - 1
            (11 for SD 1.x and 2.x, 8 for SDXL). `stepcache inspect` prints what each costs. Same numbering as
            DeepCache's cache_branch_id.

    Further arguments:
        schedule: a `Schedule`, instead of `interval`.
        predict: what the feature is taken to be between full steps: "hold" (default), the last full step's, as in
            DeepCache; "linear", on the line through the last two full steps; a number between 0 and 1 damps that line.
            Much more faithful at 50 steps; at 20 steps, where full steps are far apart, it can be worse than "hold".
            Price: a second buffer of the feature's size, and one addition in a partial step.
        guidance: "both" (default); "reuse" runs only the conditional half of a batch with classifier-free guidance in
            partial steps, and takes the difference of the halves from the last full step(s), predicted as the feature
            is. Halves a partial step's cost and the feature's buffer; costs some fidelity, more at a high guidance
            scale. For pipelines whose batch is known to be two halves (batches.py), others raise UnsupportedPipeline.
        compile: "auto" (default) compiles on CUDA and runs eager on a CPU; True and False do so anywhere. A dict of
            torch.compile arguments (backend, mode, options) replaces the defaults. "regional" compiles the repeated
            transformer blocks once each: a short cold start, with more launches that are left to CUDA graphs.
            Price: the first call at each size compiles two graphs, each kernel once, with the configuration that
            Inductor's heuristics have first; see `warmup`, `save_compiled`. What tries more of them out on the device
            is had by name: {"mode": "default"} 1 to 6 for each kernel, as torch.compile does by itself;
            {"mode": "max-autotune"} more, and GEMMs in Triton; {"options": {"coordinate_descent_tuning": True}} some
            10 of each of more than a hundred kernels, one after the other: minutes for a size.
        cuda_graphs: "auto" (default) captures both graphs on CUDA; False does not. Price: the graphs' pool, about the
            activations of one full step a bucket. compile={"mode": "reduce-overhead"} leaves capture to torch.
        kernels: "auto" (default) joins hidden state and skip with the Triton kernels where they were measured to be
            faster than what Inductor compiles: on this very GPU by `warmup` or `stepcache tune`, or on one of its name
            by us (csrc_triton/defaults.csv). That holds for graphs that are compiled and captured; others join without.
            True joins so everywhere, False nowhere.
        max_buckets: how many sizes (of latents, batch included) keep a feature buffer; beyond it the least recently
            used one is dropped. Default 4.
        vae: True compiles and captures the VAE's decoder too, as `compile` and `cuda_graphs` say for the U-Net. Default
            False. Run eager, images are the same bit for bit. Price: one more compilation and one more CUDA graph for
            each size (with tiling, for each of up to four shapes of tile), whose pool holds a decoder's activations.
            Raises UnsupportedVAE for a VAE whose decoder is not known, and where there is none.
        channels_last: the layout of the U-Net's 4-d weights (and of the decoder's with vae=True), which are re-laid in
            place, once, and have their own strides again after `restore`. "auto" (default): on CUDA, where convolutions
            would re-lay them at each call; True: anywhere; False: nowhere. Not beside hooks that offload layers.
            Price: one copy of each such weight; sums in another order, so that images differ in their last bits (with
            interval=1, too). Other pipes on the same U-Net see the same weights; `safetensors.torch.save_file` on
            its state_dict wants them contiguous (`save_pretrained` sees to it by itself).
        preset: "faithful" (interval 2), "balanced" (interval 3) or "fast" (interval 5, guidance "reuse", half of the
            line), each with the line of `predict` from 50 steps on, held up to 20, damped between (presets.py).
        plan: a file of `stepcache calibrate`, or a `Plan`: full steps, branch, prediction and guidance that were found
            for one model, scheduler and number of steps; interval, branch, schedule, predict and guidance stay at their
            defaults beside it. Another U-Net (its config, or a sample of its weights; a LoRA that is not fused does not
            count) or scheduler raises InvalidSetting here, another number of steps at the first U-Net call of a run. A
            guidance scale other than the plan's is only warned of. Price: up to three buffers of the feature's size.
        adapt: True takes a plan for another model or scheduler as it is, and stretches its full steps to another number
            of steps, with the plan's damped line in the place of its fitted weights; a warning says so. Default False.
        compiled: a file that `save_compiled` wrote: what it holds is not compiled again. Made by another torch, device
            or Python, it is passed over with a warning. It holds pickles; load only what you trust.

    Price: one buffer a bucket, the size of the hidden state at the cut (5 MB for SD 1.5 at 512 px with guidance, fp16),
    held until `restore(pipe)`; and the images change, since reused features are not the exact ones.

    Calling it again replaces the settings. Raises StepCacheError, and leaves the pipe as it was, for a setting no
    pipeline can take (InvalidSetting), a branch that this U-Net does not have (BranchOutOfRange), an object that is no
    pipeline or has no U-Net (UnsupportedPipeline), a U-Net or block whose forward is not known (UnsupportedUNet), and
    a U-Net that another cache or torch.compile already wraps (AlreadyCached).

    Source: DeepCache (Ma, Fang, Wang; CVPR 2024, arXiv 2312.00858), section 3.
    """
    settings = Settings.check(
        interval,
        branch,
        schedule=schedule,
        compile=compile,
        cuda_graphs=cuda_graphs,
        kernels=kernels,
        max_buckets=max_buckets,
        predict=predict,
        guidance=guidance,
        vae=vae,
        channels_last=channels_last,
        preset=preset,
        plan=plan,
        adapt=adapt,
    )
    if compiled is not None:
        artifacts.load(compiled)
    attach(pipe, settings)
    return pipe


def restore(pipe: Pipe) -> Pipe:
    """Undo `accelerate`: the pipe is what it was, the buffers are freed. Harmless where there is nothing to undo."""
    detach(pipe)
    return pipe


def last_run(pipe: object) -> RunRecord | None:
    """What happened in the pipe's last run (or happens in the present one); None before the first.

    Raises NotAccelerated for a pipe that is not accelerated.
    """
    return require(pipe, "last_run()").last


def warmup(
    pipe: object,
    height: int,
    width: int,
    batch_size: int = 1,
    guidance: bool = True,
    *,
    tune: bool = True,
    progress: bool = True,
    **call: Any,
) -> RunRecord:
    """Compile and capture the graphs of one size ahead of the first request; returns the record of doing so.

    The pipe itself is called for two steps, one full and one partial, with empty prompts (and gray images, where it
    takes images), so the graphs are those that a real call will ask for. height, width: pixels of the image.
    batch_size: prompts of a call. guidance: whether calls use classifier-free guidance, which doubles the U-Net's
    batch. call: further arguments of the pipeline that change what the U-Net is given (a ControlNet's image,
    ip_adapter_image, ...). progress: a bar that says what is being measured, compiled or captured.

    tune: with kernels="auto" on a GPU, joins of this size that no verdict is known for are measured first, with the
    Triton kernels and without, compiled and captured both: two small compilations a join, and 7 joins for SDXL, 8 for
    SD 1.5. Verdicts are kept in ~/.cache/stepcache/joins.csv (STEPCACHE_CACHE names another folder), so the next
    process measures nothing. A call that was not warmed up measures nothing either, and uses what is known.

    Warm up before threads start to serve: while a graph is captured, other threads must not draw random numbers from
    CUDA's default generator, synchronise the device or empty torch's memory cache (what stepcache itself does in other
    threads waits its turn). And as requests will run: a warm-up under torch.no_grad()
    leaves nothing for calls under torch.inference_mode(), nor for autocast.

    One warm-up a size; accelerate's max_buckets must be at least their number. Raises InvalidSetting for a size that
    the pipeline cannot make or an argument that it does not take, NotAccelerated for a pipe that is not accelerated.
    """
    from .run.warmup import warm_up

    return warm_up(pipe, require(pipe, "warmup()"), height, width, batch_size, guidance, progress, tune, call)


def save_compiled(pipe: object, path: str | os.PathLike[str]) -> int:
    """Write what has been compiled to `path`, for accelerate(..., compiled=path) in the next process.

    Returns the file's size in bytes. torch keeps its artifacts by process, not by pipe: what else this process has
    compiled is in the file too. Raises NothingCompiled where there is nothing to save, NotAccelerated for a pipe that
    is not accelerated.
    """
    require(pipe, "save_compiled()")
    return artifacts.save(path)


@contextmanager
def denoising(pipe: object, steps: int | None = None) -> Iterator[Session]:
    """A hand-written denoising loop with an accelerated pipe's U-Net.

        with denoising(pipe):
            for t in pipe.scheduler.timesteps:
                noise = pipe.unet(latents, t, encoder_hidden_states=text).sample
                latents = pipe.scheduler.step(noise, t, latents).prev_sample

    One block is one run: its first step is full. Calls of `pipe.scheduler.step` count its steps; a loop that steps
    otherwise calls `advance()` of the yielded session at the end of each step. `steps` is the number of steps, for
    schedules with `last=`; default: what the scheduler is set to at the first U-Net call. Outside of the block the
    U-Net is the original one. guidance="reuse" has no effect in it: only a pipeline's own call says what its batch is
    made of. Raises NotAccelerated for a pipe that is not accelerated.
    """
    attachment = require(pipe, "denoising()")
    if steps is not None:
        steps = positive_int("steps", steps)
    with attachment.run(pipe, lambda: scheduled_steps(pipe) if steps is None else steps) as session:
        yield session
