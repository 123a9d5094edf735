"""The public calls: checks and wiring, no tensor work."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .files.reading import path_of
from .plans.plan import Plan
from .reuse.schedule import Schedule
from .run.attach import attach, detach, require, scheduled_steps
from .run.current import generator_of_caller
from .run.record import RunRecord
from .run.session import Session
from .settings import BRANCH, GUIDANCE, INTERVAL, PREDICT, Settings
from .values import positive_int, true_or_false

Pipe = TypeVar("Pipe")


def accelerate(
    pipe: Pipe,
    interval: int = INTERVAL,
    branch: int = BRANCH,
    *,
    schedule: Schedule | None = None,
    predict: str | float | tuple[float, float] = PREDICT,
    guidance: str = GUIDANCE,
    compile: bool | str | dict[str, Any] = "auto",
    cuda_graphs: bool | str | Callable[[], Any] = "auto",
    kernels: bool | str = "auto",
    max_buckets: int = 4,
    vae: bool = False,
    channels_last: bool | str = "auto",
    scheduler: str = "scheduler",
    preset: str | None = None,
    plan: str | os.PathLike[str] | Plan | None = None,
    adapt: bool = False,
    compiled: str | os.PathLike[str] | None = None,
    compiled_only: bool = False,
) -> Pipe:
    """Make a U-Net diffusion pipeline reuse its deep features between steps, in place; returns the same pipe.

    Important arguments:
        interval: the whole U-Net runs at steps 0, interval, 2 * interval, ...; the steps between run only its shallow
            part. Default 3; 1 gives the original's images bit for bit (fp32; on CUDA with compile=False and
            channels_last=False). Larger is faster and less faithful: use 2 to 5 at 50 steps, 2 at 20. Few-step models
            (LCM, Turbo at 1 to 8 steps) gain little.
        branch: how much of the U-Net a partial step runs, from 0 (default, least) to the number of up-path ResNets - 1
            (11 for SD 1.x and 2.x, 8 for SDXL). `stepcache inspect` prints the cost of each. Same numbering as
            DeepCache's cache_branch_id.

    Further arguments:
        schedule: a `Schedule`, instead of `interval`.
        predict: the feature in partial steps: "hold" (default), that of the last full step, as in DeepCache; "linear",
            on the line through the last two full steps; a number from -1 to 1 damps that line (0 holds, 1 is linear). A
            pair (mean, difference) damps apart the mean of the two halves of guidance and their difference, conditional
            minus unconditional, which guidance multiplies. "auto" chooses the pair from solver, guidance scale at the
            first step, and the distance between full steps, by a rule that was fitted to DDIM, Euler and DPM++ 2M from
            20 steps on (reuse/auto.py); other solvers take DPM++ 2M's. Price: a second buffer of the feature's size,
            and one or three additions per partial step. In batches that are not known to be two halves (other pipelines
            than those of pipes/batches.py, modular ones, `denoising` blocks), a pair and "auto" are one line, with the
            lower damping of the two, not below 0; without guidance, with that of the mean.
        guidance: "both" (default); "reuse" runs only the conditional half of a batch with classifier-free guidance in
            partial steps, and takes the difference of the halves from the last full step(s), predicted like the
            feature. Halves a partial step's cost and the feature's buffer; loses some fidelity, more at a high guidance
            scale. For pipelines whose batch is known to be two halves (batches.py), and modular ones whose guider names
            the halves; others raise UnsupportedPipeline.
        compile: "auto" (default) compiles on CUDA and runs eager on a CPU; True compiles anywhere, False nowhere. A
            dict of torch.compile arguments (backend, mode, options) replaces the defaults. "regional" compiles the
            repeated transformer blocks once each: a shorter cold start, and more launches, left to CUDA graphs.
            Price: the first call at each size compiles two graphs, each kernel once, in the first configuration of
            Inductor's heuristics; see `warmup`, `save_compiled`. To time more configurations on the device, ask for
            it: {"mode": "default"}, 1 to 6 per kernel, torch.compile's own default; {"mode": "max-autotune"}, more, and
            GEMMs in Triton; {"options": {"coordinate_descent_tuning": True}}, some 10 for each of more than a hundred
            kernels in sequence, which takes minutes per size.
        cuda_graphs: "auto" (default) captures both graphs on CUDA; False does not. Price: the graphs' pool, about the
            activations of one full step per bucket. compile={"mode": "reduce-overhead"} leaves capture to torch.
        kernels: "auto" (default) joins hidden state and skip with the Triton kernels where these were measured to be
            faster than Inductor's code: on this GPU by `warmup` or `stepcache tune`, or by us on a GPU of the same name
            (csrc_triton/defaults.csv). Measurements hold for graphs that are compiled and captured; others join without
            the kernels. True uses them in all joins, False in none.
        max_buckets: how many sizes (of latents, including the batch) keep feature buffers and captured graphs, each
            with up to 8 kinds of other inputs (prompt lengths, for example). Beyond that, the least recently used one
            is dropped; what was compiled stays. Default 4. A warning says if sizes keep coming back.
        vae: True compiles and captures the VAE's decoder too, with the same `compile` and `cuda_graphs`. Default
            False. Run eager, images are the same bit for bit. Price: one more compilation and one more CUDA graph per
            size (with tiling, for each of up to four tile shapes), whose pool holds a decoder's activations. Raises
            UnsupportedVAE if there is no VAE or its decoder is not known.
        channels_last: whether the U-Net's 4-d weights (and the decoder's with vae=True) are put into channels_last.
            They are re-laid once, in place, and `restore` puts their strides back. "auto" (default): on CUDA, where
            convolutions would re-lay them at each call; True: anywhere; False: nowhere. Not if hooks offload layers.
            Price: one copy of each such weight, and sums in another order, so images differ in their last bits (even
            with interval=1). Other pipes on the same U-Net see the same weights. `safetensors.torch.save_file` wants a
            state_dict to be contiguous (`save_pretrained` takes care of that).
        scheduler: the name of the pipe's attribute that holds its scheduler, whose `step` ends a step. Default
            "scheduler", as in diffusers. Raises UnsupportedPipeline, with the names that would do, if there is none.
        preset: "faithful" (interval 2), "balanced" (interval 3) or "fast" (interval 5, guidance "reuse"), each with
            predict="auto" (presets.py). Leave out interval, branch, schedule, predict and guidance.
        plan: a file of `stepcache calibrate`, or a `Plan`: full steps, branch, prediction and guidance found for one
            model, scheduler and number of steps. Leave out preset, and all that a preset decides. Another scheduler or
            U-Net (by its config and a sample of its weights, LoRA counted only if fused) raises InvalidSetting here;
            another number of steps raises it at a run's first U-Net call. Another guidance scale only warns. Price: up
            to three buffers of the feature's size.
        adapt: True uses a plan for another model or scheduler unchanged, and stretches its full steps to another number
            of steps, with the plan's damped line instead of its fitted weights. A warning says so. Default False.
        compiled: a folder of packages from `stepcache compile` or `save_compiled`: graphs compiled ahead of time, which
            load in milliseconds. Sizes that the folder has run from it, captured as usual; others as `compile` says.
            The weights are the U-Net's own at each call, so LoRA fused into them and another checkpoint of the same
            architecture and dtype change nothing. What changes the graph (LoRA not fused, IP-Adapter, FreeU, attention
            processors, branch, predict, guidance) must be as it was when the package was made. A warning says what does
            not fit, and why: a damaged file, another torch, diffusers, GPU, dtype or architecture. Packages are native
            code: load only what you would install. Calls under autocast and quantised weights never run from them.
        compiled_only: True refuses what `compiled` has no package for (NotCompiled), for servers that must not stall:
            here if no package can fit this pipe, and at the U-Net's call for another size or prediction. Default False.
            Calls that run eager for reasons of their own (hooks on layers, gradients) still do.

    Price: one buffer per bucket, the size of the hidden state at the cut (5 MB for SD 1.5 at 512 px with guidance,
    fp16), held until `restore(pipe)`. Images change, because reused features are not exact.

    Calling it again replaces the settings. Raises StepCacheError, and leaves the pipe as it was, for a setting no
    pipeline can take and a plan that cannot be read (InvalidSetting), a branch that this U-Net does not have
    (BranchOutOfRange), an object that is not a pipeline or has no U-Net (UnsupportedPipeline), a U-Net or block whose
    forward is not known (UnsupportedUNet), and a U-Net that another cache or torch.compile already wraps, or a pipe
    with a loop of another cache (AlreadyCached).

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
        scheduler=scheduler,
        preset=preset,
        plan=plan,
        adapt=adapt,
        compiled=compiled,
        compiled_only=compiled_only,
    )
    attach(pipe, settings)
    return pipe


def restore(pipe: Pipe) -> Pipe:
    """Undo `accelerate`: the pipe is as it was before, and the buffers are freed. Does nothing if not accelerated."""
    detach(pipe)
    return pipe


def last_run(pipe: object) -> RunRecord | None:
    """The record of the pipe's last run, or of the one in progress; None before the first.

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
    """Compile and capture the graphs of one size before the first request; returns the record of the warm-up run.

    Calls the pipe for two steps, one full and one partial, with empty prompts (and gray images if it takes images), so
    the graphs are those of a real call. height, width: of the image, in pixels. batch_size: prompts per call. guidance:
    whether calls use classifier-free guidance, which doubles the U-Net's batch. call: other arguments of the pipeline
    that change the U-Net's inputs (a ControlNet's image, ip_adapter_image, ...). progress: show a bar that names what
    is being measured, compiled or captured. A modular pipeline guides as its guider says, whatever `guidance` is, and
    starts from images only if its blocks always do or `call` gives them.

    tune: with kernels="auto" on a GPU, first measure joins of this size that have no verdict, with the Triton kernels
    and without, both compiled and captured: two small compilations per join, with 7 joins for SDXL and 8 for SD 1.5.
    Verdicts are stored in ~/.cache/stepcache/joins.csv (STEPCACHE_CACHE names another folder), so the next process
    measures nothing. Calls without a warm-up never measure; they use the verdicts there are.

    Warm up before threads start to serve: during a capture, other threads must not draw random numbers from CUDA's
    default generator, synchronise the device or empty torch's memory cache (stepcache's own work in other threads waits
    its turn). Warm up the way requests will run: a warm-up under torch.no_grad() does not serve calls under
    torch.inference_mode() or autocast.

    Warm up each size once; max_buckets of `accelerate` must be at least the number of sizes. Raises InvalidSetting for
    a size that the pipeline cannot make or that is over 65,536, an argument that it does not take or an input that its
    blocks lack, and NotAccelerated for a pipe that is not accelerated. Errors of the pipeline's own call come as they
    are.
    """
    from .run.warmup import warm_up

    return warm_up(pipe, require(pipe, "warmup()"), height, width, batch_size, guidance, progress, tune, call)


def save_compiled(pipe: object, path: str | os.PathLike[str], *, progress: bool = True) -> int:
    """Compile the graphs that the pipe has run ahead of time, for accelerate(..., compiled=path) in other processes.

    Writes an AOTInductor package for each graph (full and partial step; the VAE's decoder with vae=True) of each size
    held (`max_buckets`) to the folder `path`, with a manifest of what each is for. The packages hold no weights. What
    the folder has already is not made again; packages of another torch, stepcache or device in it are replaced. It does
    not matter whether the pipe itself runs compiled or eager. progress: show a bar.

    Returns the bytes of all those packages. Price: as long as compiling them takes, in processes of their own, as many
    side by side as cores and memory allow. It needs a C++ compiler. Raises NothingCompiled, with the
    reason, if there is nothing to save, GraphCompileError if a compiler fails, InvalidSetting if `path` is no path or
    the folder cannot be written, and NotAccelerated for a pipe that is not accelerated.
    """
    from .run.packaging import save, shown

    attachment = require(pipe, "save_compiled()")
    folder = path_of(path, "path")
    with shown(true_or_false("progress", progress)) as tell:
        return sum(entry.nbytes for entry in save(pipe, attachment, folder, tell))


@contextmanager
def denoising(pipe: object, steps: int | None = None) -> Iterator[Session]:
    """Reuse features in a hand-written denoising loop with an accelerated pipe's U-Net.

        with torch.no_grad(), denoising(pipe):
            for t in pipe.scheduler.timesteps:
                scaled = pipe.scheduler.scale_model_input(latents, t)
                noise = pipe.unet(scaled, t, encoder_hidden_states=text).sample
                latents = pipe.scheduler.step(noise, t, latents).prev_sample

    One block is one run; its first step is full, and so is the first step of each further pass over the timesteps. Each
    call of `pipe.scheduler.step` ends a step (of another attribute, if `accelerate(scheduler=...)` names one). A loop
    that steps otherwise must call `advance()` on the yielded session at the end of each step. The block may be in a
    generator, which any thread may advance, as long as the generator itself (or what it calls) calls the U-Net, and
    not a thread that it starts.

    steps: the number of steps, for schedules with `last=` (default: the scheduler's, at the first U-Net call). Outside
    the block the U-Net is the original. guidance="reuse" has no effect inside: only a pipeline's own call tells what
    its batch is made of. Raises NotAccelerated for a pipe that is not accelerated.
    """
    attachment = require(pipe, "denoising()")
    if steps is not None:
        steps = positive_int("steps", steps)
    name = attachment.settings.scheduler
    count = functools.partial(scheduled_steps, pipe, name) if steps is None else lambda: steps
    with attachment.run(pipe, count, generator=generator_of_caller()) as session:
        yield session
